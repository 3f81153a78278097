import json

import pytest
import torch
from conftest import load_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from unified.data.rows import read_encoded_rows, read_rows
from unified.data.shard_metadata import read_encoded_metadata
from unified.models.messages import SYSTEM_PROMPT

SCRIPT = "data_prep/replay_text.py"


@pytest.fixture
def replay(run_script, tiny_llm_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"How many cats are {i}?\n" for i in range(13)))
    return lambda *arguments: run_script(
        SCRIPT, "--model", tiny_llm_dir, "--prompts", tmp_path / "prompts.txt", "--max-new-tokens", 4, *arguments
    )


@pytest.fixture
def echo(monkeypatch):
    """A model that repeats the question and never takes a breath; a list of the batches it saw."""
    seen = []

    def answer(model, tokenizer, prompts, max_new_tokens):
        seen.append(prompts)
        return [f"{prompt} Yes." for prompt in prompts]

    monkeypatch.setattr(load_script(SCRIPT), "answer", answer)
    return seen


def test_splits_are_disjoint_and_whole():
    script = load_script(SCRIPT)
    prompts = str(script.Path(script.__file__).parent / "replay_prompts.txt")
    train, held_out = (script.read_prompts(prompts, split, None) for split in ("train", "heldout"))
    assert (len(train), len(held_out)) == (250, 50)
    assert len(set(train) | set(held_out)) == 300


def test_prompts_that_are_not_utf_8_are_named(replay, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes(b"What is a caf\xe9?\n")
    assert replay("--out", tmp_path / "out") == 2
    assert "prompts.txt: not UTF-8 (byte 14 is 0xe9); save the file as UTF-8" in capsys.readouterr().err


def test_rows_are_what_was_asked_and_answered(replay, echo, tmp_path):
    jsonl = tmp_path / "rows.jsonl"
    assert replay("--out", tmp_path / "out", "--split", "heldout", "--jsonl", jsonl) == 0
    (shard,) = (tmp_path / "out").glob("*.parquet")
    rows = read_encoded_rows(shard)
    said = [(m["role"], m["content"][0]["text"]) for m in rows[1]["messages"]]
    asked = "How many cats are 11?"
    assert said == [("system", SYSTEM_PROMPT), ("user", asked), ("assistant", f"{asked} Yes.")]
    assert [(row["codes"], row["source"]) for row in rows] == [([], "replay")] * 2
    assert read_encoded_metadata(shard) == ("", ())
    assert [row.messages for row in read_rows(jsonl)] == [row["messages"] for row in rows]


def test_a_stopped_run_answers_only_what_is_missing(replay, echo, tmp_path, capsys):
    out = tmp_path / "out"
    assert replay("--out", out, "--batch-size", 4) == 0
    before = {shard: read_encoded_rows(shard) for shard in sorted(out.glob("*.parquet"))}
    assert [len(rows) for rows in before.values()] == [4, 4, 3]
    (out / "00001.parquet").unlink()
    echo.clear()
    assert replay("--out", out, "--batch-size", 4) == 0
    assert len(echo) == 1
    assert {shard: read_encoded_rows(shard) for shard in sorted(out.glob("*.parquet"))} == before
    assert replay("--out", out, "--batch-size", 5) == 2
    assert "was made with batch_size 4, not 5" in capsys.readouterr().err


def test_a_batch_is_answered_as_each_alone(tiny_llm_dir, monkeypatch):
    script = load_script(SCRIPT)
    monkeypatch.setattr(script, "whole_sentences", lambda text: text)  # a random model says no sentences
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_dir, dtype=torch.float32)
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))  # tied, it repeats its input
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_dir, padding_side="left")
    prompts = ["cats", "How many cats are there on the roof?"]
    together = script.answer(model, tokenizer, prompts, 6)
    assert together == [script.answer(model, tokenizer, [prompt], 6)[0] for prompt in prompts]
    assert all(together)


def test_real_model_end_to_end(replay, tmp_path, capsys):
    assert replay("--out", tmp_path / "out", "--limit", 3) == 0
    assert "of 3 answers kept" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "out" / "settings.json").read_text())) >= {"model", "prompts", "max_new_tokens"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two! And thr", "One. Two!"),
        ("It is 3.5 metres long. About", "It is 3.5 metres long."),
        ("Steps:\n1. Go home.\n2. Sleep", "Steps:\n1. Go home."),
        ('He said "Stop." and then', 'He said "Stop."'),
        ("no end in sight", ""),
        ("Use this.\n```python\nx = 1. \n", "Use this."),
        ("Code:\n```\na. b\n```\nDone. Now", "Code:\n```\na. b\n```\nDone."),
    ],
)
def test_cut_answers_end_with_a_sentence(text, kept):
    assert load_script(SCRIPT).whole_sentences(text) == kept


def test_no_model_and_no_prompts_are_errors(run_script, tmp_path, capsys):
    assert run_script(SCRIPT, "--model", tmp_path / "none", "--out", tmp_path / "out") == 2
    assert "is not a folder; make one with data_prep/convert_smollm2.py" in capsys.readouterr().err
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    few = ["--prompts", tmp_path / "few.txt", "--split", "heldout"]
    assert run_script(SCRIPT, "--model", tmp_path, "--out", tmp_path / "out", *few) == 2
    assert "has 2 prompts and heldout none of them" in capsys.readouterr().err
