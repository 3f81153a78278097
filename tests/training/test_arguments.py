"""One dataclass field is a YAML key, a flag and a help text; bad input is one line and status 2."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from unified import UnifiedConfig, VQConfig
from unified.arguments.parser import _read_yaml, parse, run_main
from unified.evaluation.detector import DetectorConfig
from unified.scenes.detector_arguments import DetectorArguments
from unified.training.arguments import ModelArguments
from unified.training.tokenizer_arguments import TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments


@dataclass
class Toy:
    data_dir: str = "here"
    learning_rate: float = 1e-3
    batch_size: int = 4
    sides: list[int] = field(default_factory=lambda: [1, 2])
    extra: dict | None = None
    resume: bool = False
    shuffle: bool = True


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def toy(argv):
    (parsed,) = parse((Toy,), argv)
    return parsed


def test_defaults_file_flags_in_rising_order(config):
    argv = config("data_dir: file\nbatch_size: 8\n")
    assert toy([]) == Toy()
    assert toy(argv) == Toy(data_dir="file", batch_size=8)
    assert toy([*argv, "--batch_size", "2"]) == Toy(data_dir="file", batch_size=2)


def test_underscores_and_dashes(config):
    assert toy(["--batch-size", "2"]).batch_size == toy(["--batch_size", "2"]).batch_size == 2
    assert toy(["--batch-size=3"]).batch_size == 3


def test_lists_dicts_booleans_and_exponents(config):
    parsed = toy(config("sides: [1, 4]\nextra: {a: 1}\nresume: true\nshuffle: false\nlearning_rate: 1e-4\n"))
    assert parsed == Toy(sides=[1, 4], extra={"a": 1}, resume=True, shuffle=False, learning_rate=1e-4)
    assert toy(config("sides: [[1, 1], [2, 4]]")).sides == [[1, 1], [2, 4]]
    parsed = toy(["--sides", "3", "5", "--extra", '{"b": 2}', "--resume", "--no_shuffle"])
    assert (parsed.sides, parsed.extra, parsed.resume, parsed.shuffle) == ([3, 5], {"b": 2}, True, False)


def test_a_flag_of_a_boolean_overrides_the_file(config):
    argv = config("resume: true\n")
    assert toy(argv).resume and not toy([*argv, "--resume", "false"]).resume


def test_the_file_may_set_the_environment_and_be_named_with_an_equals_sign(config, monkeypatch):
    monkeypatch.setenv("UNIFIED_TOY", "before")
    name, path = config("batch_size: 8\nenv: {UNIFIED_TOY: 3}\n")
    assert toy([f"{name}={path}"]).batch_size == 8 and os.environ["UNIFIED_TOY"] == "3"


def test_an_empty_file_changes_nothing(config):
    assert toy(config("# nothing\n")) == Toy()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bacth_size: 8", ["bacth_size", "run.yaml", "batch_size"]),
        ("zzz: 8", ["zzz", "run.yaml", "learning_rate"]),
        ("batch_size: many", ["batch_size", "many", "int"]),
        ("batch_size: 2.5", ["batch_size", "2.5", "int"]),
        ("batch_size: {a: 1}", ["batch_size", "int"]),
        ("batch_size: [1]", ["batch_size", "one value"]),
        ("resume: 3", ["resume", "3", "true or false"]),
        ("sides: 3", ["sides", "a list"]),
        ("- a\n- b", ["list", "key: value"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_bad_files_say_what_is_wrong(config, text, words):
    with pytest.raises(ValueError) as error:
        toy(config(text))
    assert all(word in str(error.value) for word in words), str(error.value)


@dataclass
class Optional:
    limit: int | None = 3
    rate: float | None = None
    trials: dict | None = None
    name: str | None = "x"


def test_what_may_be_none_can_be_set_to_it_and_back(config):
    assert parse((Optional,), ["--limit", "None"])[0] == Optional(limit=None)
    argv = config("limit: 1.0e+3\nrate: 1\ntrials: {a: {b: 1}}\nname: 3\n")
    assert parse((Optional,), argv)[0] == Optional(1000, 1.0, {"a": {"b": 1}}, "3")
    assert parse((Optional,), config("limit: null\nname: null"))[0] == Optional(limit=None, name=None)
    for text, words in (("limit: 2.5", "limit: 2.5 in .* expected int"), ("rate: [1]", "expected one value")):
        with pytest.raises(ValueError, match=words):
            parse((Optional,), config(text))


@dataclass
class Required:
    model: str
    split: Literal["train", "heldout"] = "train"
    count: int = 3
    trials: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "error: the following arguments are required: --model; see --help"),
        (["--model"], "error: argument --model: expected one argument; see --help"),
        (["--model", "m", "--split", "tset"], "error: argument --split: invalid choice: 'tset' (choose from"),
        (["--model", "m", "--count", "many"], "error: argument --count: invalid int value: 'many'; see --help"),
        (["--model", "m", "--trials", "{"], "error: argument --trials: invalid json_value value: '{'; see --help"),
        (["--model", "m", "--config"], "error: argument --config: expected one argument; see --help"),
    ],
)
def test_flags_are_refused_in_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: parse((Required,), argv))
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == ""
    assert printed.err.startswith(said) and printed.err.count("\n") == 1


def test_help_is_still_help(capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: parse((Required,), ["--help"]))
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


def test_a_file_that_is_not_utf_8_is_named(config, tmp_path):
    config("")
    (tmp_path / "run.yaml").write_bytes(b"data_dir: \xe9\n")
    with pytest.raises(ValueError, match=r"run\.yaml is not valid YAML: .*utf-8"):
        toy(["--config", str(tmp_path / "run.yaml")])


def test_a_missing_file_names_its_neighbours(config, tmp_path):
    config("")
    with pytest.raises(ValueError, match=r"ran\.yaml does not exist; nearest: .*run\.yaml"):
        toy(["--config", str(tmp_path / "ran.yaml")])
    with pytest.raises(ValueError, match="does not exist"):
        toy(["--config", "/nowhere/run.yaml"])


def test_an_unknown_flag_names_its_neighbours():
    with pytest.raises(ValueError, match=r"unknown argument '--bach-size'; nearest: batch_size"):
        toy(["--bach-size", "3"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--image_size", "64x48"], "argument --image_size.*'64x48': give one side in pixels, as pictures are square"),
        (
            ["--image_size", "48", "64", "48"],
            "image_size takes one value, and '64' is one more; give one side in pixel",
        ),
        (["--image-size=64", "48", "--cosine"], "--image-size takes one value, and '48' is one more; give one side"),
        (["--beta", "0.5", "0.5"], "--beta takes one value, and '0.5' is one more; see --help"),
        (["48"], "unknown argument '48'; "),
    ],
)
def test_a_second_value_and_a_side_that_is_no_number_say_so(argv, words):
    with pytest.raises(ValueError, match=words):
        parse((TokenizerArguments,), argv)


@pytest.mark.parametrize("value", ["[64, 48]", "64x48"])
def test_a_side_that_is_no_number_in_a_file_says_so(value, config):
    with pytest.raises(
        ValueError, match=r"image_size: .* in .*run\.yaml: expected one side in pixels, as pictures are"
    ):
        parse((TokenizerArguments,), config(f"image_size: {value}\n"))


def test_several_dataclasses_share_one_command_line():
    model, loss, run = parse(
        (TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments),
        ["--image_size", "16", "--patch_nums", "1", "2", "--gan_weight", "0.5", "--max_minutes", "3"],
    )
    assert (model.patch_nums, loss.gan_weight, run.max_minutes) == ([1, 2], 0.5, 3.0)


@pytest.mark.parametrize("error", [ValueError("bad\nvalue"), FileNotFoundError("bad\nvalue")])
def test_run_main_turns_bad_input_into_one_line(error, capsys, monkeypatch):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: bad value\n"
    monkeypatch.setenv("UNIFIED_DEBUG", "1")
    with pytest.raises(type(error)):
        run_main(main)


def test_run_main_leaves_bugs_alone():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)


def test_architectures_have_one_owner_of_their_defaults():
    for arguments, config in ((TokenizerArguments, VQConfig), (DetectorArguments, DetectorConfig)):
        assert config(**asdict(arguments())).to_dict() == {**config().to_dict(), **asdict(arguments())}
        for name, value in asdict(arguments()).items():
            own = getattr(config, name)
            if name in ("patch_nums", "upsampling"):  # of the side; of configurations without the key
                continue
            assert value == (list(own) if isinstance(own, tuple) else own), name
    loss = {
        name: getattr(UnifiedConfig, name) for name in ("modality_stride", "text_loss_weight", "scale_loss_weights")
    }
    assert loss.items() <= asdict(ModelArguments()).items()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate: 1.0e-4\nresume: true\nlearning_rate: 1.0e-3\n", "learning_rate stands in line 1 and again"),
        ("env: {A: 1, A: 2}\n", "A stands in line 1 and again in 1; keep one"),
        ("resume: true\nextra:\n  cycles: 1\n  cycles: 2\n", "cycles stands in line 3 and again in 4; keep one"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"run\.yaml is not valid YAML: {said}"):
        toy(["--config", str(path)])


def test_yamls_merge_keys_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "lr_scheduler_type: cosine_with_min_lr\nfsdp_config: &a {min_num_params: 1}\n"
        "lr_scheduler_kwargs: &b {min_lr: 1.0e-6}\naccelerator_config: {<<: *b, min_lr: 2, split_batches: false}\n"
    )
    assert _read_yaml(str(path))["accelerator_config"]["min_lr"] == 2
