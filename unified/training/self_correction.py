"""Self-correction: training with corrupted input codes, which later scales learn to correct.

With teacher forcing a model never learns to recover from its own errors. So, as in Infinity's bitwise self-correction
(Han et al. 2024, arXiv 2412.04431), here for a codebook: some input codes are replaced by random ones, and the targets
of later scales are quantized again, from the residual of the corrupted image.
Legend: B batch, T sequence, N images, L codes of an image.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified.image_tokenizer.quantizer import MultiScaleQuantizer
from unified.image_tokenizer.scales import scale_spans
from unified.models.configuration import UnifiedConfig
from unified.models.modeling import UnifiedForCausalLM


@torch.no_grad()
def corrupt_codes(
    quantizer: MultiScaleQuantizer, codes: Tensor, max_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Input codes and target codes, both (N, L), of images with `codes` (N, L).

    The corrupted share of each image is uniform in [0, `max_share`], sampled with the CPU `generator`. Up to the scale
    of the first corrupted code, targets are `codes`; the last scale's inputs are not corrupted, as no scale follows.
    """
    spans = scale_spans(quantizer.patch_nums)
    shares = max_share * torch.rand(len(codes), 1, generator=generator)
    replaced = (torch.rand(codes.shape, generator=generator) < shares).to(codes.device)
    replaced[:, spans[-1][0] :] = False
    random_codes = torch.randint(quantizer.embedding.num_embeddings, codes.shape, generator=generator).to(codes)
    residual = quantizer.codes_to_f_hat(codes)
    input_codes, targets, corrupted = codes.clone(), codes.clone(), torch.zeros_like(replaced[:, :1])
    for scale, (start, stop) in enumerate(spans):
        part = slice(start, stop)
        targets[:, part] = torch.where(corrupted, quantizer.scale_codes(residual, scale), codes[:, part])
        input_codes[:, part] = torch.where(replaced[:, part], random_codes[:, part], targets[:, part])
        corrupted = corrupted | replaced[:, part].any(dim=1, keepdim=True)
        residual = residual - quantizer.contribution(input_codes[:, part], scale)
    return input_codes, targets


def check_code_noise(config: UnifiedConfig, max_share: float) -> None:
    """Raise ValueError unless 0 <= `max_share` < 1, and for images of a single scale."""
    if not 0 <= max_share < 1:
        raise ValueError(f"code_noise {max_share} is not in [0, 1); try 0.2, or 0 to switch it off")
    if max_share and len(config.patch_nums) < 2:
        raise ValueError(f"code_noise {max_share} needs later scales to correct, but images have one; set it to 0")


class SelfCorrection:
    """Corrupts the images of training steps, up to `max_share` of their codes before the last scale.

    Raises ValueError as `check_code_noise`.
    """

    def __init__(self, core: UnifiedForCausalLM, max_share: float) -> None:
        check_code_noise(core.config, max_share)
        self.core, self.max_share = core, max_share

    def __call__(self, inputs: dict[str, Any], seed: int, step: int) -> dict[str, Any]:
        """`inputs` of training step `step` with corrupted `input_ids` (B, T) and their targets in `labels` (B, T).

        Trained positions and input images do not change. The corruption is a function of `seed`, step and batch, so it
        differs between ranks and is the same in a resumed run.
        """
        vocabulary, ids, labels = self.core.config.vocabulary, inputs["input_ids"], inputs["labels"]
        is_output = vocabulary.is_image(ids)
        codes = self.core.model.output_image_codes(ids, is_output)
        if not len(codes):
            return inputs
        entropy = np.random.SeedSequence([seed, step, int(ids.sum())]).generate_state(1)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        with torch.autocast(ids.device.type, enabled=False):
            corrupted = corrupt_codes(self.core.model.vq_model.quantizer, codes, self.max_share, generator)
        input_codes, targets = map(vocabulary.codes_to_ids, corrupted)
        trained = is_output & (labels != -100)
        labels = torch.where(trained, labels.masked_scatter(is_output, targets), labels)
        return inputs | {"input_ids": ids.masked_scatter(is_output, input_codes), "labels": labels}
