"""Calibration of the image start after training: the probability of image tokens against text tokens.

Codes are sampled among codes only, so adding one vector to all of their output rows changes no image, but it changes
the probability of codes at text positions. With the rows of image start, end and placeholder that makes four vectors,
and with fixed hidden states the cross-entropy of "text, code, start, end" is convex in them: no learning rate, one
optimum. Where text uses the base's weights only, the probability of the new rows at text is all of KL(base || model).

Legend: N positions, D hidden. Token kinds: 0 text, 1 code, 2 image start, 3 image end, 4 image placeholder.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import IGNORE_INDEX
from unified.models.vocabulary import Vocabulary

TEXT, CODE, START, END, PLACEHOLDER = range(5)
# an error at the first text token of an answer is an image instead of an answer, so these are a group; in raster order
# an image's end token is balanced against its codes, so both are one group; in scale order it has no label
DECISION_GROUPS = ("first words", "later words", "images", "image starts")
CHUNK = 2048  # positions per chunk of logits


@dataclass(frozen=True)
class ModalityDecisions:
    """States (N, D), logits of each token kind (N, 5), target kinds (N,), and their `DECISION_GROUPS` (N,)."""

    states: Tensor
    logits: Tensor
    kinds: Tensor
    groups: Tensor

    @classmethod
    def join(cls, parts: Iterable["ModalityDecisions"]) -> "ModalityDecisions":
        """Concatenate."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(torch.cat, columns))

    def losses(self, shifts: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of every group (nan if empty), with `shifts` (4, D) added to the rows."""
        logits = self.logits
        if shifts is not None:
            logits = torch.cat([logits[:, :1], logits[:, 1:] + self.states @ shifts.T], dim=1)
        losses = torch.nn.functional.cross_entropy(logits, self.kinds, reduction="none")
        return torch.stack([losses[self.groups == group].mean() for group in range(len(DECISION_GROUPS))])


@torch.no_grad()
def collect_decisions(
    model: UnifiedForCausalLM, vocabulary: Vocabulary, batch: dict[str, Tensor]
) -> ModalityDecisions:
    """Decisions of a batch of `SFTCollator` without packing and dropping, in float64 on the CPU.

    Raises ValueError for a model with soft-capped logits, which are not linear in the rows.
    """
    if model.config.logit_cap:
        raise ValueError(
            f"{model.config.text_config.model_type} caps its logits at {model.config.logit_cap:g}, so its rows "
            "cannot be calibrated; keep the adapter as it was trained"
        )
    names = ("input_ids", "attention_mask", "image_codes")
    inputs = {name: batch[name].to(model.device) for name in names if name in batch}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    previous, targets = batch["labels"][:, :-1], batch["labels"][:, 1:]
    trained = targets != IGNORE_INDEX
    # an image's end has no label in scale order, but what follows it does not begin an answer
    first = ((previous == IGNORE_INDEX) & (batch["input_ids"][:, :-1] != vocabulary.eoi_token_id))[trained]
    states, targets = hidden[trained.to(hidden.device)], targets[trained]
    weight = model.get_output_embeddings().get_parameter("weight").detach()
    logits = torch.cat([kind_logits(part, weight, vocabulary) for part in states.split(CHUNK)])
    kinds = token_kinds(targets, vocabulary)
    groups = torch.tensor([1, 2, 3, 2])[kinds]
    groups[(kinds == TEXT) & first] = 0
    return ModalityDecisions(states.cpu().double(), logits.cpu().double(), kinds, groups)


def token_kinds(ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Token kind of every id, same shape."""
    kinds = torch.where(vocabulary.is_image(ids), CODE, TEXT)
    for kind, token in zip((START, END, PLACEHOLDER), vocabulary.special_ids, strict=True):
        kinds[ids == token] = kind
    return kinds


def kind_logits(states: Tensor, weight: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Unnormalised log-probs of every token kind (n, 5) at `states` (n, D), with the output matrix `weight` (V, D)."""
    logits = (states.to(weight.dtype) @ weight.T).float()
    text = logits[:, : vocabulary.image_token_offset].clone()
    text[:, vocabulary.special_ids] = -torch.inf
    codes = vocabulary.code_rows(logits.T).T
    special = logits[:, vocabulary.special_ids]
    return torch.cat([text.logsumexp(1, keepdim=True), codes.logsumexp(1, keepdim=True), special], dim=1)


def calibrate(decisions: ModalityDecisions, strength: float, steps: int = 200) -> Tensor:
    """Optimal shifts (4, D) of all codes' rows together, and of image start, end and placeholder.

    Minimizes the sum of the groups' mean losses plus `strength` times the shifts' squared norm, by L-BFGS.
    """
    if not (decisions.states.isfinite().all() and decisions.logits.isfinite().any(dim=1).all()):
        raise FloatingPointError(
            "the model's states are not finite, so nothing is calibrated; train the adapter again"
        )
    shifts = torch.zeros(4, decisions.states.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([shifts], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = decisions.losses(shifts).nan_to_num(0).sum() + strength * shifts.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    if not shifts.isfinite().all():
        raise FloatingPointError(f"the calibration diverged with strength {strength:g}; give a larger --strength")
    return shifts.detach()


def shift_rows(rows: Tensor, ids: list[int], shifts: Tensor, vocabulary: Vocabulary) -> Tensor:
    """`rows` (n, D) of the vocabulary's `ids` with `shifts` (4, D) added, in float32."""
    kinds = token_kinds(torch.tensor(ids), vocabulary)
    return rows.float() + torch.cat([torch.zeros_like(shifts[:1]), shifts])[kinds].float()
