"""What the engine and the ranks of a training send each other."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cnn.checkpoint import ModelCard
from cnn.training.recipe import Recipe
from jobs.training.engine import StepResult, Tensors
from jobs.training.ranks.record import RankTimes
from logpose.common.errors import LogposeError


class RankMissingError(Exception):
    """A worker has no rank of this training, or one without the expected state: it has been started again."""


@dataclass(frozen=True)
class RankSettings:
    """What all ranks of a training share. All paths must lead to the same files on all machines.

    training       name of the training on this cluster
    content_hash   of the dataset
    last           checkpoint to begin with, where `Preparation.begins` says so
    init           model to start from, if any
    ranks_a_host   number of ranks that share a machine's CPUs and `ram_budget`, where the engine started them; else 1
    """

    training: str
    dataset: Path
    content_hash: str
    recipe: Recipe
    card: ModelCard
    last: Path
    init: Path | None
    device: str
    precision: str
    threads: int | None
    workers: int | None
    ram_budget: int
    cache: str
    ranks_a_host: int


@dataclass(frozen=True)
class Generation:
    """The ranks that train together, from one change among them to the next.

    number   counts up
    members  addresses of the workers, by rank
    lanes    the micro-batches of every batch that each rank computes
    """

    number: int
    members: tuple[str, ...]
    lanes: tuple[range, ...]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.members)


def divide(lanes: int, ranks: int) -> tuple[range, ...]:
    """Divide the micro-batches of a batch among ranks: runs whose lengths differ by at most one."""
    return tuple(range(rank * lanes // ranks, (rank + 1) * lanes // ranks) for rank in range(ranks))


@dataclass(frozen=True)
class Preparation:
    """Have a rank hold the state of `step`.

    source  the rank that has it; None: each rank has it
    begins  what the source begins with: 'weights' that are initialised, the 'checkpoint', or '': the state that it has
    """

    generation: Generation
    rank: int
    step: int
    source: int | None
    begins: str


class Prepared(NamedTuple):
    """A rank that is ready.

    device       what its results depend on: see `device_text`
    description  the device, for the user
    lines        what it has to say of how it began, for the user
    """

    device: str
    description: str
    host: str
    lines: list[str]


class Span(NamedTuple):
    """Steps start, start + 1, … of an epoch, to be computed by rank `rank` of a generation."""

    generation: Generation
    rank: int
    epoch: int
    start: int


@dataclass
class SpanReport:
    """How far a rank came.

    step      number of updates that its state has
    digest    of its state, at the end of the epoch
    finished  whether the epoch is done; otherwise the generation ended before, or there was an error
    error     what went wrong here, rather than elsewhere
    """

    step: int = 0
    digest: str = ""
    finished: bool = False
    error: LogposeError | None = None
    times: RankTimes = field(default_factory=RankTimes)


class RankState(NamedTuple):
    """The state after `step` updates, and the results of those asked for.

    tensors  see `Trainer.tensors`
    best     of the network that is evaluated and saved
    """

    step: int
    results: list[StepResult]
    tensors: Tensors
    best: Tensors


class Share(NamedTuple):
    """Batches first, …, last - 1 of the validation split, for the model in a file, or for the rank's own network."""

    first: int
    last: int
    model: Path | None
    views: str
