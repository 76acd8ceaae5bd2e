"""The first run on a GPU, on the emulated one: its stages start, and what they find is recorded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not shutil.which("g++"), reason="the emulated GPU needs g++")
def test_stages_record_what_they_find(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.gpu.first_run", "--out", str(tmp_path), "--stages", "machine", "launches"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests' / 'standin'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "first_run.json").read_text("utf-8"))
    assert found["machine"]["versions"]["cupy"] and found["machine"]["ended"].startswith("done")
    assert found["launches"]["us"]["host_us"] > 0 and found["launches"]["ended"].startswith("done")
