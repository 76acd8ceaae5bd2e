"""Flip single bits and delete single files of a dataset, and check that `verify` finds each.

    python -m tests.pipeline.dataset.damage_dataset DATASET.zarr [--flips 1000] [--deletions 100] [--seed 0]

Works on a copy. A tenth of the flipped bits are in the indexes of shards, the others in chunks; `verify` must report
the file and the rows of each. Deleted files may be metadata too. Ends with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from pipeline.dataset.store import Dataset, Split
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import DatasetError

INDEX_FRACTION = 0.1


def rows_at(split: Split, position: int, file: Path) -> tuple[int, int]:
    """(start, stop) of the rows affected by the byte at a position of an uncompressed shard: of a chunk, or of all."""
    shard = int(file.relative_to(split.path).parts[3])
    start = shard * split.layout.shard_rows
    chunk_bytes = split.chunk_rows * split.size[0] * split.size[1] * 3 + 4  # with its checksum
    first = start + position // chunk_bytes * split.chunk_rows
    if first < min(start + split.layout.shard_rows, split.rows):
        return first, min(first + split.chunk_rows, split.rows)
    return start, min(start + split.layout.shard_rows, split.rows)


def flip_and_verify(dataset: Dataset, draw: random.Random) -> str:
    """Flip a bit of a shard, verify, flip it back. Returns '', or what `verify` missed."""
    split = draw.choices((dataset.train, dataset.val), (dataset.train.rows, dataset.val.rows))[0]
    file = draw.choice(sorted(file for file in (split.path / split.name / "images" / "c").rglob("*") if file.is_file()))
    size = file.stat().st_size
    index_bytes = 16 * (split.layout.shard_rows // split.chunk_rows) + 4
    position = size - 1 - draw.randrange(index_bytes) if draw.random() < INDEX_FRACTION else draw.randrange(size)
    with file.open("r+b") as opened:
        opened.seek(position)
        byte = opened.read(1)[0]
        opened.seek(position)
        opened.write(bytes([byte ^ 1 << draw.randrange(8)]))
        opened.flush()
        damage = verify_dataset(dataset.path).damage
        opened.seek(position)
        opened.write(bytes([byte]))
    start, stop = rows_at(split, position, file)
    named = {row for found in damage if found.file == file for row in range(*found.rows)}
    if named != set(range(start, stop)) or any(found.file != file for found in damage):
        return f"byte {position} of {file}: expected rows {start}..{stop - 1}, found {[str(found) for found in damage]}"
    return ""


def delete_and_verify(dataset: Dataset, draw: random.Random) -> str:
    """Delete a file, verify, restore it. Returns '', or what `verify` missed."""
    file = draw.choice(sorted(file for file in dataset.path.rglob("*") if file.is_file()))
    hidden = dataset.path.with_name("hidden")
    file.rename(hidden)
    try:
        report = verify_dataset(dataset.path)
        noticed = file in report.missing or any(found.file == file for found in report.damage)
    except DatasetError:
        noticed = True
    hidden.rename(file)
    return "" if noticed else f"{file} was missing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--deletions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.open(Path(shutil.copytree(options.dataset, Path(folder) / "copy.zarr")))
        assert verify_dataset(dataset.path).ok
        flips = [flip_and_verify(dataset, draw) for _ in range(options.flips)]
        deletions = [delete_and_verify(dataset, draw) for _ in range(options.deletions)]
        assert verify_dataset(dataset.path).ok
    for missed in filter(None, [*flips, *deletions]):
        print(missed)
    summary = {
        "flips": len(flips), "flips found": flips.count(""),
        "deletions": len(deletions), "deletions found": deletions.count(""),
    }  # fmt: skip
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
