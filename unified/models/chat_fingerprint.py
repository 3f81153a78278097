"""Whether a processor encodes chats as the one with which its model was made or trained.

Template, tokenizer and geometry lie in files beside the weights, where an edit would cost quality unnoticed.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence

from unified.models.configuration import UnifiedConfig
from unified.models.format_version import name_in_version_1
from unified.models.messages import Message, count_images
from unified.models.processing import UnifiedProcessor
from unified.models.tools import read_tools

QUESTION: Message = {
    "role": "user",
    "content": "The capital of France, said 12 of 3,456 people.\n\n\tWell?  def f(x): return x**2  # <|im_end|></s>",
}
ANSWER: Message = {"role": "assistant", "content": "Zwölf rote Äpfel, 三只猫, два кота, ١٢٣ 🦊!"}
SHOWN: Message = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": "draw what's left of the blue cat"}],
}
DRAWN: Message = {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, {"type": "image"}]}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
}
TOOLS = read_tools([{"type": "function", "function": {"name": "add", "description": "a + b", "parameters": {}}}])
SYSTEM: Message = {"role": "system", "content": "You draw."}
TURNS = [QUESTION, ANSWER, SHOWN, DRAWN]


def chat_fingerprint(processor: UnifiedProcessor, config: UnifiedConfig) -> str:
    """SHA-256 of the ids of a few chats, and of how their image positions count; other chats are another digest.

    The processor's `system_prompt` is left out, as every chat may bring another.
    """
    behind_system = ids_of(processor, [SYSTEM, *TURNS])
    start, chat = ([SYSTEM], behind_system) if behind_system else ([], ids_of(processor, TURNS))
    prompt = ids_of(processor, [*start, *TURNS, QUESTION], prompt=True)
    dated = "strftime_now" in str(processor.chat_template)  # where tools are used; elsewhere `extend` froze it
    called = None if dated else ids_of(processor, [*start, QUESTION, CALL], tools=True)
    positions = name_in_version_1("image_positions", config.image_positions)
    return hashlib.sha256(json.dumps([chat, prompt, called, positions]).encode()).hexdigest()


def ids_of(
    processor: UnifiedProcessor, chat: Sequence[Message], prompt: bool = False, tools: bool = False
) -> list[int] | None:
    """Ids of a chat whose images have the codes 0, 1, 2, …; None where the template refuses it."""
    length = sum(h * w for h, w in processor.patch_nums)
    codes = [place % processor.codebook_size for place in range(length)]
    encode = processor.prompt_ids if prompt else lambda *given: processor.encode_chat(*given).input_ids
    try:
        return encode(chat, [codes] * count_images(chat), TOOLS if tools else None)
    except ValueError:
        return None


def check_geometry(processor: UnifiedProcessor, config: UnifiedConfig) -> None:
    """Raise ValueError, naming the first, for values in which the processor and its model differ."""
    expected = {
        **vars(config.vocabulary),
        "patch_nums": config.patch_nums,
        "image_size": config.vq_config.image_size,
        "image_order": config.image_order,
    }
    found = vars(processor.vocabulary) | {name: getattr(processor, name) for name in [*expected][-3:]}
    for name, value in expected.items():
        if found[name] != value:
            raise ValueError(
                f"processor_config.json has {name} {found[name]}, and the model was made with {value}; copy the "
                "processor's files again, or correct that one"
            )


def check_chats(processor: UnifiedProcessor, config: UnifiedConfig, trained_with: str) -> None:
    """Raise ValueError unless the processor has the fingerprint `trained_with`, where one is known.

    The configuration has that of the processor afterwards. Raises ValueError as `check_geometry`, too.
    """
    check_geometry(processor, config)
    found = chat_fingerprint(processor, config)
    if trained_with not in ("", found):
        raise ValueError(
            "chats are encoded otherwise than when the model was made or trained: chat_template.jinja, the tokenizer, "
            "their settings or image_positions were changed; copy these files again, or train with what they are now"
        )
    config.chat_fingerprint = found


def adopt_chats(processor: UnifiedProcessor, config: UnifiedConfig, known: str, name: str) -> None:
    """Note in `config` how chats are encoded in the training that begins.

    Says so where the fingerprint of the model `name` is `known` and another. Raises ValueError as `check_geometry`.
    """
    check_geometry(processor, config)
    found = chat_fingerprint(processor, config)
    if known not in ("", found) and os.environ.get("RANK", "0") == "0":
        sys.stderr.write(
            f"{name}: chats are encoded otherwise than when it was made or trained (chat template or tokenizer were "
            "changed); this run trains with what they are now\n"
        )
    config.chat_fingerprint = found
