"""Adapters trained further and published: a continued run starts where the first ended, a base is checked."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import error_of, logits, run
from conftest import load_script
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tolerances import assert_sums_agree, terms_of
from toys import make_tokenizer, make_vq, save_llm

from unified import UnifiedConfig, UnifiedForCausalLM
from unified.checkpoints.adapters import base_digest
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.checkpoints.publishing import merge, publish
from unified.models.position_gated_lora import POSITIONS, ranks_after_image
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import prepare

ROOT = Path(__file__).parents[2]
KINDS = ("all", *POSITIONS)
LAYERS = ["q_proj", "down_proj"]
PARTS = ("lora_A", "lora_B", "trainable_tokens_delta", "image_embedding")
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sft(toy_checkpoint: Path, toy_rows: Callable[[str], Path]) -> Callable[..., None]:
    """`sft(*flags)`: run the recipe on a few rows of which every position is trained."""
    rows = toy_rows("ddat")
    fixed = ["sft.py", "--config", ROOT / "recipes/configs/tiny.yaml", "--train_files", rows, "--tuning", "lora"]
    fixed += ["--caption_dropout", 0, "--last_scale_fraction", 1]
    evaluated = ["--eval_files", rows, "--eval_strategy", "steps"]

    def train(*flags: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "true")
            patch.setattr(sys, "argv", [*map(str, [*fixed, *(evaluated * ("--eval_strategy" not in flags)), *flags])])
            load_script("recipes/sft.py").main()

    return train


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest,
    sft: Callable[..., None],
    toy_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Adapter of every kind after two long steps; its rank, alpha and layers are not the defaults."""
    out = tmp_path_factory.mktemp("trained") / request.param
    flags = ["--model", toy_checkpoint, "--output_dir", out, "--save_strategy", "no", "--eval_steps", 2]
    flags += ["--lora_positions", request.param, "--lora_rank", 4, "--lora_alpha", 12, "--learning_rate", 0.05]
    sft(*flags, "--lora_target_modules", *LAYERS)
    return out


