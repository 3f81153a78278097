"""Small tokenizers with the published normalizer, pre-tokenizer and decoder of a family, and its chat template."""

import json
from pathlib import Path

import trl
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from toys import CHAT_TEMPLATE, SENTENCES
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"Llama 3": _LETTERS + r"\p{N}{1,3}" + _REST, "Qwen": _LETTERS + r"\p{N}" + _REST}
PATTERNS["SmolLM3"] = PATTERNS["Llama 3"]
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (  # TinyLlama's: role marks are plain text
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
TEMPLATES = {
    "Llama 2": LLAMA2,
    "Mistral": MISTRAL,
    "Mistral, legacy": MISTRAL,
    "TinyLlama": ZEPHYR,
    "Phi-3": (FOLDER / "phi3.jinja").read_text(),
    "Gemma": (FOLDER / "gemma.jinja").read_text(),
    "Llama 3": (FOLDER / "llama3.jinja").read_text(),
    "Qwen": (FOLDER / "qwen3.jinja").read_text(),
    "SmolLM3": CHAT_TEMPLATE,
}
_SPECIAL = {
    "Phi-3": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    "Gemma": ["<start_of_turn>", "<end_of_turn>"],
    "Llama 3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "Qwen": ["<|im_start|>", "<|im_end|>"],
    "SmolLM3": ["<|im_start|>", "<|im_end|>"],
}


def make_family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The toy tokenizer of one of `TEMPLATES`, of some 500 tokens."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = _byte_level(family, special) if family in PATTERNS else _sentence_piece(family, special)
    strips = family == "Phi-3"  # a role's mark swallows the line break behind it
    words = [AddedToken(word, rstrip=strips, normalized=False, special=True) for word in _SPECIAL.get(family, [])]
    tokenizer.add_special_tokens(words)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    if family == "Qwen":
        fast.add_tokens([AddedToken(word, normalized=False) for word in ("<think>", "</think>")])
    fast.chat_template = TEMPLATES[family]
    return fast


def _byte_level(family: str, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if family == "Qwen" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[family]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "\n\n", "a\n\n\nb", ".\n", "1234567"] * 3, trainer)
    return tokenizer


def _sentence_piece(family: str, special: list[str]) -> Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=750, special_tokens=[*special, *bytes_], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "A The There [INST] [/INST] <<SYS>>", "  ", "▁▁▁▁"] * 3, trainer)
    tokenizer = _without_special_bytes(tokenizer, bytes_)
    prepend = [normalizers.Prepend("▁")] if family in ("Llama 2", "Mistral, legacy", "Phi-3", "TinyLlama") else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    if family == "Gemma":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    if family == "Mistral":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = [] if family == "Gemma" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _without_special_bytes(trained: Tokenizer, bytes_: list[str]) -> Tokenizer:
    """Bytes are ordinary entries of the vocabulary, though the trainer takes them as special tokens alone."""
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in bytes_]
    state["normalizer"] = state["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(state))
