"""Where a training's time went, epochs together."""

from collections.abc import Sequence
from typing import NamedTuple

from jobs.training.metrics import EpochRow
from jobs.training.timing import bottleneck

# The parts of an epoch, and what a person calls them; see timing.EpochTimes.
PARTS = {
    "compute": "computing",
    "wait": "waiting for data",
    "validation": "validating",
    "save": "saving",
    "other": "other",
}


class Part(NamedTuple):
    """One part of the time. `kind` is a key of PARTS."""

    kind: str
    name: str
    seconds: float
    share: float


def parts_of(rows: Sequence[EpochRow]) -> dict[str, float]:
    """Seconds of each of PARTS, all epochs together. In an older training, which did not tell, most is `other`."""
    parts = {
        "compute": sum(row.compute_seconds for row in rows),
        "wait": sum(row.wait_seconds for row in rows),
        "validation": sum(row.validation_seconds for row in rows),
        "save": sum(row.save_seconds for row in rows),
    }
    parts["other"] = max(0.0, sum(row.seconds for row in rows) - sum(parts.values()))
    return parts


def shares(rows: Sequence[EpochRow]) -> list[Part]:
    """The parts that there were."""
    parts = parts_of(rows)
    total = sum(parts.values()) or 1.0
    names = dict(PARTS)
    if not parts["compute"]:
        names["other"] = "all else, which this older training did not tell apart"
    return [Part(kind, names[kind], seconds, seconds / total) for kind, seconds in parts.items() if seconds > 0.0]


def remedy(rows: Sequence[EpochRow]) -> str:
    """What would help, if the training has waited for its data; else empty."""
    found = bottleneck(rows)
    if found is None:
        return ""
    return f"Data was the bottleneck: {found.activity} took most of the readers' time; {found.remedy}."
