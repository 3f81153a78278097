"""Input states of image positions.

Legend: N images that are written, M that are read, L codes, K scales, D hidden, C code dim.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from unified.image_tokenizer.scales import grid_centres, scale_ids, scale_spans
from unified.models.configuration import UnifiedConfig

FREQUENCIES = 8  # octaves of the coordinates' Fourier features: enough to tell 1/256 apart


@lru_cache(maxsize=16)
def place_features(patch_nums: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Fourier features (L, 4 * FREQUENCIES) of every position's centre: one place has one code at every scale."""
    angles = grid_centres(patch_nums)[..., None] * torch.pi * 2.0 ** torch.arange(FREQUENCIES)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).to(device)


class ImageEmbedding(nn.Module):
    """Input states of image positions: features lifted to D, plus which scale and where in the picture."""

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__()
        hidden, code_dim = config.text_config.hidden_size, config.vq_config.code_dim
        self.patch_nums = config.patch_nums
        self.scale_in = nn.Linear(code_dim, hidden)
        self.image_in = nn.Linear(code_dim, hidden)
        self.start = nn.Embedding(1, hidden)
        self.scale_embedding = nn.Embedding(len(self.patch_nums) + 1, hidden)  # the last row: images that are read
        self.grid_embedding = nn.Linear(4 * FREQUENCIES, hidden, bias=False)

    def forward(self, next_scale_inputs: Tensor, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        """`next_scale_inputs` (N, L - h_1*w_1, C), `f_hat` (M, h_K*w_K, C) -> (N, L, D) written, (M, h_K*w_K, D) read.

        Both in one call, since under ZeRO-3 every rank has to run the same modules whatever its batch holds.
        """
        weight = self.scale_in.weight
        places = self.grid_embedding(place_features(self.patch_nums, weight.device).to(weight.dtype))
        ids = scale_ids(self.patch_nums).to(weight.device)
        start, stop = scale_spans(self.patch_nums)[0]
        first = self.start(ids.new_zeros(len(next_scale_inputs), stop - start))
        lifted = torch.cat([first, self.scale_in(next_scale_inputs.to(weight.dtype))], dim=1)
        written = lifted + self.scale_embedding(ids) + places
        start, stop = scale_spans(self.patch_nums)[-1]
        read_mark = self.scale_embedding(torch.full_like(ids[start:stop], len(self.patch_nums)))
        read = self.image_in(f_hat.to(weight.dtype)) + read_mark + places[start:stop]
        return written, read
