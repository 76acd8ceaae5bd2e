"""A training step's speed while each CPU is shared with another process, a loop at normal priority.

    python -m benchmarks.training.busy_neighbours [--rounds N] [--threads N] [--only NAME ...]

In turns, quiet and busy, two seconds each; the loops are stopped in between. The ratio is the quiet time over the busy
one within a round, the median of the rounds. A process that gets half of each CPU can reach 0.5 at most.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np

from benchmarks.training.networks import CASES
from benchmarks.worker import Worker, available_cpus

LOOP = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def start_loops(stack: ExitStack) -> list[subprocess.Popen[bytes]]:
    """A loop bound to each CPU, stopped."""
    loops = []
    for cpu in sorted(os.sched_getaffinity(0)):
        loop = subprocess.Popen([sys.executable, "-c", LOOP, str(cpu)])
        stack.callback(loop.kill)
        loop.send_signal(signal.SIGSTOP)
        loops.append(loop)
    return loops


def seconds_of(side: Worker, steps: int) -> float:
    """The seconds that a number of training steps take, one after the other."""
    began = time.perf_counter()
    side.ask("train", seconds=0.0, min_runs=steps)
    return side.answered - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--only", nargs="+", choices=CASES, default=["resnet9", "default"], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    for name in arguments.only:
        with ExitStack() as stack:
            side = stack.enter_context(Worker("benchmarks.training.side_ours", name, str(arguments.threads), "cpu"))
            steps = math.ceil(arguments.seconds / (side.ask("train", seconds=1.0) / 1e3))
            loops, ratios, times = start_loops(stack), [], []
            for _ in range(arguments.rounds):
                quiet = seconds_of(side, steps)
                for loop in loops:
                    loop.send_signal(signal.SIGCONT)
                ratios.append(quiet / seconds_of(side, steps))
                for loop in loops:
                    loop.send_signal(signal.SIGSTOP)
                times.append(quiet / steps * 1e3)
        found[name] = float(np.median(ratios))
        print(
            f"{name:10} {np.median(times):7.1f} ms quiet, {found[name]:.2f} of that speed beside a loop on each CPU"
            f" ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
