"""`UnifiedProcessor`: messages -> ids, and ids -> text and image parts.

An input image (user, system or tool turn) is `boi, h_K*w_K x image_pad, eoi`; an output image (assistant turn) is
`boi, L image ids, eoi`. Only the chat template may insert special tokens: text of a message is always ordinary text.
Legend: B batch, T sequence, N images, L codes of one image, H W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, cast

import torch
from transformers import AutoProcessor, PreTrainedTokenizerBase

from unified.files.images import Fit
from unified.image_tokenizer.scales import normalize_patch_nums
from unified.models.chat_inputs import ChatInputs, Codes, EncodedChat, with_tools
from unified.models.chat_templates import default_template, text_runs
from unified.models.chat_tokenization import ChatTokenizer
from unified.models.configuration import UnifiedConfig
from unified.models.generated_outputs import GeneratedOutputs
from unified.models.image_processing import UnifiedImageProcessor
from unified.models.messages import SYSTEM_PROMPT, Message, is_output, is_trained, with_system_prompt
from unified.models.remote_code import AUTO_MAP, write_module
from unified.models.template_mending import mend
from unified.models.template_probe import supports_system_prompt
from unified.models.vocabulary import SPECIAL_TOKENS, Vocabulary

IGNORE_INDEX = -100  # the label that the loss skips


class UnifiedProcessor(GeneratedOutputs, ChatInputs):
    """Tokenizer, chat template and image geometry: converts chats to ids and ids to parts.

    Args:
        tokenizer: the backbone's, with the three special tokens that `unified extend` adds.
        boi_token_id, eoi_token_id, image_pad_token_id, image_token_offset, codebook_size: see `Vocabulary`.
        patch_nums, image_size: see `VQConfig`. image_order: see `UnifiedConfig`.
        system_prompt: prepended to conversations without one; None if the chat template does not support it (Gemma's).
        chat_template: jinja template; the tokenizer's by default.
        fit: how pictures become square, see `UnifiedImageProcessor`; `set_fit` changes it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        boi_token_id: int,
        eoi_token_id: int,
        image_pad_token_id: int,
        image_token_offset: int,
        codebook_size: int,
        patch_nums: Sequence[int | Sequence[int]],
        image_size: int,
        image_order: str = "scales",
        system_prompt: str | None = SYSTEM_PROMPT,
        chat_template: str | None = None,
        fit: Fit = "crop",
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or default_template(tokenizer))
        self.boi_token_id, self.eoi_token_id, self.image_pad_token_id = boi_token_id, eoi_token_id, image_pad_token_id
        self.image_token_offset, self.codebook_size = image_token_offset, codebook_size
        self._vocabulary = Vocabulary(
            image_token_offset, codebook_size, boi_token_id, eoi_token_id, image_pad_token_id
        )
        self.patch_nums = normalize_patch_nums(patch_nums)
        self.image_size, self.image_order, self.system_prompt = image_size, image_order, system_prompt
        self.set_fit(fit)
        self._special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._forced_ids = {eoi_token_id} if image_order == "scales" else set()  # no state is left to predict it
        self._chat_tokenizer = ChatTokenizer(tokenizer)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}  # HF saves it

    def set_fit(self, fit: Fit) -> None:
        """Have pictures become square as those that the model was trained on; ValueError for a `fit` that is none."""
        self.image_processor = UnifiedImageProcessor(self.image_size, fit)
        self.fit = fit

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As HF's, with the files by which `AutoProcessor` and `AutoImageProcessor` find this package."""
        self.image_processor.save_pretrained(save_directory)
        write_module(save_directory)  # before what is written is pushed
        saved: list[str] = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        return saved

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Nothing, as `UnifiedPreTrainedModel`'s."""

    @classmethod
    def from_config(cls, tokenizer: PreTrainedTokenizerBase, config: UnifiedConfig) -> "UnifiedProcessor":
        """Processor of a model's `config`, with the chat template mended.

        Raises ValueError unless `tokenizer` is the one that the model was extended with, and as `mend`.
        """
        expected = [config.boi_token_id, config.eoi_token_id, config.image_pad_token_id]
        special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        found = [special.get(token) for token in SPECIAL_TOKENS]
        if found != expected or len(tokenizer) > config.image_token_offset:
            raise ValueError(
                f"the tokenizer ({len(tokenizer)} tokens) lacks {SPECIAL_TOKENS} as special ids {expected} below "
                f"image_token_offset {config.image_token_offset}; make the checkpoint with `unified extend`"
            )
        template, _ = mend(tokenizer)
        tokenizer.chat_template = template
        return cls(
            tokenizer,
            **asdict(config.vocabulary),
            patch_nums=config.patch_nums,
            image_size=config.vq_config.image_size,
            image_order=config.image_order,
            system_prompt=SYSTEM_PROMPT if supports_system_prompt(tokenizer, template) else None,
        )

    @property
    def pad_token_id(self) -> int:
        """Padding id: the tokenizer's pad token, else its EOS token, else the token that ends an answer."""
        for known in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, self.end_token_id):
            if known is not None:
                return known
        raise ValueError("the tokenizer has neither a pad nor an eos token, and its chat template no end; name one")

    @property
    def _template(self) -> str:
        return cast(str, self.chat_template)

    @property
    def end_token_id(self) -> int | None:
        """Last of the special tokens that the chat template writes behind an answer, at which generation stops."""
        return next(reversed(self._chat_tokenizer.end_ids(self._template)), None)

    def encode_chat(self, messages: Sequence[Message], codes: Sequence[Codes] = (), tools: Any = None) -> EncodedChat:
        """Encode a whole conversation for training.

        Args:
            messages: `{"role", "content"}` dicts; without a system message `system_prompt` is prepended. An answer
                may have `tool_calls`, a tool's turn a `tool_call_id`, each a `name`; an answer with `weight` 0 has no
                labels.
            codes: L codes for every image part, in order of appearance.
            tools: the functions that the model may call, as Hugging Face's chats have them, or that as JSON.

        Labels cover the assistant's content, in scale order without image ends, and the token that ends its turn.
        Raises ValueError when the number of images or the number of an image's codes does not match, and for tools,
        calls and names that the chat template does not write.
        """
        return self.encode(messages, list(codes), add_generation_prompt=False, **with_tools(tools))

    def prompt_ids(self, messages: Sequence[Message], codes: Sequence[Codes] = (), tools: Any = None) -> list[int]:
        """Ids of a conversation with the generation prompt; `codes` and `tools` as for `encode_chat`."""
        return self.encode(messages, list(codes), add_generation_prompt=True, **with_tools(tools)).input_ids

    def unconditional_ids(self) -> list[int]:
        """Prompt for unconditional images, a user turn with empty text: for guidance and caption dropout."""
        return self.prompt_ids([{"role": "user", "content": ""}])

    def encode(
        self,
        messages: Sequence[Message],
        codes: list[Codes | None],
        add_generation_prompt: bool,
        template: str | None = None,
        **options: Any,
    ) -> EncodedChat:
        """Ids and labels of one conversation by a chat `template`, the processor's by default."""
        messages = with_system_prompt(messages, self.system_prompt)
        runs = [text_runs(message) for message in messages]
        contents = [(is_output(message), run) for message, own in zip(messages, runs, strict=True) for run in own]
        segments = self._chat_tokenizer.segments(
            template or self._template, messages, runs, add_generation_prompt, **options
        )
        rows = self._chat_tokenizer.encode(segments, [run for _, run in contents])
        chat = EncodedChat([], [])
        outputs = [output for output, run in contents if run is None]
        if len(outputs) != len(codes):
            raise ValueError(
                f"{len(outputs)} image parts in the messages but codes for {len(codes)}; pass one list per part"
            )
        images = iter([self._image_ids(*image, chat.input_image_codes) for image in zip(outputs, codes, strict=True)])
        turns = zip(messages, runs, strict=True)
        weighted = iter([m for m, own in turns if is_output(m) and (m.get("tool_calls") or own)])
        for segment, row in zip(segments, rows, strict=True):
            answer = trained = segment.answer_length(row)
            if segment.answered and not is_trained(next(weighted)):
                trained = 0
            content = segment.content_length(row)
            for start, stop in ((0, content), (content, answer), (answer, len(row))):
                ids = self._with_images(row[start:stop], images)
                chat.input_ids += ids
                skipped = [IGNORE_INDEX] * len(ids)
                chat.labels += (
                    skipped if stop > trained else [IGNORE_INDEX if i in self._forced_ids else i for i in ids]
                )
                chat.answered += [int(stop <= answer)] * len(ids)
                if 0 < stop == content:
                    chat.content_end = len(chat.input_ids)
        return chat

    def _with_images(self, row: list[int], images: Iterator[list[int]]) -> list[int]:
        """`row` with the ids of the next of `images` in place of every placeholder."""
        if self.image_pad_token_id not in row:
            return row
        return [i for token in row for i in (next(images) if token == self.image_pad_token_id else (token,))]

    def _image_ids(self, is_output_image: bool, codes: Codes | None, input_image_codes: list[list[int]]) -> list[int]:
        """Ids between image start and end; codes of an input image are appended to `input_image_codes`."""
        h, w = self.patch_nums[-1]
        inner = [self.image_pad_token_id] * (h * w)
        if codes is not None:
            self._check_length(len(codes))
            codes = torch.as_tensor(codes, dtype=torch.long)
            ids = self.vocabulary.codes_to_ids(codes).tolist()
            if is_output_image:
                inner = ids
            else:
                input_image_codes.append(codes.tolist())
        return inner


AutoProcessor.register(UnifiedConfig, UnifiedProcessor)
