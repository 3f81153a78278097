"""Names of the hub where folders and files are expected, against a cache in the hub's own layout."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
from toys import make_tokenizer, save_llm, write_toy_rows

from unified import UnifiedConfig
from unified.arguments.parser import parse
from unified.checkpoints.adapters import base_checkpoint
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load, weights_digest
from unified.data.chat_dataset import load_encoded_rows
from unified.data.encoding import EncodeArguments
from unified.data.rows import count_rows
from unified.files.hub import is_hub_name, model_folder
from unified.training.arguments import DataArguments, ModelArguments

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`cache(kind, name, folder, commit, revision)` puts a folder into an empty cache of the hub, which is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def put(kind: str, name: str, folder: Path, commit: str = COMMIT, revision: str = "main") -> Path:
        repository = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        return repository / "snapshots" / commit

    return put


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    names = ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B@main", "a/b@refs/pr/1"]
    paths = ["mine", "mine/missing", "out/base", "weights/x", "./a/b", "/a/b", "a/b/c", "a/b.parquet", "MY_LLM", "a/"]
    assert [is_hub_name(name) for name in (*names, *paths)] == [True] * len(names) + [False] * len(paths)


def test_models_of_the_hub_are_opened_by_name(cache: Callable[..., Path], toy_checkpoint: Path) -> None:
    """From Python and from command lines, and another revision where one is given."""
    place = cache("model", "org/toy", toy_checkpoint)
    older = cache("model", "org/toy", toy_checkpoint, OLDER, "v1")
    assert model_folder("org/toy") == place and model_folder("org/toy@v1") == older
    model, processor = load("org/toy", device="cpu")
    assert model.config.vocabulary == processor.vocabulary and weights_digest("org/toy") == weights_digest(place)
    (arguments,) = parse((ModelArguments,), ["--model", "org/toy@v1"])
    assert arguments.model == str(older)
    llm = save_llm(Path("llm"), make_tokenizer())
    cache("model", "org/llm", llm)
    cache("model", "org/vq", toy_checkpoint.parent / "vq")
    extend("org/llm", "org/vq", "extended")
    assert weights_digest("extended") == weights_digest(toy_checkpoint)


def test_an_adapters_base_may_be_on_the_hub(cache: Callable[..., Path], toy_checkpoint: Path, tmp_path: Path) -> None:
    place = cache("model", "org/toy", toy_checkpoint)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/toy"}))
    assert base_checkpoint(tmp_path / "adapter") == place


def test_data_sets_of_the_hub_are_read_by_name(
    cache: Callable[..., Path], toy_checkpoint: Path, tmp_path: Path
) -> None:
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    rows = tmp_path / "dataset" / "data"
    rows.mkdir(parents=True)
    for split, kinds in (("train-00000-of-00002", "dda"), ("train-00001-of-00002", "t"), ("test-00000-of-00001", "d")):
        write_toy_rows(rows / f"{split}.parquet", kinds, config.vq_fingerprint)
    cache("dataset", "org/rows", tmp_path / "dataset")
    (arguments,) = parse((DataArguments,), ["--train_files", "org/rows", "--eval_files", "org/rows@main"])
    assert len(load_encoded_rows(arguments.train_files, config)) == 4 and len(arguments.train_files) == 2
    plain = tmp_path / "plain"
    plain.mkdir()
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (plain / "train.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    cache("dataset", "org/chats", plain)
    (encoding,) = parse((EncodeArguments,), ["--vq", "v", "--out", "o", "--inputs", "org/chats", "mine.jsonl"])
    assert count_rows(encoding.inputs[0]) == 1 and encoding.inputs[1] == "mine.jsonl"


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_one_line_says_at_once_what_to_run(
    cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    for command, ask in {
        "hf download Qwen/Qwen3-0.6B --local-dir DIR": lambda: extend("Qwen/Qwen3-0.6B", tmp_path / "vq", "out"),
        "hf download org/x --revision v1 --local-dir DIR": lambda: load("org/x@v1"),
        "hf download org/d --repo-type dataset --local-dir DIR": lambda: parse(
            (DataArguments,), ["--train_files", "org/d"]
        ),
    }.items():
        with pytest.raises(ValueError, match="the hub cannot be reached") as error:
            ask()
        assert str(error.value).endswith(f"run: {command}") and "\n" not in str(error.value)
