"""`/v1/responses` through the openai client, as it is."""

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from PIL import Image
from toy_server import Server

from unified.serving.answering import Answering
from unified.serving.pictures import data_uri
from unified.serving.service import Answers

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


async def said(answering: Answering, answers: Answers, http: object) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Words that may yet be a stop string while a picture begins, words before a second, and behind it."""
    url, image = data_uri(Image.new("RGB", (16, 16))), "image_url"
    for number, words in enumerate(("It ", "")):
        if words:
            yield 0, {"content": words}
        yield 0, {"unified": {"partial_image": {"index": number, "scale": 0, "scales": 2, "url": url}}}
        yield 0, {"content": "is"}
        yield 0, {"images": [{"type": image, image: {"url": url}, "index": number, "unified": {"seed": number}}]}
    yield 0, {"content": " one"}
    async for _ in answers.events():
        pass


def test_the_clients_stream_helper_follows_every_event(artist: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises where an item of an event has not been added, is added twice, has no end or another id in it."""
    monkeypatch.setattr(Answering, "follow", said)
    request: Any = {"model": "any", "input": QUESTION, "tools": [TOOL], "max_output_tokens": 1}
    with artist.client().responses.stream(**request) as stream:
        events = list(stream)
        response = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"] and kinds[-1] == "completed" == response.status
    words = ["output_item.added", "content_part.added", "output_text.delta"]
    words_end = ["output_text.done", "content_part.done", "output_item.done"]
    states = [f"image_generation_call.{state}" for state in ("in_progress", "generating", "partial_image")]
    begun, drawn = ["output_item.added", *states], ["image_generation_call.completed", "output_item.done"]
    first = [*words, *begun, "output_text.delta", *words_end, *drawn]
    assert kinds[2:-1] == [*first, *begun, *words, *words_end, *drawn, *words, *words_end]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    ended = {event.output_index: event.item.to_dict() for event in events if event.type.endswith("output_item.done")}
    assert [(ended[number]["id"], ended[number]["status"]) for number in sorted(ended)] == [
        (item.id, item.status) for item in response.output
    ]
    assert [item.type.split("_")[0] for item in response.output] == ["message", "image", "image", "message", "message"]
    assert response.output_text == "It isis one"
    whole = artist.client().responses.create(**request)
    assert [(item.type, item.status) for item in whole.output] == [(one.type, one.status) for one in response.output]


def test_the_tool_is_chosen_or_not(artist: Server) -> None:
    def kinds(question: str, **more: Any) -> list[str]:
        answer = artist.client().responses.create(model="any", input=question, max_output_tokens=2, **more)
        return [item.type for item in answer.output]

    forced: Any
    for forced in ({"type": "image_generation"}, "required"):
        assert kinds("What is it?", tools=[TOOL], tool_choice=forced) == ["image_generation_call"]
    assert kinds(QUESTION, tools=[TOOL], tool_choice="none") == ["message"]
    for refused in ({"type": "image_generation"}, "required", {"type": "function", "name": "f"}):
        with pytest.raises(openai.BadRequestError, match="tool_choice: this model calls no tools"):
            kinds(QUESTION, tools=[{"type": "function", "name": "f", "parameters": {}}], tool_choice=refused)


def test_an_answers_items_are_sent_back_as_they_came(artist: Server) -> None:
    """Its picture has the very codes it was drawn from, and its words stand before it as they did."""
    client = artist.client()
    asked: Any = [{"role": "user", "content": QUESTION}]
    first = client.responses.create(model="any", input=asked, tools=[TOOL], max_output_tokens=4)
    following = [*asked, *(item.to_dict() for item in first.output), {"role": "user", "content": "and a dog?"}]
    second = client.responses.create(model="any", input=following, max_output_tokens=1)
    whole = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens_details.cached_tokens >= whole - 1
    with pytest.raises(openai.BadRequestError, match="responses are not stored here"):
        client.responses.create(model="any", input="a", conversation="conv_1")


def test_settings_of_the_tool_without_effect_are_named(artist: Server) -> None:
    tool: Any = {**TOOL, "size": "1024x1024", "quality": "high"}
    answer = artist.client().responses.create(model="any", input="a", tools=[tool], max_output_tokens=1)
    assert answer.unified["ignored"] == ["tools.partial_images", "tools.quality", "tools.size"]
