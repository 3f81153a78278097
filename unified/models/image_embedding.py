"""Input states of image positions.

Legend: N output images, M input images, L codes, K scales, D hidden, C code dim.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from unified.image_tokenizer.scales import grid_centres, scale_ids, scale_spans
from unified.models.configuration import UnifiedConfig

FREQUENCIES = 8  # octaves of the coordinates' Fourier features: enough to tell 1/256 apart


@lru_cache(maxsize=16)
def scales_of_positions(patch_nums: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """`scale_ids` on a device, copied to it once."""
    with torch.inference_mode(False):
        return scale_ids(patch_nums).to(device)


@lru_cache(maxsize=16)
def grid_features(patch_nums: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Fourier features (L, 4 * FREQUENCIES) of every position's cell centre, comparable across scales."""
    with torch.inference_mode(False):  # autograd takes no inference tensor, and this one is for later calls too
        angles = grid_centres(patch_nums)[..., None] * torch.pi * 2.0 ** torch.arange(FREQUENCIES)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).to(device)


class ImageEmbedding(nn.Module):
    """Input states of image positions: features projected to D, plus scale and grid embeddings."""

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__()
        hidden, code_dim = config.text_config.hidden_size, config.vq_config.code_dim
        self.patch_nums = config.patch_nums
        self.scale_in = nn.Linear(code_dim, hidden)
        self.image_in = nn.Linear(code_dim, hidden)
        self.start = nn.Embedding(1, hidden)
        self.scale_embedding = nn.Embedding(len(self.patch_nums) + 1, hidden)  # the last row: input images
        self.grid_embedding = nn.Linear(4 * FREQUENCIES, hidden, bias=False)

    def forward(self, next_scale_inputs: Tensor, f_hat: Tensor) -> tuple[Tensor, Tensor]:
        """`next_scale_inputs` (N, L - h_1*w_1, C), `f_hat` (M, h_K*w_K, C) -> states (N, L, D), (M, h_K*w_K, D).

        Output and input images in one call, since under ZeRO-3 every rank has to run the same modules whatever its
        batch contains.
        """
        # not the weights' device: accelerate's offloading has them away while they are not in use
        device, dtype = next_scale_inputs.device, self.start.weight.dtype
        ids, grid = scales_of_positions(self.patch_nums, device), self.grid(device)
        projected = [self.start_states(len(next_scale_inputs), device), self.scale_in(next_scale_inputs.to(dtype))]
        output_states = torch.cat(projected, dim=1) + self.scale_embedding(ids) + grid
        start, stop = scale_spans(self.patch_nums)[-1]
        input_scale = self.scale_embedding(torch.full_like(ids[start:stop], len(self.patch_nums)))
        input_states = self.image_in(f_hat.to(dtype)) + input_scale + grid[start:stop]
        return output_states, input_states

    def one_scale(self, f_hat: Tensor, features: Tensor | None, scale: int) -> Tensor:
        """States (N, h_k*w_k, D) of one scale of output images from its `features` (N, h_k*w_k, C); None: the first.

        The same as `forward`'s for all scales at once. `f_hat` (N, ...) says how many images, and on which device.
        """
        device, span = f_hat.device, slice(*scale_spans(self.patch_nums)[scale])
        ids = scales_of_positions(self.patch_nums, device)[span]
        if features is None:
            projected = self.start_states(len(f_hat), device)
        else:
            projected = self.scale_in(features.to(self.start.weight.dtype))
        return projected + self.scale_embedding(ids) + self.grid(device)[span]

    def start_states(self, batch: int, device: torch.device) -> Tensor:
        """The learned start vector at the first scale's positions, (N, h_1*w_1, D)."""
        start, stop = scale_spans(self.patch_nums)[0]
        return self.start(torch.zeros(batch, stop - start, dtype=torch.long, device=device))

    def grid(self, device: torch.device) -> Tensor:
        """Grid embedding (L, D) of an image's positions, all at once: a product of fewer rows rounds otherwise."""
        return self.grid_embedding(grid_features(self.patch_nums, device).to(self.start.weight.dtype))
