"""Pairs of answers: round trip, every form that is read, everything that is refused by row, and what TRL gets."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from pairs import image_pair, mixed_pair, question, text_pair, toy_pairs, turn

from unified import UnifiedConfig, UnifiedProcessor
from unified.data.pair_forms import as_pair
from unified.data.preference_collator import PreferenceCollator
from unified.data.preferences import (
    PairCollator,
    by_modality,
    check_lengths,
    for_trl,
    load_pairs,
    modality,
    read_counts,
    split_held_out,
    write_pairs,
)

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def config(toy_checkpoint: Path) -> UnifiedConfig:
    return UnifiedConfig.from_pretrained(toy_checkpoint)


@pytest.fixture(scope="module")
def processor(toy_checkpoint: Path) -> UnifiedProcessor:
    return UnifiedProcessor.from_pretrained(toy_checkpoint)


@pytest.fixture
def write(config: UnifiedConfig, tmp_path: Path) -> Callable[..., str]:
    def run(pairs: list[dict[str, Any]], fingerprint: str | None = None, name: str = "pairs.parquet") -> str:
        write_pairs(tmp_path / name, pairs, fingerprint or config.vq_fingerprint, (1, 2), {"pairs": len(pairs)})
        return str(tmp_path / name)

    return run


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    def run(*records: object) -> str:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return run


def test_pairs_come_back_as_they_were_written(write: Callable[..., str], config: UnifiedConfig) -> None:
    pairs = toy_pairs("imut")
    path = write(pairs)
    assert load_pairs([path], config).to_list() == pairs
    assert read_counts(path) == {"pairs": 4}
    assert load_pairs([str(Path(path).parent)], config).to_list() == pairs


def test_modalities(write: Callable[..., str], config: UnifiedConfig) -> None:
    pairs = toy_pairs("imuttu")
    assert [modality(pair) for pair in pairs] == ["image", "mixed", "understanding", "text", "text", "understanding"]
    parts = by_modality(load_pairs([write(pairs)], config))
    assert {name: len(part) for name, part in parts.items()} == {"image": 1, "mixed": 1, "understanding": 2, "text": 2}
    assert [modality(pair) for name, part in parts.items() for pair in part] == [
        n for n, p in parts.items() for _ in p
    ]


def test_every_form_of_trl_is_read(
    write: Callable[..., str], write_lines: Callable[..., str], config: UnifiedConfig
) -> None:
    chat, good, bad = [turn("user", "Hi.")], [turn("assistant", "Hello.")], [turn("assistant", "Go away.")]
    plain = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in (chat[0], good[0], bad[0])]
    path = write_lines(
        {"prompt": [plain[0]], "chosen": [plain[1]], "rejected": [plain[2]]},
        {"messages": chat, "chosen": good[0], "rejected": bad[0]},
        {"chosen": [plain[0], plain[1]], "rejected": [plain[0], plain[2]]},
        {"prompt": "Hi.", "chosen": "Hello.", "rejected": "Go away."},
        {"prompt": "Hi.", "chosen": [plain[0], plain[1]], "rejected": [plain[0], plain[2]], "score_chosen": 2.0},
    )
    pairs = load_pairs([path, write(toy_pairs("iu"))], config)
    for pair in list(pairs)[:5]:
        assert (pair["messages"], pair["chosen"], pair["rejected"]) == (chat, good, bad)
        assert pair["codes"] == pair["chosen_codes"] == [] and pair["source"] == "pairs"
    assert [modality(pair) for pair in pairs] == ["text"] * 5 + ["image", "understanding"]


def test_parquet_without_codes_is_text(config: UnifiedConfig, tmp_path: Path) -> None:
    rows = [{"prompt": "Hi.", "chosen": "Hello.", "rejected": "Go away.", "id": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "text.parquet")
    assert load_pairs([str(tmp_path / "text.parquet")], config)[0]["chosen"] == [turn("assistant", "Hello.")]


def longer(pair: dict[str, Any]) -> None:
    pair["chosen_codes"][0].append(0)


def out_of_the_book(pair: dict[str, Any]) -> None:
    pair["rejected_codes"][0][-1] = 32


def same_image(pair: dict[str, Any]) -> None:
    pair["rejected_codes"] = pair["chosen_codes"]


def test_a_tie_of_scores_is_a_pair(write: Callable[..., str], config: UnifiedConfig) -> None:
    assert len(load_pairs([write([image_pair() | {"score_rejected": 0.5}])], config)) == 1


@pytest.mark.parametrize(
    ("pair", "change", "words"),
    [
        (image_pair(), same_image, ["the same image", "remove the pair"]),
        (text_pair(), lambda p: p.update(rejected=p["chosen"]), ["the same answer"]),
        (image_pair(), lambda p: p.update(chosen_codes=[]), ["1 image parts in chosen", "codes of 0"]),
        (image_pair(), lambda p: p.update(rejected_codes=[]), ["1 image parts in rejected"]),
        (question(), lambda p: p.update(codes=[]), ["1 image parts in messages", "codes of 0"]),
        (text_pair(), lambda p: p.update(codes=[[1, 2, 3, 4, 5]]), ["0 image parts in messages", "codes of 1"]),
        (image_pair(), longer, ["chosen_codes are 6", "have 5 from 0 to 31"]),
        (image_pair(), out_of_the_book, ["rejected_codes are 5", "to 32", "from 0 to 31"]),
        (mixed_pair(), lambda p: p["messages"].append(turn("assistant", "No.")), ["does not end with a turn"]),
        (text_pair(), lambda p: p.update(messages=[]), ["does not end with a turn"]),
        (text_pair(), lambda p: p.update(chosen=[]), ["chosen answer is empty"]),
        (text_pair(), lambda p: p.update(rejected=[turn("assistant", " ")]), ["rejected answer is empty"]),
        (image_pair(), lambda p: p.update(score_rejected=0.9), ["scores 0.5", "0.9", "swap"]),
    ],
)
def test_bad_pairs_are_refused_by_row(
    write: Callable[..., str], config: UnifiedConfig, pair: dict[str, Any], change: Change, words: list[str]
) -> None:
    bad = copy.deepcopy(pair)
    change(bad)
    path = write([*toy_pairs("imut"), bad])
    with pytest.raises(ValueError) as error:
        load_pairs([path], config)
    assert not [word for word in (f"1 bad pairs: {path}:5: ", *words) if word not in str(error.value)], error.value


def test_codes_of_another_tokenizer_are_refused_by_row(write: Callable[..., str], config: UnifiedConfig) -> None:
    path = write(toy_pairs("tiu"), fingerprint="beef" * 16)
    with pytest.raises(ValueError, match=r"2 bad pairs: .*pairs.parquet:2: .*tokenizer beefbeefbeef.*parquet:3: "):
        load_pairs([path], config)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"chosen": ["Hi.", "Hello."], "rejected": "No."}, "no conversation"),
        ({"prompt": "Hi.", "chosen": "Hello."}, "not a pair"),
        ([1], "not an object"),
        ({"chosen": [turn("user", "Ho."), turn("assistant", "A")], "rejected": "B"}, "different prompts"),
        (
            {"chosen": [turn("user", "A?"), turn("assistant", "A")], "rejected": [turn("user", "B?")] * 2},
            "different prompts",
        ),
        (
            {"prompt": "B?", **{k: [turn("user", "A?"), turn("assistant", k)] for k in ("chosen", "rejected")}},
            "repeat another prompt",
        ),
        ({"prompt": [{"role": "user"}], "chosen": "A", "rejected": "B"}, "takes 'role' and 'content'"),
        (
            {
                "prompt": "Draw.",
                "chosen": [{"role": "assistant", "content": [{"type": "image"}]}],
                "rejected": "No.",
                "chosen_codes": [[1] * 5],
            },
            "tokenizer \\(not recorded\\)",
        ),
    ],
)
def test_lines_that_are_no_pairs_are_refused(
    write_lines: Callable[..., str], config: UnifiedConfig, record: object, words: str
) -> None:
    with pytest.raises(ValueError, match=rf"pairs.jsonl:2: .*{words}"):
        load_pairs([write_lines({"prompt": "Hi.", "chosen": "Hello.", "rejected": "No."}, record)], config)


def test_only_some_of_many_errors_are_shown(write_lines: Callable[..., str], config: UnifiedConfig) -> None:
    with pytest.raises(ValueError, match="5 bad pairs: .*:3: .*; and 2 more"):
        load_pairs([write_lines(*[{}] * 5)], config)


def test_files_without_pairs_are_refused(write: Callable[..., str], config: UnifiedConfig, tmp_path: Path) -> None:
    for path, words in ((write([]), "not one pair"), (str(tmp_path / "none"), "no pairs; give")):
        with pytest.raises(ValueError, match=words):
            load_pairs([path], config)


def test_a_system_turn_before_a_plain_prompt_is_no_mismatch() -> None:
    head = [turn("system", "Be kind."), turn("user", "Hi.")]
    pair = as_pair({"prompt": "Hi.", **{k: [*head, turn("assistant", k)] for k in ("chosen", "rejected")}})
    assert pair["messages"] == head and pair["chosen"] == [turn("assistant", "chosen")]


def test_held_out_prompts_keep_their_pairs_together(write: Callable[..., str], config: UnifiedConfig) -> None:
    pairs = load_pairs([write([text_pair(number // 2, right=str(number)) for number in range(200)])], config)
    train, held_out = split_held_out(pairs, 0.2)
    asked = [{json.dumps(pair["messages"]) for pair in part} for part in (train, held_out)]
    assert not asked[0] & asked[1] and len(train) + len(held_out) == 200 and 20 < len(held_out) < 60
    again = split_held_out(pairs.select(range(100)), 0.2)[1]
    assert {json.dumps(pair["messages"]) for pair in again} <= asked[1]
    assert split_held_out(pairs, 0.0) == (pairs, None)
    for share, words in ((1.0, r"not in \[0, 1\)"), (1e-6, "leaves 200 to train on")):
        with pytest.raises(ValueError, match=words):
            split_held_out(pairs, share)


def test_the_collator_gives_trls_batch_in_both_forms(processor: UnifiedProcessor) -> None:
    pairs = toy_pairs("imut")
    expected = PreferenceCollator(processor, 128)(pairs)
    for precompute in (False, True):
        rows = for_trl(Dataset.from_list(pairs), precompute)
        assert ("images" in rows.column_names) != precompute
        batch = PairCollator(processor, 128)(list(rows))
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
    batch = PairCollator(processor, 128)(
        [{**pair, "ref_chosen_logps": 1.0, "ref_rejected_logps": 2.0} for pair in pairs]
    )
    assert batch["ref_chosen_logps"].tolist() == [1.0] * 4 and batch["ref_rejected_logps"].tolist() == [2.0] * 4


def test_fine_scales_can_be_left_out_of_the_log_probs(processor: UnifiedProcessor) -> None:
    pairs = toy_pairs("imu")
    whole, coarse = (PairCollator(processor, 128, scales)(pairs) for scales in (2, 1))
    is_code = processor.vocabulary.is_image(whole["input_ids"])
    assert is_code.sum() == 4 * 5
    left_out = (whole["completion_mask"] != coarse["completion_mask"]).nonzero()
    assert len(left_out) == 4 * 4 and is_code[tuple(left_out.T)].all()
    for row in range(4):
        codes = is_code[row].nonzero().squeeze(1)
        assert coarse["completion_mask"][row, codes].tolist() == ([1, 0, 0, 0, 0] if len(codes) else [])
    with pytest.raises(ValueError, match="num_scales 3 of an image with 2 scales"):
        PairCollator(processor, 128, 3)


def test_answers_that_are_equal_where_they_are_scored_are_named(processor: UnifiedProcessor) -> None:
    fine = image_pair(0) | {"chosen_codes": [[1, 2, 3, 4, 5]], "rejected_codes": [[1, 2, 3, 4, 6]]}
    coarse = image_pair(1) | {"chosen_codes": [[1, 2, 3, 4, 5]], "rejected_codes": [[2, 2, 3, 4, 5]]}
    pairs = Dataset.from_list([coarse, fine, coarse, fine])
    check_lengths(pairs, PairCollator(processor, 512))
    check_lengths(Dataset.from_list([coarse]), PairCollator(processor, 512, 1))
    with pytest.raises(
        ValueError,
        match=r"^2 bad pairs: pair 1 .source toy.: chosen and rejected are equal where they are scored.* pair 3 ",
    ):
        check_lengths(pairs, PairCollator(processor, 512, 1))
    named = pairs.add_column("index", [10, 11, 12, 13])
    with pytest.raises(ValueError, match="^2 bad pairs: row 11, pair 1 .*; row 13, pair 3 "):
        check_lengths(named, PairCollator(processor, 512, 1), lambda rows: [f"row {row}" for row in rows])


def test_a_pair_that_is_too_long_is_named(processor: UnifiedProcessor) -> None:
    pairs = Dataset.from_list([text_pair(), text_pair(right="yes " * 99)])
    check_lengths(pairs, PairCollator(processor, 512))
    with pytest.raises(ValueError, match=r"pair 1 \(source toy\): a chosen answer ends at .* max_length 64; raise it"):
        check_lengths(pairs, PairCollator(processor, 64))
