"""Forms in which people publish preference pairs: TRL's, with pictures or without, conversations or strings.

A *pair* is `{messages, chosen, rejected, codes, chosen_codes, rejected_codes, score_chosen, score_rejected, seeds,
metadata, source}`, with `tools` where it has any; pictures stand in the order of the image parts of the three.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.data.forms import NOTES, check_unknown, metadata_of, on_disk, place, pop_pictures, with_parts
from unified.data.image_refs import ImageRef, image_ref
from unified.data.rows import BadRow, as_record, iter_records
from unified.files.parquet import read_schema
from unified.models.messages import count_images, shorten
from unified.models.tools import as_json, read_tools

TURNS = ("messages", "chosen", "rejected")
CODES_OF = {"messages": "codes", "chosen": "chosen_codes", "rejected": "rejected_codes"}
_PAIR = ("chosen", "rejected", *CODES_OF.values(), "score_chosen", "score_rejected", "seeds", "metadata", "source")

Pair = dict[str, Any]


@dataclass(frozen=True)
class PairRow:
    """A pair with pictures instead of codes; `where` is `file:number` counted from 1."""

    pair: Pair
    images: list[ImageRef]
    where: str

    def encoded(self, codes: list[list[int]]) -> Pair:
        """The pair with the codes of its images."""
        rest, found = iter(codes), {}
        for name in TURNS:
            found[CODES_OF[name]] = [code for _, code in zip(range(count_images(self.pair[name])), rest, strict=False)]
        return self.pair | found


def holds_pairs(path: str | Path) -> bool:
    """Whether the rows of a file, by its columns or its first line, are preference pairs."""
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        return "chosen" in read_schema(path).names
    try:
        first = next((as_record(record) for _, record in iter_records(path, 0, 1)), {})
    except ValueError:
        return False
    return "chosen" in first


def iter_pairs(
    path: str | Path, start: int = 0, stop: int | None = None, image_root: str | Path | None = None
) -> Iterator[PairRow | BadRow]:
    """Pairs `start` to `stop` (half-open) of a file, pictures not read yet; `image_root` as of `iter_rows`."""
    path = Path(path)
    folder = path.parent if image_root is None else Path(image_root)
    for where, record in iter_records(path, start, stop):
        try:
            pair, pictures = read_pair(as_record(record), path.stem)
            check_turns(pair)
            yield PairRow(pair, [image_ref(picture, folder, where) for picture in pictures], where)
        except ValueError as error:
            yield BadRow(where, str(error))


def as_pair(record: Any, source: str = "") -> Pair:
    """A pair in our or TRL's form, of text or encoded. Raises ValueError as `read_pair`, and for pictures."""
    pair, pictures = read_pair(record, source)
    if pictures:
        raise ValueError("it holds images without codes; run data_prep/encode_images.py on the file")
    return pair


