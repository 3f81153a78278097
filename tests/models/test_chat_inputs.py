"""The processor's doors as transformers' documentation shows them: each works, or a line says what to give."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from unified import UnifiedProcessor
from unified.models.chat_templates import IMAGE_TEXT
from unified.models.image_processing import UnifiedImageProcessor, open_picture

TEXT = [{"role": "user", "content": "Hello"}]
ANSWERED = [*TEXT, {"role": "assistant", "content": "Hi, I"}]
ALL = {"tokenize": True, "return_dict": True}


@pytest.fixture(scope="module")
def processor(toy_checkpoint: Path) -> UnifiedProcessor:
    return UnifiedProcessor.from_pretrained(toy_checkpoint)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise ä.png"
    Image.effect_noise((20, 16), 80).convert("RGB").save(path)
    return path


def part(**source: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", **source}, {"type": "text", "text": "What is this?"}]}]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def sources(path: Path) -> dict[str, Any]:
    """A picture as people give it inside a message."""
    coded = base64.b64encode(path.read_bytes()).decode()
    url = f"data:image/png;base64,{coded}"
    array = np.asarray(opened(path))
    return {
        "PIL": part(image=opened(path)),
        "array": part(image=array),
        "channels first": part(image=np.ascontiguousarray(array.transpose(2, 0, 1))),
        "tensor": part(image=torch.from_numpy(array.copy()).permute(2, 0, 1)),
        "path": part(path=str(path)),
        "Path": part(path=path),
        "image is a path": part(image=str(path)),
        "url is a path": part(url=str(path)),
        "file url": part(url=path.as_uri()),
        "data url": part(url=url),
        "base64": part(base64=coded),
        "base64 in lines": part(base64=base64.encodebytes(path.read_bytes()).decode()),
        "data url in lines": part(url=f"data:image/png;base64,{base64.encodebytes(path.read_bytes()).decode()}"),
        "bytes": part(image=path.read_bytes()),
        "OpenAI": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, *part()[0]["content"][1:]]}
        ],
        "OpenAI, a string": [
            {"role": "user", "content": [{"type": "image_url", "image_url": url}, *part()[0]["content"][1:]]}
        ],
    }


def test_base64_that_would_be_no_name_of_a_file() -> None:
    """Its first part of a path is longer than file systems take."""
    file = io.BytesIO()
    Image.new("RGB", (24, 24)).save(file, "BMP")
    coded = base64.b64encode(file.getvalue()).decode()
    assert max(map(len, coded.split("/"))) > 255 and len(coded) < 4096
    assert open_picture(coded).size == (24, 24)


def test_pictures_inside_messages(processor: UnifiedProcessor, picture: Path) -> None:
    expected = processor.apply_chat_template(part(), images=[opened(picture)])
    for name, chat in sources(picture).items():
        before = json.dumps(chat, default=str)
        found = processor.apply_chat_template(chat, add_generation_prompt=True, **ALL)
        assert found.keys() == expected.keys() == {"input_ids", "attention_mask", "pixel_values"}, name
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        assert json.dumps(chat, default=str) == before, "the caller's messages are left as they are"
        assert processor.apply_chat_template(chat).count(IMAGE_TEXT) == 1
    for images in (opened(picture), str(picture), [picture], [[opened(picture)]], picture.read_bytes()):
        found = processor.apply_chat_template(part(), images=images)
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        found = processor.apply_chat_template(part(), **ALL, processor_kwargs={"images": images})
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_several_conversations_with_pictures(processor: UnifiedProcessor, picture: Path) -> None:
    chats = [part(path=picture), TEXT, [*part(image=opened(picture)), *ANSWERED[1:], *part(url=picture.as_uri())]]
    batch = processor.apply_chat_template(chats, add_generation_prompt=True, padding=True, **ALL)
    assert batch["pixel_values"].shape == (3, 3, 16, 16) and batch["input_ids"].shape[0] == 3
    assert int((batch["input_ids"] == processor.image_pad_token_id).sum()) == 3 * 4


REFUSED: dict[str, tuple[Any, str]] = {
    "http": (lambda p: p.apply_chat_template(part(url="https://x.org/a.png"), **ALL), "is on the web; download it"),
    "no file": (lambda p: p.apply_chat_template(part(path="/no.png"), **ALL), "is not a file; give a PIL image"),
    "no base64": (lambda p: p.apply_chat_template(part(base64="?"), **ALL), "'data:;base64,?' is no base64"),
    "no picture": (lambda p: p.apply_chat_template(part(base64="aGVsbG8="), **ALL), "cannot be read"),
    "a number": (lambda p: p.apply_chat_template(part(image=5), **ALL), "is 5; give a PIL image"),
    "floats": (lambda p: p.apply_chat_template(part(image=np.zeros((4, 4, 3))), **ALL), "as uint8"),
    "two": (lambda p: p.apply_chat_template(part(path="a", url="b"), **ALL), "holds 2 pictures; keep one"),
    "with images": (lambda p: p.apply_chat_template(part(path="a"), images=["b"]), "keep one of the two"),
    "only some": (lambda p: p.apply_chat_template([*part(path="a"), *part()], **ALL), "1 of 2 image parts"),
    "of the assistant": (
        lambda p: p.apply_chat_template(
            [*TEXT, {"role": "assistant", "content": part(path="a")[0]["content"]}], **ALL
        ),
        "written in codes",
    ),
    "none": (lambda p: p.apply_chat_template(part(), **ALL), "pass one list per part as codes=, or input images"),
    "image_url alone": (
        lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "image_url"}]}]),
        "has no picture",
    ),
    "video": (lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}]), "write "),
    "videos": (lambda p: p(text="x", videos=[1]), "videos is not supported; give frames as images"),
    "audio": (lambda p: p(text="x", audio=[1]), "audio is not supported"),
    "documents": (lambda p: p.apply_chat_template(TEXT, documents=[{"a": "b"}]), "write them into a message"),
    "tf": (lambda p: p.apply_chat_template(TEXT, tokenize=True, return_tensors="tf"), "use 'pt', 'np' or None"),
    "padding": (lambda p: p.apply_chat_template(TEXT, tokenize=True, padding="wide"), "padding 'wide'; use True"),
    "side": (lambda p: p.apply_chat_template(TEXT, tokenize=True, padding_side="top"), "use 'left' or 'right'"),
    "max_length": (lambda p: p.apply_chat_template(TEXT, tokenize=True, padding="max_length"), "needs max_length"),
    "processor_kwargs": (
        lambda p: p.apply_chat_template(TEXT, processor_kwargs={"fps": 1}),
        "fps: nothing honours",
    ),
    "both ends": (
        lambda p: p.apply_chat_template(ANSWERED, continue_final_message=True, add_generation_prompt=True),
        "keep one of them",
    ),
    "continue a question": (lambda p: p.apply_chat_template(TEXT, continue_final_message=True), "of the assistant"),
    "continue a prefix": (lambda p: p.apply_chat_template(ANSWERED, continue_final_message="Hi"), "use True or False"),
    "cut images": (
        lambda p: p.apply_chat_template(part(), codes=[[0] * 5], truncation=True, max_length=4),
        "with images; raise it",
    ),
    "empty": (lambda p: p.apply_chat_template([]), "give a list of messages"),
    "a string": (lambda p: p.apply_chat_template("Hello"), "give a list of messages"),
    "a list of strings": (lambda p: p.apply_chat_template(["Hello"]), "write {"),
    "no role": (lambda p: p.apply_chat_template([{"content": "x"}]), "lacks `role`"),
    "content 5": (lambda p: p.apply_chat_template([{"role": "user", "content": 5}]), "give a string or a list"),
    "part without text": (lambda p: p.apply_chat_template([{"role": "user", "content": [{"type": "text"}]}]), "write"),
    "template drops all": (lambda p: p.apply_chat_template(TEXT, chat_template="x"), "writes 0 of 2 contents"),
    "call without places": (lambda p: p(text="What?", images=[np.zeros((4, 4, 3), np.uint8)]), "for 0 places"),
    "call of nothing": (lambda p: p(), "pass at least one"),
    "resize": (lambda p: p.image_processor([np.zeros((4, 4, 3), np.uint8)], do_resize=False), "leave it out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_give(name: str, processor: UnifiedProcessor) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ValueError) as error:
        call(processor)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_its_defaults_are_those_of_transformers(processor: UnifiedProcessor) -> None:
    tokenizer = processor.tokenizer
    explicit = [{"role": "system", "content": processor.system_prompt}, *TEXT]
    assert processor.apply_chat_template(TEXT) == tokenizer.apply_chat_template(explicit, tokenize=False)
    assert processor.apply_chat_template([TEXT, TEXT]) == [processor.apply_chat_template(TEXT)] * 2
    ids = processor.apply_chat_template(TEXT, tokenize=True)
    assert ids.tolist() == [tokenizer.apply_chat_template(explicit, return_dict=False)]
    assert processor.apply_chat_template(TEXT, tokenize=True, return_tensors=None) == ids[0].tolist()
    assert isinstance(processor.apply_chat_template(TEXT, **ALL, return_tensors="np")["input_ids"], np.ndarray)
    lists = processor.apply_chat_template([TEXT, ANSWERED], **ALL, return_tensors=None)
    assert [type(row) for row in lists["input_ids"]] == [list, list] and len({*map(len, lists["input_ids"])}) == 2
    given = processor.apply_chat_template(TEXT, add_generation_prompt=True)
    assert given == tokenizer.apply_chat_template(explicit, tokenize=False, add_generation_prompt=True)
    assert processor.apply_chat_template(TEXT, codes=[])["input_ids"].tolist() == [processor.prompt_ids(TEXT)]


def test_rows_are_padded_and_cut_as_told(processor: UnifiedProcessor) -> None:
    chats = [TEXT, ANSWERED]
    alone = [processor.apply_chat_template(chat, tokenize=True)[0].tolist() for chat in chats]
    pad, more = processor.pad_token_id, len(alone[1]) - len(alone[0])
    plain = processor.apply_chat_template(chats, **ALL)
    assert plain["input_ids"] == alone and plain["attention_mask"] == [[1] * len(row) for row in alone]
    tensors = {"return_tensors": "pt"}
    for given in (tensors, {"padding": True}, {"padding": "longest"}, {"processor_kwargs": {"padding": True}}):
        found = processor.apply_chat_template(chats, **ALL, **given)
        assert found["input_ids"].tolist() == [[pad] * more + alone[0], alone[1]]
        assert found["attention_mask"].tolist()[0] == [0] * more + [1] * len(alone[0])
    right = processor.apply_chat_template(chats, **ALL, padding=True, padding_side="right")
    assert right["input_ids"].tolist()[0] == alone[0] + [pad] * more
    wide = processor.apply_chat_template(TEXT, **ALL, padding="max_length", max_length=80)
    assert wide["input_ids"].shape == (1, 80) and int(wide["attention_mask"].sum()) == len(alone[0])
    eights = processor.apply_chat_template(TEXT, **ALL, padding=True, pad_to_multiple_of=8)
    assert eights["input_ids"].shape[1] % 8 == 0
    cut = processor.apply_chat_template(TEXT, tokenize=True, truncation=True, max_length=8)
    assert cut.tolist() == [alone[0][:8]]
    with pytest.raises(ValueError, match="make no tensor; set padding to True"):
        processor.apply_chat_template(chats, **ALL, padding=False)


def test_a_final_message_goes_on(processor: UnifiedProcessor) -> None:
    """Its ids are those before its continuation, and the words after it are where training has them."""
    text = processor.apply_chat_template(ANSWERED, continue_final_message=True)
    assert text.endswith("assistant\nHi, I")
    ids = processor.apply_chat_template(ANSWERED, continue_final_message=True, tokenize=True)[0].tolist()
    assert processor.tokenizer.decode(ids) == text
    whole = processor.encode_chat(ANSWERED).input_ids
    assert whole[: len(ids)] == ids and len(whole) > len(ids)
    drawn = [*TEXT, {"role": "assistant", "content": [{"type": "image"}]}]
    ids = processor.apply_chat_template(drawn, codes=[range(5)], continue_final_message=True)["input_ids"][0]
    assert ids[-1] == processor.eoi_token_id and ids[-7] == processor.boi_token_id


def test_what_the_assistant_says_is_masked(processor: UnifiedProcessor) -> None:
    chat = [
        *ANSWERED,
        *TEXT,
        {"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "There."}]},
    ]
    found = processor.apply_chat_template(
        [chat, TEXT], codes=[range(5)], return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    mask, ids = found["assistant_masks"][0].bool(), found["input_ids"][0]
    labels = torch.tensor(processor.encode_chat(chat, [range(5)]).labels)
    assert torch.equal(labels != -100, mask & (ids != processor.eoi_token_id))
    assert not found["assistant_masks"][1].any()
    assert "assistant_masks" not in processor.apply_chat_template([chat, TEXT], codes=[range(5)])


def test_variables_and_templates_of_the_callers(processor: UnifiedProcessor) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{{ tone }}"
    text = processor.apply_chat_template(TEXT, chat_template=template, tone="calm")
    assert text == f"[system]{processor.system_prompt}[user]Hellocalm"
    ids = processor.apply_chat_template(TEXT, chat_template=template, tone="calm", tokenize=True)[0]
    assert processor.tokenizer.decode(ids) == text
    assert processor.apply_chat_template(TEXT) != text, "one call's template is not the next one's"


def test_a_call_with_rendered_text(processor: UnifiedProcessor, picture: Path) -> None:
    """The two steps of transformers' older examples give what one step gives."""
    text = processor.apply_chat_template(part(), add_generation_prompt=True)
    found = processor(text=[text], images=[picture], return_tensors="pt", padding=True)
    expected = processor.apply_chat_template(part(path=picture), add_generation_prompt=True, **ALL)
    assert {*found} <= {*processor.model_input_names}
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    plain = processor(text=IMAGE_TEXT)["input_ids"]
    assert processor.image_pad_token_id not in plain, "text alone is ordinary text"


