"""The rehearsal of two machines holds, where it is asked for: it takes minutes, root and iproute2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASKED = os.environ.get("UNIFIED_TWO_MACHINES") == "1"


@pytest.mark.skipif(not ASKED, reason="takes minutes: set UNIFIED_TWO_MACHINES=1")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2's ip")
@pytest.mark.parametrize("killed", [0, 1])
def test_two_machines(killed: int, tmp_path: Path) -> None:
    command = [sys.executable, "tests/two_machines.py", "--out", str(tmp_path / "out"), "--killed", str(killed)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" holds ") == 6 and "FAILS" not in done.stdout
