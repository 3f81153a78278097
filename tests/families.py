"""Tiny random causal LMs of every model type of transformers, and what becomes of them when they are extended."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WIDTH = 32
# sizes by the names that configurations give them; a configuration is told those that it has
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_top_k"), 2),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "head_dim", "hidden_per_layer"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "num_heads", "linear_num_key_heads"), 4),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("vocab_size_per_layer_input",), 1000),
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size_per_layer_input": 8,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "sliding_window": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONV = {"layer_types": ["conv", "full_attention"]}
# heads of multi-head latent attention have keys of their own
MLA = "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 glm4_moe_lite kimi_linear longcat_flash minicpm3 youtu"
# what types need beside: a layer of each kind, sizes that fit each other
SPECIAL: list[tuple[str, dict[str, Any]]] = [
    ("afmoe cohere2 cohere2_moe exaone4 exaone_moe gemma3_text kolibri1 ministral olmo3", SLIDING),
    ("bailing_hybrid bamba granitemoehybrid kimi_linear qwen3_5_moe_text qwen3_5_text qwen3_next minimax", LINEAR),
    ("olmo_hybrid qwen4_exp_text", LINEAR),
    ("lfm2 lfm2_moe lfm3", CONV),
    (MLA, {"num_key_value_heads": 4, "head_dim": 8}),
    ("bamba", {"layer_types": None, "attn_layer_indices": [1], "attn_rotary_emb": 8}),
    ("dots3_note_text", {"num_key_value_heads": 4}),
    ("falcon_h1", {"mamba_d_ssm": 64}),
    ("gemma3n_text", SLIDING | {"num_kv_shared_layers": 0}),
    ("gemma4_text", {"layer_types": 2 * SLIDING["layer_types"], "num_hidden_layers": 4, "num_kv_shared_layers": 2}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    ("jamba", {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_dt_rank": 4}),
    ("lfm2_moe", {"num_dense_layers": 1}),
    ("mamba2", {"head_dim": 16}),
    ("cohere_compass_text", SLIDING | {"rope_parameters": dict.fromkeys(SLIDING["layer_types"], ROPE)}),
    ("codegen gptj", {"rotary_dim": 8}),
    ("dbrx", {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}}),
    ("nemotron_h", {"n_groups": 2, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}),
    ("reformer", {"is_decoder": True, "axial_pos_embds": False}),
    ("xmod", {"default_language": "en_XX"}),
    ("zamba2", {"layers_block_type": ["linear_attention", "hybrid"]}),
    ("zamba", {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]}),
    ("zaya", {"num_experts_per_tok": 1}),
]


def model_types() -> list[str]:
    """Of all text models with a causal LM; that of a model of several modalities has a type of its own."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(name for name in names if "text_config" not in CONFIG_MAPPING[name].sub_configs)


def tiny_config(model_type: str, vocab_size: int, **more: Any) -> PreTrainedConfig:
    """A configuration of width 32, two layers (one of each kind), a window of 8, four experts."""
    kind = CONFIG_MAPPING[model_type]
    names = set(kind.__dataclass_fields__) | set(kind.attribute_map)
    given = {name: value for name, value in SIZES.items() if name in names}
    for types, settings in SPECIAL:
        if model_type in types.split():
            given |= settings
    chosen = {name: value for name, value in (given | {"vocab_size": vocab_size} | more).items() if value is not None}
    return kind(**chosen)


def tiny_llm(model_type: str, vocab_size: int, **more: Any) -> PreTrainedModel:
    """A random causal LM, in eval mode, in which every input matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, vocab_size, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        for part in model.modules():
            if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0  # as HF has it, and some of its models make it on loading
    return model
