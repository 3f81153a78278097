"""data_prep/encode_images.py as its users run it, on a random tokenizer."""

import io
import json
import os
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

from unified import VQModel
from unified.data.rows import ROW_SCHEMA, read_encoded_metadata, read_encoded_rows
from unified.files.images import image_to_pixels

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

    assert encode(*arguments) == 2
    assert "1 rows have an unreadable image, more than --max-bad 0" in capsys.readouterr().err

    for name in "bd":
        picture(ord(name)).save(tmp_path / f"{name}.png")
    assert encode(*arguments) == 0
    assert len(all_rows(tmp_path / "out")) == 4 and not list((tmp_path / "out").glob("*.bad.jsonl"))


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
