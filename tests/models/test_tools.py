"""Tools, tool calls, names and weights of chats: written by the template and trained as they are, or refused."""

import json
from typing import Any

import pytest
from test_chat_templates import FOLDER, processor_of

from unified import UnifiedProcessor
from unified.models.messages import with_system_prompt
from unified.models.processing import IGNORE_INDEX
from unified.models.tools import read_tool_calls, read_tools

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
ASK, TOLD = {"role": "user", "content": "Is it warm?"}, {"role": "tool", "content": "30", "tool_call_id": "call_1"}
YES = {"role": "assistant", "content": "Yes."}
CHAT = [ASK, CALLS, TOLD, YES, {**ASK, "content": "And here?"}, {**CALLS, "content": "Let me see."}, TOLD, YES]
WRITE = (
    "qwen2_5",
    "qwen3_training",
    "qwen3_instruct_2507",
    "qwen3_vl_training",
    "lfm2_2_5",
    "glm4moe_training",
    "gemma4_v2",
)
KEEP_NO_CONTRACT = {
    "qwen3": "changes what was said once a turn follows",  # drops a thought that it had written
    "glm4moe": "writes no special token behind an answer",
    "nemotron_3_nano": "behind another prompt than its own",
    "qwen3_6": "behind another prompt than its own",  # thinks behind the last question only
}
PASS_OVER = {"llama3": "does not write `tools`", "lfm2": "does not write tool_calls", "gemma": "refuses the roles"}


def trl(name: str) -> UnifiedProcessor:
    return processor_of((FOLDER / f"{name}.jinja").read_text())


def trained(processor: UnifiedProcessor, chat: list, tools: Any = None) -> list[str]:
    """Texts of the labels that follow one another."""
    texts: list[list[int]] = [[]]
    for label in processor.encode_chat(chat, (), tools).labels:
        texts[-1].append(label) if label != IGNORE_INDEX else texts.append([])
    return [processor.tokenizer.decode(ids) for ids in texts if ids]


@pytest.mark.parametrize("name", WRITE)
def test_answers_of_chats_with_tools_stand_behind_their_prompt(name: str) -> None:
    processor = trl(name)
    whole = processor.encode_chat(CHAT, (), TOOLS)
    for place in (at for at, turn in enumerate(CHAT) if turn["role"] == "assistant"):
        prompt = processor.prompt_ids(CHAT[:place], (), TOOLS)
        assert whole.input_ids[: len(prompt)] == prompt and whole.labels[len(prompt)] == whole.input_ids[len(prompt)]
    texts = trained(processor, CHAT, TOOLS)
    assert len(texts) == 4 and all("Rome" in texts[at] and "weather" in texts[at] for at in (0, 2))
    assert "Let me see." in texts[2] and "Yes." in texts[1] and "30" not in "".join(texts)
    full = [{"content": "", **turn} for turn in with_system_prompt(CHAT, processor.system_prompt)]
    template = processor.tokenizer.apply_chat_template(full, tools=TOOLS, return_dict=False)
    assert whole.input_ids == template


@pytest.mark.parametrize("name", [*KEEP_NO_CONTRACT, *PASS_OVER])
def test_templates_that_would_lose_or_change_something_refuse(name: str) -> None:
    with pytest.raises(ValueError, match=(KEEP_NO_CONTRACT | PASS_OVER)[name]) as error:
        trl(name).encode_chat(CHAT, (), None if name in ("gemma", "lfm2") else TOOLS)
    assert "\n" not in str(error.value)


