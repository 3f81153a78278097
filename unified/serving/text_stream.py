"""Tokens to text as they come: whole characters only, and up to a stop string."""

from collections.abc import Callable, Sequence


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

    def end(self) -> str:
        """No more tokens: what was held back."""
        rest = self.decode(self.tokens[self.before :])[len(self.decode(self.tokens[self.before : self.read])) :]
        self.before = self.read = len(self.tokens)
        text = self.cut(self.held + rest)
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
