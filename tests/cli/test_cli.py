"""The command line on a toy checkpoint: extend -> draw -> chat -> merge, and bad input is one line and status 2."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from commands import error_of, logits, run
from PIL import Image

from unified import UnifiedForCausalLM
from unified.checkpoints.loading import load
from unified.checkpoints.publishing import merge
from unified.inference.chat import Chat, remaining_text_tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model_dir(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> Path:
    """Checkpoint made by the command itself."""
    result = run("extend", "--llm", tiny_llm_dir, "--vq", vq_dir, "--out", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert "32 image codes, 5 codes per image" in result.stdout
    return tmp_path / "model"


@pytest.fixture
def adapter_dir(model_dir: Path, tmp_path: Path) -> Path:
    """LoRA adapter whose low-rank updates, token rows and image embedding all differ from the base's."""
    model, processor = load(model_dir, device="cpu")
    config = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices={"embed_tokens": [processor.boi_token_id, *processor.vocabulary.image_ids]},
        modules_to_save=["image_embedding"],
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def save_image(path: Path) -> Path:
    Image.new("RGB", (20, 16), (200, 30, 30)).save(path)
    return path


@torch.no_grad()
def train_to_start_image(model_dir: Path, question: str) -> None:
    """Make the image start the likeliest answer to `question`: its output row becomes the state that is scored."""
    model, processor = load(model_dir, device="cpu")
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    state = model.model(**inputs).last_hidden_state[0, -1]
    model.lm_head.weight[processor.boi_token_id] = 10 * state
    model.save_pretrained(model_dir)


def test_draw_is_reproducible_and_counts_seeds(model_dir: Path, tmp_path: Path) -> None:
    one = ("draw", "a red apple", "--model", model_dir, "--temperature", 1, "--guidance_scale", 2)
    assert run(*one, "--seed", 3, "--out", tmp_path / "new" / "a.png").exit_code == 0
    result = run(*one, "--seed", 2, "--count", 2, "--out", tmp_path / "b.png")
    assert result.stdout.split() == [str(tmp_path / "b_0.png"), str(tmp_path / "b_1.png")]
    single, second = (Image.open(tmp_path / name).tobytes() for name in ("new/a.png", "b_1.png"))
    assert single == second != Image.open(tmp_path / "b_0.png").tobytes()