def test_options_of_a_call_count_or_are_refused(processor: UnifiedProcessor, picture: Path) -> None:
    """By groups, as transformers' processors take them, and beside each other."""
    text = processor.apply_chat_template(part())
    assert processor.image_token in text and processor.image_token_id == processor.image_pad_token_id
    once = processor(text=text, images=picture, return_tensors="pt")
    grouped = processor(
        text=text, images=picture, common_kwargs={"return_tensors": "pt"}, text_kwargs={"padding": True}
    )
    assert torch.equal(grouped["input_ids"], once["input_ids"])
    pixels = processor.image_processor(np.zeros((2, 3, 20, 30), np.uint8))["pixel_values"]
    assert len(pixels) == 2 and torch.equal(pixels, -torch.ones_like(pixels))
    both = processor(text=[text, "no picture"], images=[[picture], []], padding=True, return_tensors="pt")
    assert len(both["pixel_values"]) == 1 and len(both["input_ids"]) == 2
    length = once["input_ids"].shape[1]
    assert processor(text=text, images=picture, truncation=True, max_length=length)["input_ids"]
    for said, given in {
        "do_resize: pictures are resized": {"images_kwargs": {"do_resize": False}},
        "return_mm_token_type_ids: nothing honours it": {"return_mm_token_type_ids": True},
        r"videos_kwargs \['fps'\]: nothing honours it": {"videos_kwargs": {"fps": 3}},
        rf"max_length {length - 1} would cut {length} ids": {"truncation": True, "max_length": length - 1},
        r"\[0, 1\] images for \[1, 0\] places": {"text": [text, "b"], "images": [[], [picture]]},
        "videos is not supported": {"videos": np.zeros((2, 3, 4, 4), np.uint8)},
        "text is <PIL": {"text": Image.new("RGB", (2, 2))},
        "no picture is given": {"text": None, "images": []},
        r"image 1 is an array \(0, 0, 3\)": {"images": np.zeros((0, 0, 3), np.uint8)},
    }.items():
        call = processor if given.get("text", text) is not None else processor.image_processor
        settings = {"text": text, "images": picture} | given
        with pytest.raises(ValueError, match=said):
            call(**{key: value for key, value in settings.items() if value is not None})


def test_the_image_processor_is_saved_and_found(processor: UnifiedProcessor, picture: Path, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    for found in (
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path).image_processor,
        UnifiedImageProcessor.from_pretrained(tmp_path),
    ):
        assert isinstance(found, UnifiedImageProcessor) and found.size == {"height": 16, "width": 16}
        pixels = found([opened(picture)], return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, processor(images=opened(picture))["pixel_values"])
        assert pixels.shape == (1, 3, 16, 16) and pixels.abs().max() <= 1
    again = UnifiedProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict() and again.chat_template == processor.chat_template
    (tmp_path / "preprocessor_config.json").unlink()  # as earlier versions left it
    assert UnifiedProcessor.from_pretrained(tmp_path).image_processor.size == {"height": 16, "width": 16}
    with pytest.raises(ValueError, match="is not square"):
        UnifiedImageProcessor({"height": 16, "width": 8})
    assert processor.model_input_names[:2] == ["input_ids", "attention_mask"]
