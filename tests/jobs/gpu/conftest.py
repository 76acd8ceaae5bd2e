"""The command line in new processes that have an emulated GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import cuda_cpu
from tests.jobs.conftest import Outcome, command

RECIPE = ("--model", "plain", "--set", "model.width=4", "--batch-size", "16", "--epochs", "2", "--device", "cuda")

# Runs a command line on a card that fails when the host waits for it the n-th time.
_FAILING = """
import sys, cupy

left, wait = int(sys.argv[1]), cupy.cuda.Event.synchronize

def synchronize(event):
    global left
    left -= 1
    if left < 0:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    wait(event)

cupy.cuda.Event.synchronize = synchronize

from jobs.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Gpu:
    """Runs command lines of logpose in new processes."""

    def __call__(self, *arguments: object, fails_after: int | None = None) -> Outcome:
        """Run a command line; the card fails when the host has waited for it `fails_after` times."""
        line = command(*arguments)
        if fails_after is not None:
            line = [sys.executable, "-W", "error", "-c", _FAILING, str(fails_after), *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
        return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Also sets the environment of all other processes that the test starts."""
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    for name, value in cuda_cpu.environment(CUDA_CPU_CHECK="0").items():
        monkeypatch.setenv(name, value)
    return Gpu()


@pytest.fixture(scope="session")
def gpu_run(dataset: Path) -> Path:
    """A finished training in bf16, without interruption. Read or copy it, do not change it."""
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    run_dir = dataset.parent / "gpu"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cuda_cpu.environment(CUDA_CPU_CHECK="0").items():
            patch.setenv(name, value)
        outcome = Gpu()("train", dataset, run_dir, *RECIPE, "--cache", "none")
    assert (outcome.code, outcome.err) == (0, "")
    return run_dir
