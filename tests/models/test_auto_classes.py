"""HF's pipelines and Auto classes in programs that have never imported this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.models.remote_code import AUTO_MAP, MODULE

STRANGER = """
import sys
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
assert "unified" not in sys.modules
folder = sys.argv[1]
try:
    AutoProcessor.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
print(type(processor).__name__, model.output_modalities)
print(type(AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)).__name__)
"""


def run_as_a_stranger(program: str, checkpoint: Path, hub: Path) -> list[str]:
    """Lines that `program` prints, in a process of its own with the checkpoint's folder as its argument."""
    environment = os.environ | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_stranger_s_auto_classes(toy_checkpoint: Path, tmp_path: Path) -> None:
    assert run_as_a_stranger(STRANGER, toy_checkpoint, tmp_path) == [
        "UnifiedProcessor ('text', 'image')",
        "UnifiedForCausalLM",
    ]


PIPELINES = """
import logging, sys
from PIL import Image
from transformers import pipeline
assert "unified" not in sys.modules
folder, errors = sys.argv[1], []
handler = logging.Handler(logging.ERROR)
handler.emit = errors.append
logging.getLogger("transformers").addHandler(handler)
chat = [{"role": "user", "content": [{"type": "text", "text": "a photo of a cat"}]}]
draw = pipeline("any-to-any", model=folder, trust_remote_code=True)
(drawn,) = draw(text=chat, generation_mode="image", generate_kwargs={"seed": 0})
print(sorted(drawn), drawn["generated_image"].size)
unconditional = draw.processor.tokenizer("a", return_tensors="pt")["input_ids"]
guided = {"guidance_scale": 3.0, "negative_prompt_ids": unconditional}
(again,) = draw(text=chat, generation_mode="image", generate_kwargs={"seed": 0, **guided})
print(again["generated_image"].size)
(said,) = draw(text=chat, generation_mode="text", max_new_tokens=4)
print([message["role"] for message in said["generated_text"]])
look = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
asked = [{"type": "image", "image": Image.new("RGB", (16, 16))}, {"type": "text", "text": "What is this?"}]
(seen,) = look(text=[{"role": "user", "content": asked}], max_new_tokens=4)
print([message["role"] for message in seen["generated_text"]])
assert not errors, errors[0].getMessage()
"""


def test_a_stranger_s_pipelines(toy_checkpoint: Path, tmp_path: Path) -> None:
    assert run_as_a_stranger(PIPELINES, toy_checkpoint, tmp_path) == [
        "['generated_image', 'input_text'] (16, 16)",
        "(16, 16)",
        "['user', 'assistant']",
        "['user', 'assistant']",
    ]


def test_every_save_of_a_processor_is_found(toy_checkpoint: Path, tmp_path: Path) -> None:
    processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert stored["auto_map"] == {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    assert (tmp_path / f"{MODULE}.py").is_file()


def test_a_model_by_remote_code_is_saved_without_this_package_s_source(toy_checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(toy_checkpoint, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(toy_checkpoint, trust_remote_code=True)
    assert type(model) is UnifiedForCausalLM and type(processor) is UnifiedProcessor
    UnifiedForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    UnifiedProcessor.register_for_auto_class()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.py")] == [f"{MODULE}.py"]
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"] == AUTO_MAP


def test_pipelines_know_the_class() -> None:
    for task in ("any-to-any", "image-text-to-text", "text-generation"):
        targeted = PIPELINE_REGISTRY.check_task(task)[1]
        classes = [one._model_mapping._extra_content.values() for one in targeted["pt"]]
        assert any(UnifiedForCausalLM in found for found in classes), task


# --- what pipelines ask of the processor


@pytest.fixture
def generated(toy_checkpoint: Path) -> tuple[UnifiedProcessor, UnifiedForCausalLM, torch.Tensor]:
    """Two rows of ids: words, an image and words; an image and padding."""
    processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
    model = UnifiedForCausalLM.from_pretrained(toy_checkpoint).eval()
    config = model.config
    image = [
        config.boi_token_id,
        *range(config.image_token_offset, config.image_token_offset + 5),
        config.eoi_token_id,
    ]
    words, pad = processor.tokenizer(" a cat")["input_ids"], processor.pad_token_id
    rows = [[*words, *image, *words], [*image, *[pad] * (2 * len(words))]]
    return processor, model, torch.tensor(rows)


def test_text_of_generated_ids_drops_no_picture(
    generated: tuple[UnifiedProcessor, UnifiedForCausalLM, torch.Tensor],
) -> None:
    processor, _, ids = generated
    marks = "<|image_start|><|image_pad|><|image_end|>"
    expected = [f" a cat{marks} a cat", marks]
    assert processor.batch_decode(ids, skip_special_tokens=True) == expected
    assert processor.batch_decode(ids.tolist(), skip_special_tokens=True) == expected
    for mode in (None, "text"):
        assert processor.post_process_multimodal_output(ids, generation_mode=mode) == expected
    assert processor.post_process_image_text_to_text(ids) == expected
    assert processor.post_process_image_text_to_text(ids[0]) == expected[0]


def test_images_and_parts_of_generated_ids(
    generated: tuple[UnifiedProcessor, UnifiedForCausalLM, torch.Tensor],
) -> None:
    processor, model, ids = generated
    images = processor.post_process_multimodal_output(model.decode_image_tokens(ids), generation_mode="image")
    assert [type(image) for image in images] == [Image.Image] * 2 and images[0].size == (16, 16)
    plain = processor.post_process_multimodal_output(ids, generation_mode="interleaved")
    assert [[part["type"] for part in row] for row in plain] == [["text", "image", "text"], ["image"]]
    rows = processor.post_process_multimodal_output(
        ids, generation_mode="interleaved", decode_image_tokens=model.decode_image_tokens
    )
    assert rows[0][1]["image"].tobytes() == images[0].tobytes() and torch.equal(rows[1][0]["codes"], torch.arange(5))
    with pytest.raises(ValueError, match="generation_mode 'audio'; choose from"):
        processor.post_process_multimodal_output(ids, generation_mode="audio")