def read_pair(record: Any, source: str = "") -> tuple[Pair, list[Any]]:
    """A pair in our or TRL's form, and its pictures. Raises ValueError for missing or invalid columns."""
    if not isinstance(record, Mapping) or record.get("chosen") is None or record.get("rejected") is None:
        raise ValueError('not a pair; write {"prompt": [...], "chosen": [...], "rejected": [...]} as TRL does')
    given = {key: value for key, value in record.items() if value is not None}
    if "prompt" in given and given.get("messages") == given["chosen"]:
        del given["messages"]  # as some repeat the chosen conversation, for SFT
    if "prompt" in given and "messages" in given:
        raise ValueError("both `prompt` and `messages`; keep one of them")
    asked = given.pop("messages", given.pop("prompt", None))
    pictures = pop_pictures(given)
    notes = {key: given.pop(key) for key in NOTES if key in given}
    tools = as_json(read_tools(given.pop("tools", None)))
    check_unknown(given, _PAIR, "`chosen` and `rejected`")
    _check_numbers(given)
    turns = [_turns(asked, "user"), _turns(given["chosen"], "assistant"), _turns(given["rejected"], "assistant")]
    strings = all(isinstance(turn.get("content") or "", str) for part in turns for turn in part)
    split = _split_prompt(*([with_parts(turn) for turn in part] for part in turns))
    messages = [turn for part in split for turn in part]
    if any(name in given for name in CODES_OF.values()):
        if pictures:
            raise ValueError("both pictures and codes; keep one of them")
        messages = [on_disk(turn) for turn in messages]
    else:
        messages, pictures = place(messages, pictures, strings=strings)
    ends = [len(split[0]), len(split[0]) + len(split[1])]
    pair = {
        "messages": messages[: ends[0]],
        "chosen": messages[ends[0] : ends[1]],
        "rejected": messages[ends[1] :],
        **{name: given.get(name) or [] for name in CODES_OF.values()},
        **{name: given.get(name) for name in ("score_chosen", "score_rejected", "seeds")},
        "metadata": metadata_of(given.get("metadata"), notes),
        "source": str(given.get("source") or source),
    }
    return pair | ({"tools": tools} if tools else {}), pictures


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Raise ValueError for scores, seeds and codes that are no numbers, or larger than files hold."""

    def is_whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63

    for name in ("score_chosen", "score_rejected"):
        if name in given and (isinstance(given[name], bool) or not isinstance(given[name], int | float)):
            raise ValueError(f"{name} {shorten(given[name])}; give a number")
    seeds = given.get("seeds", [])
    if not isinstance(seeds, list) or not all(map(is_whole, seeds)):
        raise ValueError(f"seeds {shorten(seeds)}; give a list of whole numbers of 64 bits")
    for name in CODES_OF.values():
        images = given.get(name, [])
        if not isinstance(images, list) or not all(
            isinstance(codes, list) and all(map(is_whole, codes)) for codes in images
        ):
            raise ValueError(f"{name} {shorten(images)}; give a list of codes for every image")


def check_turns(pair: Pair) -> None:
    """Raise ValueError for a prompt that ends with an answer, and answers that are empty or not the assistant's."""
    if not pair["messages"] or pair["messages"][-1]["role"] == "assistant":
        raise ValueError("the prompt does not end with a turn to answer; add a user turn")
    for kind in ("chosen", "rejected"):
        parts = [part for turn in pair[kind] for part in turn["content"]]
        if any(turn["role"] != "assistant" for turn in pair[kind]):
            raise ValueError(f"the {kind} answer has turns that are not the assistant's; move them into the prompt")
        called = any(turn.get("tool_calls") for turn in pair[kind])
        if not called and not any(part["type"] == "image" or part["text"].strip() for part in parts):
            raise ValueError(f"the {kind} answer is empty; remove the pair")
        if any(turn.get("weight") == 0 for turn in pair[kind]):
            raise ValueError(
                f"the {kind} answer has weight 0; DPO scores whole answers: remove the weight or the pair"
            )


def _turns(value: Any, role: str) -> list[Pair]:
    """Messages as they are; a string is one message of `role`, None is an empty list."""
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    messages = [value] if isinstance(value, Mapping) else [] if value is None else value
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(f"{shorten(value)} is no conversation; give messages with role and content")
    return [dict(message) for message in messages]


def _split_prompt(
    prompt: list[Pair], chosen: list[Pair], rejected: list[Pair]
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Extract the prompt from answers that repeat it (TRL's implicit prompts). ValueError if prompts differ."""
    heads = []
    for answer in (chosen, rejected):
        others = [index for index, turn in enumerate(answer) if turn["role"] != "assistant"]
        heads.append(answer[: others[-1] + 1] if others else [])
    if heads[0] != heads[1]:
        raise ValueError("chosen and rejected answer different prompts; a pair has one prompt")
    head = heads[0]
    if prompt and head and prompt != head[-len(prompt) :]:  # the prompt may omit earlier turns
        raise ValueError("the answers repeat another prompt than the pair's own; leave it out or make them equal")
    return head or prompt, chosen[len(head) :], rejected[len(head) :]
