"""Flip single bits and delete single files of a dataset, and see that `verify` finds each.

    python -m tests.pipeline.dataset.damage_dataset DATASET.zarr [--flips 1000] [--deletions 100] [--seed 0]

Works on a copy. Bits are flipped in stored chunks and in the indexes of shards, a tenth of them in indexes; each
must be found and named with its file and with rows that contain it. Any file may be deleted, metadata too. Ends with
one JSON object.
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

INDEX_SHARE = 0.1


def rows_at(part: Split, place: int, file: Path) -> tuple[int, int]:
    """The rows whose chunk, or whose shard's index, has the byte at this place of a shard without compression."""
    shard = int(file.relative_to(part.path).parts[3])
    start = shard * part.layout.shard_rows
    chunk_bytes = part.chunk_rows * part.size[0] * part.size[1] * 3 + 4  # with its checksum
    first = start + place // chunk_bytes * part.chunk_rows
    if first < min(start + part.layout.shard_rows, part.rows):
        return first, min(first + part.chunk_rows, part.rows)
    return start, min(start + part.layout.shard_rows, part.rows)


def flip_and_verify(dataset: Dataset, draw: random.Random) -> str:
    """Flip a bit of a shard, verify, flip it back. Returns '' or what went unnoticed."""
    part = draw.choices((dataset.train, dataset.val), (dataset.train.rows, dataset.val.rows))[0]
    file = draw.choice(sorted(file for file in (part.path / part.name / "images" / "c").rglob("*") if file.is_file()))
    size = file.stat().st_size
    index_bytes = 16 * (part.layout.shard_rows // part.chunk_rows) + 4
    place = size - 1 - draw.randrange(index_bytes) if draw.random() < INDEX_SHARE else draw.randrange(size)
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1 << draw.randrange(8)]))
        opened.flush()
        damage = verify_dataset(dataset.path).damage
        opened.seek(place)
        opened.write(bytes([byte]))
    start, stop = rows_at(part, place, file)
    named = {row for found in damage if found.file == file for row in range(*found.rows)}
    if named != set(range(start, stop)) or any(found.file != file for found in damage):
        return f"byte {place} of {file}: expected rows {start}..{stop - 1}, found {[str(found) for found in damage]}"
    return ""


def delete_and_verify(dataset: Dataset, draw: random.Random) -> str:
    """Delete a file, verify, put it back. Returns '' or what went unnoticed."""
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
    for unnoticed in filter(None, [*flips, *deletions]):
        print(unnoticed)
    summary = {
        "flips": len(flips), "flips found": flips.count(""),
        "deletions": len(deletions), "deletions found": deletions.count(""),
    }  # fmt: skip
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
