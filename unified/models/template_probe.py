"""What is wrong with a chat template: a pure function of tokenizer and template that returns named findings.

The contract: a chat is its prompt, followed at once by the answer and a special token that ends it, and what was said
is written the same way once more is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from unified.models.chat_templates import common_end, render_pieces, special_tokens

ROLE_LETTERS = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
CHATS = ("ua", "uaua", "uauaua", "sua", "suaua", "suauaua", "uata", "uauata", "uataua")
ANOTHER_DAY = "another day"


@dataclass(frozen=True)
class Finding:
    """One way in which a template breaks the contract: `kind` is contents, parts, context, history, end or date."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Probe:
    """Renders chats given as letters of roles (`sua` is system, user, assistant), one text a message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, as_parts: bool = False) -> None:
        self.tokenizer, self.template, self.as_parts = tokenizer, template, as_parts
        self.special = special_tokens(tokenizer)
        self._seen: dict[tuple[str, bool], list[str] | None] = {}

    def pieces(self, roles: str, prompt: bool = False, **options: Any) -> list[str] | None:
        """As `render_pieces`; None where the template refuses the roles or loses a content."""
        key = (roles, prompt)
        if options or key not in self._seen:
            try:
                found = self.render(roles, prompt, **options)
            except ValueError:
                found = None
            if options:
                return found
            self._seen[key] = found
        return self._seen[key]

    def render(
        self, roles: str, prompt: bool = False, content: Any = "x", answer: Any = None, **options: Any
    ) -> list[str]:
        """As `pieces`, but raises ValueError; `answer` is the content of the last message, `content` of the others."""
        chat = [{"role": ROLE_LETTERS[letter], "content": content} for letter in roles]
        if answer is not None:
            chat[-1]["content"] = answer
        return render_pieces(self.tokenizer, self.template, chat, prompt, self.as_parts, **options)

    def end_of(self, answered: str) -> str:
        """What ends the last answer of a chat, as it is written there and when a question follows."""
        last, following = self.pieces(answered), self.pieces(answered + "u")
        if last is None:
            return ""
        return common_end(last[-1], following[-2] if following else last[-1], self.special)


def probe(tokenizer: PreTrainedTokenizerBase, template: str) -> list[Finding]:
    """All findings for `template`; empty where it keeps the contract."""
    texts = Probe(tokenizer, template)
    findings = []
    if texts.pieces("ua") is None:
        parts = Probe(tokenizer, template, as_parts=True)
        if parts.pieces("ua") is None:
            try:
                texts.render("ua")
            except ValueError as error:
                return [Finding("contents", str(error))]
        findings.append(Finding("parts", "contents that are strings get lost, lists of parts do not"))
        texts = parts
    for roles in CHATS:
        findings += check_chat(texts, roles)
    if not texts.end_of("ua"):
        findings.append(Finding("end", f"no special token ends an answer: {show(texts.pieces('ua'))} follows it"))
    elif spaces_images(texts):
        findings.append(Finding("end", f"white space ends an answer that is an image: {show(texts.pieces('ua'))}"))
    if depends_on_date(texts):
        findings.append(Finding("date", "it writes today's date"))
    return list(dict.fromkeys(findings))


def check_chat(probe: Probe, roles: str) -> list[Finding]:
    """Findings of kind context and history in one chat; none where the template refuses its roles from the start."""
    whole = probe.pieces(roles)
    if whole is None:
        begun = roles[: roles.index("u") + 1]
        if "t" in roles or probe.pieces(begun, prompt=True) is None:
            return []
        return [Finding("history", f"what {begun!r} says is lost or moves once more is said ({roles})")]
    findings = []
    for place in (index for index, letter in enumerate(roles) if letter == "a"):
        prompt, answered = probe.pieces(roles[:place], prompt=True), probe.pieces(roles[: place + 1])
        if prompt is None or answered is None:
            return [Finding("context", f"no prompt for {roles[:place]!r}")]
        if prompt[-1] != answered[place] and not spaces_words_only(probe, roles[: place + 1], prompt[-1]):
            trained = f"the prompt ends with {show(prompt)}, a finished answer begins behind {show([answered[place]])}"
            findings.append(Finding("context", trained))
        end = probe.end_of(roles[: place + 1])
        before = [prompt[:-1], answered[:place], whole[:place]]
        if not before[0] == before[1] == before[2] or whole[place] != answered[place]:
            findings.append(Finding("history", f"what stands before an answer changes when a turn follows ({roles})"))
        elif not whole[place + 1].startswith(end):
            findings.append(
                Finding("history", f"an answer ends with {end!r}, and with {show(whole[place + 1 :])} later")
            )
    return findings


def spaces_words_only(probe: Probe, answered: str, prompt: str) -> bool:
    """Whether the answer's words stand behind `prompt` and a space, which belongs to them, and an image at once."""
    words, image = probe.pieces(answered), probe.render(answered, answer=[{"type": "image"}])
    return words is not None and words[-2] == f"{prompt} " and image[-2] == prompt


def spaces_images(probe: Probe) -> bool:
    """Whether white space before the end stands behind images too, or behind an answer that ends with its own."""
    if not probe.end_of("ua")[0].isspace():
        return False
    image, words = probe.render("ua", answer=[{"type": "image"}])[-1], probe.render("ua", answer="x\t")[-1]
    return image[0].isspace() or words.startswith("\t")


def depends_on_date(probe: Probe) -> bool:
    """Whether the template asks for the date."""
    if "strftime_now" not in probe.template:
        return False
    return any(
        probe.pieces(roles) != probe.pieces(roles, strftime_now=lambda _: ANOTHER_DAY) for roles in ("ua", "sua")
    )


def supports_system_prompt(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether `template` takes a system message and writes what it says."""
    return Probe(tokenizer, template).pieces("sua") is not None


def show(pieces: Sequence[str] | None, width: int = 60) -> str:
    """`repr` of the last piece's end, for messages."""
    text = pieces[-1] if pieces else ""
    return repr(text if len(text) <= width else f"…{text[-width:]}")
