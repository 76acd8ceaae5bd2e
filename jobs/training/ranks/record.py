"""ranks.csv: what each rank did in each epoch of a training, and where its time went."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from jobs.errors import JobError
from logpose.common.files import open_text, write_atomically


@dataclass
class RankTimes:
    """What a rank did in an epoch, and where its time went. Names are columns of ranks.csv."""

    images: int = 0
    micro_batches: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    wait_seconds: float = 0.0  # for images
    exchange_seconds: float = 0.0  # for the sums of the other ranks, until the last one has them
    wire_seconds: float = 0.0  # of those, without waiting for ranks that still compute
    sent_megabytes: float = 0.0
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    copy_seconds: float = 0.0

    def add(self, other: "RankTimes") -> None:
        """Add those of another part of the epoch."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class RankRow(NamedTuple):
    """A row: rank `rank`, on a worker of a host, in an epoch."""

    epoch: int
    rank: int
    worker: str
    host: str
    device: str
    times: RankTimes

    def to_dict(self) -> dict[str, Any]:
        """Return the columns by name."""
        return {name: getattr(self, name) for name in self._fields[:-1]} | {
            name: round(value, 3) for name, value in asdict(self.times).items()
        }


COLUMNS = (*RankRow._fields[:-1], *(each.name for each in fields(RankTimes)))


def write_ranks(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ranks.csv. Raises OSError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def read_ranks(path: Path) -> list[RankRow]:
    """Read ranks.csv; no rows if there is none. Raises JobError where it is damaged."""
    try:
        with open_text(path) as file:
            return [_row(values) for values in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise JobError(f"expected what ranks did in {path}, found something else ({error}); remove it") from None


def _row(values: dict[str, str]) -> RankRow:
    times = RankTimes(int(values["images"]), int(values["micro_batches"]))
    for each in fields(RankTimes)[2:]:
        setattr(times, each.name, float(values[each.name]))
    place = values["worker"], values["host"], values["device"]
    return RankRow(int(values["epoch"]), int(values["rank"]), *place, times)
