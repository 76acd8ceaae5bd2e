"""Kill classifications at random moments, run them again, and compare the tables byte for byte.

    python -m tests.jobs.classification.kill_classifications IMAGES MODEL [--files 5000] [--broken 200] [--kills 50]
        [--seed 0] [--cluster]

Makes a tree of links to the images, with unusual names, some of them broken. Each classification of it is killed with
SIGKILL one to four times, anywhere between the start of its process and the end of the assembly, and run again, each
time with other --workers and another --batch-size. The table must equal that of an uninterrupted run, with a row for
each file, and nothing else may be left in its folder. A kill may repeat at most one part and what the threads had
ahead.

With --cluster, each runs on a Dask cluster of two workers, one of which is killed, and nothing is run again.
Prints a line per classification, then one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jobs.classification.inputs import FILES_PER_PART
from pipeline.parallel.ordered import AHEAD_PER_THREAD
from tests.jobs.killing import Aim, LoggedRun
from tests.pipeline.parallel.test_cluster import Cluster

RESULTS = {"out.csv", ".out.csv.finished"}  # what a finished classification leaves
MAX_WORKERS, MAX_BATCH = 4, 64
MAX_KILLS = 4  # per classification

NAMES = (
    "plain", "comma, and space", 'quo"te', "new\nline", "return\rhere", "tab\there", "=1+1", "+1", "-1", "@at",
    "'tick", "semi;colon", "per%cent", "#hash", "née", "日本", "🏴", "e\u0301",
)  # fmt: skip
NOT_UTF8 = ("caf\udce9", "\udcff\udcfe") if sys.platform == "linux" else ()  # bytes that are not valid UTF-8

MARKS = {
    "p": ("jobs.classification.table:ResumableTable", "__init__"),
    "f": ("jobs.classification.table:ResumableTable", "finish"),
    "w": ("jobs.classification.table:ResumableTable", "write"),
    "l": ("pipeline.scan.file_index:Spool", "append"),
    "x": ("jobs.classification.task", "decode_image"),
}

BREAKS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: b"no image\n",
    lambda data: bytes(16) + data[16:],
)


def scatter(image_folder: Path, root: Path, files: int, broken: int, draw: random.Random) -> set[str]:
    """Fill `root` with images, some of them broken; return all names, relative to it."""
    sources = sorted(path for path in image_folder.rglob("*") if path.is_file())
    bad = set(draw.sample(range(files), broken))
    names = set()
    for number in range(files):
        source = sources[number % len(sources)]
        parts = draw.choices(NAMES + NOT_UTF8, k=draw.randint(1, 4))  # the last one is the file's
        path = root.joinpath(*parts[:-1], f"{parts[-1]}{number}{source.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in bad:
            path.write_bytes(BREAKS[number % len(BREAKS)](source.read_bytes()))
        else:
            try:
                os.link(source, path)
            except OSError:  # another file system, or too many links
                shutil.copy(source, path)
        names.add(path.relative_to(root).as_posix())
    return names


@dataclass
class Outcome:
    """Result of one classification.

    hits    phase of each kill
    lost    for each kill, files that were begun and are in no finished part
    redone  files that were begun more than once
    wrong   differences from an uninterrupted classification
    """

    hits: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    redone: int = 0
    wrong: list[str] = field(default_factory=list)


class Times(NamedTuple):
    """Times of an uninterrupted classification: seconds to the first image, and for the assembly."""

    start: float
    assembly: float

    def aim(self, left: int, draw: random.Random) -> Aim:
        """Draw a moment of a classification of `left` files: mostly at a file, sometimes before or after."""
        aims = (
            Aim("p", 0, draw.uniform(0, self.start)),
            Aim("p", 1, draw.uniform(0, 0.1)),
            Aim("X", draw.randint(1, max(1, left)), draw.uniform(0, 0.01)),
            Aim("F", 1, draw.uniform(0, self.assembly)),
        )
        return draw.choices(aims, (1, 2, 5, 3))[0]


class Classifications:
    """The tree and its expected table. Call `uninterrupted` first: it makes the table."""

    def __init__(self, root: Path, model: Path, names: set[str], broken: int, folder: Path) -> None:
        self.root, self.model, self.names, self.broken, self.folder = root, model, names, broken, folder
        self.expected = b""

    def start(self, place: Path, *options: object) -> LoggedRun:
        """Start or resume place/table/out.csv."""
        out = place / "table" / "out.csv"
        arguments = ("classify", self.root, self.model, out, "--device", "cpu", *options)
        return LoggedRun(place / "notes", MARKS, *arguments)

    def uninterrupted(self) -> Times:
        """Make the expected table, check its rows, and time it."""
        place = self.folder / "uninterrupted"
        run = self.start(place)
        times = [run.wait_for(mark) for mark in ("X", "F", "f")]
        run.finish()
        assert run.count("X") == len(self.names), "not every file once"
        out = place / "table" / "out.csv"
        self.expected = out.read_bytes()
        with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        assert [row["filename"] for row in rows] == sorted(self.names), "not one row for each file"
        assert sum(row["status"] == "error" for row in rows) == self.broken, "not every broken file is an error"
        return Times(times[0], times[2] - times[1])

    def kill_and_finish(self, kills: int, times: Times, draw: random.Random) -> Outcome:
        """Classify, killing the first `kills` runs."""
        outcome, place = Outcome(), self.folder / "killed"
        outcome.redone = -len(self.names)
        parts = 0
        for attempt in range(kills + 1):
            workers, batch = draw.randint(1, MAX_WORKERS), draw.randint(1, MAX_BATCH)
            run = self.start(place, "--workers", workers, "--batch-size", batch)
            hit = attempt < kills and run.kill(times.aim(len(self.names) - self.rows(parts), draw))
            if not hit:
                run.finish()
            outcome.redone += run.count("X")
            if not hit:
                break
            outcome.hits.append(self.phase(run))
            before, parts = parts, parts + run.count("w")
            outcome.lost.append(run.count("X") - (self.rows(parts) - self.rows(before)))
            if outcome.lost[-1] > FILES_PER_PART + AHEAD_PER_THREAD * workers * batch:
                outcome.wrong.append("more lost than a part and what was ahead")
            names = {path.name for path in (place / "table").glob("*")}
            if names >= RESULTS and names <= RESULTS | {".out.csv.lock"}:  # the kill came after the end
                again = self.start(place)
                again.finish()
                if "out.csv, already complete" not in again.output:
                    outcome.wrong.append(again.output)
                break
        return self.checked(outcome, place)

    def lose_a_worker(self, cluster: Cluster, draw: random.Random) -> Outcome:
        """Classify on the cluster, killing one of its workers."""
        outcome, place = Outcome(), self.folder / "killed"
        parts = -(-len(self.names) // FILES_PER_PART)
        run = self.start(place, "--scheduler", cluster.address)
        run.wait_for("w", draw.randint(1, max(1, parts - 3)))
        worker = cluster.workers.pop(draw.randrange(len(cluster.workers)))
        worker.kill()
        worker.communicate()
        if run.count("w") < parts:
            outcome.hits.append(f"{run.count('w')} of {parts} parts written")
        run.finish()
        cluster.add_worker()
        return self.checked(outcome, place)

    def checked(self, outcome: Outcome, place: Path) -> Outcome:
        """Record the differences, and remove the files."""
        out = place / "table" / "out.csv"
        if out.read_bytes() != self.expected:
            outcome.wrong.append("the table")
        outcome.wrong += [f"left behind: {path.name}" for path in out.parent.iterdir() if path.name not in RESULTS]
        if outcome.redone > sum(outcome.lost):
            outcome.wrong.append("files of finished parts were classified again")
        shutil.rmtree(place)
        print(f"{outcome.hits}: files lost {outcome.lost}, wrong: {outcome.wrong}", flush=True)
        return outcome

    def rows(self, parts: int) -> int:
        """Return the number of rows in the first `parts` parts."""
        return min(len(self.names), parts * FILES_PER_PART)

    def phase(self, run: LoggedRun) -> str:
        if run.within("f"):
            return "assembly"
        if run.count("f"):
            return "after the end"
        if run.within("w"):
            return "writing a part"
        if run.count("p"):
            parts = -(-len(self.names) // FILES_PER_PART)
            return "listing" if run.count("l") < parts else "classifying"
        return "starting"


def kill_classifications(
    classifications: Classifications, kills: int, seed: int, max_kills: int = MAX_KILLS
) -> list[Outcome]:
    """Run classifications until `kills` processes were killed."""
    times = classifications.uninterrupted()
    draw = random.Random(seed)
    done: list[Outcome] = []
    while (hits := sum(len(outcome.hits) for outcome in done)) < kills:
        attempts = min(draw.randint(1, max_kills), kills - hits)
        done.append(classifications.kill_and_finish(attempts, times, draw))
    return done


def kill_workers(classifications: Classifications, kills: int, seed: int) -> list[Outcome]:
    """Run classifications on a cluster until `kills` workers were killed before the end."""
    classifications.uninterrupted()
    draw = random.Random(seed)
    done: list[Outcome] = []
    (classifications.folder / "cluster").mkdir()
    cluster = Cluster(classifications.folder / "cluster")
    try:
        for _ in range(2):
            cluster.add_worker()
        while sum(len(outcome.hits) for outcome in done) < kills:
            cluster.wait_for_workers()
            done.append(classifications.lose_a_worker(cluster, draw))
    finally:
        cluster.close()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--broken", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cluster", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dice = random.Random(options.seed)
        names = scatter(options.images, folder / "tree", options.files, options.broken, dice)
        classifications = Classifications(folder / "tree", options.model, names, options.broken, folder)
        kill = kill_workers if options.cluster else kill_classifications
        done = kill(classifications, options.kills, options.seed)
    hits = [hit for outcome in done for hit in outcome.hits]
    wrong = Counter(what for outcome in done for what in outcome.wrong)
    summary: dict[str, object] = {
        "kills": len(hits),
        "of": "a cluster's workers" if options.cluster else "the process",
        "classifications": len(done),
        "same table": sum(not outcome.wrong for outcome in done),
        "wrong": dict(wrong),
        "kills by phase": dict(Counter(hits).most_common()),
        "files": options.files,
        "of them broken": options.broken,
    }
    if not options.cluster:
        summary["classified again per kill, mean"] = round(sum(outcome.redone for outcome in done) / len(hits), 1)
        summary["classified again per kill, most"] = max(lost for outcome in done for lost in outcome.lost)
    print(json.dumps(summary))
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
