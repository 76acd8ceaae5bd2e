"""Workers that are lost while others are ahead of them or behind: which state training continues with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import RanksLostError
from jobs.training.ranks import worker
from jobs.training.ranks.cluster import WorkerLostError
from jobs.training.ranks.engine import RankEngine
from jobs.training.ranks.generations import Generations
from jobs.training.ranks.messages import Prepared, RankState, Span, SpanReport
from jobs.training.timing import EpochClock, EpochTimes
from pipeline.loader.micro_batches import MicroBatches


class FakeTask:
    """A task that has ended."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self.has_failed = isinstance(outcome, Exception)

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        if self.has_failed:
            raise self._outcome
        return self._outcome


class FakeCluster:
    """Workers that answer at once.

    alive      their addresses
    prepared   what a preparation gives, by address
    state      the state that each has, by address
    submitted  all tasks: address, function, last argument
    """

    name = "fake"

    def __init__(self, *alive: str) -> None:
        self.alive = list(alive)
        self.prepared: dict[str, Any] = {}
        self.state: dict[str, RankState] = {}
        self.submitted: list[tuple[str, Callable[..., Any], Any]] = []

    def workers(self, fresh: bool = False) -> dict[str, int]:
        return dict.fromkeys(self.alive, 1)

    def without_package(self, workers: list[str], module: str) -> dict[str, Exception]:
        return {}

    def tell(self, workers: list[str], function: Callable[..., Any], *arguments: Any) -> None:
        pass

    def submit(self, key: str, address: str, function: Callable[..., Any], *arguments: Any) -> FakeTask:
        self.submitted.append((address, function, arguments[-1]))
        if function is worker.prepare_rank:
            return FakeTask(self.prepared.get(address, Prepared("cpu", "cpu", address, [])))
        if function is worker.train_steps:
            span = arguments[-1]
            self.state[address] = RankState(span.start + 1, [], {}, {})
            return FakeTask(SpanReport(step=span.start + 1))
        return FakeTask(None)

    def ask(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        assert function is worker.state
        return self.state[address]


def generations_of(cluster: FakeCluster, last: Path) -> Generations:
    settings: Any = SimpleNamespace(training="t", last=last)
    fake: Any = cluster
    return Generations(fake, settings, lanes=6, most=None, begins="weights")


def test_rank_that_took_the_state_in_a_preparation_that_failed_has_it(tmp_path: Path) -> None:
    """Otherwise it would train from the step that it had before."""
    cluster = FakeCluster("a", "b", "c")
    generations = generations_of(cluster, tmp_path / "last.safetensors")
    assert generations.form() == 0
    generations.end()
    generations.held = {"a": 5, "b": 4, "c": 4}
    cluster.prepared["c"] = WorkerLostError("c")
    prepare = cluster.submit

    def submit(key: str, address: str, function: Callable[..., Any], *arguments: Any) -> FakeTask:
        if function is worker.prepare_rank and address == "c":
            cluster.alive = ["b"]  # both others are lost, once b has the state
        return prepare(key, address, function, *arguments)

    cluster.submit = submit  # type: ignore[method-assign]
    assert generations.form() == 5
    assert generations.members == ("b",)


def test_steps_of_a_lost_rank_that_was_ahead_are_computed_again(tmp_path: Path) -> None:
    cluster = FakeCluster("a", "b")
    generations = generations_of(cluster, tmp_path / "last.safetensors")
    trainer: Any = SimpleNamespace(recipe=None)
    val: Any = None
    engine = RankEngine(generations, trainer, MicroBatches(240, 24, 4), val, EpochClock(EpochTimes()))
    engine._epoch = 1
    generations.form()
    generations.step, generations.held = 5, {"a": 5, "b": 4}
    cluster.alive = ["b"]
    cluster.state["b"] = RankState(4, [], {}, {})
    generations.end()
    assert engine.snapshot().tensors == {}
    assert cluster.state["b"].step == 5
    trained = [argument for _, function, argument in cluster.submitted if function is worker.train_steps]
    assert trained == [Span(generations.current, 0, 1, 4)]


def test_lost_training_begins_with_the_weights_before_the_first_checkpoint(tmp_path: Path) -> None:
    cluster = FakeCluster("a")
    generations = generations_of(cluster, tmp_path / "last.safetensors")
    generations.form()
    cluster.alive = ["b"]
    generations.end()
    with pytest.raises(RanksLostError):
        generations.form()
    assert generations.begins_anew and generations.step == 0
    assert generations.form() == 0
    begins = [task.begins for _, function, task in cluster.submitted if function is worker.prepare_rank]
    assert begins == ["weights", "weights"]