def test_draw_says_what_it_runs_on_and_is_told_otherwise(model_dir: Path, tmp_path: Path) -> None:
    draw = ("draw", "a red apple", "--model", model_dir, "--out", tmp_path / "a.png")
    said = run(*draw, "--device", "cpu", "--threads", 1)
    assert said.exit_code == 0 and said.stdout.split() == [str(tmp_path / "a.png")]
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("hardware: ")]
    assert "cpu (--device), float32" in line and "1 thread (--threads)" in line
    assert error_of(*draw, "--device", "mps").startswith("error: device mps is not on this machine; give one of")


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_draw_takes_a_file_of_prompts(name: str, model_dir: Path, tmp_path: Path) -> None:
    """One a line or JSONL: numbered pictures, each of its own seed, as if it were drawn alone."""
    prompts = ["a red apple", "two cats", 'a "quoted" sign, {odd}', "a red apple"]
    lines = prompts if name.endswith("txt") else [json.dumps({"prompt": prompt, "tag": "x"}) for prompt in prompts]
    (tmp_path / name).write_text("\n".join([lines[0], "", *lines[1:], ""]), encoding="utf-8")
    draw = ("draw", "--model", model_dir, "--temperature", 1, "--guidance_scale", 2)
    result = run(*draw, "--prompts", tmp_path / name, "--seed", 5, "--out", tmp_path / "new" / "a.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(tmp_path / "new" / f"a_000{number}.png") for number in (1, 2, 3, 4)]
    pictures = [Image.open(tmp_path / "new" / f"a_000{number}.png").tobytes() for number in (1, 2, 3, 4)]
    for place, prompt in enumerate(prompts):
        run(draw[0], prompt, *draw[1:], "--seed", 5 + place, "--out", tmp_path / "alone.png")
        assert Image.open(tmp_path / "alone.png").tobytes() == pictures[place]
    assert pictures[0] != pictures[3]  # the same words, another seed


def test_draw_takes_a_file_several_times_and_scale_by_scale(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red apple\ntwo cats\n")
    draw = ("draw", "--model", model_dir, "--prompts", tmp_path / "p.txt", "--count", 2, "--strip")
    result = run(*draw, "--seed", 3, "--out", tmp_path / "a.png")
    names = ["a_0001_0", "a_0001_1", "a_0002_0", "a_0002_1"]
    assert result.exit_code == 0
    assert sorted(path.stem for path in tmp_path.glob("a_*.png")) == sorted(names + [f"{n}_scales" for n in names])
    run("draw", "two cats", "--model", model_dir, "--seed", 6, "--out", tmp_path / "alone.png")
    assert Image.open(tmp_path / "alone.png").tobytes() == Image.open(tmp_path / "a_0002_1.png").tobytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "none.txt is not a file; give a prompt a line, or JSONL with `prompt` in every line"),
        ("empty.txt", "\n \n", "empty.txt is empty; write a prompt a line"),
        ("empty.jsonl", "", "empty.jsonl is empty; write a prompt a line"),
        ("bad.jsonl", '{"prompt": "cat"}\n{"caption": "dog"}', "bad.jsonl:2: no prompt"),
        ("broken.jsonl", '{"prompt": ', "broken.jsonl:1: not JSON"),
        ("long.txt", f"cat\n{'dog ' * 600}", "long.txt: prompt 2: "),
        ("latin.txt", b"caf\xe9", "latin.txt: not UTF-8"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line(
    name: str, content: Any, said: str, model_dir: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in error_of("draw", "--prompts", tmp_path / name, "--model", model_dir, "--out", tmp_path / "x.png")
    assert not list(tmp_path.glob("x*"))


def test_draw_needs_a_prompt_or_a_file_of_them(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("cat")
    rest = ("--model", tmp_path / "none", "--out", tmp_path / "x.png")
    assert "no prompt; give PROMPT, or --prompts FILE" in error_of("draw", *rest)
    both = error_of("draw", "a", "--prompts", tmp_path / "p.txt", *rest)
    assert "PROMPT and --prompts are both given; keep one" in both


def test_draw_strip_ends_with_the_image(model_dir: Path, tmp_path: Path) -> None:
    draw = ("draw", "a red apple", "--model", model_dir, "--top-k", 4, "--top-p", 0.9)
    assert run(*draw, "--out", tmp_path / "plain.png").exit_code == 0
    assert run(*draw, "--out", tmp_path / "x.png", "--strip").exit_code == 0
    assert Image.open(tmp_path / "x.png").tobytes() == Image.open(tmp_path / "plain.png").tobytes()
    with Image.open(tmp_path / "x_scales.png") as strip:
        assert strip.size[0] == 2 * 168 + 8  # two scales side by side


def test_piped_chat_with_images_and_reset(model_dir: Path, tmp_path: Path) -> None:
    train_to_start_image(model_dir, "draw")
    lines = [
        "draw",
        f"/image {save_image(tmp_path / 'cat.png')}",
        "what is this?",
        "/reset",
        "draw",
        "/quit",
        "never asked",
    ]
    result = run(
        "chat",
        "--model",
        model_dir,
        "--out-dir",
        tmp_path / "generated",
        "--max-new-tokens",
        8,
        stdin="\n".join(lines),
    )
    assert result.exit_code == 0, result.output + result.stderr
    assert f"[image: {tmp_path / 'generated' / '000.png'}]" in result.stdout
    assert f"[{tmp_path / 'cat.png'} is part of your next question]" in result.stdout
    assert "[a new conversation]" in result.stdout and "<|" not in result.stdout
    with Image.open(tmp_path / "generated" / "000.png") as image:
        assert image.size == (16, 16)
    assert len(list((tmp_path / "generated").iterdir())) == result.stdout.count("[image: ") >= 2


def test_chat_keeps_codes_of_input_and_output_images(model_dir: Path, tmp_path: Path) -> None:
    train_to_start_image(model_dir, "draw")
    conversation = Chat(*load(model_dir, device="cpu"), max_new_tokens=6)
    streamed: list[str] = []
    parts = conversation.ask("draw", streamed.append)
    assert parts[0]["type"] == "image" and len(conversation.codes) == 1
    assert "".join(streamed) == "".join(part["text"] for part in parts if part["type"] == "text")
    conversation.show(Image.open(save_image(tmp_path / "cat.png")))
    shown = conversation.pending_images[0]
    conversation.ask("and this?")
    assert (
        torch.equal(conversation.codes[1], shown)
        and torch.equal(conversation.codes[0], parts[0]["codes"])
        and not conversation.pending_images
    )
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_first_is_asked_about_images_only(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int, int]] = []
    ask = Chat.ask

    def listen(conversation: Chat, text: str, *rest: Any) -> list[dict[str, Any]]:
        asked.append((text, len(conversation.pending_images), len(conversation.messages)))
        return ask(conversation, text, *rest)

    monkeypatch.setattr(Chat, "ask", listen)
    chat = ("chat", "--model", model_dir, "--out-dir", tmp_path, "--max-images", 0, "--max-new-tokens", 4)
    lines = ["hello", f"/image {save_image(tmp_path / 'cat.png')}", "is it a cat?", "sure?"]
    assert run(*chat, "--first", "What do you see?", stdin="\n".join(lines)).exit_code == 0
    assert asked == [("hello", 0, 0), ("What do you see?", 1, 2), ("is it a cat?", 0, 4), ("sure?", 0, 6)]


def test_overflow_is_an_error_and_keeps_the_conversation(model_dir: Path) -> None:
    conversation = Chat(*load(model_dir, device="cpu"), max_new_tokens=4)
    conversation.ask("hello")
    before = list(conversation.messages)
    with pytest.raises(ValueError, match=r"the prompt takes \d+ positions .* context has 512; shorten"):
        conversation.ask("many words " * 300)
    assert conversation.messages == before
    conversation.ask("again")


def test_remaining_tokens_count_rope_positions_not_codes(model_dir: Path) -> None:
    model, processor = load(model_dir, device="cpu")
    assert model.config.image_rope_positions == 2 + 2
    chat = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": [{"type": "image"}]}]
    ids = processor.prompt_ids([*chat, {"role": "user", "content": "x"}], [[0] * 5, [1] * 5])
    # of 4 placeholders one position counts, of 5 codes two
    assert remaining_text_tokens(model, ids, images=1) == 512 - (len(ids) - 3 - 3) - 4


def test_adapter_loads_merged(model_dir: Path, adapter_dir: Path, tmp_path: Path) -> None:
    base, adapted = load(model_dir, device="cpu"), load(adapter_dir, device="cpu")
    assert type(adapted[0]) is UnifiedForCausalLM and not torch.allclose(logits(*base), logits(*adapted), atol=1e-3)
    assert run("merge", "--model", adapter_dir, "--out", tmp_path / "merged").exit_code == 0
    torch.testing.assert_close(logits(*load(tmp_path / "merged", device="cpu")), logits(*adapted))


def test_bad_input_is_one_line(model_dir: Path, vq_dir: Path, tiny_llm_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    extend = ("extend", "--llm", tiny_llm_dir, "--vq", vq_dir, "--out")
    assert "exists already" in error_of(*extend, model_dir)
    assert "needs a tokenizer with one scale" in error_of(*extend, tmp_path / "m", "--image-order", "raster")
    assert "is not a folder; give a folder" in error_of("draw", "cat", "--model", tmp_path / "no", "--out", out)
    assert "type 'llama', not 'unified'" in error_of("draw", "cat", "--model", tiny_llm_dir, "--out", out)
    assert "use the suffix .png" in error_of("draw", "cat", "--model", model_dir, "--out", tmp_path / "x.docx")
    assert "context has 512" in error_of("draw", "cat " * 600, "--model", model_dir, "--out", out)
    assert "no adapter_config.json" in error_of("merge", "--model", model_dir, "--out", tmp_path / "m")
    (tmp_path / "fake.png").write_text("not an image")
    chat = ("chat", "--model", model_dir, "--out-dir", tmp_path)
    assert "cannot be read (" in error_of(*chat, "--image", tmp_path / "fake.png")
    assert "cannot be read (" in error_of(*chat, stdin=f"/image {tmp_path / 'missing.png'}\n")
    assert "unknown command '/generate'" in error_of(*chat, stdin="/generate\n")
    assert not out.exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modle"], "error: No such option: --modle"),
        (["drw"], "error: No such command 'drw'. Did you mean 'draw'; see --help"),
        (["draw"], "error: Missing option '--model'; see --help"),
        (["merge", "--out", "x"], "error: Missing option '--model'; see --help"),
        (["draw", "cat", "--model", "x", "--out", "x.png", "--seed", "one"], "error: Invalid value for '--seed': "),
        (
            ["draw", "cat", "--model", "x", "--out", "x.png", "--seed", 2**64],
            "error: Invalid value for '--seed': Input should be less than",
        ),
        (["draw", "cat", "--model", "x", "--out", "x.png", "--top-p", "2"], "error: Invalid value for '--top-p': "),
        (["extend", "--llm", "a", "--vq", "b", "--out", "c", "--image-order", "z"], "error: Invalid value for '--im"),
    ],
)
def test_flags_are_refused_in_one_line(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(said) and result.stderr.endswith("; see --help\n"), result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_command_there_is_help() -> None:
    assert run().exit_code == 0 and run().stdout == run("--help").stdout


def test_incomplete_folders_are_named(model_dir: Path, adapter_dir: Path) -> None:
    (model_dir / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="has no processor_config.json; give a folder written by `unified extend`"):
        load(model_dir)
    with pytest.raises(ValueError, match="has no processor_config.json"):
        merge(adapter_dir, model_dir.with_name("merged"))
    model_dir.rename(model_dir.with_name("moved"))
    with pytest.raises(ValueError, match="is not a folder here; restore the base or correct base_model_name_or_path"):
        load(adapter_dir)


def test_readme_snippet_runs_and_its_packages_are_all(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_to_start_image(model_dir, "a photo of a cat")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace("weights/scenes-smollm2", str(model_dir)), {})
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (16, 16)
    imported = re.findall(r"^(?:from|import) (unified\S*)", snippet, re.MULTILINE)
    assert imported == ["unified"]  # no deeper than the public names
    packages = re.findall(r"^  (\w+)/ ", readme, re.MULTILINE)
    assert sorted(packages) == sorted(path.parent.name for path in (ROOT / "unified").glob("*/__init__.py"))


def test_help_loads_no_room_that_loads_torch() -> None:
    loaded = "import sys, unified.cli.main; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "numpy", "PIL"}
    assert "unified" in result.stdout.split() and not heavy & set(result.stdout.split())
    for command in ("extend", "draw", "chat", "merge", "publish"):
        assert command in run("--help").stdout and run(command, "--help").exit_code == 0