def test_tools_and_calls_of_all_forms_are_one() -> None:
    processor = trl("qwen2_5")
    openai = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}, "id": "call_1", "type": "function"}
    flat = {"name": "weather", "arguments": {"city": "Rome"}}
    expected = processor.encode_chat(CHAT[:4], (), TOOLS)
    for calls in ([openai], [flat], json.dumps([CALL])):
        chat = [ASK, {"role": "assistant", "content": None, "tool_calls": calls}, TOLD, YES]
        assert processor.encode_chat(chat, (), json.dumps(TOOLS)) == expected
    inputs = processor.apply_chat_template(
        CHAT[:3], tools=TOOLS, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert inputs["input_ids"][0].tolist() == processor.prompt_ids(CHAT[:3], (), TOOLS)
    assert "weather" in processor.apply_chat_template(CHAT[:3], tools=TOOLS, tokenize=False)


@pytest.mark.parametrize(
    ("message", "tools", "says"),
    [
        ({**CALLS, "tool_calls": "{"}, None, "is not JSON"),
        ({**CALLS, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, None, "tool call"),
        ({**CALLS, "tool_calls": [{"function": "f"}]}, None, "tool call"),
        ({**CALLS, "tool_calls": [{"function": {"name": "f"}, "arguments": {"a": 1}}]}, None, "the key 'arguments'"),
        ({**CALLS, "tool_calls": [{"function": {"name": "f"}, "name": "f"}]}, None, "the key 'name'"),
        ({**CALLS, "tool_calls": [{"function": {"name": "f", "id": "1"}}]}, None, "the key 'id'"),
        ({**CALLS, "tool_calls": [{"function": {"name": "f", "type": "x"}}]}, None, "the key 'type'"),
        ({**CALLS, "tool_calls": {"name": "f"}}, None, "no list of objects"),
        ({**ASK, "tool_calls": [CALL]}, None, "tool_calls in a turn of user"),
        ({**YES, "tool_call_id": "1"}, None, "tool_call_id in a turn of assistant"),
        (YES, [{"type": "function"}], "is no function"),
        (YES, "[1]", "no list of objects"),
        ({**YES, "name": "Ann"}, None, "does not write name 'Ann' of a turn of assistant"),
        ({**YES, "name": 3}, None, "name 3; give a string"),
        ({**YES, "reasoning_content": "So."}, None, "'reasoning_content', which nothing honours"),
        ({**YES, "mask": [0]}, None, "'mask', which nothing honours"),
        ({**YES, "weight": 0.5}, None, "weight 0.5 of a turn of assistant"),
        ({**ASK, "weight": 1}, None, "weight 1 of a turn of user"),
        ({**CALLS, "tool_calls": [{"name": "f", "arguments": {"a": "<|im_end|>"}}]}, None, "spells the special token"),
        (YES, [{"type": "function", "function": {"name": "<|im_end|>"}}], "spells the special token"),
        ({**YES, "content": "a \ud83d b"}, None, "character 3 is half a surrogate pair"),
    ],
)
def test_what_cannot_be_honoured_is_named(message: dict, tools: Any, says: str) -> None:
    with pytest.raises(ValueError) as error:
        trl("qwen2_5").encode_chat([ASK, message], (), tools)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_name_is_written_where_the_template_has_a_place_for_it() -> None:
    named = processor_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name else '' }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert "user Ann\nIs it" in named.tokenizer.decode(named.encode_chat([{**ASK, "name": "Ann"}, YES]).input_ids)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3"])
def test_an_answer_of_weight_0_is_read_and_not_trained(name: str) -> None:
    processor = trl(name)
    chat = [ASK, {**YES, "content": "bad", "weight": 0}, ASK, {**YES, "weight": 1}]
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in chat]
    assert processor.encode_chat(chat).input_ids == processor.encode_chat(plain).input_ids
    assert len(trained(processor, plain)) == 2 and trained(processor, chat) == trained(processor, plain)[1:]
    assert trained(processor, [ASK, {**YES, "weight": 0}]) == []


def test_nothing_given_is_none() -> None:
    assert read_tools(None) == [] and read_tool_calls(None) == [] and read_tools([]) == []


@pytest.mark.parametrize("expression", ["1 // 0", "messages[99].content.x", "'a' + 1", "raise_exception('a\\nb')"])
def test_an_error_inside_a_template_is_one_line(expression: str) -> None:
    processor = trl("qwen2_5")
    processor.chat_template = f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{{{{ {expression} }}}}"
    with pytest.raises(ValueError, match="the chat template refuses the roles system, user, assistant: ") as error:
        processor.encode_chat([ASK, YES])
    assert "\n" not in str(error.value)
