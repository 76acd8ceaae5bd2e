"""Kill builds at random moments, run them again, and see that nothing is lost.

    python -m tests.pipeline.build.kill_builds IMAGES [--kills 100] [--size 128] [--workers 2] [--seed 0]

Each dataset's build is killed with SIGKILL once to three times, at any moment from the listing of the folder to the
end of the process, and run again until it ends. Every dataset must have the content hash of an undisturbed one and no
leftovers, and what is decoded more than once must be less than one shard per worker and kill. Prints a line a dataset
and ends with one JSON object.
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

from pipeline.dataset.store import Dataset

# A build in a process of its own, as `logpose build` runs it, that notes each file it decodes.
BUILD = """
import os, sys
from pathlib import Path
from pipeline.dataset import schema
from pipeline.build import shard_task as shards
from pipeline.build.build import BuildOptions, build_dataset

root, dest, log, size, workers, chunk_bytes, shard_chunks = sys.argv[1:]
schema.CHUNK_BYTES, schema.SHARD_CHUNKS = int(chunk_bytes), int(shard_chunks)
note = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
decode = shards.decode_image

def decode_and_note(path, *rest):
    os.write(note, b"x")
    return decode(path, *rest)

shards.decode_image = decode_and_note
print("begins", flush=True)
build_dataset(Path(root), Path(dest), BuildOptions((int(size),) * 2, workers=int(workers)))
"""


@dataclass(frozen=True)
class Kills:
    """What happened to one dataset: kills that hit, files decoded beyond those of an undisturbed build."""

    hits: int
    redone: int
    content_hash: str
    leftovers: tuple[str, ...]


@dataclass(frozen=True)
class Builder:
    """How to build: CHUNK_BYTES and SHARD_CHUNKS of the schema as given, so that few images make many shards."""

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
        process.stdout.readline()  # until all is imported
        return process

    def finish(self, dest: Path, log: Path) -> float:
        """Build to the end; returns the seconds it took, the start of the process not included."""
        process = self.start(dest, log)
        began = time.monotonic()
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
        return time.monotonic() - began

    def kill_and_finish(self, folder: Path, attempts: int, seconds: float, draw: random.Random) -> Kills:
        """Build in `folder`, killing the first `attempts` runs within the `seconds` that a whole one takes."""
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
    """Datasets until so many kills have hit; files that an undisturbed build decodes; the most rows of a shard.

    Fails where a dataset is not the one that an undisturbed build makes.
    """
    undisturbed, log = folder / "undisturbed.zarr", folder / "log"
    builder.finish(undisturbed, log)
    expected, decodes = Dataset.open(undisturbed), log.stat().st_size
    seconds = builder.finish(folder / "again.zarr", folder / "another log")  # with kernels compiled
    assert Dataset.open(folder / "again.zarr").content_hash == expected.content_hash
    draw = random.Random(seed)
    rows = max(expected.train.layout.shard_rows, expected.val.layout.shard_rows)
    done: list[Kills] = []
    while (hits := sum(kill.hits for kill in done)) < kills:
        place = folder / str(len(done))
        place.mkdir()
        outcome = builder.kill_and_finish(place, min(draw.randint(1, 3), kills - hits), seconds, draw)
        shutil.rmtree(place)
        redone = outcome.redone - decodes
        done.append(Kills(outcome.hits, redone, outcome.content_hash, outcome.leftovers))
        print(f"{outcome.hits} kills: {redone} of {decodes} files decoded again", flush=True)
        assert outcome.content_hash == expected.content_hash, "the content is another one"
        assert not outcome.leftovers, f"left behind: {outcome.leftovers}"
        assert redone <= outcome.hits * builder.workers * rows, f"{redone} files decoded again, more than a shard each"
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
        "decoded again per kill, most": max(round(kill.redone / kill.hits, 1) for kill in done if kill.hits),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
