"""The context of training is the context of use: all chat templates that TRL ships, and kinds that it does not."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from toys import CHAT_TEMPLATE, make_config, make_vq
from transformers import PreTrainedTokenizerFast

from unified.models.chat_templates import default_template, render_pieces
from unified.models.processing import IGNORE_INDEX, EncodedChat, UnifiedProcessor
from unified.models.template_mending import mend
from unified.models.template_probe import probe

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
MENDED = {  # what is found in them; all others are kept as they are
    "deepseek_r1_distill": "context",
    "deepseekv3": "context",
    "glm4moe": "context end",
    "gptoss": "context date history",
    "idefics3": "context parts",
    "llama3_2": "date",
    "llava_next": "context parts",
    "muse_glimmer": "context date",
    **dict.fromkeys(("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"), "context"),
    **dict.fromkeys(("qwen3", "qwen3_5_think", "qwen3_6"), "context history"),
    "qwen3_5_nothink": "history",
    "qwen3_8": "context",
    "smolvlm": "context parts",
}
IMAGE, CODES, VQ = {"type": "image"}, [0, 1, 2, 3, 4], make_vq()
TURNS = {
    "text": (["a cat"], ["Paris"]),
    "image in": ([IMAGE, "What?"], ["a cat"]),
    "image out": (["a cat"], [IMAGE]),
    "both": (["Like", IMAGE], [IMAGE, " and a dog"]),
    "nothing asked": ([""], [IMAGE]),
}


def tokenizer_of(template: str, **tokens: Any) -> PreTrainedTokenizerFast:
    """Single bytes, and as special tokens those of the template; thoughts are added tokens, as in Qwen3's."""
    found = set(re.findall(r"<[|｜]?[A-Za-z_▁/0-9]+[|｜]?>", template))
    thoughts = sorted(token for token in found if "think" in token)
    special = sorted(token for token in found if re.match(r"<[|｜].*[|｜]>|<(start|end)_of_|<turn\|>|<\|turn>", token))
    words = ["<pad>", "<s>", "</s>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytes_alone = Tokenizer(models.BPE({word: i for i, word in enumerate(dict.fromkeys(words))}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens([AddedToken(word, normalized=False) for word in words[: 3 + len(special)]])
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | tokens
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, chat_template=template, **named)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in thoughts])
    return tokenizer


@functools.cache
def trl_processor(name: str) -> UnifiedProcessor:
    return processor_of((FOLDER / f"{name}.jinja").read_text())


def processor_of(template: str, **tokens: Any) -> UnifiedProcessor:
    tokenizer = tokenizer_of(template, **tokens)
    return UnifiedProcessor.from_config(tokenizer, make_config(tokenizer, VQ.config))


def turn(role: str, parts: list) -> dict[str, Any]:
    return {"role": role, "content": [p if isinstance(p, dict) else {"type": "text", "text": p} for p in parts]}


def chats_of(processor: UnifiedProcessor) -> Iterator[list[dict]]:
    """{one turn, several turns} x {without, with a system prompt} x kinds of turns."""
    starts = [[], [turn("system", ["Be brief."])]] if processor.system_prompt else [[]]
    for start in starts:
        for asked, answer in TURNS.values():
            yield [*start, *[turn("user", asked), turn("assistant", answer)] * 3]  # its first turn is one of one turn


def encoded(processor: UnifiedProcessor, chat: list[dict]) -> EncodedChat:
    return processor.encode_chat(chat, [CODES] * count(chat))


def count(chat: list[dict]) -> int:
    return sum(part["type"] == "image" for message in chat for part in message["content"])


def check_contract(processor: UnifiedProcessor, chat: list[dict]) -> None:
    """A chat begins with its prompt, the answer follows at once, its end is trained, longer chats go on from it."""
    tokenizer, whole = processor.tokenizer, encoded(processor, chat)
    for place in (number for number, message in enumerate(chat) if message["role"] == "assistant"):
        prompt = processor.prompt_ids(chat[:place], [CODES] * count(chat[:place]))
        part = encoded(processor, chat[: place + 1])
        trained = [at for at, label in enumerate(part.labels) if label != IGNORE_INDEX]
        assert part.input_ids[: len(prompt)] == prompt
        assert part.input_ids[: trained[-1] + 1] == whole.input_ids[: trained[-1] + 1]
        assert part.labels[: trained[-1] + 1] == whole.labels[: trained[-1] + 1]
        assert len(prompt) in trained and part.labels[trained[-1]] == processor.end_token_id
        answer = processor.decode_parts([i for i in part.labels[len(prompt) :] if i != IGNORE_INDEX])
        said = [{**p, "text": p["text"].strip()} if p["type"] == "text" else p["codes"].tolist() for p in answer]
        expected = [
            CODES if p["type"] == "image" else {**p, "text": p["text"].strip()} for p in chat[place]["content"]
        ]
        assert said == expected, tokenizer.decode(part.input_ids)
        if chat[place]["content"][0] == IMAGE:
            assert part.input_ids[len(prompt)] == processor.boi_token_id


