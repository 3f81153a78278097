"""Image codes as ids of one vocabulary: the only file with offset arithmetic.

Ids in `[0, image_token_offset)` are text (including three special tokens), followed by one id per code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BOI_TOKEN = "<|image_start|>"
EOI_TOKEN = "<|image_end|>"
IMAGE_PAD_TOKEN = "<|image_pad|>"
SPECIAL_TOKENS = (BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN)
ROW_MULTIPLE = 64  # the embedding matrix is padded to a multiple of this, for tensor cores


def offset_for(text_rows: int) -> int:
    """First image id after `text_rows` rows of text, rounded up to `ROW_MULTIPLE`."""
    return -(-text_rows // ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass(frozen=True)
class Vocabulary:
    """Maps codes in `[0, codebook_size)` to ids and back."""

    image_token_offset: int
    codebook_size: int
    boi_token_id: int
    eoi_token_id: int
    image_pad_token_id: int

    def __post_init__(self) -> None:
        special = self.special_ids
        if len(set(special)) != 3 or max(special) >= self.image_token_offset:
            raise ValueError(
                f"special image ids {special} must be three different text ids below image_token_offset "
                f"{self.image_token_offset}; make the checkpoint with `unified extend`"
            )

    @property
    def size(self) -> int:
        """Number of ids of text and codes, padding included."""
        return self.image_token_offset + self.codebook_size

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """Ids of image start, end and placeholder."""
        return self.boi_token_id, self.eoi_token_id, self.image_pad_token_id

    @property
    def text_ids(self) -> range:
        """Ids with a text token: the special ones come last; rows from there to the offset are padding."""
        return range(max(self.special_ids) + 1)

    @property
    def image_ids(self) -> range:
        """All image ids, in the order of the codes."""
        return range(self.image_token_offset, self.size)

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """Ids of `codes`, same shape; the inverse of `ids_to_codes`."""
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(
                f"codes range from {codes.min()} to {codes.max()} but the codebook has {self.codebook_size} entries; "
                "encode the images with this checkpoint's tokenizer"
            )
        return codes + self.image_token_offset

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """Codes of image `ids`, same shape; raises ValueError for text ids."""
        if not bool(self.is_image(ids).all()):
            others = ids[~self.is_image(ids)][:5].tolist()
            raise ValueError(f"ids {others} are not image ids; select with is_image first")
        return ids - self.image_token_offset

    def code_rows(self, matrix: Tensor) -> Tensor:
        """The codes' rows (codebook_size, ...) of a `matrix` (size, ...) over text and codes, as a view."""
        return matrix[self.image_token_offset :]

    def fold_images(self, ids: Tensor) -> Tensor:
        """`ids` (T,) with one placeholder for what every image, of input or output, has between start and end."""
        inside = self.is_image(ids) | (ids == self.image_pad_token_id)
        follows = torch.cat([inside.new_zeros(1), inside])[:-1]
        return ids.masked_fill(inside, self.image_pad_token_id)[~(inside & follows)]

    def is_image(self, ids: Tensor) -> Tensor:
        """Whether `ids` are codes of output images, bool of the same shape."""
        return (ids >= self.image_token_offset) & (ids < self.size)
