"""FSDP2: which launches of it train what they say, and weights gathered for what runs outside a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.distributed.fsdp import FSDPModule

from unified.models.modeling import UnifiedForCausalLM


def check_fsdp(accelerator: Accelerator, core: UnifiedForCausalLM, reads_matrix: bool = False) -> None:
    """Raise ValueError for launches by FSDP that would train `core` wrongly, or save nothing that can be opened.

    `reads_matrix`: whether losses read the output matrix outside its layer, as TRL's trainers do.
    """
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == "FSDP" else None
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            "fsdp_version 1 flattens weights that learn together with frozen ones; set it to 2, as fsdp2.yaml does"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading true takes every entry of a model for a shard, which the image tokenizer "
            "and text rows are not; set it to false"
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            "fsdp_state_dict_type SHARDED_STATE_DICT leaves no checkpoint that from_pretrained opens; set it to "
            "FULL_STATE_DICT"
        )
    tied, head = core.config.tie_word_embeddings, core.lm_head
    if isinstance(core.get_input_embeddings(), TrainableTokensWrapper) and (tied or reads_matrix):
        reason = "embedding and output layer share" if tied else "TRL reads together with their matrix"
        raise ValueError(
            f"this adapter has token rows, which {reason}, and FSDP2 shards them apart; launch with zero2.yaml"
        )
    if reads_matrix and not tied and isinstance(head, nn.Linear) and head.weight.requires_grad:
        raise ValueError(
            "train_text_rows True does not work with FSDP2 here: TRL gathers the output matrix without reducing its "
            "gradient over the ranks; set it to False, or launch with zero3.yaml"
        )


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, all weights that FSDP2 has sharded are whole where a layer's forward pass does not see to it."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