@pytest.mark.parametrize("name", NAMES)
def test_training_and_use_have_one_context(name: str) -> None:
    processor = trl_processor(name)
    for chat in chats_of(processor):
        check_contract(processor, chat)
    template = (FOLDER / f"{name}.jinja").read_text()
    found = probe(processor.tokenizer, template)
    assert " ".join(sorted({finding.kind for finding in found})) == MENDED.get(name, "")
    assert (processor.tokenizer.chat_template == template) == (name not in MENDED)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_checkpoints_own_tokenizer(name: str) -> None:
    """By plain `tokenizer.apply_chat_template`, and those of the LLM's own where its template is kept."""
    processor = trl_processor(name)
    system = [{"role": "system", "content": processor.system_prompt}] if processor.system_prompt else []
    chat = [*system, {"role": "user", "content": "Hi. A cat?"}, {"role": "assistant", "content": "A dog."}]
    chat += [{"role": "user", "content": "And\nyou?"}]
    given = {"return_dict": False, "strftime_now": lambda _: "never"}
    for end, asks in ((3, True), (2, False), (1, True)):
        part = chat[: len(system) + end]
        ours = processor.prompt_ids(part) if asks else processor.encode_chat(part).input_ids
        assert ours == processor.tokenizer.apply_chat_template(part, add_generation_prompt=asks, **given)


THINKS = (  # as a successor of Qwen3 that nobody knows might: a thought before the last answer only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<thought>none</thought>{% endif %}"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<thought>{% endif %}{% endif %}"
)
KINDS = {
    "home-made thoughts": THINKS,
    "system text in the last question": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.index0 >= messages | length - 2 and "
        "messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}{{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    "Llama-2": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
        "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ raise_exception('no ' + m.role) }}{% endif %}{% endfor %}"
    ),
    "no end at all": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "an end in two tokens": CHAT_TEMPLATE.replace("<|im_end|>\n", "<|im_end|><|im_start|>\n"),
    "a line break before the end": CHAT_TEMPLATE.replace("<|im_end|>", "\n<|im_end|>"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_no_table_of_names_knows(kind: str) -> None:
    processor = processor_of(KINDS[kind])
    for chat in chats_of(processor):
        check_contract(processor, chat)


def test_a_reasoning_model_thinks_where_it_is_asked_to() -> None:
    processor = processor_of((FOLDER / "qwen3_5_think.jinja").read_text())
    chat = [turn("user", ["a cat"])]
    closed, open_ended = (
        processor.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=thinks)
        for thinks in (False, True)
    )
    assert closed.endswith("<think>\n\n</think>\n\n") and open_ended.endswith("<think>\n")
    plain = processor.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert open_ended.endswith(plain)


def test_tools_are_still_rendered_by_the_original() -> None:
    template = (FOLDER / "qwen3.jinja").read_text()
    processor, tokenizer = processor_of(template), tokenizer_of(template)
    tool = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}
    asked = ([{"role": "user", "content": "a"}],)
    for given in ({"tools": [tool]}, {"enable_thinking": True}):
        ours = processor.tokenizer.apply_chat_template(*asked, tokenize=False, **given)
        assert ours == tokenizer.apply_chat_template(*asked, tokenize=False, **given)


@pytest.mark.parametrize(
    ("template", "tokens", "why"),
    [
        (None, {}, "no chat template"),
        ("{% for m in messages %}{{ m.nothing.here }}{% endfor %}", {}, "refuses the roles user, assistant"),
        ("{{ messages[-1].content }}</s>", {}, "writes 1 of 2 contents"),
        ("{% for m in messages | reverse %}{{ m.content }}</s>{% endfor %}", {}, "order of contents"),
        (KINDS["no end at all"], {"eos_token": None}, "eos_token"),
    ],
)
def test_what_cannot_be_mended_is_refused_by_name(template: str | None, tokens: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        processor_of(template or "", **tokens)
    assert "\n" not in str(error.value)


def test_a_system_message_that_a_template_drops_is_not_used() -> None:
    silent = CHAT_TEMPLATE.replace("message in messages", "message in messages if message.role != 'system'")
    processor = processor_of(silent)
    assert processor.system_prompt is None
    check_contract(processor, [turn("user", ["a"]), turn("assistant", ["b"])])
    with pytest.raises(ValueError, match="writes 1 of 2 contents for the roles system, user"):
        processor.prompt_ids([turn("system", ["Be brief."]), turn("user", ["a"])])


def test_one_of_several_templates_is_used() -> None:
    tokenizer = tokenizer_of(CHAT_TEMPLATE)
    tokenizer.chat_template = {"tool_use": "x", "default": CHAT_TEMPLATE}
    assert default_template(tokenizer) == CHAT_TEMPLATE == mend(tokenizer)[0]
    assert len(render_pieces(tokenizer, CHAT_TEMPLATE, [turn("user", ["a", IMAGE, "b"])], True)) == 4
