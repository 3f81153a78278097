"""Toy worlds every test shares: a real small tokenizer, a random image tokenizer, a random Llama on disk."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unified import VQConfig, VQModel

ROOT = Path(__file__).parents[1]
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


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # toy tensors only lose time to threads, and the machine has few cores


def load_script(path: str) -> ModuleType:
    """Import a script such as `data_prep/encode_images.py`, whose folder is no package, to call what is in it."""
    name = f"script_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run_script("data_prep/x.py", "--flag", value)` runs a script in this process and returns its exit status.

    Saves the seconds a process takes to import torch; use `capsys` for what it prints.
    """

    def run(path: str, *arguments: object) -> int:
        script = load_script(path)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        try:
            script.run_main(script.main)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of some 320 tokens: ChatML template, eos `<|im_end|>`, a pad token; fresh for every test."""
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


@pytest.fixture
def tiny_vq() -> VQModel:
    """Random image tokenizer: 16-pixel images, scales (1, 2), 5 codes of 32, in eval mode."""
    torch.manual_seed(0)
    config = VQConfig(
        architecture="small", image_size=16, channels=(32, 32), patch_nums=(1, 2), codebook_size=32, code_dim=8
    )
    return VQModel(config).eval()


@pytest.fixture
def tiny_llm_dir(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (hidden 32, 2 layers, 4 heads, 2 kv heads, tied embeddings) with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny_llm")
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
