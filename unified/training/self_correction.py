"""Training on images with wrong codes in them, whose later scales learn to set them right.

A model that has only seen right codes knows nothing of what to do behind its own mistakes. So, as in Infinity's
bitwise self-correction (Han et al. 2024, arXiv 2412.04431), here for a codebook: some of the codes that are fed to the
model are replaced by others, and what later scales have to say is quantized anew, from what is then missing.
Legend: B batch, T sequence, N images, L codes of an image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified.checkpoints.loading import FROZEN, frozen_weights
from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.quantizer import MultiScaleQuantizer
from unified.image_tokenizer.scales import scale_spans
from unified.models.configuration import UnifiedConfig
from unified.models.modeling import UnifiedForCausalLM


@torch.no_grad()
def corrupt_codes(
    quantizer: MultiScaleQuantizer, codes: Tensor, most: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What is fed and what is to be said, both (N, L), for images of `codes` (N, L).

    Of every image a share of its own is wrong, drawn evenly from 0 to `most` by the CPU's `generator`. Up to the scale
    of its first wrong code both are as they were, but for what is wrong; the last scale is fed right, as nothing in
    the image follows it.
    """
    spans = scale_spans(quantizer.patch_nums)
    shares = most * torch.rand(len(codes), 1, generator=generator)
    wrong = (torch.rand(codes.shape, generator=generator) < shares).to(codes.device)
    wrong[:, spans[-1][0] :] = False
    others = torch.randint(quantizer.embedding.num_embeddings, codes.shape, generator=generator).to(codes)
    rest = quantizer.codes_to_f_hat(codes)
    fed, targets, corrupted = codes.clone(), codes.clone(), torch.zeros_like(wrong[:, :1])
    for scale, (start, stop) in enumerate(spans):
        part = slice(start, stop)
        targets[:, part] = torch.where(corrupted, quantizer.scale_codes(rest, scale), codes[:, part])
        fed[:, part] = torch.where(wrong[:, part], others[:, part], targets[:, part])
        corrupted = corrupted | wrong[:, part].any(dim=1, keepdim=True)
        rest = rest - quantizer.contribution(fed[:, part], scale)
    return fed, targets


def check_noise(config: UnifiedConfig, most: float) -> None:
    """Raise ValueError for a share `most` that is none, and where images have a single scale."""
    if not 0 <= most < 1:
        raise ValueError(f"code_noise {most} is not a share from 0 to below 1; try 0.2, or 0 to leave codes right")
    if most and len(config.patch_nums) < 2:
        raise ValueError(f"code_noise {most} needs later scales to correct, but images here have one; give 0")


class SelfCorrection:
    """Spoils the images of training steps, up to a share `most` of their codes before the last scale.

    Keeps a copy of the image tokenizer, from the checkpoint of `core`: ZeRO-3 spreads the model's own over ranks, and
    bf16 training rounds it. Raises ValueError as `check_noise`.
    """

    def __init__(self, core: UnifiedForCausalLM, most: float) -> None:
        check_noise(core.config, most)
        self.core, self.most = core, most
        tokenizer = VQModel(core.config.vq_config)
        weights = frozen_weights(Path(str(core.name_or_path)))
        tokenizer.load_state_dict({name.removeprefix(FROZEN): weight for name, weight in weights.items()})
        self.quantizer = tokenizer.quantizer.float().eval().requires_grad_(False)

    def __call__(self, inputs: dict[str, Any], seed: int, step: int) -> dict[str, Any]:
        """`inputs` of training step `step` with spoilt images in `input_ids` (B, T), corrected in `labels` (B, T).

        Which positions are trained stays as it is, and so do images that are read. What is wrong follows from `seed`,
        step and batch, so it differs between ranks and is the same in a run that was resumed.
        """
        vocabulary, ids, labels = self.core.config.vocabulary, inputs["input_ids"], inputs["labels"]
        written = vocabulary.is_image(ids)
        codes = self.core.model.output_image_codes(ids, written)
        if not len(codes):
            return inputs
        entropy = np.random.SeedSequence([seed, step, int(ids.sum())]).generate_state(1)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        with torch.autocast(ids.device.type, enabled=False):
            corrupted = corrupt_codes(self.quantizer.to(ids.device), codes, self.most, generator)
        fed, targets = map(vocabulary.codes_to_ids, corrupted)
        wanted = written & (labels != -100)
        labels = torch.where(wanted, labels.masked_scatter(written, targets), labels)
        return inputs | {"input_ids": ids.masked_scatter(written, fed), "labels": labels}
