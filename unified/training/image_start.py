"""When words come next and when an image: the new rows' say in it, settled exactly after training.

Codes are chosen among codes, so adding one vector to all of their rows changes no picture; but it changes how likely
any code is where a word belongs. With the rows of image start, end and placeholder that makes four vectors, and with
the states behind them fixed, the cross-entropy of "word, code, start, end" is convex in them: no learning rate, one
answer. Where text runs on the base's own weights, what new rows take at a word is all that KL(base || model) has.

Legend: N positions, D hidden. Kinds: 0 word, 1 code, 2 image start, 3 image end, 4 image placeholder.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import IGNORE_INDEX
from unified.models.vocabulary import Vocabulary

WORD, CODE, START, END, PLACEHOLDER = range(5)
# a mistake at the first word of an answer is an image instead of an answer, so these count by themselves; the state of
# an image's last place scores its code and the end, so both are one group, and neither is settled at the other's cost
GROUPS = ("first words", "later words", "images", "image starts")
CHUNK = 2048  # positions whose logits are held at once


@dataclass(frozen=True)
class Decisions:
    """States (N, D), the logits of each kind (N, 5), which kind was right and to which of `GROUPS` it belongs (N,)."""

    states: Tensor
    logits: Tensor
    kinds: Tensor
    groups: Tensor

    @classmethod
    def join(cls, parts: Iterable["Decisions"]) -> "Decisions":
        """All of them, one after the other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(torch.cat, columns))

    def losses(self, shifts: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of every group, nan where it is empty, with `shifts` (4, D) on the rows."""
        logits = self.logits
        if shifts is not None:
            logits = torch.cat([logits[:, :1], logits[:, 1:] + self.states @ shifts.T], dim=1)
        losses = torch.nn.functional.cross_entropy(logits, self.kinds, reduction="none")
        return torch.stack([losses[self.groups == group].mean() for group in range(len(GROUPS))])


@torch.no_grad()
def decide(model: UnifiedForCausalLM, vocabulary: Vocabulary, batch: dict[str, Tensor]) -> Decisions:
    """The decisions of a batch of `SFTCollator` without packing and dropping; float64, on the CPU.

    Raises ValueError for a model that caps its logits: there a shift of rows is not one of logits.
    """
    if model.config.logit_cap:
        raise ValueError(
            f"{model.config.text_config.model_type} caps its logits at {model.config.logit_cap:g}, so shifts of its "
            "rows cannot be solved for; keep the adapter as it was trained"
        )
    given = ("input_ids", "attention_mask", "image_codes")
    inputs = {name: batch[name].to(model.device) for name in given if name in batch}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    before, wanted = batch["labels"][:, :-1], batch["labels"][:, 1:]
    answered = wanted != IGNORE_INDEX
    states, wanted, first = hidden[answered.to(hidden.device)], wanted[answered], (before == IGNORE_INDEX)[answered]
    weight = model.get_output_embeddings().get_parameter("weight").detach()
    logits = torch.cat([kind_logits(part, weight, vocabulary) for part in states.split(CHUNK)])
    kinds = kinds_of(wanted, vocabulary)
    groups = torch.tensor([1, 2, 3, 2])[kinds]
    groups[(kinds == WORD) & first] = 0
    return Decisions(states.cpu().double(), logits.cpu().double(), kinds, groups)


def kinds_of(ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The kind of every id, same shape."""
    kinds = torch.where(vocabulary.is_image(ids), CODE, WORD)
    for kind, token in zip((START, END, PLACEHOLDER), vocabulary.special_ids, strict=True):
        kinds[ids == token] = kind
    return kinds


def kind_logits(states: Tensor, weight: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Unnormalised log-probs of every kind (n, 5) at `states` (n, D), with the output matrix `weight` (V, D)."""
    logits = (states.to(weight.dtype) @ weight.T).float()
    words = logits[:, : vocabulary.image_token_offset].clone()
    words[:, vocabulary.special_ids] = -torch.inf
    codes = vocabulary.code_rows(logits.T).T
    special = logits[:, vocabulary.special_ids]
    return torch.cat([words.logsumexp(1, keepdim=True), codes.logsumexp(1, keepdim=True), special], dim=1)


def calibrate(decisions: Decisions, strength: float, steps: int = 200) -> Tensor:
    """Shifts (4, D) of all codes' rows together, and of image start, end and placeholder, that decide best.

    The least sum of the groups' mean losses plus `strength` times the shifts' squared length, by L-BFGS.
    """
    shifts = torch.zeros(4, decisions.states.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([shifts], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = decisions.losses(shifts).nan_to_num(0).sum() + strength * shifts.square().sum()
        loss.backward()
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return shifts.detach()


def shift_rows(rows: Tensor, ids: list[int], shifts: Tensor, vocabulary: Vocabulary) -> Tensor:
    """`rows` (n, D) of the vocabulary's `ids` with `shifts` (4, D) added, in float32."""
    kinds = kinds_of(torch.tensor(ids), vocabulary)
    return rows.float() + torch.cat([torch.zeros_like(shifts[:1]), shifts])[kinds].float()
