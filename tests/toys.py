"""Toys that tests share: a real small tokenizer, a random image tokenizer, a random Llama on disk, rows."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unified import UnifiedConfig, VQConfig, VQModel
from unified.checkpoints.extension import extend_tokenizer
from unified.data.rows import write_encoded_shard

SENTENCES = [
    "You are a helpful assistant.",
    "Draw a red apple above a blue dog on a light background.",
    "How many cats are there? There are three cats and one bird.",
    "What is the capital of France? The capital of France is Paris.",
    "system user assistant a photo of two green books and four yellow cups",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of some 320 tokens: ChatML template, eos `<|im_end|>`, a pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    )


def make_vq() -> VQModel:
    """Random image tokenizer: 16-pixel images, scales (1, 2), 5 codes of 32, in eval mode."""
    torch.manual_seed(0)
    config = VQConfig(
        architecture="small", image_size=16, channels=(32, 32), patch_nums=(1, 2), codebook_size=32, code_dim=8
    )
    return VQModel(config).eval()


def make_config(tokenizer: PreTrainedTokenizerFast, vq_config: VQConfig, **settings: Any) -> UnifiedConfig:
    """Configuration of a model extended by `vq_config`'s codes; `tokenizer` gains the special tokens."""
    vocabulary = extend_tokenizer(tokenizer, len(tokenizer), vq_config.codebook_size)
    ids = {name: value for name, value in asdict(vocabulary).items() if name != "codebook_size"}
    return UnifiedConfig(vq_config=vq_config, vq_fingerprint="feed", **ids, **settings)


def save_llm(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a random Llama (hidden 32, 2 layers, 4 heads, 2 kv heads, tied embeddings) and its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def toy_row(kind: str, number: int, codes: list[int]) -> dict[str, Any]:
    """Encoded row of `kind` draw (with an output image), ask (with an input image) or text (none)."""
    image, words = {"type": "image", "text": None}, {"type": "text", "text": f"{number} cats"}
    question = {
        "draw": [{"type": "text", "text": f"a photo of {number} red cats"}],
        "ask": [image, {"type": "text", "text": "How many?"}],
        "text": [{"type": "text", "text": f"What is {number} and {number}?"}],
    }[kind]
    answer = [image] if kind == "draw" else [words]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "codes": [] if kind == "text" else [codes], "metadata": "{}", "source": kind}


def write_toy_rows(path: Path, kinds: str, fingerprint: str) -> Path:
    """Encoded shard with one row for every letter of `kinds`: d(raw), a(sk) or t(ext); codes are random."""
    names = {"d": "draw", "a": "ask", "t": "text"}
    codes = torch.randint(32, (len(kinds), 5), generator=torch.Generator().manual_seed(1)).tolist()
    rows = [toy_row(names[kind], number, codes[number]) for number, kind in enumerate(kinds)]
    write_encoded_shard(path, rows, fingerprint, (1, 2))
    return path
