"""Tokens to text as they come, with pictures between: whole characters only, and up to a stop string."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Picture = TypeVar("Picture")


class TextStream:
    """Text of tokens so far; `add` gives what is new and certain.

    Held back: bytes of an unfinished character, and what may be the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode, self.stops = decode, [stop for stop in stops if stop]
        self.tokens: list[int] = []
        self.before, self.read = 0, 0  # of the tokens: from where they are decoded, up to where they were said
        self.held, self.stopped = "", False

    def add(self, token: int) -> str:
        """One more token."""
        self.tokens.append(token)
        said = self.decode(self.tokens[self.before : self.read])
        now = self.decode(self.tokens[self.before :])
        if now.endswith("\N{REPLACEMENT CHARACTER}") or len(now) <= len(said):
            return ""
        self.before, self.read = self.read, len(self.tokens)
        return self.cut(self.held + now[len(said) :])

    def pause(self) -> str:
        """What comes next is no token: bytes of an unfinished character end here; a stop string may go on."""
        rest = self.decode(self.tokens[self.before :])[len(self.decode(self.tokens[self.before : self.read])) :]
        self.before = self.read = len(self.tokens)
        return self.cut(self.held + rest)

    def end(self) -> str:
        """No more tokens: what was held back."""
        text = self.pause()
        held, self.held = self.held, ""
        return text + ("" if self.stopped else held)

    def cut(self, text: str) -> str:
        """What of `text` can be said; the rest is held, or dropped from a stop string on."""
        ends = [text.find(stop) for stop in self.stops if stop in text]
        if ends or self.stopped:
            self.held, text, self.stopped = "", "" if self.stopped else text[: min(ends)], True
            return text
        sizes = [size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        place = len(text) - max(sizes, default=0)
        self.held = text[place:]
        return text[:place]


class InterleavedStream(Generic[Picture]):
    """Words and pictures in order. A stop string may run across pictures, as all words together must not hold it.

    A picture waits while the words before it may be the beginning of a stop string, and is dropped when they are.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.text = TextStream(decode, stops)
        self.waiting: list[tuple[int, Picture]] = []  # with the number of held characters before it

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.text.stopped

    def add(self, token: int) -> list[str | Picture]:
        """One more token: what is new and certain."""
        return self.release(self.text.add(token))

    def show(self, picture: Picture) -> list[str | Picture]:
        """One more picture."""
        pieces = self.release(self.text.pause())
        if not self.stopped:
            self.waiting.append((len(self.text.held), picture))
        return pieces + self.release("")

    def end(self) -> list[str | Picture]:
        """No more of either: what was held back."""
        return self.release(self.text.end())

    def release(self, text: str) -> list[str | Picture]:
        """`text`, which is certain, with the pictures in it and at its end."""
        pieces: list[str | Picture] = []
        start = 0
        for place, picture in self.waiting:
            if place <= len(text):
                pieces += [text[start:place], picture]
                start = place
        later = [(place - len(text), picture) for place, picture in self.waiting if place > len(text)]
        self.waiting = [] if self.stopped else later
        return [piece for piece in (*pieces, text[start:]) if piece != ""]
