"""Mending chat templates: what `probe` finds is put right in the checkpoint's own template, or refused by name.

Any template whose pieces depend on neighbouring roles alone is written as a table of the pieces it was seen to write:
there an answer, finished or not, stands behind one and the same prompt, closed by one and the same end. Chats that the
table does not describe (tools, tool calls, names, thinking asked for) are still rendered by the original.
"""

import datetime
import json
import re
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from unified.models.chat_templates import IMAGE_TEXT, default_template, special_pattern
from unified.models.template_probe import ROLE_LETTERS, Finding, Probe, probe
from unified.models.vocabulary import BOI_TOKEN, EOI_TOKEN

_DATE = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)""")
# a chat with `b` right behind `a`, by `a`; the first that the template takes counts
_BEFORE = {"s": ("s",), "u": ("u", "su"), "a": ("ua", "sua"), "t": ("uat", "ut", "suat")}
_TABLE = """\
{#- Made by `unified extend`: an answer stands behind the generation prompt, in training as in use. -#}
{%- if tools or documents or enable_thinking or thinking or messages | selectattr("tool_calls") | list
    or messages | selectattr("name") | list or messages | selectattr("reasoning_content") | list %}
ORIGINAL{% else -%}
{%- set opening = OPENING -%}
{%- set between = BETWEEN -%}
{%- set gap = GAP -%}
{%- set closing = CLOSING -%}
{%- set prompt = PROMPT -%}
{%- set strip = STRIP -%}
{%- set image = IMAGE -%}
{%- set last = namespace(role="", image=false) -%}
{%- for message in messages -%}
{%- set piece = (opening if loop.first else between.get(last.role, {})).get(message.role) -%}
{%- if piece is none -%}
{{- raise_exception("a turn of " ~ message.role ~ (" behind one of " ~ last.role if last.role else " at the start")
    ~ " is not in this chat template") -}}
{%- endif -%}
{%- if message.content is string -%}
{%- set content = message.content -%}
{%- else -%}
{%- set joined = namespace(text="") -%}
{%- for part in message.content -%}
{%- set joined.text = joined.text ~ (image if part.type == "image" else part.text) -%}
{%- endfor -%}
{%- set content = joined.text -%}
{%- endif -%}
{%- if "l" in strip[message.role] -%}{%- set content = content.lstrip() -%}{%- endif -%}
{%- if "r" in strip[message.role] -%}{%- set content = content.rstrip() -%}{%- endif -%}
{{- piece.lstrip() if last.image else piece -}}
{%- if message.role == "assistant" and not content.startswith(BOI) and not content[:1].isspace() -%}
{{- gap.get(last.role, "") -}}
{%- endif -%}
{{- content -}}
{%- set last.role = message.role -%}
{%- set last.image = message.role == "assistant" and content.endswith(EOI) -%}
{%- endfor -%}
{%- if add_generation_prompt and last.role not in prompt -%}
{{- raise_exception("no answer follows a turn of " ~ last.role ~ " in this chat template") -}}
{%- endif -%}
{%- set piece = prompt[last.role] if add_generation_prompt else closing[last.role] -%}
{{- piece.lstrip() if last.image else piece -}}
{%- endif -%}"""


@dataclass
class TurnTable:
    """The pieces of a chat template by letters of roles: first turns, turns behind turns, ends and prompts."""

    opening: dict[str, str] = field(default_factory=dict)
    between: dict[str, dict[str, str]] = field(default_factory=dict)
    gap: dict[str, str] = field(default_factory=dict)  # a space that the original puts before an answer's words
    closing: dict[str, str] = field(default_factory=dict)
    prompt: dict[str, str] = field(default_factory=dict)
    strip: dict[str, str] = field(default_factory=dict)  # which sides of a content the template strips: l, r, lr


def mend(tokenizer: PreTrainedTokenizerBase, today: datetime.date | None = None) -> tuple[str, list[Finding]]:
    """A template that keeps the contract, and what was found in the tokenizer's own; that very one without findings.

    Raises ValueError, naming what is wrong, for a template that cannot be mended.
    """
    original = default_template(tokenizer)
    findings = probe(tokenizer, original)
    kinds = {finding.kind for finding in findings}
    for finding in findings:
        if finding.kind == "contents":
            raise ValueError(f"{finding.detail}, so this chat template cannot be used; give the LLM another one")
    template = freeze_date(original, today or datetime.date.today()) if "date" in kinds else original
    remaining = probe(tokenizer, template)
    if remaining:
        table = read_table(Probe(tokenizer, template, "parts" in kinds))
        template = write_template(table, template)
        remaining = probe(tokenizer, template)
    if remaining:
        raise ValueError(
            f"the chat template cannot be mended ({remaining[0]}); give the LLM's tokenizer another chat template"
        )
    return template, findings


def freeze_date(template: str, today: datetime.date) -> str:
    """`template` with the date of `today` in place of every `strftime_now("...")`."""
    return _DATE.sub(lambda call: json.dumps(today.strftime(call[2]), ensure_ascii=False), template)


def read_table(probe: Probe) -> TurnTable:
    """The pieces that a template writes, with one prompt and one end for every answer.

    Raises ValueError where an answer has no end and the tokenizer none to give.
    """
    table = TurnTable()
    for letter in ROLE_LETTERS:
        first = next((p for p in map(probe.pieces, (letter, f"{letter}u", f"{letter}ua")) if p is not None), None)
        if first is not None:
            table.opening[letter] = first[0]
        read_following(probe, table, letter)
        table.strip[letter] = stripped_sides(probe, letter)
    close_answers(probe, table)
    return table


def read_following(probe: Probe, table: TurnTable, letter: str) -> None:
    """What stands behind a turn of `letter`: before every other role, at the end, and as a prompt."""
    starts = [start for start in _BEFORE[letter] if probe.pieces(f"{start}a") or probe.pieces(start)]
    table.between[letter] = {}
    for start in starts[:1]:
        last, prompt = probe.pieces(start), probe.pieces(start, prompt=True)
        if last is not None:
            table.closing[letter] = last[-1]
        for following in ROLE_LETTERS:
            pieces = probe.pieces(start + following)
            if pieces is not None:
                table.between[letter][following] = pieces[len(start)]
        answer = table.between[letter].get("a")
        if answer is not None:
            spaced = prompt is not None and answer == f"{prompt[-1]} "
            table.gap[letter] = " " if spaced else ""
            answer = answer.removesuffix(" ") if spaced else answer
            table.between[letter]["a"] = table.prompt[letter] = answer


def stripped_sides(probe: Probe, letter: str) -> str:
    """Which sides of a content are stripped: l, r, both or none."""
    for start in _BEFORE[letter]:
        roles = start if letter == "a" else f"{start}a"
        if probe.pieces(roles) is None:
            continue
        before, after = probe.render(roles, content="\tx\t")[len(start) - 1 : len(start) + 1]
        return "l" * (not before.endswith("\t")) + "r" * (not after.startswith("\t"))
    return ""


def close_answers(probe: Probe, table: TurnTable) -> None:
    """Give every answer the same end, a special token, whatever follows it."""
    last, following = table.closing.get("a", ""), table.between["a"]
    end, old = probe.end_of("ua"), ""
    if not end:
        end = own_end(probe, following.get("u", ""))
        table.closing["a"] = end if following.get("u", "").startswith(end) else f"{end}{last}"
    elif following.get("u", end).startswith(end):
        table.closing["a"] = last if following.get("u", last).startswith(last) else end  # some close the whole text
    else:
        old = table.closing.get("u", "")  # what ends turns in history: <|end|> where the last answer has <|return|>
        table.closing["a"] = last
    if end[0].isspace():  # what a model generates ends with it
        table.strip["a"] += "r"
    for role, piece in following.items():
        following[role] = piece if piece.startswith(end) else f"{end}{piece.removeprefix(old)}"
    if "a" in table.prompt:
        table.prompt["a"] = following["a"]


def own_end(probe: Probe, next_turn: str) -> str:
    """The special token that opens the user's next turn and so ends an answer, else the end of text."""
    bos, eos = probe.tokenizer.bos_token, probe.tokenizer.eos_token
    opens = special_pattern(probe.special).match(next_turn)
    if opens and opens[0] != bos:
        return opens[0]
    if not eos:
        raise ValueError(
            "the chat template writes no special token behind an answer and the tokenizer has no eos_token, so "
            "answers would never stop; give the tokenizer an eos_token"
        )
    return str(eos)


def write_template(table: TurnTable, original: str) -> str:
    """The jinja template of `table`; `original` renders what the table does not describe."""

    def literal(value: dict | str) -> str:
        return json.dumps(value, ensure_ascii=False)

    def named(pieces: dict[str, str]) -> dict[str, str]:
        return {ROLE_LETTERS[letter]: piece for letter, piece in pieces.items()}

    values = {
        "ORIGINAL": original.removesuffix("\n"),  # jinja drops a template's last line break
        "OPENING": literal(named(table.opening)),
        "BETWEEN": literal({ROLE_LETTERS[letter]: named(pieces) for letter, pieces in table.between.items()}),
        "GAP": literal(named(table.gap)),
        "CLOSING": literal(named(table.closing)),
        "PROMPT": literal(named(table.prompt)),
        "STRIP": literal(named(table.strip)),
        "IMAGE": literal(IMAGE_TEXT),
        "BOI": literal(BOI_TOKEN),
        "EOI": literal(EOI_TOKEN),
    }
    return re.sub(rf"\b({'|'.join(values)})\b", lambda match: values[match[1]], _TABLE)