@pytest.fixture(scope="module")
def published(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, written by the command."""
    out = tmp_path_factory.mktemp("published") / "adapter"
    made = ["--made-with", "make llm", "--made-with", "unified extend --llm L --vq V --out B"]
    assert run("publish", "--model", trained, "--out", out, *made).exit_code == 0
    return out


def kind_of(adapter: Path) -> str:
    return config_of(adapter).get("positions", "all")


def config_of(adapter: Path) -> dict:
    return json.loads((adapter / "adapter_config.json").read_text())


def weights_of(adapter: Path) -> Weights:
    return load_file(adapter / "adapter_model.safetensors")


def eval_losses(out: Path) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def test_a_continued_run_starts_where_it_stopped(sft: Callable[..., None], trained: Path, tmp_path: Path) -> None:
    still = ["--learning_rate", 0, "--new_parts_learning_rate", 0, "--max_steps", 1, "--eval_steps", 1]
    sft("--model", trained, "--output_dir", tmp_path / "out", *still, "--eval_on_start", "True")
    assert eval_losses(tmp_path / "out") == eval_losses(trained)[-1:] * 2
    before, after = weights_of(trained), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(*load(trained, "cpu")), logits(*load(tmp_path / "out", "cpu")))
    same = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "trainable_token_indices", "modules_to_save")
    old, new = config_of(trained), config_of(tmp_path / "out")
    assert {key: old[key] for key in same} == {key: new[key] for key in same}
    assert sorted(old["target_modules"]) == sorted(new["target_modules"])


def test_every_part_is_trained_further_in_float32(sft: Callable[..., None], published: Path, tmp_path: Path) -> None:
    before = weights_of(published)
    assert {value.dtype for value in before.values()} == {torch.bfloat16}
    flags = ["--lora_rank", 4, "--lora_positions", kind_of(published), "--lora_target_modules", *LAYERS]
    sft("--model", published, "--output_dir", tmp_path / "out", "--max_steps", 1, "--learning_rate", 0.01, *flags)
    after = weights_of(tmp_path / "out")
    assert before.keys() == after.keys() and {value.dtype for value in after.values()} == {torch.float32}
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert moved == set(before)
    for part in PARTS:
        assert [name for name in moved if part in name], part


def test_a_share_of_the_start_stays_in_the_result(sft: Callable[..., None], trained: Path, tmp_path: Path) -> None:
    moving = ["--model", trained, "--max_steps", 1, "--learning_rate", 0.05, "--save_strategy", "no"]
    sft(*moving, "--output_dir", tmp_path / "whole")
    sft(*moving, "--output_dir", tmp_path / "mixed", "--start_share", 0.25)
    start, whole, mixed = map(weights_of, (trained, tmp_path / "whole", tmp_path / "mixed"))
    assert all(torch.allclose(mixed[name], 0.25 * start[name] + 0.75 * whole[name], atol=1e-6) for name in start)
    assert any(not torch.equal(mixed[name], whole[name]) for name in start)


def test_rows_are_float32_in_a_model_of_half_precision(published: Path, toy_checkpoint: Path) -> None:
    base = UnifiedForCausalLM.from_pretrained(toy_checkpoint, dtype=torch.bfloat16)
    args = UnifiedTrainingArguments(output_dir="unused", tuning="lora", use_cpu=True, report_to="none")
    model = prepare(base, args, published)
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part in PARTS:
        assert [name for name in learning if part in name], part
    assert {parameter.dtype for parameter in learning.values()} == {torch.float32}


def test_image_tokens_can_become_after_image(sft: Callable[..., None], image_adapter: Path, tmp_path: Path) -> None:
    """Its weights at the start are the adapter's; only where they act is new, also after a stop."""
    out = tmp_path / "out"
    flags = ["--model", image_adapter, "--lora_positions", "after_image", "--learning_rate", 0, "--output_dir", out]
    flags += ["--new_parts_learning_rate", 0, "--eval_strategy", "no"]
    sft(*flags, "--max_steps", 1, "--save_steps", 1)
    sft(*flags, "--max_steps", 2, "--resume")
    before, after = weights_of(image_adapter), weights_of(out)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [kind_of(image_adapter), kind_of(out / "checkpoint-1"), kind_of(out)] == [
        "image_tokens",
        "after_image",
        "after_image",
    ]


def test_image_tokens_can_become_split_ranks(sft: Callable[..., None], image_adapter: Path, tmp_path: Path) -> None:
    """Most of its ranks stay the images', as near as they can be to what it did; the last ones are new, and learn.

    A stop does not split them again.
    """
    flags = ["--model", image_adapter, "--lora_positions", "split_ranks", "--eval_strategy", "no"]
    still = [*flags, "--learning_rate", 0, "--new_parts_learning_rate", 0, "--output_dir", tmp_path / "still"]
    sft(*still, "--max_steps", 1, "--save_steps", 1)
    sft(*still, "--max_steps", 2, "--resume")
    sft(*flags, "--max_steps", 2, "--output_dir", tmp_path / "out")
    folders = image_adapter, tmp_path / "still", tmp_path / "out"
    assert [kind_of(folder) for folder in folders] == ["image_tokens", "split_ranks", "split_ranks"]
    before, start, after = map(weights_of, folders)
    stopped = weights_of(tmp_path / "still/checkpoint-1")
    assert all(torch.equal(start[name], stopped[name]) for name in start)
    for up in (name for name in start if "lora_B" in name):
        down = up.replace("lora_B", "lora_A")
        old, kept = before[up] @ before[down], len(start[down]) - ranks_after_image(len(start[down]))
        lost = torch.linalg.svdvals(old)[kept:].norm().item()
        assert (start[up] @ start[down] - old).norm().item() == pytest.approx(lost, abs=1e-4)
        assert not start[up][:, kept:].any() and after[up][:, kept:].any() and (start[down].norm(dim=1) > 0.1).all()


def test_a_single_rank_cannot_be_split(sft: Callable[..., None], toy_checkpoint: Path, tmp_path: Path) -> None:
    flags, one = ["--max_steps", 1, "--eval_strategy", "no", "--lora_positions"], tmp_path / "one"
    sft("--model", toy_checkpoint, *flags, "image_tokens", "--lora_rank", 1, "--output_dir", one)
    with pytest.raises(ValueError, match="lora_rank 1 leaves no rank for images"):
        sft("--model", one, *flags, "split_ranks", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_resumes_at_its_own_positions(sft: Callable[..., None], image_adapter: Path, tmp_path: Path) -> None:
    flags = ["--model", image_adapter, "--eval_strategy", "no", "--output_dir", tmp_path]
    sft(*flags, "--max_steps", 1, "--save_steps", 1)
    with pytest.raises(
        ValueError, match="checkpoint-1 was trained with lora_positions image_tokens and this run has split_ranks"
    ):
        sft(*flags, "--max_steps", 2, "--resume", "--lora_positions", "split_ranks")


def test_a_continued_run_resumes(sft: Callable[..., None], published: Path, tmp_path: Path) -> None:
    flags = ["--model", published, "--max_steps", 4, "--lora_dropout", 0.1]
    sft(*flags, "--output_dir", tmp_path / "uninterrupted")
    shutil.copytree(tmp_path / "uninterrupted/checkpoint-2", tmp_path / "killed/checkpoint-2")
    sft(*flags, "--output_dir", tmp_path / "killed", "--resume")
    uninterrupted, resumed = weights_of(tmp_path / "uninterrupted"), weights_of(tmp_path / "killed")
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
    assert config_of(tmp_path / "uninterrupted")["lora_dropout"] == 0.1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora_rank", 8], "lora_rank 8 is not that of the adapter .*, 4; leave lora_rank out"),
        (["--lora_alpha", 64], "lora_alpha 64 is not .*, 12; leave"),
        (["--lora_target_modules", "q_proj"], r"are 2 layers but .* has 4 \(down_proj, q_proj\); leave"),
        (["--tuning", "align"], "tuning align needs a checkpoint but .* is an adapter; .*set tuning to lora"),
    ],
)
def test_a_run_that_contradicts_it_is_refused(
    sft: Callable[..., None], trained: Path, tmp_path: Path, flags: list[object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        sft("--model", trained, "--output_dir", tmp_path / "out", *flags)
    other = {
        "all": "image_tokens",
        "image_tokens": "all",
        "after_image": "image_tokens",
        "split_ranks": "image_tokens",
    }[kind_of(trained)]
    with pytest.raises(ValueError, match=f"lora_positions {other} is not that of"):
        sft("--model", trained, "--output_dir", tmp_path / "out", "--lora_positions", other)
    assert not (tmp_path / "out").exists()


def test_full_tuning_and_dpo_say_what_can_be_done(
    sft: Callable[..., None], run_script: Callable[..., int], trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    remedies = {"all": "`unified merge` it"} | {at: f"with lora_positions {at} cannot be merged" for at in POSITIONS}
    with pytest.raises(ValueError, match=remedies[kind_of(trained)]):
        sft("--model", trained, "--tuning", "full")
    assert run_script("recipes/dpo.py", "--model", trained, "--tuning", "full") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: tuning full needs a checkpoint") and remedies[kind_of(trained)] in line


def test_a_published_adapter_is_whole_and_small(trained: Path, published: Path, toy_checkpoint: Path) -> None:
    names = {path.name for path in published.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json", "processor_config.json"} <= names
    assert "config.json" not in names and not list(published.parent.glob("*.partial"))
    record = json.loads((published / "base.json").read_text())
    assert record["base"] == config_of(published)["base_model_name_or_path"] == str(toy_checkpoint)
    assert ("format_version" in config_of(published)) == (kind_of(published) != "all"), "PEFT warns of keys it has not"
    assert record["made_with"] == ["make llm", "unified extend --llm L --vq V --out B"]
    expected, found = weights_of(trained), weights_of(published)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name].bfloat16(), found[name]) for name in expected)


def test_it_is_the_same_however_it_is_loaded(
    published: Path, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its base lies relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy_checkpoint, "base")
    publish(published, "here", dtype=torch.float32, base="base")
    model, processor = load("here", device="cpu")
    expected = logits(model, processor)
    assert (expected - logits(*load(toy_checkpoint, "cpu"))).abs().max() > 0.01
    stock = AutoPeftModelForCausalLM.from_pretrained("here").eval()
    assert_sums_agree(logits(stock, processor), expected, terms_of(model))
    if kind_of(published) == "all":
        merge("here", "merged")
        assert_sums_agree(logits(*load("merged", "cpu")), expected, terms_of(model))


def pointed_at(base: Path, published: Path, out: Path) -> Path:
    """The published adapter with another base."""
    shutil.copytree(published, out)
    (out / "adapter_config.json").write_text(json.dumps(config_of(out) | {"base_model_name_or_path": str(base)}))
    return out


def extended_again(folder: Path, **settings: object) -> Path:
    """The toy checkpoint from the same LLM and tokenizer, with other `settings` of `extend`."""
    make_vq().save_pretrained(folder / "vq")
    extend(save_llm(folder / "llm", make_tokenizer()), folder / "vq", folder / "model", **settings)
    return folder / "model"


def test_another_base_is_refused(
    sft: Callable[..., None], published: Path, toy_checkpoint: Path, tmp_path: Path
) -> None:
    model = UnifiedForCausalLM.from_pretrained(toy_checkpoint)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] += 0.01  # a row of text
    shutil.copytree(toy_checkpoint, tmp_path / "tuned")
    model.save_pretrained(tmp_path / "tuned")
    placed = extended_again(tmp_path / "placed", image_positions="sequential")  # the weights are the same
    for number, base in enumerate((tmp_path / "tuned", placed)):
        adapter = pointed_at(base, published, tmp_path / f"adapter{number}")
        words = f"{base} is not the base of the adapter .* move it away and make it with `make llm && unified extend"
        with pytest.raises(ValueError, match=words):
            load(adapter)
        with pytest.raises(ValueError, match=words):
            sft("--model", adapter, "--output_dir", tmp_path / "out")
        (adapter / "base.json").unlink()
        load(adapter)


