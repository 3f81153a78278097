"""`UnifiedProcessor`'s doors from conversations and texts to a model's inputs, with the arguments of transformers'.

Legend: B batch, T sequence, N images, L codes of one image, H W pixels.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from unified.models.chat_templates import IMAGE_TEXT, check_written, render_pieces, text_runs
from unified.models.chat_tokenization import ChatTokenizer, interleave
from unified.models.image_processing import UnifiedImageProcessor, picture_list, pictures_of_rows, take_pictures
from unified.models.messages import Message, count_images, is_output, shorten, with_system_prompt
from unified.models.padding import ROW_OPTIONS, Rows, text_options
from unified.models.tools import read_tools

Codes = Sequence[int] | Tensor
REFUSED = {
    "documents": "write them into a message",
    "videos": "give frames as images",
    "audio": "text and images are read here",
    "load_audio_from_video": "text and images are read here",
}


@dataclass
class EncodedChat:
    """One conversation: `input_ids` and `labels` of equal length, and the codes of its input images in order.

    `answered` says of each id whether it is the assistant's; `content_end` is where the last answer's content ends.
    """

    input_ids: list[int]
    labels: list[int]
    input_image_codes: list[list[int]] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    content_end: int = 0


class ChatInputs(ProcessorMixin):
    """Conversations and texts -> inputs of a model."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: UnifiedImageProcessor
    system_prompt: str | None
    boi_token_id: int
    eoi_token_id: int
    image_pad_token_id: int
    patch_nums: tuple[tuple[int, int], ...]
    _chat_tokenizer: ChatTokenizer

    @property
    def pad_token_id(self) -> int:
        """Padding id."""
        raise NotImplementedError

    def encode(
        self, messages: Sequence[Message], codes: list[Codes | None], add_generation_prompt: bool, **options: Any
    ) -> EncodedChat:
        """Ids and labels of one conversation."""
        raise NotImplementedError

    @property
    def image_token(self) -> str:
        """Where an input image stands in a text, by the name that transformers' processors have."""
        return IMAGE_TEXT

    @property
    def image_token_id(self) -> int:
        """The id of a placeholder of an input image, likewise."""
        return self.image_pad_token_id

    @property
    def model_input_names(self) -> list[str]:
        """What the processor returns and the model takes."""
        return ["input_ids", "attention_mask", "pixel_values", "image_codes"]

    def apply_chat_template(  # type: ignore[override]  # `codes` and `images` are ours
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        tools: Any = None,
        documents: None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool | None = None,
        return_tensors: str | None = "auto",
        return_dict: bool | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        *,
        codes: Sequence[Codes] | None = None,
        images: Any = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Text or inputs of one conversation or a list of them, as transformers' processors give them.

        Its defaults are theirs: text (`tokenize` False) without a generation prompt. With `codes` or `images`, which
        they have not, they are those of a model's input: ids in a dict, with a generation prompt.

        Args:
            conversation: an image part may hold its picture: `image`, `path`, `url`, `base64`, OpenAI's `image_url`.
            continue_final_message: end with the assistant's last words, which the model then continues.
            return_assistant_tokens_mask: also `assistant_masks`, 1 at what the assistant says.
            return_tensors: "pt", "np", or None for lists. "auto" is "pt", but for several conversations whose
                `padding` is not given: theirs are lists of their own lengths, as TRL's trainers take them.
            codes: L codes for every image part of all conversations, in order of appearance.
            images: the input images, where messages do not hold them; then `codes` are of output images only.
            sanitize_control_tokens: text of messages is always ordinary text here.
            kwargs: padding, padding_side (left), truncation, max_length, pad_to_multiple_of; others are variables of
                the template, such as `enable_thinking`.

        Returns text, a list of texts, ids, or `input_ids`, `attention_mask` (B, T), and with input images
        `image_codes` (N, L) or `pixel_values` (N, 3, H, W). Raises ValueError that says what to give.
        """
        rows, options, more_images = self._sort_options(kwargs, processor_kwargs, return_tensors, documents)
        chats, batched = _as_chats(conversation)
        chats, found = take_pictures(chats)
        images = more_images if images is None else images
        _check_chats(chats, found, images)
        ours = codes is not None or images is not None
        rows.resolve_auto(batched and not ours)
        tokenize, return_dict = (ours if given is None else given for given in (tokenize, return_dict))
        prompt = ours and not continue_final_message if add_generation_prompt is None else add_generation_prompt
        options |= with_tools(tools) | ({"template": chat_template} if chat_template is not None else {})
        _check_end(chats, prompt, continue_final_message)
        if not tokenize:
            texts = [self._render_text(chat, prompt, continue_final_message, **options) for chat in chats]
            return texts if batched else texts[0]
        pictures = found if images is None else picture_list(images)
        features = self._encode_chats(chats, codes, pictures or None, rows, prompt, continue_final_message, options)
        if not return_assistant_tokens_mask:
            del features["assistant_masks"]
        if return_dict:
            return BatchFeature(features)
        return features["input_ids"][0] if rows.return_tensors is None and not batched else features["input_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: None = None,
        audio: None = None,
        split_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize `text` and resize `images`, as transformers' processors do.

        `text` with `images` is what `apply_chat_template(..., tokenize=False)` wrote, whose special tokens count, and
        which has a place for every image; text alone is ordinary text, unless `split_special_tokens` is False.
        Rows are padded on the left, unless `padding_side` says "right".

        Raises ValueError for other numbers of images, for options that nothing honours, where truncation would cut an
        image, and as `open_picture`.
        """
        _refuse({"videos": videos, "audio": audio})
        if text is None and images is None:
            raise ValueError("neither text nor images given; pass at least one")
        if not isinstance(text, str | list | tuple | None):
            raise ValueError(f"text is {shorten(text)}; give a string or a list of them, and pictures as images=")
        data: dict[str, Any] = {}
        options, of_images = text_options(kwargs)
        tensors = options.get("return_tensors")
        pictures = [] if images is None else picture_list(images)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            whole = bool(pictures) if split_special_tokens is None else not split_special_tokens
            if pictures:
                texts = self._with_places(texts, images)
                self._check_truncation(texts, options)
            given = texts if not isinstance(text, str) else texts[0]
            options["padding_side"] = options.get("padding_side") or "left"
            data.update(self._chat_tokenizer.tokenize(given, split_special_tokens=not whole, **options))
        if pictures:
            of_images["return_tensors"] = "np" if tensors == "np" else "pt"
            data.update(self.image_processor(pictures, **of_images))
        return BatchFeature(data)

    def _check_truncation(self, texts: list[str], options: Mapping[str, Any]) -> None:
        """Raise ValueError where the tokenizer's truncation would cut a text with images."""
        limit = options.get("max_length") or self.tokenizer.model_max_length
        rows = Rows(truncation=options.get("truncation"), max_length=limit)
        if rows.truncation not in (None, False):
            special = {self.boi_token_id, self.eoi_token_id, self.image_pad_token_id}
            for ids in self._chat_tokenizer.tokenize(texts, split_special_tokens=False)["input_ids"]:
                rows.cut(ids, special, self.tokenizer.truncation_side)

    def _with_places(self, texts: list[str], images: Any) -> list[str]:
        """Texts with as many placeholders for each image as the model reads."""
        places, counts = [text.count(IMAGE_TEXT) for text in texts], pictures_of_rows(images)
        if counts is not None and counts != places or len(picture_list(images)) != sum(places):
            raise ValueError(
                f"{counts or len(picture_list(images))} images for {places if counts else sum(places)} places "
                f"{IMAGE_TEXT} in the text; give messages with image parts to apply_chat_template, which writes them"
            )
        h, w = self.patch_nums[-1]
        boi, pad, eoi = IMAGE_TEXT.replace("><", "> <").split()
        return [text.replace(IMAGE_TEXT, f"{boi}{pad * (h * w)}{eoi}") for text in texts]

    def _sort_options(
        self, kwargs: dict[str, Any], processor_kwargs: Mapping[str, Any] | None, return_tensors: Any, documents: Any
    ) -> tuple[Rows, dict[str, Any], Any]:
        """Options of rows, variables of the template, and images among them."""
        given = dict(processor_kwargs or {})
        for group in ("text_kwargs", "images_kwargs", "common_kwargs"):
            given |= given.pop(group, {})
        images = given.pop("images", None)
        _refuse(
            {"documents": documents, **{key: value for key, value in {**given, **kwargs}.items() if key in REFUSED}}
        )
        tensors = given.pop("return_tensors", return_tensors)
        unknown = sorted(given.keys() - set(ROW_OPTIONS))
        if unknown:
            raise ValueError(
                f"processor_kwargs {', '.join(unknown)}: nothing honours it; valid are "
                f"{', '.join(ROW_OPTIONS)}, images and return_tensors"
            )
        given |= {key: kwargs[key] for key in ROW_OPTIONS if key in kwargs}
        variables = {k: v for k, v in kwargs.items() if k not in (*ROW_OPTIONS, *REFUSED) and (k, v) != THINKING_OFF}
        return Rows(return_tensors=tensors, **given), variables, images

    def _encode_chats(
        self,
        chats: list[list[Message]],
        codes: Sequence[Codes] | None,
        pictures: list[Any] | None,
        rows: Rows,
        add_generation_prompt: bool,
        continue_final_message: bool,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        """Ids, masks and images of all chats."""
        pending = iter(self._codes_of_parts(chats, codes, pictures))
        encoded = []
        side = self.tokenizer.truncation_side
        special = {self.boi_token_id, self.eoi_token_id, self.image_pad_token_id}
        for chat in chats:
            chat_codes = [next(pending) for _ in range(count_images(chat))]
            one = self.encode(chat, chat_codes, add_generation_prompt, **options)
            stop = slice(one.content_end if continue_final_message else None)
            kept = rows.cut(one.input_ids[stop], special, side)
            encoded.append((one.input_ids[stop][kept], one.answered[stop][kept], one.input_image_codes))
        ids, answered, image_codes = zip(*encoded, strict=True)
        features = {
            "input_ids": rows.feature(list(ids), self.pad_token_id, "left"),
            "attention_mask": rows.feature([[1] * len(row) for row in ids], 0, "left"),
            "assistant_masks": rows.feature(list(answered), 0, "left"),
        }
        if pictures:
            features |= self.image_processor(pictures, return_tensors="np" if rows.return_tensors == "np" else "pt")
        elif any(image_codes):
            features["image_codes"] = rows.tensor([image for chat in image_codes for image in chat])
        return features

    def _codes_of_parts(
        self, chats: Sequence[Sequence[Message]], codes: Sequence[Codes] | None, images: Sequence[Any] | None
    ) -> list[Codes | None]:
        """Codes of every image part of all chats; None for those in `images`."""
        given = [] if codes is None else list(codes)
        outputs = [is_output(message) for chat in chats for message in chat for _ in range(count_images([message]))]
        as_codes = [images is None or output for output in outputs]
        if images is not None and len(images) != as_codes.count(False):
            raise ValueError(f"{len(images)} images for {as_codes.count(False)} input image parts; pass one per part")
        if len(given) != sum(as_codes):
            raise ValueError(
                f"codes of {len(given)} images for {sum(as_codes)} image parts; pass one list per part as codes=, or "
                "input images as images= or inside their parts"
            )
        pending = iter(given)
        return [next(pending) if has_codes else None for has_codes in as_codes]

    def _render_text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        template: str | None = None,
        **options: Any,
    ) -> str:
        messages, template = (
            with_system_prompt(messages, self.system_prompt),
            template or cast(str, self.chat_template),
        )
        check_written(self.tokenizer, template, messages, add_generation_prompt, **options)
        pieces = render_pieces(self.tokenizer, template, messages, add_generation_prompt, **options)
        if continue_final_message:
            pieces = [*pieces[:-1], ""]
        return interleave(pieces, [run for message in messages for run in text_runs(message)])


THINKING_OFF = ("enable_thinking", False)  # what is trained, see chat_templates


def with_tools(tools: Any) -> dict[str, Any]:
    """Variables of the template for `tools`; none without any. Raises ValueError as `read_tools`."""
    found = read_tools(tools)
    return {"tools": found} if found else {}


def _as_chats(conversation: Any) -> tuple[list[list[Message]], bool]:
    """A list of conversations, and whether it was given as one."""
    if not isinstance(conversation, list | tuple) or not conversation:
        raise ValueError(
            f"the conversation is {shorten(conversation)}; give a list of messages, "
            '[{"role": "user", "content": "Hello"}], or a list of such lists'
        )
    batched = not isinstance(conversation[0], Mapping)
    chats = list(conversation) if batched else [conversation]
    for chat in chats:
        if not isinstance(chat, list | tuple):
            raise ValueError(f'message {shorten(chat)}; write {{"role": "user", "content": "..."}}')
    return [list(chat) for chat in chats], batched


def _check_chats(chats: Sequence[Sequence[Message]], found: Sequence[Any], images: Any) -> None:
    """Raise ValueError for what is no message, and for pictures inside messages beside `images`."""
    for chat in chats:
        count_images(chat)
    if found and images is not None:
        raise ValueError(f"{len(found)} image parts hold their picture and images= is given; keep one of the two")


def _check_end(chats: Sequence[Sequence[Message]], add_generation_prompt: bool, continue_final_message: Any) -> None:
    """Raise ValueError for a conversation that cannot be continued as it is asked."""
    if not isinstance(continue_final_message, bool):
        raise ValueError(f"continue_final_message {continue_final_message!r}; use True or False")
    if continue_final_message and add_generation_prompt:
        raise ValueError("continue_final_message and add_generation_prompt are both True; keep one of them")
    for chat in chats:
        if continue_final_message and (not chat or chat[-1].get("role") != "assistant" or not text_runs(chat[-1])):
            raise ValueError("continue_final_message needs words of the assistant as the last message; add them")


def _refuse(given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that cannot be honoured."""
    for name, value in given.items():
        if value is not None and value is not False and not (isinstance(value, Sized) and not len(value)):
            raise ValueError(f"{name} is not supported; {REFUSED[name]}")
