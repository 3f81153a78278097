"""`/v1/responses` through the openai client, as it is."""

import base64
import io
from typing import Any

import openai
import pytest
from PIL import Image
from toy_server import Server

TOOL: Any = {"type": "image_generation", "partial_images": 2}
QUESTION = "a photo of a red cat"


def test_words(server: Server) -> None:
    answer = server.client().responses.create(model="any", input="What is it?", max_output_tokens=6)
    words = server.client().chat.completions.create(
        model="any", messages=[{"role": "user", "content": "What is it?"}], max_tokens=6, modalities=["text"]
    )
    assert answer.output_text == words.choices[0].message.content
    assert answer.status in ("completed", "incomplete") and answer.usage.input_tokens == words.usage.prompt_tokens


def test_pictures_come_with_the_tool(artist: Server) -> None:
    client = artist.client()
    answer = client.responses.create(model="any", input=QUESTION, tools=[TOOL], extra_body={"seed": 4})
    (call,) = [item for item in answer.output if item.type == "image_generation_call"]
    assert Image.open(io.BytesIO(base64.b64decode(call.result))).size == (16, 16)
    (alone,) = client.images.generate(prompt=QUESTION, extra_body={"seed": 4}).data
    assert alone.b64_json == call.result
    without = client.responses.create(model="any", input=QUESTION)
    assert {item.type for item in without.output} == {"message"}


def test_a_stream_ends_with_the_whole(artist: Server) -> None:
    events = list(artist.client().responses.create(model="any", input=QUESTION, tools=[TOOL], stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert "response.image_generation_call.partial_image" in kinds and "response.output_item.done" in kinds
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


def test_what_has_no_effect_is_named_and_what_would_break_an_answer_refused(server: Server) -> None:
    client = server.client()
    tool: Any = {"type": "function", "name": "f", "parameters": {}}
    answer = client.responses.create(model="any", input="a", max_output_tokens=1, tools=[tool], reasoning={})
    assert answer.unified["ignored"] == ["reasoning", "tools"]
    with pytest.raises(openai.BadRequestError, match="text.format: answers are plain text here"):
        client.responses.create(model="any", input="a", text={"format": {"type": "json_object"}})
    with pytest.raises(openai.UnprocessableEntityError, match="partial_images is a number from 0 to 64"):
        client.responses.create(model="any", input="a", tools=[{**TOOL, "partial_images": True}])
    with pytest.raises(openai.UnprocessableEntityError, match="at most 2000000"):
        client.responses.create(model="any", input="a" * 2_000_001)


def test_a_conversation_is_sent_whole(server: Server) -> None:
    parts: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "A cat."}]},
        {"role": "user", "content": "Are you sure?"},
    ]
    client = server.client()
    assert client.responses.create(model="any", input=parts, instructions="Be brief.", max_output_tokens=3).output
    with pytest.raises(openai.BadRequestError, match="previous_response_id: responses are not stored here"):
        client.responses.create(model="any", input="a", previous_response_id="resp_1")
    with pytest.raises(openai.UnprocessableEntityError):
        client.responses.create(model="any", input=[])
