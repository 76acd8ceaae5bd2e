"""Trainings whose ranks are killed, and trainings on ranks that are killed or interrupted: the same SHA-256."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from jobs.training.ranks import engine, worker
from jobs.training.ranks.cluster import RankCluster, WorkerLostError
from jobs.training.ranks.generations import Generations
from pipeline.parallel.cluster import connect
from tests.jobs.conftest import Logpose
from tests.jobs.killing import Aim
from tests.jobs.training.ranks.kill_ranks import (
    RECIPE,
    Cluster,
    Trainings,
    digest,
    draw_dataset,
    lose_everything,
    lose_ranks,
    processes_left,
)
from tests.pipeline.parallel.test_cluster import wait_for


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(draw_dataset(tmp_path_factory.mktemp("colours"), 120))


@pytest.fixture(scope="module")
def expected(trainings: Trainings, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trainings.undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_ranks_that_are_killed_and_join_change_no_bit(trainings: Trainings, expected: str, tmp_path: Path) -> None:
    """A short version of `python -m tests.jobs.training.ranks.kill_ranks --kills 0`."""
    done = lose_ranks(trainings, count=2, seed=3, folder=tmp_path, expected=expected, events=4)
    assert sum(len(outcome.events) for outcome in done) > 2
    assert [outcome.wrong for outcome in done] == [[]] * len(done)


def test_killed_trainings_on_ranks_end_with_the_same_bits(
    trainings: Trainings, expected: str, tmp_path: Path
) -> None:
    """A short version of `python -m tests.jobs.training.ranks.kill_ranks --trainings 0`."""
    done = lose_everything(trainings, kills=1, seed=0, folder=tmp_path, expected=expected, max_kills=1)
    assert sum(len(outcome.events) for outcome in done) == 1
    assert [outcome.wrong for outcome in done] == [[]] * len(done)


@pytest.mark.parametrize("ranks", [1, 2])
def test_generations_may_end_and_requests_fail_at_any_step(
    logpose: Logpose, trainings: Trainings, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """As if workers joined, or were lost, all the time."""
    run_dir, changes, requests = tmp_path / "run", count(1), count(1)
    monkeypatch.setattr(engine, "NEWS_SECONDS", 0.0)  # so that there are many requests in a short training
    has_changed, ask = Generations.has_changed, RankCluster.ask
    monkeypatch.setattr(Generations, "has_changed", lambda self: has_changed(self) or next(changes) % 2 == 0)

    def fail(self: RankCluster, worker: str, *arguments: Any) -> Any:
        if next(requests) % 4 == 0 and ranks > 1:
            raise WorkerLostError(worker)
        return ask(self, worker, *arguments)

    monkeypatch.setattr(RankCluster, "ask", fail)
    often = ("--checkpoint-steps", 2)
    outcome = logpose("train", trainings.dataset, run_dir, *RECIPE, *often, "--ranks", ranks, "--threads", 1)
    assert (outcome.code, outcome.err) == (0, ""), outcome.err
    assert outcome.out.count(" from step ") > 2
    assert digest(run_dir) == expected


@pytest.mark.parametrize("whole_group", [True, False], ids=["as a terminal sends it", "the main process only"])
def test_ctrl_c_saves_and_leaves_no_process(
    trainings: Trainings, expected: str, tmp_path: Path, whole_group: bool
) -> None:
    run_dir = tmp_path / "run"
    run = trainings.start(run_dir, "--ranks", 2, "--threads", 1)
    run.wait_for("t", 4)
    send = os.killpg if whole_group else os.kill
    send(run.process.pid, signal.SIGINT)
    run.finish(code=130)
    assert processes_left(run.process.pid) == []
    assert "Traceback" not in run.output
    resume = f"logpose train {trainings.dataset} {run_dir} --resume --ranks 2"
    said = run.output.splitlines()[-1]
    assert said.startswith("interrupted: saved after ") and said.endswith(f" of epoch 1; resume with: {resume}")
    trainings.start(run_dir, "--threads", 2).finish()
    assert digest(run_dir) == expected


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path / "cluster")
    yield started
    started.close()


def test_workers_forget_a_training_that_was_killed(trainings: Trainings, scheduler: Cluster, tmp_path: Path) -> None:
    """Otherwise they would keep its memory, and a rank would wait for ever for one whose task never began."""
    scheduler.join()
    run = trainings.start(tmp_path / "run", "--scheduler", scheduler.address)
    run.wait_for("t")
    with closing(connect(scheduler.address)) as client:

        def ranks() -> list[int]:
            return list(client.run(lambda: len(worker._ranks)).values())

        assert ranks() == [1]
        assert run.kill(Aim("t", 0, 0))
        wait_for(lambda: ranks() == [0], "the end of the training")


def test_ctrl_c_while_waiting_for_workers(trainings: Trainings, scheduler: Cluster, tmp_path: Path) -> None:
    run = trainings.start(tmp_path / "run", "--scheduler", scheduler.address)
    run.wait_for("W")
    run.process.send_signal(signal.SIGINT)
    run.finish(code=130)
    assert run.output.splitlines()[-1] == "interrupted: run the same command again to resume"
    assert "Traceback" not in run.output
