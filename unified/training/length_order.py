"""Batches of examples of like lengths (`train_sampling_strategy: group_by_length`), in an order that can be resumed.

HF's sampler draws from torch's global generator, so a run that goes on inside an epoch would have other batches, and
ranks whose generators have parted would train some rows twice and others never.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthOrder(TrainerCallback, Sampler[int]):
    """HF's order by length, as a function of `seed` and of the epoch, which it is told as a callback."""

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        self.grouped, self.seed, self.epoch = grouped, seed, 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.epoch = int(state.epoch or 0)

    def __len__(self) -> int:
        return len(self.grouped)

    def __iter__(self) -> Iterator[int]:
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        self.grouped.generator = torch.Generator().manual_seed(int(state[0]))
        return iter(self.grouped)
