"""Kill builds at random moments, run them again, and check that nothing is lost.

    python -m tests.pipeline.build.kill_builds IMAGES [--kills 100] [--size 128] [--workers 2] [--seed 0]

Each build is killed with SIGKILL one to three times, at random moments between the listing of the folder and the end
of the process, and then run to the end. Each dataset must have the content hash of an uninterrupted build and no
temporary files. Per kill, at most one shard per worker may be decoded again, and the files that fill the rows of
unreadable ones: which these are may change once more. Prints a line per dataset and, at the end, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.build.reports import read_failures
from pipeline.dataset.store import Dataset

# A build in its own process that logs each file it decodes.
BUILD = """
import os, sys
from pathlib import Path
from pipeline.dataset import schema
from pipeline.build import shard_task
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions

root, dest, log, size, workers, chunk_bytes, shard_chunks = sys.argv[1:]
schema.CHUNK_BYTES, schema.SHARD_CHUNKS = int(chunk_bytes), int(shard_chunks)
log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
decode = shard_task.decode_image

def decode_and_log(path, *rest):
    os.write(log, b"x")
    return decode(path, *rest)

shard_task.decode_image = decode_and_log
print("begins", flush=True)
build_dataset(Path(root), Path(dest), BuildOptions((int(size),) * 2, workers=int(workers)))
"""


@dataclass(frozen=True)
class Kills:
    """Result of one dataset.

    hits    kills before the process had finished
    redone  files decoded more than once
    """

    hits: int
    redone: int
    content_hash: str
    leftovers: tuple[str, ...]


@dataclass(frozen=True)
class Builder:
    """Starts builds. With small `chunk_bytes` and `shard_chunks`, few images make many shards."""

    root: Path
    size: int
    workers: int
    chunk_bytes: int
    shard_chunks: int

    def start(self, dest: Path, log: Path) -> subprocess.Popen[bytes]:
        options = (self.size, self.workers, self.chunk_bytes, self.shard_chunks)
        command = [sys.executable, "-c", BUILD, self.root, dest, log, *map(str, options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # wait until everything is imported
        return process

    def finish(self, dest: Path, log: Path) -> float:
        """Build to the end; returns the seconds it took, without starting the process."""
        process = self.start(dest, log)
        began = time.monotonic()
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
        return time.monotonic() - began

    def kill_and_finish(self, folder: Path, attempts: int, seconds: float, draw: random.Random) -> Kills:
        """Build in `folder`, killing the first `attempts` runs within the `seconds` that a whole build takes."""
        dest, log = folder / "killed.zarr", folder / "log"
        hits = 0
        for _ in range(attempts):
            process = self.start(dest, log)
            time.sleep(draw.uniform(0, seconds))
            process.kill()
            process.communicate(timeout=600)
            hits += process.returncode != 0
        self.finish(dest, log)
        leftovers = [*dest.rglob(".*"), *dest.rglob("*.partial")]
        return Kills(
            hits,
            log.stat().st_size,
            Dataset.open(dest).content_hash,
            tuple(path.relative_to(dest).as_posix() for path in leftovers),
        )


def kill_builds(builder: Builder, kills: int, seed: int, folder: Path) -> tuple[list[Kills], int, int]:
    """Build datasets until `kills` processes were killed.

    Returns them, the number of files that an uninterrupted build decodes, and the maximum rows of a shard. Fails if a
    dataset differs from that of an uninterrupted build.
    """
    uninterrupted, log = folder / "uninterrupted.zarr", folder / "log"
    builder.finish(uninterrupted, log)
    expected, decodes = Dataset.open(uninterrupted), log.stat().st_size
    refilled = decodes - len(expected) - len(read_failures(uninterrupted))  # rows of unreadable files
    seconds = builder.finish(folder / "again.zarr", folder / "another log")  # now the kernels are compiled
    assert Dataset.open(folder / "again.zarr").content_hash == expected.content_hash
    draw = random.Random(seed)
    rows = max(expected.train.layout.shard_rows, expected.val.layout.shard_rows)
    done: list[Kills] = []
    while (hits := sum(kill.hits for kill in done)) < kills:
        own = folder / str(len(done))
        own.mkdir()
        outcome = builder.kill_and_finish(own, min(draw.randint(1, 3), kills - hits), seconds, draw)
        shutil.rmtree(own)
        redone = outcome.redone - decodes
        done.append(Kills(outcome.hits, redone, outcome.content_hash, outcome.leftovers))
        print(f"{outcome.hits} kills: {redone} of {decodes} files decoded again", flush=True)
        assert outcome.content_hash == expected.content_hash, "the content differs"
        assert not outcome.leftovers, f"left behind: {outcome.leftovers}"
        assert redone <= outcome.hits * (builder.workers * rows + refilled), f"{redone} files decoded again"
    return done, decodes, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    builder = Builder(options.images, options.size, options.workers, 2**20, 4)
    with tempfile.TemporaryDirectory() as folder:
        done, decodes, rows = kill_builds(builder, options.kills, options.seed, Path(folder))
    kills = sum(kill.hits for kill in done)
    redone = sum(kill.redone for kill in done)
    summary = {
        "kills": kills,
        "datasets": len(done),
        "same content": len(done),
        "files": decodes,
        "rows of a shard": rows,
        "workers": options.workers,
        "decoded again per kill, mean": round(redone / kills, 1),
        "decoded again per kill, maximum": max(round(kill.redone / kill.hits, 1) for kill in done if kill.hits),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
