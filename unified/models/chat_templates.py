"""A chat template as text around contents: rendered once with placeholders, so that no content is ever parsed by it.

A template is jinja of the tokenizer's; `pieces` are the texts before, between and after the contents of a chat.
"""

import json
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from unified.models.messages import SYSTEM_PROMPT, Message, content_parts, shorten
from unified.models.tools import read_tool_calls
from unified.models.vocabulary import BOI_TOKEN, EOI_TOKEN, IMAGE_PAD_TOKEN

SENTINEL = "\uf8ff{}\uf8ff"  # private-use character: placeholder of a content while the template is rendered
IMAGE_TEXT = f"{BOI_TOKEN}{IMAGE_PAD_TOKEN}{EOI_TOKEN}"
# a template may tell images by their first token, as `unified.models.template_mending` does
_PLACE = re.compile(f"(?:{re.escape(BOI_TOKEN)})?{SENTINEL.format('([0-9]+)')}(?:{re.escape(EOI_TOKEN)})?")
# of a template's own expressions
_FAULTS = (TemplateError, TypeError, LookupError, AttributeError, ArithmeticError, ValueError)
WRITTEN_KEYS = ("name", "tool_calls", "tool_call_id")  # of a message: the template's own to write
LINKS = ("tool_call_id",)  # what some templates have no place for, where the order of turns says it


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template of `tokenizer`, the one named `default` if it has several; ValueError without any."""
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if not template:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruct model's")
    return str(template)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of all special tokens, long ones first."""
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(found, key=lambda text: (-len(text), text))


def special_pattern(tokens: Collection[str]) -> re.Pattern[str]:
    """Matches any of `tokens`; nothing if there are none."""
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def text_runs(message: Message) -> list[str | None]:
    """The message's contents: texts, neighbours joined, and None for every image.

    An answer that calls tools and says nothing has none, as templates write it without the line of its words.
    """
    runs: list[str | None] = []
    parts = content_parts(message)
    if message.get("tool_calls") and not any(part.get("text") or part["type"] == "image" for part in parts):
        return []
    for part in parts:
        if part["type"] == "image":
            runs.append(None)
        elif runs and runs[-1] is not None:
            runs[-1] += part["text"]
        else:
            runs.append(part["text"])
    return runs


def edges(text: str) -> tuple[str, str, str]:
    """White space before a text, the text, and white space after it: templates may strip them."""
    core = text.strip()
    start = text.index(core) if core else len(text)
    return text[:start], core, text[start + len(core) :]


def skeleton(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], int]:
    """Messages with a numbered placeholder for every content, and the number of contents."""
    result: list[dict[str, Any]] = []
    count = 0
    for message in messages:
        content = ""
        for run in text_runs(message):
            if run is None:
                content += f"{BOI_TOKEN}{SENTINEL.format(count)}{EOI_TOKEN}"
            else:
                before, _, after = edges(run)
                content += f"{before}{SENTINEL.format(count)}{after}"
            count += 1
        result.append({"role": message["role"], "content": content, **beside(message)})
    return result, count


def beside(message: Message) -> dict[str, Any]:
    """What a message gives the template beside role and content; raises ValueError as `read_tool_calls`."""
    found = {key: message[key] for key in WRITTEN_KEYS if message.get(key)}
    if "tool_calls" in found:
        found["tool_calls"] = read_tool_calls(found["tool_calls"])
    return found


def render_pieces(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    as_parts: bool = False,
    **options: Any,
) -> list[str]:
    """What `template` writes before, between and after the contents of `messages`: one text more than contents.

    Args:
        as_parts: give contents to the template as lists of parts rather than strings.
        options: variables of the template, such as `enable_thinking`.

    Raises ValueError, in one line, where the template refuses the chat, drops a content or changes the order.
    """
    chat, count = skeleton(messages)
    if as_parts:
        chat = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in chat]
    pieces = _PLACE.split(rendered(tokenizer, template, chat, add_generation_prompt, **options))
    places = [int(place) for place in pieces[1::2]]
    if places != list(range(count)):
        roles = ", ".join(message["role"] for message in messages)
        lost = f"writes {len(places)} of {count} contents" if len(places) < count else "changes the order of contents"
        raise ValueError(f"the chat template {lost} for the roles {roles}; leave out the role that it does not keep")
    return pieces[::2]


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    chat: Sequence[Message],
    add_generation_prompt: bool,
    **options: Any,
) -> str:
    """What `template` writes of `chat`; raises ValueError, in one line, where it refuses that."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in chat],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
    except _FAULTS as error:
        roles = ", ".join(message["role"] for message in chat)
        raise ValueError(f"the chat template refuses the roles {roles}: {' '.join(str(error).split())}") from None
    return str(text)


def check_written(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    **options: Any,
) -> None:
    """Raise ValueError for tools, tool calls and names that `template` passes over, or that spell a special token.

    A template that writes the same without them has not written them.
    """
    named = [
        (at, key, message[key]) for at, message in enumerate(messages) for key in WRITTEN_KEYS if message.get(key)
    ]
    tools = options.get("tools")
    if not named and not tools:
        return
    special = special_pattern([*special_tokens(tokenizer), SENTINEL[0]])
    for key, value in [*((key, value) for _, key, value in named), ("tools", tools)]:
        spelled = special.search(value if isinstance(value, str) else json.dumps(value or "", ensure_ascii=False))
        if spelled:
            raise ValueError(f"{key} {shorten(value)} spells the special token {spelled[0]!r}; take it out")
    chat, _ = skeleton(messages)
    written = rendered(tokenizer, template, chat, add_generation_prompt, **options)

    def is_lost(others: Sequence[Message], **options: Any) -> bool:
        try:
            return rendered(tokenizer, template, others, add_generation_prompt, **options) == written
        except ValueError:  # not without them
            return False

    remedy = "take it out, or give the LLM a template that does"
    if tools and is_lost(chat, **options | {"tools": None}):
        raise ValueError(f"the chat template does not write `tools`; {remedy}")
    for at, key, value in named:
        others = [*chat]
        others[at] = {name: held for name, held in chat[at].items() if name != key}
        if key not in LINKS and is_lost(others, **options):
            role = messages[at]["role"]
            raise ValueError(f"the chat template does not write {key} {shorten(value)} of a turn of {role}; {remedy}")


def find_end(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """What ends an answer: white space and the special tokens that follow it at once; empty if there is none.

    Found in a chat that ends with an answer and in one that goes on, as a template may close the whole text as well;
    behind a system message, where the template takes one.
    """
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for start in ([{"role": "system", "content": SYSTEM_PROMPT}], []):
        try:
            last = render_pieces(tokenizer, template, [*start, question, answer], False)[-1]
        except ValueError:
            continue
        try:
            following = render_pieces(tokenizer, template, [*start, question, answer, question], False)[-2]
        except ValueError:
            following = last
        return common_end(last, following, special_tokens(tokenizer))
    return ""


def common_end(last: str, following: str, tokens: Collection[str]) -> str:
    """White space and special tokens with which `last` and `following` begin alike, else those of `last`."""
    ends = re.compile(rf"\s*(?:{special_pattern(tokens).pattern})+")
    found, again = ends.match(last), ends.match(following)
    if not found:
        return ""
    alike = ends.match(os.path.commonprefix([found[0], again[0]])) if again else None
    return alike[0] if alike else found[0]
