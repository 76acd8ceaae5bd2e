"""Check a dataset: read all of it, and name each damage."""

from pathlib import Path

from jobs.progress import bar, plural
from pipeline.verify import verify_dataset


def verify(dataset: Path) -> int:
    """Read every chunk of `dataset`; returns 1 if one of them is damaged."""
    with bar("verifying", "chunks", 0, ends=False) as progress:
        report = verify_dataset(dataset, lambda done, total: progress.update(done, total=total))
    for damage in report.damage:
        first, stop = damage.rows
        where = f"{damage.part}/{damage.array} chunk {damage.chunk}, rows {first}..{stop - 1}"
        print(f"damaged: {where}: {damage.reason}")
    rows = f"{report.rows['train']:,} + {report.rows['val']:,} pictures in {plural(report.chunks, 'chunk')}"
    if report.ok:
        print(f"{dataset} is whole: {rows}")
        return 0
    if not report.damage:
        print("damaged: every chunk can be read, but the content is not what was built")
    found = plural(len(report.damage) or 1, "damage")
    print(f"{dataset}: {found} in {rows}; build it again with --overwrite, or restore it from a copy")
    return 1
