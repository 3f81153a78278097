"""What `generate` returned, for people: text, images, and both in order.

Legend: B batch, T sequence, L codes of one image, H W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unified.files.images import pixels_to_image
from unified.image_tokenizer.scales import image_length
from unified.models.vocabulary import Vocabulary


class GeneratedOutputs:
    """Decoding of ids; part of the processor."""

    tokenizer: PreTrainedTokenizerBase
    _vocabulary: Vocabulary
    patch_nums: tuple[tuple[int, int], ...]
    image_pad_token_id: int
    boi_token_id: int
    _special_ids: set[int]

    @property
    def vocabulary(self) -> Vocabulary:
        """The mapping between codes and ids."""
        return self._vocabulary

    @property
    def image_length(self) -> int:
        """Number of codes of one image, L."""
        return image_length(self.patch_nums)

    def decode_parts(self, ids: Tensor | Sequence[int]) -> list[dict[str, Any]]:
        """Split a sequence (T,) into `{"type": "text", "text"}` and `{"type": "image", "codes": (L,)}`, in order.

        Special tokens and placeholders of input images are skipped. Raises ValueError for an incomplete image.
        """
        ids, vocabulary, parts = torch.as_tensor(ids, dtype=torch.long).cpu(), self.vocabulary, []
        is_image = vocabulary.is_image(ids)
        follows = torch.cat([is_image | (ids == self.image_pad_token_id), torch.tensor([False])])[1:]
        if bool(((ids == self.boi_token_id) & ~follows).any()):
            self._check_length(0)
        _, lengths = is_image.unique_consecutive(return_counts=True)
        for run in ids.split(lengths.tolist()):
            if bool(vocabulary.is_image(run).any()):
                self._check_length(len(run))
                parts.append({"type": "image", "codes": vocabulary.ids_to_codes(run)})
            elif text := self.tokenizer.decode([i for i in run.tolist() if i not in self._special_ids]):
                parts.append({"type": "text", "text": text})
        return parts

    def batch_decode_parts(self, ids: Iterable[Tensor | Sequence[int]]) -> list[list[dict[str, Any]]]:
        """`decode_parts` of every sequence."""
        return [self.decode_parts(row) for row in ids]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str | list[str]:  # type: ignore[override]
        """HF's: text of a sequence (T,) of ids, or of each of several; `decode_parts` gives images' codes too.

        Every image, of input or output, whole or cut off, is `<|image_start|><|image_pad|><|image_end|>` there, which
        `skip_special_tokens` leaves in.
        """
        given = [token_ids] if isinstance(token_ids, int) else token_ids
        if len(given) and torch.as_tensor(given[0]).ndim:
            return [cast(str, self.decode(row, skip_special_tokens, **kwargs)) for row in given]
        ids = self.vocabulary.fold_images(torch.as_tensor(given, dtype=torch.long).cpu()).tolist()
        hidden = self._special_ids.difference(self.vocabulary.special_ids) if skip_special_tokens else ()
        return self.tokenizer.decode([i for i in ids if i not in hidden], **kwargs)

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[str]:
        """`decode` of every sequence."""
        texts = self.decode(sequences, *args, **kwargs)
        return [texts] if isinstance(texts, str) else texts

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> str | list[str]:
        """`decode` of what `generate` returned, as HF's pipelines call it."""
        return self.decode(generated_outputs, skip_special_tokens, **kwargs)

    def post_process_multimodal_output(
        self,
        generated_outputs: Tensor,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        decode_image_tokens: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """What was generated, by `generation_mode` as HF's pipelines ask for it, and everything in order.

        "text" (and None): `decode` of ids (B, T). "image": PIL images of pixel values (B, 3, H, W), which
        `model.decode_image_tokens` makes of ids. "interleaved": `decode_parts` of every row of ids (B, T), whose
        images have a PIL `image` beside their codes if `decode_image_tokens` is the model's.
        Raises ValueError for other modes.
        """
        if generation_mode in (None, "text"):
            return self.decode(generated_outputs, skip_special_tokens, **kwargs)
        if generation_mode == "image":
            return [pixels_to_image(pixels) for pixels in generated_outputs]
        if generation_mode != "interleaved":
            raise ValueError(f"generation_mode {generation_mode!r}; choose from text, image, interleaved")
        rows = self.batch_decode_parts(generated_outputs)
        if decode_image_tokens is None:
            return rows
        for part in (part for row in rows for part in row if part["type"] == "image"):
            ids = self.vocabulary.codes_to_ids(part["codes"])[None].to(generated_outputs.device)
            part["image"] = pixels_to_image(decode_image_tokens(ids)[0])
        return rows

    def _check_length(self, length: int) -> None:
        if length != self.image_length:
            raise ValueError(
                f"an image has {length} codes but patch_nums {list(self.patch_nums)} make {self.image_length}; "
                "use complete images of this checkpoint's tokenizer"
            )
