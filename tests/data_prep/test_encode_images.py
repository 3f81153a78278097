"""data_prep/encode_images.py as its users run it, on a random tokenizer."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from toys import make_config, make_tokenizer

from unified import VQModel
from unified.data.chat_dataset import load_encoded_rows
from unified.data.encoding import EncodeArguments, Shard, count_bad, write_bad
from unified.data.preferences import load_pairs, write_pairs
from unified.data.rows import ROW_SCHEMA, read_encoded_rows, write_encoded_shard
from unified.data.shard_metadata import read_encoded_metadata
from unified.files.images import OPENER_VERSION, image_to_pixels, to_square

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "data_prep" / "encode_images.py")
SMALL = ("--shard-size", 2, "--batch-size", 2)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def encode(run_script):
    return lambda *arguments: run_script("data_prep/encode_images.py", *arguments)


def picture(seed, size=(16, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def drawn_row(images, text="draw"):
    parts = [{"type": "image"} for _ in images]
    return {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "assistant", "content": parts or [{"type": "text", "text": "no"}]},
        ],
        "images": images,
        "metadata": "{}",
        "source": "test",
    }


def write_parquet(path, counts):
    """A parquet file whose row i has `counts[i]` pictures; returns all pictures."""
    pictures = [[picture(100 * i + j) for j in range(count)] for i, count in enumerate(counts)]
    rows = [
        drawn_row([{"bytes": png(image), "path": f"{i}.png"} for image in images], f"row {i}")
        for i, images in enumerate(pictures)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)
    return [image for images in pictures for image in images]


def shards(out):
    return sorted(Path(out).glob("*.parquet"))


def all_rows(out):
    return [row for shard in shards(out) for row in read_encoded_rows(shard)]


@pytest.fixture
def vq_dir(tiny_vq, tmp_path):
    tiny_vq.save_pretrained(tmp_path / "vq")
    return tmp_path / "vq"


def test_codes_in_the_file_are_the_tokenizers(encode, tiny_vq, vq_dir, tmp_path):
    pictures = write_parquet(tmp_path / "in.parquet", [1, 0, 2, 1, 1])
    assert encode("--vq", vq_dir, "--out", tmp_path / "out", "--inputs", tmp_path / "in.parquet", *SMALL) == 0
    expected = tiny_vq.encode(torch.stack([image_to_pixels(image, 16) for image in pictures])).tolist()
    rows = all_rows(tmp_path / "out")
    assert [len(row["codes"]) for row in rows] == [1, 0, 2, 1, 1]
    assert [codes for row in rows for codes in row["codes"]] == expected
    assert [row["messages"][0]["content"][0]["text"] for row in rows] == [f"row {i}" for i in range(5)]
    for shard in shards(tmp_path / "out"):
        assert read_encoded_metadata(shard) == (tiny_vq.fingerprint(), ((1, 1), (2, 2)))


def test_jsonl_with_pictures_of_any_size_and_text(encode, tiny_vq, vq_dir, tmp_path):
    big = picture(1, size=(40, 20))
    big.save(tmp_path / "big.png")
    rows = [drawn_row(["big.png"]), {"messages": [{"role": "user", "content": "hi"}]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert encode("--vq", vq_dir, "--out", tmp_path / "out", "--inputs", tmp_path / "in.jsonl") == 0
    drawn, said = all_rows(tmp_path / "out")
    assert drawn["codes"] == tiny_vq.encode(image_to_pixels(big, 16)[None]).tolist()
    assert (said["codes"], said["messages"][0]["content"][0]["text"]) == ([], "hi")


def test_a_killed_run_continues(encode, vq_dir, tmp_path):
    write_parquet(tmp_path / "in.parquet", [1] * 300)
    arguments = ["--vq", vq_dir, "--inputs", tmp_path / "in.parquet", *SMALL, "--out"]
    command = [sys.executable, SCRIPT, *map(str, arguments), str(tmp_path / "out")]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        while len(shards(tmp_path / "out")) < 3 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = {shard: shard.stat().st_mtime_ns for shard in shards(tmp_path / "out")}
    assert 3 <= len(kept) < 150
    assert encode(*arguments, tmp_path / "out") == 0
    assert len(shards(tmp_path / "out")) == 150
    assert all(shard.stat().st_mtime_ns == mtime for shard, mtime in kept.items())
    assert encode(*arguments, tmp_path / "whole") == 0
    assert all_rows(tmp_path / "out") == all_rows(tmp_path / "whole")


def test_a_bad_row_is_one_whatever_its_text_holds(tmp_path):
    shard = Shard("in.jsonl", 0, 1, tmp_path / "0.parquet")
    write_bad(shard, [{"row": "in.jsonl:1", "bad_images": ["a.png"], "messages": "two\u2028lines\x85and more"}])
    assert count_bad([shard]) == 1


def test_a_bad_picture_is_named_counted_and_can_be_mended(encode, vq_dir, tmp_path, capsys):
    for name in "abc":
        picture(ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(png(picture(0))[:50])
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(drawn_row([f"{name}.png"])) + "\n" for name in "abcd"))
    arguments = ["--vq", vq_dir, "--inputs", tmp_path / "in.jsonl", "--shard-size", 1, "--out", tmp_path / "out"]
    assert encode(*arguments, "--max-bad", 2) == 0
    printed = capsys.readouterr().out
    assert "in.jsonl:2: b.png cannot be read (" in printed and "; give a complete PNG" in printed
    assert "in.jsonl:4: d.png cannot be read (No such file or directory); put the file there" in printed
    assert len(all_rows(tmp_path / "out")) == 2
    bad = json.loads((tmp_path / "out" / "00001.bad.jsonl").read_text())
    assert bad["row"] == f"{tmp_path}/in.jsonl:2" and "b.png" in bad["bad_images"][0]

    assert encode(*arguments) == 2  # all are counted in one pass, what is whole stays
    assert "2 rows are malformed or have an unreadable image, more than --max-bad 0" in capsys.readouterr().err
    assert len(all_rows(tmp_path / "out")) == 2
    assert encode(*arguments, "--max-bad", 2) == 0 and "0 images encoded" in capsys.readouterr().out

    for name in "bd":
        picture(ord(name)).save(tmp_path / f"{name}.png")
    assert encode(*arguments) == 0
    assert len(all_rows(tmp_path / "out")) == 4 and not list((tmp_path / "out").glob("*.bad.jsonl"))


def test_all_bad_pictures_are_counted_in_one_pass_and_some_named(encode, vq_dir, tmp_path, capsys):
    rows = write_rows(tmp_path / "in.jsonl", [photo(tmp_path / "a.png", (16, 16)), *"bcdefghij"])
    arguments = ["--vq", vq_dir, "--inputs", rows, "--shard-size", 5, "--out", tmp_path / "out"]
    assert encode(*arguments, "--max-bad", 1) == 2
    said = capsys.readouterr()
    assert "9 rows are malformed or have an unreadable image, more than --max-bad 1" in said.err
    assert said.out.count("bad image in ") == 6 and "1 more bad rows in " in said.out and "2 more bad" in said.out
    assert encode(*arguments, "--max-bad", 9) == 0 and len(all_rows(tmp_path / "out")) == 1


def test_bad_lines_of_all_inputs_are_counted_together(encode, vq_dir, tmp_path, capsys):
    files = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for file in files:
        file.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n{}\n{\n')
    arguments = ["--vq", vq_dir, "--out", tmp_path / "out", "--inputs", *files]
    assert encode(*arguments, "--max-bad", 5) == 2
    assert "6 bad rows: " in (said := capsys.readouterr().err) and "; and 3 more" in said
    assert encode(*arguments, "--max-bad", 6) == 0


def test_paths_may_start_in_another_folder(encode, vq_dir, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    rows = write_rows(tmp_path / "in.jsonl", [photo(tmp_path / "pictures" / "a.png", (16, 16))])
    arguments = ["--vq", vq_dir, "--inputs", rows, "--out", tmp_path / "out", "--image_root"]
    assert encode(*arguments, tmp_path / "nowhere") == 2
    assert "nowhere is not a folder; give the one in which paths start" in capsys.readouterr().err
    assert encode(*arguments, tmp_path / "pictures") == 0 and len(all_rows(tmp_path / "out")) == 1
    assert encode(*arguments, tmp_path) == 2
    assert "was made with image_root" in capsys.readouterr().err


def test_another_tokenizer_is_refused(encode, tiny_vq, vq_dir, tmp_path, capsys):
    write_parquet(tmp_path / "in.parquet", [1])
    arguments = ["--out", tmp_path / "out", "--inputs", tmp_path / "in.parquet", "--vq"]
    assert encode(*arguments, vq_dir) == 0
    torch.manual_seed(1)
    VQModel(tiny_vq.config).save_pretrained(tmp_path / "other")
    assert encode(*arguments, tmp_path / "other") == 2
    complaint = capsys.readouterr().err
    assert "was made with vq_fingerprint" in complaint and "give another --out" in complaint


def test_a_row_without_messages_is_named_before_any_work(encode, vq_dir, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n{"images": []}\n')
    assert encode("--vq", vq_dir, "--out", tmp_path / "out", "--inputs", tmp_path / "in.jsonl") == 2
    assert f"{tmp_path}/in.jsonl:2: no `messages`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_processes_give_what_one_gives(encode, vq_dir, tmp_path):
    write_parquet(tmp_path / "in.parquet", [1] * 5)
    arguments = ["--vq", vq_dir, "--inputs", tmp_path / "in.parquet", *SMALL, "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, SCRIPT, *map(str, arguments), str(tmp_path / "two")]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert run.returncode == 0, run.stderr
    assert encode(*arguments, tmp_path / "one") == 0
    assert all_rows(tmp_path / "two") == all_rows(tmp_path / "one")


def photo(path, size, colour=(200, 30, 40)):
    Image.new("RGB", size, colour).save(path)
    return path.name


def write_rows(path, names):
    path.write_text("".join(json.dumps(drawn_row([name])) + "\n" for name in names))
    return path


def test_a_picture_of_many_rows_is_opened_once(encode, tiny_vq, vq_dir, tmp_path, capsys):
    names = [photo(tmp_path / f"{i}.png", (16, 16), (40 * i, 0, 0)) for i in range(4)]
    rows = write_rows(tmp_path / "in.jsonl", names * 10)
    assert encode("--vq", vq_dir, "--out", tmp_path / "out", "--inputs", rows, *SMALL) == 0
    assert "40 images encoded" in (said := capsys.readouterr().out) and "(4 opened)" in said
    pictures = torch.stack([image_to_pixels(Image.open(tmp_path / name), 16) for name in names])
    assert [row["codes"][0] for row in all_rows(tmp_path / "out")] == tiny_vq.encode(pictures).tolist() * 10


def test_the_same_bytes_in_parquet_are_opened_once(encode, vq_dir, tmp_path, capsys):
    record = [{"bytes": png(picture(1)), "path": "a.png"}]
    table = pa.Table.from_pylist([drawn_row(record) for _ in range(6)], schema=ROW_SCHEMA)
    pq.write_table(table, tmp_path / "in.parquet")
    assert encode("--vq", vq_dir, "--out", tmp_path / "out", "--inputs", tmp_path / "in.parquet", *SMALL) == 0
    assert "(1 opened)" in capsys.readouterr().out


def test_workers_stay_and_give_what_one_process_gives(encode, vq_dir, tmp_path):
    """Many shards, each with more pictures than there may be open files: tensors sent one by one ran out of them."""
    write_parquet(tmp_path / "in.parquet", [1] * 60)
    arguments = ["--vq", vq_dir, "--inputs", tmp_path / "in.parquet", "--shard-size", 20, "--out"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        assert encode(*arguments, tmp_path / "many", "--num_workers", 8) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert encode(*arguments, tmp_path / "one") == 0
    assert all_rows(tmp_path / "many") == all_rows(tmp_path / "one")


def test_the_batch_follows_the_pixels():
    for side, images in ((64, 64), (128, 64), (256, 16), (512, 4), (2048, 1)):
        assert EncodeArguments("v", "o", ["i"]).images_per_step(side) == images
    assert EncodeArguments("v", "o", ["i"], batch_size=7).images_per_step(512) == 7
    with pytest.raises(ValueError, match="--batch_size 0; give at least 1"):
        EncodeArguments("v", "o", ["i"], batch_size=0)


def test_what_the_square_leaves_out_is_counted(encode, tiny_vq, vq_dir, tmp_path, capsys):
    sizes = {"a.png": (40, 30), "b.png": (16, 16), "c.png": (400, 10)}
    for name, size in sizes.items():
        image = Image.new("RGB", size, (255, 255, 255))
        image.paste((255, 0, 0), (0, 0, 4, size[1]))
        image.save(tmp_path / name)
    arguments = ["--vq", vq_dir, "--inputs", write_rows(tmp_path / "in.jsonl", sizes), "--out"]
    assert encode(*arguments, tmp_path / "crop") == 0
    said = capsys.readouterr().out
    assert "2 of 3 images are not square and lose 61% of their pixels, 1 of them more than half, c.png 98%" in said

    assert encode(*arguments, tmp_path / "pad", "--fit", "pad") == 0
    assert "cropped" not in capsys.readouterr().out
    padded = to_square(Image.open(tmp_path / "a.png"), 16, "pad")
    assert padded.getpixel((0, 0)) == (255, 255, 255) and padded.getpixel((0, 8)) != (255, 255, 255)
    codes = [row["codes"][0] for row in all_rows(tmp_path / "pad")]
    assert codes[0] == tiny_vq.encode(image_to_pixels(Image.open(tmp_path / "a.png"), 16, "pad")[None])[0].tolist()

    assert encode(*arguments, tmp_path / "refuse", "--fit", "refuse", "--max_bad", 2) == 0
    assert "a.png is 40 x 30, not square; give --fit crop or pad" in capsys.readouterr().out
    assert len(all_rows(tmp_path / "refuse")) == 1
    assert encode(*arguments, tmp_path / "crop", "--fit", "pad") == 2
    assert "made with fit 'crop', not 'pad'" in capsys.readouterr().err


def test_folders_of_the_earlier_opener_are_told_apart(encode, vq_dir, tmp_path, capsys):
    arguments = ["--vq", vq_dir, "--out", tmp_path / "out", "--inputs", write_rows(tmp_path / "in.jsonl", ["a.png"])]
    photo(tmp_path / "a.png", (16, 16))
    assert encode(*arguments) == 0
    path = tmp_path / "out" / "settings.json"
    stored = json.loads(path.read_text())
    assert stored.pop("opener") == OPENER_VERSION and stored.pop("fit") == "crop"
    path.write_text(json.dumps(stored))
    assert encode(*arguments) == 2
    assert f"was made with opener 1, not {OPENER_VERSION}; give another --out" in capsys.readouterr().err


def test_codes_of_two_openers_are_not_trained_on_together(tiny_vq, tmp_path):
    config = make_config(make_tokenizer(), tiny_vq.config)
    rows = [drawn_row([]) | {"codes": [[1, 2, 3, 4, 0]]}]
    write_encoded_shard(tmp_path / "old.parquet", rows, config.vq_fingerprint, (1, 2), opener=1)
    write_encoded_shard(tmp_path / "new.parquet", rows, config.vq_fingerprint, (1, 2))
    words = [drawn_row([]) | {"codes": []}]
    write_encoded_shard(tmp_path / "words.parquet", words, config.vq_fingerprint, (1, 2), opener=1)
    old, new, text = (str(tmp_path / f"{name}.parquet") for name in ("old", "new", "words"))
    for alone in ([old], [new], [old, text], [new, text]):
        assert len(load_encoded_rows(alone, config)) == len(alone)
    with pytest.raises(ValueError, match=f"old.parquet was encoded by opener 1 .*new.parquet by {OPENER_VERSION}"):
        load_encoded_rows([new, old], config)


def test_pairs_of_two_openers_are_not_trained_on_together(encode, vq_dir, tiny_vq, tmp_path, capsys):
    config = make_config(make_tokenizer(), tiny_vq.config)
    config.vq_fingerprint = tiny_vq.fingerprint()
    photo(tmp_path / "a.png", (16, 16))
    photo(tmp_path / "b.png", (16, 16), (0, 90, 0))
    drawn = [{"role": "assistant", "content": [{"type": "image", "image": f"{name}.png"}]} for name in "ab"]
    pair = {"prompt": "draw", "chosen": drawn[0], "rejected": drawn[1]}
    (tmp_path / "p.jsonl").write_text(json.dumps(pair) + "\n")
    assert encode("--vq", vq_dir, "--out", tmp_path / "new", "--inputs", tmp_path / "p.jsonl") == 0
    assert "unified run recipes/dpo.py --config" in capsys.readouterr().err
    new = str(shards(tmp_path / "new")[0])
    pairs = load_pairs([new], config).to_list()
    write_pairs(tmp_path / "old.parquet", pairs, config.vq_fingerprint, (1, 2), opener=1)
    write_pairs(tmp_path / "drawn.parquet", pairs, config.vq_fingerprint, (1, 2))
    old, by_model = str(tmp_path / "old.parquet"), str(tmp_path / "drawn.parquet")
    assert len(load_pairs([new, by_model], config)) == len(load_pairs([old, by_model], config)) == 2
    with pytest.raises(ValueError, match=f"old.parquet was encoded by opener 1 .*00000.parquet by {OPENER_VERSION}"):
        load_pairs([new, old], config)
