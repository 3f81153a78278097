"""`UnifiedProcessor`: messages -> ids, and ids -> text and image parts.

An input image (user, system or tool turn) is `boi, h_K*w_K x image_pad, eoi`; an output image (assistant turn) is
`boi, L image ids, eoi`. Only the chat template may insert special tokens: text of a message is always ordinary text.
Legend: B batch, T sequence, N images, L codes of one image, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from unified.files.images import image_to_pixels
from unified.image_tokenizer.scales import image_length, normalize_patch_nums
from unified.models.chat_templates import check_written, default_template, render_pieces, text_runs
from unified.models.chat_tokenization import ChatTokenizer, interleave
from unified.models.configuration import UnifiedConfig
from unified.models.generated_outputs import GeneratedOutputs
from unified.models.messages import SYSTEM_PROMPT, Message, count_images, is_output, is_trained, with_system_prompt
from unified.models.remote_code import AUTO_MAP, write_module
from unified.models.template_mending import mend
from unified.models.template_probe import supports_system_prompt
from unified.models.tools import read_tools
from unified.models.vocabulary import SPECIAL_TOKENS, Vocabulary

IGNORE_INDEX = -100  # the label that the loss skips

Codes = Sequence[int] | Tensor


@dataclass
class EncodedChat:
    """One conversation: `input_ids` and `labels` of equal length, and the codes of its input images in order."""

    input_ids: list[int]
    labels: list[int]
    input_image_codes: list[list[int]] = field(default_factory=list)


class UnifiedProcessor(GeneratedOutputs, ProcessorMixin):
    """Tokenizer, chat template and image geometry: converts chats to ids and ids to parts.

    Args:
        tokenizer: the backbone's, with the three special tokens that `unified extend` adds.
        boi_token_id, eoi_token_id, image_pad_token_id, image_token_offset, codebook_size: see `Vocabulary`.
        patch_nums, image_size: see `VQConfig`. image_order: see `UnifiedConfig`.
        system_prompt: prepended to conversations without one; None if the chat template does not support it (Gemma's).
        chat_template: jinja template; the tokenizer's by default.
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
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or default_template(tokenizer))
        self.boi_token_id, self.eoi_token_id, self.image_pad_token_id = boi_token_id, eoi_token_id, image_pad_token_id
        self.image_token_offset, self.codebook_size = image_token_offset, codebook_size
        self._vocabulary = Vocabulary(
            image_token_offset, codebook_size, boi_token_id, eoi_token_id, image_pad_token_id
        )
        self.patch_nums = normalize_patch_nums(patch_nums)
        self.image_size, self.image_order, self.system_prompt = image_size, image_order, system_prompt
        self._special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._forced_ids = {eoi_token_id} if image_order == "scales" else set()  # no state is left to predict it
        self._chat_tokenizer = ChatTokenizer(tokenizer)
        self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}  # HF saves it

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As HF's, with the remote-code module through which `AutoProcessor` finds this package."""
        saved: list[str] = super().save_pretrained(save_directory, push_to_hub, **kwargs)
        write_module(save_directory)
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
    def vocabulary(self) -> Vocabulary:
        """The mapping between codes and ids."""
        return self._vocabulary

    @property
    def image_length(self) -> int:
        """Number of codes of one image, L."""
        return image_length(self.patch_nums)

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
        return self._encode(messages, list(codes), add_generation_prompt=False, **with_tools(tools))

    def prompt_ids(self, messages: Sequence[Message], codes: Sequence[Codes] = (), tools: Any = None) -> list[int]:
        """Ids of a conversation with the generation prompt; `codes` and `tools` as for `encode_chat`."""
        return self._encode(messages, list(codes), add_generation_prompt=True, **with_tools(tools)).input_ids

    def unconditional_ids(self) -> list[int]:
        """Prompt for unconditional images, a user turn with empty text: for guidance and caption dropout."""
        return self.prompt_ids([{"role": "user", "content": ""}])

    def apply_chat_template(  # type: ignore[override]  # images are passed as codes
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        codes: Sequence[Codes] | None = None,
        images: Sequence[Image.Image] | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
        enable_thinking: bool = False,
        tools: Any = None,
    ) -> BatchFeature | Tensor | str | list[str]:
        """Encode one conversation or a list of them for generation, padded on the left.

        Args:
            codes: L codes for every image part of all conversations, in order of appearance.
            images: the input images as PIL images; then `codes` holds those of the output images only.
            tokenize: False returns the rendered text, with images as `boi image_pad eoi`, for inspection.
            enable_thinking: let a reasoning model think before it answers in text; it was not trained so here.
            tools: as for `encode_chat`; of all conversations.

        Returns `input_ids`, `attention_mask` (B, T) and, with input images, `image_codes` (N, L) or `pixel_values`
        (N, 3, H, W). Raises ValueError as `encode_chat` does.
        """
        options: dict[str, Any] = {"enable_thinking": True} if enable_thinking else {}
        options |= with_tools(tools)
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = cast(list[Sequence[Message]], list(conversation) if batched else [conversation])
        if not tokenize:
            texts = [self._render_text(chat, add_generation_prompt, **options) for chat in chats]
            return texts if batched else texts[0]
        if return_tensors != "pt":
            raise ValueError(f"return_tensors {return_tensors!r} is not supported; use 'pt'")
        pending = iter(self._codes_of_parts(chats, codes, images))
        encoded = []
        for chat in chats:
            chat_codes = [next(pending) for _ in range(count_images(chat))]
            encoded.append(self._encode(chat, chat_codes, add_generation_prompt, **options))
        features = self._pad_left([chat.input_ids for chat in encoded])
        input_image_codes = [image for chat in encoded for image in chat.input_image_codes]
        if images:
            features["pixel_values"] = torch.stack([image_to_pixels(image, self.image_size) for image in images])
        elif input_image_codes:
            features["image_codes"] = torch.tensor(input_image_codes)
        return BatchFeature(features) if return_dict else features["input_ids"]

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | list[str] | None = None,
        split_special_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize plain `text` (without special tokens by default) and resize `images`; see `apply_chat_template`."""
        if text is None and images is None:
            raise ValueError("neither text nor images given; pass at least one")
        data: dict[str, Any] = {}
        if text is not None:
            data.update(self.tokenizer(text, split_special_tokens=split_special_tokens, **kwargs))
        if images is not None:
            images = [images] if isinstance(images, Image.Image) else images
            data["pixel_values"] = torch.stack([image_to_pixels(image, self.image_size) for image in images])
        return BatchFeature(data)

    def _encode(
        self, messages: Sequence[Message], codes: list[Codes | None], add_generation_prompt: bool, **options: Any
    ) -> EncodedChat:
        messages = with_system_prompt(messages, self.system_prompt)
        contents = [(is_output(message), run) for message in messages for run in text_runs(message)]
        segments = self._chat_tokenizer.segments(self._template, messages, add_generation_prompt, **options)
        rows = self._chat_tokenizer.encode(segments, [run for _, run in contents])
        chat = EncodedChat([], [])
        outputs = [output for output, run in contents if run is None]
        if len(outputs) != len(codes):
            raise ValueError(
                f"{len(outputs)} image parts in the messages but codes for {len(codes)}; pass one list per part"
            )
        images = iter([self._image_ids(*image, chat.input_image_codes) for image in zip(outputs, codes, strict=True)])
        weighted = iter([m for m in messages if is_output(m) and (m.get("tool_calls") or text_runs(m))])
        for segment, row in zip(segments, rows, strict=True):
            trained = segment.answer_length(row)
            if segment.answered and not is_trained(next(weighted)):
                trained = 0
            for place, token in enumerate(row):
                ids = next(images) if token == self.image_pad_token_id else [token]
                chat.input_ids += ids
                chat.labels += [i if place < trained and i not in self._forced_ids else IGNORE_INDEX for i in ids]
        return chat

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

    def _codes_of_parts(
        self, chats: list[Sequence[Message]], codes: Sequence[Codes] | None, images: Sequence[Image.Image] | None
    ) -> list[Codes | None]:
        """Codes of every image part of all chats; None for those in `images`."""
        given = [] if codes is None else list(codes)
        outputs = [is_output(message) for chat in chats for message in chat for _ in range(count_images([message]))]
        as_codes = [images is None or output for output in outputs]
        if images is not None and len(images) != as_codes.count(False):
            raise ValueError(f"{len(images)} images for {as_codes.count(False)} input image parts; pass one per part")
        if len(given) != sum(as_codes):
            raise ValueError(f"codes of {len(given)} images for {sum(as_codes)} image parts; pass one list per part")
        pending = iter(given)
        return [next(pending) if has_codes else None for has_codes in as_codes]

    def _render_text(self, messages: Sequence[Message], add_generation_prompt: bool, **options: Any) -> str:
        messages = with_system_prompt(messages, self.system_prompt)
        check_written(self.tokenizer, self._template, messages, add_generation_prompt, **options)
        pieces = render_pieces(self.tokenizer, self._template, messages, add_generation_prompt, **options)
        return interleave(pieces, [run for message in messages for run in text_runs(message)])

    def _pad_left(self, rows: list[list[int]]) -> dict[str, Tensor]:
        width = max(map(len, rows))
        padded = [[self.pad_token_id] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def with_tools(tools: Any) -> dict[str, Any]:
    """Variables of the template for `tools`; none without any. Raises ValueError as `read_tools`."""
    found = read_tools(tools)
    return {"tools": found} if found else {}


AutoProcessor.register(UnifiedConfig, UnifiedProcessor)
