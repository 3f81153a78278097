"""The commands in a recipe's header, run one after the other in this process, on toys of the same shape."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import commands
import pytest
import torch
from PIL import Image
from shell_blocks import Line
from shell_blocks import commands as shell_commands
from toys import make_tokenizer
from transformers import AddedToken, Qwen3Config, Qwen3ForCausalLM

from unified import VQConfig, VQModel

ROOT = Path(__file__).parents[1]
PROGRAMS = r"(hf|cp|python|unified|accelerate|[A-Z]+=)"
PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # VAR's at 256 pixels, and 680 codes
# what makes a toy's run short: flags behind those of a header
SHORT: dict[str, Sequence[object]] = {
    "train_vq.py": [*("--max_steps", 1, "--eval_images", 1, "--batch_size", 2), *("--channels", 32, 32)],
    "sft.py": ["--max_steps", 1, "--eval_steps", 1, "--save_steps", 1, "--warmup_steps", 0],
    "dpo.py": ["--max_steps", 1, "--eval_steps", 1, "--save_steps", 1, "--warmup_steps", 0],
    "replay_text.py": ["--limit", 5, "--max_new_tokens", 4],
    "calibrate_image_start.py": ["--limit", 10],
    "language.py": ["--limit", 2],
    "build_preferences.py": ["--samples", 3],
}
SMALL = [
    "--sample_prompts",
    "a cat",
    "--bf16",
    False,
    "--dtype",
    "float32",
    "--dataloader_num_workers",
    0,
    "--logging_steps",
    1,
]
SMALL += ["--per_device_train_batch_size", 2, "--per_device_eval_batch_size", 2, "--gradient_accumulation_steps", 1]


def header_lines(path: Path) -> list[Line]:
    """The commands that a YAML's header shows, in order."""
    header = re.findall(r"^#   (.*\n)", path.read_text(encoding="utf-8"), re.MULTILINE)
    shown = [
        line for i, line in enumerate(header) if re.match(PROGRAMS, line) or (i and header[i - 1].endswith("\\\n"))
    ]
    return [line for line in shell_commands("".join(shown), path, 0) if line.words]


def run_line(line: Line, run_script: Callable[..., int], stdin: str = "") -> None:
    """Run one command, which must end well; downloads and the detectors of others are for the caller."""
    program, *arguments = line.words
    if program == "cp":
        shutil.copy(*arguments)
    elif program == "unified":
        done = commands.run(*arguments, stdin=stdin)
        assert done.exit_code == 0, f"{line.words}: {done.output}"
    else:
        place = next(i for i, word in enumerate(line.words) if word.endswith(".py"))
        script, given = line.words[place], expand(line.words[place + 1 :])
        name = Path(script).name
        short = [*SHORT.get(name, ()), *(SMALL if name in ("sft.py", "dpo.py") else ())]
        assert run_script(script, *given, *short) == 0, line.words


def expand(words: Sequence[str]) -> list[str]:
    """Words with `*` as the files they stand for, as a shell has it."""
    found = [[str(path) for path in sorted(Path().glob(word))] if "*" in word else [word] for word in words]
    return [word for words in found for word in words]


def qwen3_folder(folder: Path, template: str) -> Path:
    """A random tied Qwen3 (hidden 32, 2 layers) with <think> in its vocabulary; asked anything it says dots."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("<think>", "</think>")])
    tokenizer.chat_template = template
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **ids, max_position_embeddings=2048, tie_word_embeddings=True))
    table = model.get_input_embeddings().weight.data
    table += 1.0
    table[tokenizer.convert_tokens_to_ids(".")] += 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def var_file(path: Path) -> Path:
    """A random tokenizer of VAR's architecture and scales under VAR's names: 32 pixels, 64 codes."""
    torch.manual_seed(0)
    shape = {"architecture": "var", "channels": [32, 32], "num_res_blocks": 1, "codebook_size": 64, "code_dim": 8}
    model = VQModel(VQConfig(**shape, image_size=32, patch_nums=PATCH_NUMS, phi_count=4))
    names = {"quantizer.": "quantize.", "qresi_ls.": "qresi_ls."}
    renamed = {name.replace("quantizer.", names["quantizer."]): value for name, value in model.state_dict().items()}
    torch.save(renamed, path)
    return path


def photos(folder: Path, captions: Mapping[str, str]) -> Path:
    """A folder of photos, each of one colour, with their captions beside them."""
    folder.mkdir(parents=True)
    for colour, caption in captions.items():
        Image.new("RGB", (40, 32), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, in which the repository's scripts and configurations lie as users have them."""
    for name in ("recipes", "data_prep", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path
