"""Chats to ids of text: a chat's text is tokenized as one, as `tokenizer.apply_chat_template` does it.

It is cut in two places only. Where an answer begins, so that a prompt has the ids in training that it has in use; and
around a text that spells a special token, which stays text. Behind a cut the text is tokenized as a continuation.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerBase

from unified.models.chat_templates import (
    IMAGE_TEXT,
    beside,
    check_written,
    edges,
    find_end,
    render_pieces,
    special_pattern,
    special_tokens,
)
from unified.models.messages import Message, is_output
from unified.models.vocabulary import BOI_TOKEN, SPECIAL_TOKENS

CONTEXT = 64  # characters before a cut that are tokenized with what follows it
MAX_LAYOUTS = 4096
TOKENIZING = threading.Lock()  # HF keeps padding, truncation and `split_special_tokens` of a call in the tokenizer
LINE_BREAK = "\n"  # before it no tokenizer joins words, and behind it none marks the start of a text


@dataclass(frozen=True)
class Cut:
    """Where in a text of the template a segment begins: with an answer, and behind an answer with its usual end?"""

    at: int
    answers: bool
    ended: bool


@dataclass(frozen=True)
class Segment:
    """A chat's text from one cut to the next: texts of the template and numbers of contents.

    `left` is the text before it, from a special token on, and `left_ids` its ids. `end` are the ids of the special
    tokens that end the answer with which an `answered` segment begins; without any all of the segment is the answer.
    `special_count` is the number of special tokens that the template puts into it.
    """

    parts: tuple[str | int, ...]
    left: str
    left_ids: tuple[int, ...]
    answered: bool
    end: tuple[int, ...]
    special_count: int

    def answer_length(self, ids: Sequence[int]) -> int:
        """Number of the first ids that are the answer and its end."""
        if not self.answered:
            return 0
        size = len(self.end)
        ends = (at + size for at in range(len(ids) - size + 1) if tuple(ids[at : at + size]) == self.end)
        return next(ends, len(ids)) if size else len(ids)

    def content_length(self, ids: Sequence[int]) -> int:
        """Number of the first ids that are the answer, without its end."""
        length, size = self.answer_length(ids), len(self.end)
        ended = size and tuple(ids[max(length - size, 0) : length]) == self.end
        return length - size if ended else length


class ChatTokenizer:
    """Lays out chats by the template, and tokenizes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.special = special_pattern(special_tokens(tokenizer))
        ids = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.id_of_special = ids
        self.special_ids = {i for text, i in ids.items() if text not in (*SPECIAL_TOKENS, tokenizer.unk_token)}
        self._ends: dict[str, str] = {}
        self._layouts: dict[tuple, list[Segment]] = {}
        self._fixed_rows: dict[str, list[int]] = {}
        self._plain: Tokenizer | None = None
        words, behind = self.parse("a"), self.parse(f"{LINE_BREAK}a")
        self.marks_starts = behind != self.parse(LINE_BREAK) + words
        self.marks_behind_special = self.parse(f"{BOI_TOKEN}a") == self.parse(BOI_TOKEN) + words

    def tokenize(self, text: str | Sequence[str], **options: Any) -> BatchEncoding:
        """HF's call of the tokenizer, one thread at a time."""
        with TOKENIZING:
            return self.tokenizer(text, **options)

    def parse(self, text: str) -> list[int]:
        """Ids of a text whose special tokens count."""
        return cast(list[int], self.tokenize(text, add_special_tokens=False)["input_ids"])

    def end(self, template: str) -> str:
        """What ends an answer; see `find_end`."""
        if template not in self._ends:
            self._ends[template] = find_end(self.tokenizer, template)
        return self._ends[template]

    def end_ids(self, template: str) -> tuple[int, ...]:
        """Ids of the special tokens that end an answer."""
        return tuple(self.id_of_special[token] for token in self.special.findall(self.end(template)))

    def segments(
        self,
        template: str,
        messages: Sequence[Message],
        runs: Sequence[Sequence[str | None]],
        add_generation_prompt: bool,
        **options: Any,
    ) -> list[Segment]:
        """The layout of a chat, a function of its roles, kinds of contents, white space at their edges, and tools.

        `runs` are the contents of its messages, see `text_runs`.
        Raises ValueError as `render_pieces` and `check_written`.
        """
        shape = tuple(
            (message["role"], *((None if run is None else edges(run)[::2]) for run in of_message))
            for message, of_message in zip(messages, runs, strict=True)
        )
        said = [beside(message) for message in messages]  # becomes text of the template
        given = json.dumps([said, options], default=str) if any(said) or options else ""
        key = (template, shape, add_generation_prompt, given)
        found = self._layouts.get(key)
        if found is None:
            check_written(self.tokenizer, template, messages, add_generation_prompt, **options)
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            pieces = render_pieces(self.tokenizer, template, messages, add_generation_prompt, **options)
            found = self._layouts[key] = self._cut(template, messages, runs, pieces, options)
        return found

    def encode(self, segments: Sequence[Segment], contents: Sequence[str | None]) -> list[list[int]]:
        """Ids of every segment; a content of None is an image: image start, one placeholder, image end."""
        texts = [[part if isinstance(part, str) else fill(contents[part]) for part in s.parts] for s in segments]
        joined = [segment.left + "".join(own) for segment, own in zip(segments, texts, strict=True)]
        rows = self._rows(segments, joined, contents)
        spelled = {at for at, text in enumerate(contents) if text is not None and self.special.search(text)}
        result = []
        for number, (segment, own, row) in enumerate(zip(segments, texts, rows, strict=True)):
            unsafe = spelled.intersection(part for part in segment.parts if isinstance(part, int))
            ids = row[len(segment.left_ids) :] if tuple(row[: len(segment.left_ids)]) == segment.left_ids else None
            if ids is None and not unsafe:
                ids = self._continue("".join(own))
            if ids is None or unsafe or self._count_special(ids) != segment.special_count:
                texts_alone = {p for p in segment.parts if isinstance(p, int) and contents[p] is not None}
                ids = self._encode_apart(segment, own, unsafe or texts_alone, begins=number == 0)
            result.append(ids)
        return result

    def _rows(
        self, segments: Sequence[Segment], joined: Sequence[str], contents: Sequence[str | None]
    ) -> list[list[int]]:
        """Ids of the segments' whole texts; of those whose contents are images, the same in many chats, once."""
        fixed = {
            text
            for text, segment in zip(joined, segments, strict=True)
            if all(isinstance(part, str) or contents[part] is None for part in segment.parts)
        }
        rows = {text: row for text in fixed if (row := self._fixed_rows.get(text)) is not None}
        asked = [text for text in dict.fromkeys(joined) if text not in rows]
        if asked:
            rows.update(zip(asked, self.tokenize(asked, add_special_tokens=False)["input_ids"], strict=True))
        if len(self._fixed_rows) >= MAX_LAYOUTS:
            self._fixed_rows.clear()
        self._fixed_rows.update((text, rows[text]) for text in fixed)
        return [rows[text] for text in joined]

    def _count_special(self, ids: Sequence[int]) -> int:
        return sum(i in self.special_ids for i in ids)

    def _continue(self, text: str, left: str = "") -> list[int]:
        """Ids of `text` where it goes on from `left`, or from other text, not from a special token."""
        for before in (left, LINE_BREAK if self.marks_starts else ""):
            ids, ids_before = self.parse(before + text), self.parse(before) if before else []
            if before and ids[: len(ids_before)] == ids_before:
                return ids[len(ids_before) :]
        return self.parse(text)

    def _encode_apart(self, segment: Segment, texts: Sequence[str], alone: set[int], begins: bool) -> list[int]:
        """Ids of a segment whose contents `alone` are tokenized by themselves, as text; their neighbours are not.

        The first segment `begins` the chat's text.
        """
        ids: list[int] = []
        run, left = "", segment.left
        for part, text in zip(segment.parts, texts, strict=True):
            if part not in alone or isinstance(part, str):
                run += text
                continue
            if run:
                ids += self.parse(run) if begins else self._continue(run, left)
            begins = False
            ids += self._encode_plain(text, left + run)
            run, left = "", ""
        return ids + (self._continue(run, left) if run else [])

    def _encode_plain(self, text: str, left: str) -> list[int]:
        """Ids of `text` without any special token."""
        if not self.tokenizer.is_fast:
            plain = self.tokenize(text, add_special_tokens=False, split_special_tokens=True)
            return cast(list[int], plain["input_ids"])
        if self._plain is None:  # a tokenizer of its own, as callers' own calls of HF's would change this
            made = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
            made.encode_special_tokens = True
            made.no_padding()
            made.no_truncation()
            self._plain = made  # whole: another thread may use it at once

        def ids(words: str) -> list[int]:
            return self._plain.encode(words, add_special_tokens=False).ids  # type: ignore[union-attr]  # made above

        last = next((m for m in reversed(list(self.special.finditer(left)))), None)
        behind_special = last is not None and last.end() == len(left)
        if not self.marks_starts or not left or (behind_special and self.marks_behind_special):
            return ids(text)
        before = ids(LINE_BREAK)
        behind = ids(LINE_BREAK + text)
        return behind[len(before) :] if behind[: len(before)] == before else ids(text)

    def _cut(
        self,
        template: str,
        messages: Sequence[Message],
        runs: Sequence[Sequence[str | None]],
        pieces: Sequence[str],
        options: Mapping[str, Any],
    ) -> list[Segment]:
        """Segments of a rendered chat."""
        cuts: list[list[Cut]] = [[] for _ in pieces]
        place, by_original = 0, "tools" in options or any(map(beside, messages))
        for number, (message, own) in enumerate(zip(messages, runs, strict=True)):
            after = place + len(own)
            if is_output(message) and by_original and (own or message.get("tool_calls")):
                start, stop = self._of_original(template, messages[: number + 1], pieces, place, after, options)
                cuts[place].append(Cut(start, True, True))
                cuts[after] += stop
            elif is_output(message) and own:
                piece, before = pieces[place], edges(own[0])[0] if own[0] is not None else ""
                start = self._answer_start(template, messages[:number], piece, before, options)
                cuts[place].append(Cut(start, True, True))
                cuts[after] += self._unended(template, pieces[after], edges(own[-1])[2] if own[-1] is not None else "")
            place = after
        segments: list[Segment] = []
        parts: list[str | int] = []
        left, answered = "", False
        for at, piece in enumerate(pieces):
            done = 0
            for cut in cuts[at]:
                parts.append(piece[done : cut.at])
                ended = self.end_ids(template) if cut.ended else ()
                segments.append(self._segment(tuple(parts), left, answered, ended))
                parts.clear()
                done, left, answered = cut.at, piece[: cut.at], cut.answers
            parts.append(piece[done:])
            if at < len(pieces) - 1:
                parts.append(at)
        segments.append(self._segment(tuple(parts), left, answered, self.end_ids(template)))
        return segments

    def _unended(self, template: str, piece: str, after: str) -> list["Cut"]:
        """Where an answer stops in the text behind it that does not begin with its end; `after` is its white space."""
        end = self.end(template)
        if end and piece.removeprefix(after).lstrip().startswith(end.lstrip()):
            return []
        return [Cut(len(after) if piece.startswith(after) else 0, False, False)]

    def _of_original(
        self,
        template: str,
        answered: Sequence[Message],
        pieces: Sequence[str],
        place: int,
        after: int,
        options: Mapping[str, Any],
    ) -> tuple[int, list["Cut"]]:
        """Where the last of the messages, an answer of a chat with tools or names, begins, and its stop if unusual.

        Its contents are those from `place` to `after`. A mended template leaves such chats to the original, whose
        answers may say more than the message does, such as an empty thought; that is trained.
        Raises ValueError where it breaks the contract that `unified.models.template_probe` states.
        """
        asked = render_pieces(self.tokenizer, template, answered[:-1], True, **options)
        whole = render_pieces(self.tokenizer, template, answered, False, **options)
        remedy = "leave tools, tool calls and names out, or give the LLM another chat template"
        if [*pieces[:place]] != asked[:-1] or not pieces[place].startswith(asked[-1]):
            raise ValueError(
                f"with tools or names the chat template writes an answer behind another prompt than its own; {remedy}"
            )
        start = len(asked[-1])
        from_start = whole[-1][start if place == after else 0 :]
        end = self.end(template).strip()
        told = from_start[: from_start.index(end) + len(end)] if end and end in from_start else from_start.rstrip()
        if whole[:after] != [*pieces[:after]] or not pieces[after][start if place == after else 0 :].startswith(told):
            raise ValueError(
                f"with tools or names the chat template changes what was said once a turn follows; {remedy}"
            )
        if not self.special.search(told):
            raise ValueError(
                f"with tools or names the chat template writes no special token behind an answer; {remedy}"
            )
        if end and end in told:
            return start, []
        return start, [Cut((start if place == after else 0) + len(told), False, False)]

    def _answer_start(
        self, template: str, prompt: Sequence[Message], piece: str, before: str, options: Mapping[str, Any]
    ) -> int:
        """Where in the text before an answer its prompt ends: a space behind that belongs to the answer's words.

        `before` is the white space that the answer begins with, which templates may leave out.
        """
        if before or piece.endswith(" "):
            try:
                asked = render_pieces(self.tokenizer, template, prompt, True, **options)[-1]
            except ValueError:
                return len(piece.removesuffix(before))
            if piece.startswith(asked) and not piece[len(asked) :].strip():
                return len(asked)
        return len(piece.removesuffix(before))

    def _segment(self, parts: tuple[str | int, ...], left: str, answered: bool, end: tuple[int, ...]) -> Segment:
        last = next((m for m in reversed(list(self.special.finditer(left)))), None)
        left = left[last.start() :] if last else left[-CONTEXT:]
        left_ids = tuple(self.parse(left)) if left else ()
        kinds = "".join(part if isinstance(part, str) else "x" for part in parts)
        return Segment(parts, left, left_ids, answered, end, self._count_special(self.parse(kinds)))


def fill(content: str | None) -> str:
    """The text of a content in a rendered chat, without white space at its edges, which the layout holds."""
    return IMAGE_TEXT if content is None else edges(content)[1]


def interleave(pieces: Sequence[str], contents: Sequence[str | None]) -> str:
    """The rendered chat of a template's pieces and the contents between them."""
    return pieces[0] + "".join(fill(content) + piece for content, piece in zip(contents, pieces[1:], strict=True))
