"""Run the sweep in a process of its own, and print a table: see `tests.faults.sweep.sweep`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.sweep.cases import CASES
from tests.faults.sweep.shim import Call, compile_shim, why_unusable
from tests.faults.sweep.sweep import Outcome


def outcomes(folder: Path, cases: Sequence[str], part: str) -> Iterator[Outcome]:
    """Yield the outcome of each point of these cases; of all cases if there are none. `folder` is empty.

    `part` is 'sample', or K/N for the Kth of N parts of all points.
    """
    root = folder / "root"
    root.mkdir()
    command = [sys.executable, "-m", "tests.faults.sweep.sweep", root, part, *cases]
    environment = {**os.environ, "LD_PRELOAD": str(compile_shim(folder)), "OPENBLAS_NUM_THREADS": "1"}
    with (
        (folder / "errors").open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            outcome = Outcome(**json.loads(line))
            yield Outcome(**{**vars(outcome), "call": Call(*outcome.call)})
    assert process.returncode == 0, (folder / "errors").read_text(errors="replace")[-3000:]


def table(done: Sequence[Outcome]) -> Iterator[str]:
    """The lines of a table of the outcomes, by case and by kind of call."""
    heading = ("points", "exit 0", "exit 1", "exit 2", "not met", "wrong")
    for what, name in (("case", lambda each: each.case), ("call", lambda each: each.call.kind)):
        yield f"{what:28}" + "".join(f"{column:>10}" for column in heading)
        counts: dict[str, Counter[str]] = {}
        for outcome in done:
            code = f"exit {outcome.code}" if outcome.hits else "not met"
            for row in (name(outcome), "all"):
                counts.setdefault(row, Counter()).update(["points", code, *(["wrong"] if outcome.problem else [])])
        counts["all"] = counts.pop("all")
        for row, count in counts.items():
            yield f"{row:28}" + "".join(f"{count[column]:10,}" for column in heading)
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="1/1", help="sample: the points of `make test`; K/N: every Nth point")
    parser.add_argument("--case", action="append", default=[], choices=[case.name for case in CASES])
    options = parser.parse_args()
    if reason := why_unusable():
        sys.exit(reason)
    began, done = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in outcomes(Path(folder), options.case, options.part):
            done.append(outcome)
            if len(done) % 1000 == 0:
                print(f"{len(done):,} points after {time.monotonic() - began:,.0f} s: {outcome.case}", flush=True)
            if outcome.problem:
                print(json.dumps(vars(outcome)), flush=True)
    print("\n".join(table(done)))
    print(f"{time.monotonic() - began:,.0f} s")
    sys.exit(any(outcome.problem for outcome in done))


if __name__ == "__main__":
    main()
