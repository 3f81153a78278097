"""What a training takes, counted: a model's shapes on no device (meta), one layer of it with fake tensors.

Nothing of the sizes here is allocated. GB are 1e9 bytes. Legend: B rows, T positions, D hidden.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config

from unified import UnifiedConfig, UnifiedForCausalLM, VQConfig
from unified.models.vocabulary import offset_for

# of https://huggingface.co/Qwen/Qwen3-1.7B, config.json
QWEN3 = {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
QWEN3 |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960}
QWEN3 |= {"tie_word_embeddings": True, "rope_theta": 1_000_000, "rms_norm_eps": 1e-6}
QWEN3_TOKENS = 151_669  # of its tokenizer; the rest of the matrix is padding
# of VAR's vae_ch160v4096z32.pth
VAR = {"architecture": "var", "image_size": 256, "channels": [160, 160, 320, 320, 640], "num_res_blocks": 2}
VAR |= {"codebook_size": 4096, "code_dim": 32, "patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "phi_count": 4}


def qwen3_with_var(**settings: object) -> UnifiedForCausalLM:
    """Qwen3-1.7B extended by VAR's codes, without values; `settings` replace those of Qwen3."""
    offset = offset_for(QWEN3["vocab_size"])
    text = Qwen3Config(**QWEN3 | settings | {"vocab_size": offset + VAR["codebook_size"]})
    special = {f"{name}_token_id": QWEN3_TOKENS + i for i, name in enumerate(("boi", "eoi", "image_pad"))}
    config = UnifiedConfig(text_config=text, vq_config=VQConfig(**VAR), image_token_offset=offset, **special)
    with torch.device("meta"):
        model = UnifiedForCausalLM(config)
    model.tie_weights()
    return model


def trainable(model: nn.Module) -> Counter[str]:
    """Trainable parameters by part: `lora`, `rows` of tokens, `image_embedding`, `backbone`."""
    kinds = {"lora_": "lora", "token": "rows", "image_embedding": "image_embedding", "": "backbone"}
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        found[next(kind for sign, kind in kinds.items() if sign in name)] += (
            parameter.numel() * parameter.requires_grad
        )
    return +found


@dataclass(frozen=True)
class Cost:
    """Bytes that autograd keeps beside parameters; FLOP of the forward pass, and of forward and backward."""

    saved: int
    forward: int
    both: int

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.saved - other.saved, self.forward - other.forward, self.both - other.both)


def layer_cost(prepared: Callable[..., nn.Module], rows: int, length: int) -> Cost:
    """Of one layer over B x T positions inside images; `prepared(num_hidden_layers=N)` is a model on meta."""
    two, one = (backbone_cost(prepared(num_hidden_layers=layers), rows, length) for layers in (2, 1))
    return two - one


def backbone_cost(model: nn.Module, rows: int, length: int) -> Cost:
    """Of a backbone's layers, in bf16 autocast, with torch's own attention under a mask."""
    core = model if isinstance(model, UnifiedForCausalLM) else model.get_base_model()
    backbone, gate = core.model.language_model.train(), core.model.image_gate
    backbone.config._attn_implementation = "sdpa"
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode():
        for part in backbone.modules():
            for name, value in list(part._parameters.items()):
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype)
                    part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
            for name, value in list(part._buffers.items()):
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        own = {tensor.untyped_storage()._cdata for tensor in (*backbone.parameters(), *backbone.buffers())}
        states = torch.empty(rows, length, backbone.config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
        inputs = {"position_ids": torch.arange(length).expand(rows, -1), "attention_mask": mask, "use_cache": False}
        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with FlopCounterMode(display=False) as flop, torch.autocast("cpu", torch.bfloat16), saving:
            hidden = gate.run_backbone(backbone, mask[:, 0, 0], None, None, inputs_embeds=states * 1, **inputs)[0]
            forward = flop.get_total_flops()
            hidden.float().sum().backward()
        saved = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
        return Cost(saved, forward, flop.get_total_flops())
