"""What a first run on a real GPU proves and measures, the most needed first.

    python -m benchmarks.gpu.first_run [--seconds 530] [--out FOLDER] [--stages NAME ...]

Each stage runs in its own process with a time limit, so that neither an exception nor a broken CUDA context stops the
others. The results go into FOLDER/first_run.json after every measurement. Without a GPU, with the tests' stand-in for
CuPy first in PYTHONPATH, all stages run at tiny sizes: their times mean nothing.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks.worker import ROOT

# Stage -> (function, seconds at most). In this order; a stage gets no more than the time that is left.
STAGES = {
    "machine": ("benchmarks.gpu.machine:describe", 20),
    "ceilings": ("benchmarks.gpu.machine:ceilings", 30),
    "compile": ("benchmarks.gpu.machine:compile_cold", 90),
    "selftest": ("benchmarks.gpu.correctness:run_selftest", 75),
    "correctness": ("benchmarks.gpu.correctness:kernels_and_networks", 60),
    "pytest": ("benchmarks.gpu.correctness:run_pytest", 70),
    "sanitizer": ("benchmarks.gpu.correctness:run_sanitizer", 45),
    "launches": ("benchmarks.gpu.machine:launches", 15),
    "layers": ("benchmarks.gpu.layers:against_cudnn", 120),
    "steps": ("benchmarks.gpu.steps:eager", 90),
    "compiled": ("benchmarks.gpu.steps:compiled", 80),
    "speedrun": ("benchmarks.gpu.steps:speedrun", 40),
    "ranks": ("benchmarks.gpu.ranks:scaling", 120),
    "ncu": ("benchmarks.gpu.correctness:run_ncu", 40),
}


def run_stage(name: str, seconds: float, out: Path) -> None:
    """In the stage's own process: record its results, or its exception."""
    from benchmarks.gpu.record import Record

    record = Record(out / "first_run.json", seconds)
    module, _, function = STAGES[name][0].partition(":")
    try:
        getattr(importlib.import_module(module), function)(record)
    except Exception:
        record.add(name, "exception", traceback.format_exc()[-3000:])
        raise SystemExit(1) from None


def start_stage(name: str, seconds: float, out: Path) -> str:
    """Run a stage in a new process; return how it ended."""
    environment = os.environ | {"CUPY_CACHE_DIR": str(out / "cupy_cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.first_run", "--stages", name, "--out", str(out), "--inside"]
    command += ["--seconds", f"{seconds:.0f}"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own children too
            return f"stopped after {seconds:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=530, help="for all stages")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "first_run")))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # in the process of one stage
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if arguments.inside:
        run_stage(arguments.stages[0], arguments.seconds, out)
        return

    from benchmarks.gpu.record import Record

    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.seconds
    for name in arguments.stages:
        seconds = min(STAGES[name][1], end - time.monotonic())
        began, ended = time.monotonic(), "no time left"
        if seconds >= 5:
            print(f"== {name}, at most {seconds:.0f} s", flush=True)
            ended = start_stage(name, seconds, out)
        Record(out / "first_run.json", 0).add(name, "ended", f"{ended}, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
