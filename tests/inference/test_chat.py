"""A conversation: an answer's images come as codes and as PIL images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from toy_models import make_lively
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unified import Chat, ImageSampling, UnifiedProcessor, VQModel
from unified.checkpoints.extension import join
from unified.inference.text_to_image import codes_to_images

QUESTION = "a photo of a cat"


@pytest.fixture
def talk(tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel, tiny_llm_dir: str) -> Callable[..., Chat]:
    """Chats with a toy that answers `QUESTION` with an image."""
    torch.manual_seed(0)
    torch.nn.init.normal_(tiny_vq.quantizer.embedding.weight)
    model = join(LlamaForCausalLM.from_pretrained(tiny_llm_dir), tiny_vq, tiny_tokenizer)
    make_lively(model)
    processor = UnifiedProcessor.from_config(tiny_tokenizer, model.config)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    with torch.no_grad():
        state = model.model(**inputs).last_hidden_state[0, -1]
        model.lm_head.weight[processor.boi_token_id] = 10 * state
    return lambda seed: Chat(model, processor, ImageSampling(temperature=2.0), seed, max_new_tokens=4)


def test_an_answers_images_are_its_codes_decoded(talk: Callable[..., Chat]) -> None:
    images = []
    for seed in (0, 1):
        chat = talk(seed)
        (part,) = [part for part in chat.ask(QUESTION) if part["type"] == "image"]
        assert torch.equal(chat.codes[0], part["codes"]) and part["image"].mode == "RGB"
        (decoded,) = codes_to_images(chat.model, part["codes"][None])
        assert np.array_equal(np.asarray(part["image"]), np.asarray(decoded))
        images.append(np.asarray(part["image"]))
    assert (images[0] != images[1]).any()


def test_a_conversation_goes_on_after_its_images(talk: Callable[..., Chat]) -> None:
    chat = talk(0)
    chat.ask(QUESTION)
    assert chat.messages[1]["content"][0] == {"type": "image"}  # codes and pixels are not repeated in the messages
    chat.ask("what is it?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
WRITES_TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"


def test_tools_are_shown_to_the_model_where_its_template_writes_them(
    talk: Callable[..., Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talk(0)
    chat.tools = TOOLS
    with pytest.raises(ValueError, match="the chat template does not write `tools`"):
        chat.ask("what is it?")
    assert not chat.messages
    chat.processor.chat_template = WRITES_TOOLS + str(chat.processor.chat_template)
    asked = []
    generate = chat.model.generate
    monkeypatch.setattr(chat.model, "generate", lambda **inputs: asked.append(inputs) or generate(**inputs))
    chat.ask("what is it?")
    chat.ask("5", role="tool")
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    for inputs in asked:
        assert '"add"' in chat.processor.tokenizer.decode(inputs["input_ids"][0])
