"""What a run does otherwise for some backbones, and says: one document a row, the balance loss of experts."""

import os
import sys
from dataclasses import replace
from typing import Any

from unified.models.backbones import balance_of, is_recurrent
from unified.models.modeling import UnifiedForCausalLM
from unified.training.arguments import DataArguments


def suit(model: UnifiedForCausalLM, data_args: DataArguments) -> DataArguments:
    """`data_args` as the backbone needs them; what is changed and added is said once.

    Raises ValueError for a `last_scale_fraction` below 1 with a recurrent backbone.
    """
    text_config: Any = model.config.text_config
    kind, said = text_config.model_type, []
    if is_recurrent(text_config):
        if data_args.last_scale_fraction < 1:
            raise ValueError(
                f"last_scale_fraction {data_args.last_scale_fraction:g}, but recurrent layers of the backbone {kind} "
                "read each position after the one before; set it to 1"
            )
        if data_args.pack:
            said.append("rows hold one example each (pack False), as recurrent layers would carry one into the next")
            data_args = replace(data_args, pack=False)
    if balance_of(model.model.language_model) is not None:
        said.append(f"the experts' balance loss is added, router_aux_loss_coef {text_config.router_aux_loss_coef:g}")
    if said and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"backbone {kind}: {'; '.join(said)}\n")
    return data_args
