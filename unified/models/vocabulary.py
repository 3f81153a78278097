"""Image codes as ids of one vocabulary: the only file with offset arithmetic.

The vocabulary is `[0, image_token_offset)` text (with three special tokens), then one id per code.
"""

from dataclasses import dataclass

from torch import Tensor

BOI_TOKEN = "<|image_start|>"
EOI_TOKEN = "<|image_end|>"
IMAGE_PAD_TOKEN = "<|image_pad|>"
SPECIAL_TOKENS = (BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN)
ROW_MULTIPLE = 64  # rows of the embedding matrix come in multiples of this: tensor cores want it


def offset_for(text_rows: int) -> int:
    """First image id behind `text_rows` rows of text, rounded up to `ROW_MULTIPLE`."""
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
        """Rows of the one matrix that covers text and codes."""
        return self.image_token_offset + self.codebook_size

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """Ids of image start, end and placeholder."""
        return self.boi_token_id, self.eoi_token_id, self.image_pad_token_id

    @property
    def text_ids(self) -> range:
        """Ids that have a token: the special ones come last, and rows from there to the offset are padding."""
        return range(max(self.special_ids) + 1)

    @property
    def image_ids(self) -> range:
        """All image ids, in the order of their codes."""
        return range(self.image_token_offset, self.size)

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """Ids of `codes`, same shape; the inverse of `ids_to_codes`."""
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(
                f"codes reach from {codes.min()} to {codes.max()} but the codebook has {self.codebook_size} entries; "
                "encode the images with this checkpoint's tokenizer"
            )
        return codes + self.image_token_offset

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """Codes of image `ids`, same shape; ids of text are an error."""
        if not bool(self.is_image(ids).all()):
            others = ids[~self.is_image(ids)][:5].tolist()
            raise ValueError(f"ids {others} are not image ids; select with is_image first")
        return ids - self.image_token_offset

    def code_rows(self, matrix: Tensor) -> Tensor:
        """The codes' rows (codebook_size, ...) of a `matrix` (size, ...) over text and codes, as a view."""
        return matrix[self.image_token_offset :]

    def is_image(self, ids: Tensor) -> Tensor:
        """Which `ids` are image tokens that are written, bool of the same shape."""
        return (ids >= self.image_token_offset) & (ids < self.size)
