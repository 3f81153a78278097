"""eval/geneval.py and eval/detector_ceiling.py with a detector that knows the scenes: folders, stops, rules."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script
from endings import check_ending
from PIL import Image

from unified import VQModel
from unified.evaluation.coco_detector import CLASS_NAMES, CocoDetector
from unified.evaluation.detections import DetectionArguments, DetectionLog, load_detector, scenes_folder
from unified.evaluation.detector import DetectorConfig, SceneDetector
from unified.evaluation.geneval_files import check_image, read_folder, read_prompts
from unified.files.images import OPENER_VERSION
from unified.scenes.detector_ceilings import true_detections
from unified.scenes.rendering import CLASSES, COLOURS, TAGS, draw_scene, sample_scene

SCRIPT, CEILING = "eval/geneval.py", "eval/detector_ceiling.py"
PER_PROMPT = 2


class Oracle:
    """Knows every drawn scene by its pixels, and sees nothing in other pictures; remembers what it was asked."""

    name = "oracle"

    def __init__(self):
        self.known, self.batches = {}, []

    def draw(self, scene):
        image = draw_scene(scene)
        self.known[image.tobytes()] = true_detections(scene)
        return image

    def detect(self, images):
        self.batches.append(len(images))
        return [self.known.get(image.tobytes(), {}) for image in images]


@pytest.fixture
def oracle(monkeypatch):
    detector = Oracle()
    monkeypatch.setattr(DetectionArguments, "load", lambda self: detector)
    monkeypatch.setattr(DetectionArguments, "identity", lambda self: {"detector": self.detector, "version": [1]})
    monkeypatch.setattr(DetectionArguments, "class_names", lambda self: list(CLASSES))
    return detector


@pytest.fixture
def folder(oracle, tmp_path):
    """Two prompts a task; the second image of the second one is blank."""
    rng, root = np.random.default_rng(0), tmp_path / "images"
    for index, tag in enumerate(tag for tag in TAGS for _ in range(2)):
        scene, samples = sample_scene(tag, rng), root / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(scene.metadata))
        oracle.draw(scene).save(samples / "0000.png")
        second = oracle.draw(scene) if index % 2 == 0 else Image.new("RGB", (64, 64))
        second.save(samples / "0001.png")
    return root


def score(run_script, folder, *flags):
    out = folder.parent / "score.json"
    status = run_script(SCRIPT, "--images", folder, "--out", out, "--detect_batch_size", 5, *flags)
    return json.loads(out.read_text()) if status == 0 else status


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_is_scored(run_script, folder, oracle, capsys):
    result = score(run_script, folder)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == result
    assert result["metric"] == "geneval_overall" and result["value"] == 0.75 and result["n"] == 24
    assert list(result["tasks"]) == list(TAGS) and result["prompts"] == 12
    for task in result["tasks"].values():
        assert task == {"value": 0.75, "stderr": pytest.approx(0.25), "images": 4, "prompts": 2}
    assert result["stderr"] == pytest.approx(0.25 / 6**0.5)
    assert result["correct_images"] == 0.75 and result["correct_prompts"] == 1
    assert result["results"] == str(folder / "results.jsonl") and result["seconds"] >= 0
    assert result["model"] == str(folder) and result["config"]["rules"]["score_threshold"] == 0.3
    check_ending(printed.err, folder.parent / "score.json", "geneval_overall")
    assert "overall" in printed.err and "0.7500" in printed.err and "color_attr" in printed.err
    assert oracle.batches == [5, 5, 5, 5, 4]


def test_results_have_genevals_own_keys(run_script, folder):
    score(run_script, folder)
    records = lines(folder / "results.jsonl")
    assert len(records) == 24
    assert {tuple(record) for record in records} == {
        ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")
    }
    for record in records:
        path = Path(record["filename"])
        assert json.loads(record["metadata"]) == json.loads((path.parents[1] / "metadata.jsonl").read_text())
        assert all(len(box) == 5 for boxes in json.loads(record["details"]).values() for box in boxes)
        assert record["correct"] == (record["reason"] == "")
    wrong = [Path(record["filename"]).relative_to(folder).as_posix() for record in records if not record["correct"]]
    assert wrong == [f"{index:05d}/samples/0001.png" for index in range(1, 12, 2)]


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(run_script, folder, oracle):
    whole = score(run_script, folder)
    log, results = folder / "detections.jsonl", (folder / "results.jsonl").read_bytes()
    assert json.loads(log.read_text().splitlines()[0])["opener"] == OPENER_VERSION
    content = log.read_text()
    oracle.batches.clear()
    assert score(run_script, folder)["tasks"] == whole["tasks"]
    assert oracle.batches == [] and log.read_text() == content  # nothing left to detect
    kept = content.splitlines(keepends=True)[:13]
    log.write_text("".join(kept) + content.splitlines()[13][:40])  # killed in the middle of a line of the third batch
    assert score(run_script, folder)["tasks"] == whole["tasks"]
    assert oracle.batches == [5, 5, 4] and (folder / "results.jsonl").read_bytes() == results
    assert not list(folder.glob("*.partial"))


def test_a_new_picture_of_an_old_name_is_looked_at(run_script, folder, oracle):
    score(run_script, folder)
    Image.new("RGB", (64, 64)).save(folder / "00000/samples/0000.png")
    oracle.batches.clear()
    assert score(run_script, folder)["tasks"]["single_object"]["value"] == 0.5
    assert oracle.batches == [5]


def test_detections_of_another_detector_are_refused(run_script, folder, capsys):
    score(run_script, folder)
    assert score(run_script, folder, "--detector", "other") == 2
    assert "was made with detector 'scenes', not 'other'; give another --detections" in capsys.readouterr().err
    assert score(run_script, folder, "--detector", "other", "--detections", folder / "other.jsonl")["value"] == 0.75


@pytest.mark.parametrize("content", ['{"detector": "a"}\n{"filename": "x"}\n', "[]\n", "{\n"])
def test_a_damaged_log_is_refused(content, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="damaged; delete it"):
        DetectionLog(path, {"detector": "a"})


def test_rules_are_flags_and_change_the_score_without_detecting(run_script, folder, oracle):
    score(run_script, folder)
    oracle.batches.clear()
    result = score(run_script, folder, "--score_threshold", 1.0, "--counting_threshold", 0.5)
    assert result["tasks"]["counting"]["value"] == 0.75 and result["tasks"]["position"]["value"] == 0
    assert result["config"]["rules"]["score_threshold"] == 1 and oracle.batches == []
    assert score(run_script, folder, "--max_objects", 0) == 2


def test_what_the_generator_says_goes_into_the_result(run_script, folder):
    settings = {"samples": PER_PROMPT, "model": "out/image-generator", "seed": 7, "vq_fingerprint": "feed"}
    (folder / "settings.json").write_text(json.dumps(settings))
    result = score(run_script, folder)
    assert result["model"] == "out/image-generator" and result["config"]["generation"] == settings
    assert (result["tokenizer"], result["seed"]) == ("feed", 7)
    assert score(run_script, folder, "--model", "mine")["model"] == "mine"


def test_prompts_must_be_those_of_the_folder(run_script, folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    asked = [(path / "metadata.jsonl").read_text() for path in sorted(folder.iterdir())]
    prompts.write_text("\n".join(asked) + "\n")
    result = score(run_script, folder, "--prompts", prompts)
    assert result["value"] == 0.75 and result["tokenizer"] is result["seed"] is None
    assert result["prompts_sha256"] == hashlib.sha256(prompts.read_bytes()).hexdigest()
    prompts.write_text("\n".join(asked[:-1]))
    assert score(run_script, folder, "--prompts", prompts) == 2
    assert "has 12 prompts, its prompt set 11" in capsys.readouterr().err


def test_a_folder_knows_the_prompts_it_was_made_from(run_script, folder, capsys):
    asked = [(path / "metadata.jsonl").read_text() for path in sorted(folder.iterdir())]
    (folder / "prompts.jsonl").write_text("\n".join(asked) + "\n")
    shutil.rmtree(folder / "00011")
    assert score(run_script, folder) == 2
    assert "has 11 prompts, its prompt set 12" in capsys.readouterr().err
    shutil.copytree(folder / "00010", folder / "00011")
    assert score(run_script, folder) == 2
    assert "00011/metadata.jsonl asks for" in capsys.readouterr().err


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


DAMAGES = {
    "missing image": (lambda f: (f / "00003/samples/0000.png").unlink(), "00003/samples/0000.png is missing"),
    "fewer images": (lambda f: (f / "00003/samples/0001.png").unlink(), "00003/samples has 1 images instead of 2"),
    "no images": (lambda f: shutil.rmtree(f / "00003/samples"), "00003/samples has no images"),
    "missing prompt": (lambda f: shutil.rmtree(f / "00003"), "00003 is missing"),
    "missing metadata": (lambda f: (f / "00003/metadata.jsonl").unlink(), "00003/metadata.jsonl is missing"),
    "broken metadata": (lambda f: (f / "00003/metadata.jsonl").write_text("{"), "00003/metadata.jsonl: "),
    "not UTF-8": (
        lambda f: (f / "00003/metadata.jsonl").write_bytes(b'{"tag": "\xe9"}'),
        "00003/metadata.jsonl: not UTF-8",
    ),
    "seeds not UTF-8": (lambda f: (f / "00003/seeds.json").write_bytes(b"\xe9"), "00003/seeds.json is no JSON list"),
    "no prompt": (lambda f: (f / "00003/metadata.jsonl").write_text('{"tag": "colors"}'), "not both empty"),
    "unknown class": (
        lambda f: (f / "00003/metadata.jsonl").write_text(
            '{"tag": "x", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"}'
        ),
        "00003/metadata.jsonl asks for 'bench', which --detector scenes does not know",
    ),
    "truncated image": (lambda f: truncate(f / "00003/samples/0001.png"), "00003/samples/0001.png is not a whole PNG"),
    "empty image": (lambda f: (f / "00003/samples/0001.png").write_bytes(b""), "0001.png is not a whole PNG"),
    "jpeg": (lambda f: Image.new("RGB", (8, 8)).save(f / "00003/samples/0001.png", "JPEG"), "not a whole PNG"),
    "foreign sample": (lambda f: (f / "00003/samples/0001.jpg").touch(), "00003/samples/0001.jpg is no sample"),
    "foreign file": (lambda f: (f / "00003/notes.txt").touch(), "00003/notes.txt does not belong there"),
    "half-written prompt": (lambda f: (f / "00012.partial").mkdir(), "00012.partial is half-written"),
    "same number twice": (lambda f: shutil.copytree(f / "00003", f / "3"), "does not belong there"),
    "seeds": (lambda f: (f / "00003/seeds.json").write_text("[1]"), "00003/seeds.json has 1 seeds for 2 images"),
    "settings": (lambda f: (f / "settings.json").write_text('{"samples": 4}'), "has 2 images instead of 4"),
    "not a folder": (lambda f: shutil.rmtree(f), "is not a folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_and_the_file_named(damage, run_script, folder, capsys):
    harm, words = DAMAGES[damage]
    harm(folder)
    assert score(run_script, folder) == 2
    error = capsys.readouterr().err
    assert words in error and error.splitlines()[-1].startswith("error: ")
    assert not (folder.parent / "score.json").exists()


def test_folders_of_the_published_generator_are_read(folder):
    for index in range(12):
        samples = folder / f"{index:05d}" / "samples"
        for number in range(PER_PROMPT):
            (samples / f"{number:04d}.png").rename(samples / f"{number:05d}.png")
        Image.new("RGB", (8, 8)).save(samples.parent / "grid.png")
    (folder / "scores.json").touch()
    samples = read_folder(folder, per_prompt=PER_PROMPT)
    assert [sample.name for sample in samples[:3]] == [
        f"0000{i}/samples/0000{j}.png" for i, j in ((0, 0), (0, 1), (1, 0))
    ]


def test_images_are_known_by_their_bytes(tmp_path):
    Image.new("RGBA", (4, 2), (10, 20, 30, 255)).save(tmp_path / "a.png")
    assert check_image(tmp_path / "a.png") == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()


def test_prompt_sets_are_checked_line_by_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"tag": "x", "include": [{"class": "cup", "count": 1}], "prompt": "a cup"}\n\n{"tag": "x"}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:3: "):
        read_prompts(path)
    path.write_bytes('{"tag": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: not UTF-8"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(path)


# --- detectors


@pytest.fixture(scope="module")
def detector_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    config = DetectorConfig(class_names=["cat", "dog"], colour_names=list(COLOURS), channels=[4, 4], num_blocks=[1, 1])
    SceneDetector(config).save_pretrained(folder)
    return folder


def test_a_trained_detector_is_loaded_from_its_folder(detector_dir):
    choice = DetectionArguments(detector=str(detector_dir))
    detector = choice.load()
    assert not detector.training and choice.class_names() == ["cat", "dog"]
    found = detector.detect([Image.new("RGB", (64, 64)), Image.new("RGB", (96, 64))])
    assert len(found) == 2 and all(len(box) == 6 for boxes in found[0].values() for box in boxes)
    identity = choice.identity()
    assert identity["weights"].startswith("sha256:")
    torn = SceneDetector.from_pretrained(detector_dir)
    torn.head.bias.data += 1
    torn.save_pretrained(detector_dir / "other")
    assert DetectionArguments(detector=str(detector_dir / "other")).identity() != identity


def test_the_coco_detector_is_loaded_by_its_names(monkeypatch):
    monkeypatch.setattr(CocoDetector, "load", lambda *names: names)
    assert load_detector("coco", "A", "B") == ("A", "B")
    choice = DetectionArguments(detector="coco", coco_model="A", clip_model="B")
    assert choice.load() == ("A", "B") and choice.class_names() == list(CLASS_NAMES)
    assert {"detector": "coco", "coco_model": "A", "clip_model": "B"}.items() <= choice.identity().items()
    assert choice.identity()["min_score"] < 0.3


def test_what_is_no_detector_is_refused(vq_dir):
    for name in (str(vq_dir), "nowhere"):
        with pytest.raises(ValueError, match="holds no trained Scenes detector; choose coco"):
            scenes_folder(name)
    with pytest.raises(ValueError, match="belong to --detector coco"):
        DetectionArguments(coco_model="A")
    with pytest.raises(ValueError, match="at least 1"):
        DetectionArguments(detect_batch_size=0)


# --- the ceiling


@pytest.fixture
def ceiling(oracle, monkeypatch):
    """Scenes the oracle knows once they are drawn."""
    monkeypatch.setattr(load_script(CEILING), "draw_scene", oracle.draw)


def test_the_ceiling_of_a_perfect_detector(ceiling, run_script, tmp_path, capsys):
    out = tmp_path / "ceiling.json"
    assert run_script(CEILING, "--scenes", 4, "--out", out, "--layout", "tidy") == 0
    printed = capsys.readouterr()
    result = json.loads(out.read_text())
    assert json.loads(printed.out) == result and result["value"] == 1 and result["n"] == 24
    kinds = ("own", "shuffled", "near_miss")
    assert [result["overall"]["renders"][kind] for kind in kinds] == [1, 0, 0] and result["stderr"] == 0
    assert result["renders"] == {tag: dict(zip(kinds, [1, 0, 0], strict=True)) for tag in TAGS}
    assert "reconstructions" not in result and "near_miss" in printed.err
    assert result["tokenizer"] is None and result["seed"] == 0 and len(result["prompts_sha256"]) == 64


def test_the_ceiling_through_a_tokenizer_on_held_out_scenes(ceiling, run_script, tmp_path, capsys):
    tokenizer = Path(__file__).parents[2] / "weights/scenes-vq"
    assert run_script(CEILING, "--scenes", 2, "--split", "heldout", "--vq", tokenizer) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 8 and result["overall"]["renders"]["own"] == 1
    assert result["tokenizer"] == VQModel.from_pretrained(tokenizer).fingerprint() and result["seconds"] > 0
    # the oracle does not know the tokenizer's reconstructions of the scenes
    assert result["value"] == 0 == result["overall"]["reconstructions"]["own"]


@pytest.mark.parametrize(
    ("flags", "words"), [(("--scenes", 1), "at least 2"), (("--vq", "nowhere"), "nowhere holds no tokenizer")]
)
def test_the_ceiling_refuses(flags, words, run_script, capsys):
    assert run_script(CEILING, *flags) == 2
    assert words in capsys.readouterr().err
