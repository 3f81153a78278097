"""The curl lines of docs/serving.md, run as they stand against a server of this process."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from shell_blocks import blocks
from toy_server import Server

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"
LINES = [
    line
    for _, code, _ in blocks(PAGE.read_text(encoding="utf-8"), "bash")
    for line in code.splitlines()
    if line.startswith("curl ")
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", LINES)
def test_curl_lines(server: Server, line: str) -> None:
    assert ADDRESS in line
    done = subprocess.run(
        line.replace(ADDRESS, server.url), shell=True, capture_output=True, text=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    if '"stream": true' in line:
        assert "\ndata: {" in "\n" + done.stdout and '"error"' not in done.stdout
    elif "/metrics" not in line:
        assert json.loads(done.stdout).get("error") is None


def test_there_are_lines_for_every_route() -> None:
    routes = ("/v1/images/generations", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
    assert all(any(route in line for line in LINES) for route in routes) and len(LINES) >= 7