def test_what_the_adapter_replaces_may_be_another(published: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    """The rows and the image embedding that `extend` draws and computes, as another machine does to the last bit."""
    again = extended_again(tmp_path, seed=1)
    bases = [UnifiedForCausalLM.from_pretrained(folder) for folder in (toy_checkpoint, again)]
    for part in ("lm_head.weight", "model.image_embedding.scale_in.weight"):
        assert not torch.equal(*(base.get_parameter(part) for base in bases))
    adapters = published, pointed_at(again, published, tmp_path / "adapter")
    assert torch.equal(*(logits(*load(adapter, device="cpu")) for adapter in adapters))


def test_the_digest_is_of_values_not_of_files(published: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    model = UnifiedForCausalLM.from_pretrained(toy_checkpoint)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    expected = json.loads((published / "base.json").read_text())["digest"]
    assert base_digest(published, tmp_path / "shards") == expected


def test_a_base_that_is_not_here_is_made_with_its_commands(published: Path, tmp_path: Path) -> None:
    line = error_of("draw", "cat", "--model", pointed_at(tmp_path / "no", published, tmp_path / "a"), "--out", "x.png")
    assert "/no', which is not a folder here; make it with `make llm && unified extend --llm L" in line
    publish(published, tmp_path / "mute", base=str(tmp_path / "no"))
    line = error_of("draw", "cat", "--model", tmp_path / "mute", "--out", "x.png")
    assert "restore the base or correct base_model_name_or_path" in line


def test_what_cannot_be_published_is_refused(published: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    whole = ["publish", "--model", toy_checkpoint, "--out", tmp_path / "out", "--base", "b"]
    assert "--base and --made-with are for an adapter, which" in error_of(*whole)
    assert "exists already" in error_of("publish", "--model", published, "--out", tmp_path)
    placed = extended_again(tmp_path, image_positions="sequential")
    line = error_of("publish", "--model", published, "--out", tmp_path / "out", "--base", placed)
    assert f"--base {placed} is not {toy_checkpoint}" in line
    assert UnifiedConfig.from_pretrained(placed).image_positions == "sequential"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_damaged_adapter_is_named(published: Path, tmp_path: Path, kept: int) -> None:
    shutil.copytree(published, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path} is truncated or damaged .*; copy it again"):
        load(tmp_path / "adapter")
    path.unlink()
    with pytest.raises(ValueError, match="has no adapter_model.safetensors"):
        load(tmp_path / "adapter")
