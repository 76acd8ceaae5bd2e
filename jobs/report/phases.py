"""Training time by phase."""

from collections.abc import Sequence
from typing import NamedTuple

from jobs.training.metrics import EpochRow
from jobs.training.timing import bottleneck, phase_seconds

# The phases of an epoch, and their names in the report; see timing.EpochTimes.
PHASES = {
    "compute": "training steps",
    "wait": "waiting for data",
    "exchange": "exchanging sums between ranks",
    "validation": "validation",
    "save": "saving",
    "other": "other",
}


class PhaseTime(NamedTuple):
    """The time of a phase, and its fraction of the whole. `kind` is a key of PHASES."""

    kind: str
    name: str
    seconds: float
    fraction: float


def phase_times(history: Sequence[EpochRow]) -> list[PhaseTime]:
    """The phases that took any time."""
    phases = phase_seconds(history)
    total = sum(phases.values()) or 1.0
    names = dict(PHASES)
    if not phases["compute"]:
        names["other"] = "other (this older training did not record phases)"
    return [PhaseTime(kind, names[kind], seconds, seconds / total) for kind, seconds in phases.items() if seconds > 0.0]


def data_bottleneck(history: Sequence[EpochRow]) -> str:
    """A sentence on how to load the data faster, if training waited for it; else empty."""
    slowest = bottleneck(history)
    if slowest is None:
        return ""
    text = f"Data loading was the bottleneck: {slowest.activity} took most of the reader threads' time"
    return f"{text}; {slowest.remedy}."
