"""A CuPy that cannot be imported, whatever it raises: other libraries import it too, and a CPU suffices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import cnn.backends.gpu
import pipeline.dataset.store  # imports zarr, which imports CuPy
from cnn.backends import pick_backend
print(pick_backend("auto").name, cnn.backends.gpu.why_unusable(), sep=": ")
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('driver too old\\nsecond line')", "(RuntimeError: driver too old)"),
        ("raise ImportError('libcuda.so.1')", "(ImportError: libcuda.so.1)"),
        ("raise SystemExit(3)", "(SystemExit: 3)"),
        ("import numpy; numpy.nope", "(AttributeError: module 'numpy' has no attribute 'nope')"),
        ("import nope", "(No module named 'nope')"),
    ],
)
@pytest.mark.parametrize("dataset_first", [False, True])
def test_cpu_is_used(tmp_path: Path, source: str, reason: str, dataset_first: bool) -> None:
    (tmp_path / "cupy.py").write_text(source)
    program = f"import pipeline.dataset.store\n{PROGRAM}" if dataset_first else PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd())])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    what = "is not installed" if "No module" in reason else "cannot be imported"
    assert done.stdout == f"cpu: CuPy {what} {reason}\n"
