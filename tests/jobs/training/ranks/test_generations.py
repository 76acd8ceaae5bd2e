"""Workers that join, are lost, cannot be ranks, or compute other bits, on a cluster in this process."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import get_worker

from jobs.training.loop import Training
from jobs.training.ranks import rank as rank_module
from jobs.training.ranks.cluster import RankCluster
from jobs.training.ranks.generations import Generations
from jobs.training.ranks.messages import Span, SpanReport
from jobs.training.ranks.rank import Rank
from pipeline.dataset.store import Dataset
from tests.jobs.conftest import Logpose, Outcome
from tests.jobs.training.ranks.conftest import DIVIDED
from tests.jobs.training.ranks.digests import digest

HELD_AT = 5  # the step of the first epoch before which ranks wait for a change


def addresses(cluster: Any) -> list[str]:
    return sorted(worker.address for worker in cluster.workers.values())


def words(outcome: Outcome) -> str:
    return " ".join(outcome.out.split())


def ranks_of(run_dir: Path, epoch: int) -> list[str]:
    with (run_dir / "ranks.csv").open(newline="") as file:
        return [row["rank"] for row in csv.DictReader(file) if row["epoch"] == str(epoch)]


# Changes of the ranks -----------------------------------------------------------------------------------


@pytest.fixture
def changed() -> threading.Event:
    """Whether the first generation has ended: until then, ranks wait before HELD_AT."""
    return threading.Event()


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch, changed: threading.Event) -> set[str]:
    """Addresses that seem to be gone."""
    gone = set[str]()
    workers, serve, close = RankCluster.workers, Rank._serve, Generations.close

    def visible(self: RankCluster, fresh: bool = False) -> dict[str, int]:
        return {address: threads for address, threads in workers(self, fresh).items() if address not in gone}

    def held(self: Rank) -> None:
        limit = time.monotonic() + 60
        while self._trainer.step == HELD_AT and not changed.is_set() and time.monotonic() < limit:
            if self._mailbox.is_over:
                changed.set()
            serve(self)
            time.sleep(0.002)
        serve(self)

    def close_all(self: Generations) -> None:
        gone.clear()
        close(self)

    monkeypatch.setattr(RankCluster, "workers", visible)
    monkeypatch.setattr(Rank, "_serve", held)
    monkeypatch.setattr(Generations, "close", close_all)
    return gone


def after_step(number: int, patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do this when the result of a step is there."""
    count = Training._count

    def counted(self: Training, *arguments: Any) -> None:
        count(self, *arguments)
        if self.state.step == number:
            action()

    patch.setattr(Training, "_count", counted)


def test_worker_that_appears_joins_at_a_step(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any,
    hidden: set[str],
) -> None:
    monkeypatch.setattr("jobs.training.ranks.generations.FIRST_SECONDS", 0.0)
    hidden.add(addresses(in_process)[1])
    after_step(2, monkeypatch, hidden.clear)
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--ranks", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"3 ranks from step {HELD_AT + 1} on" in outcome.out
    assert digest(tmp_path / "run") == digest(alone)
    assert ranks_of(tmp_path / "run", 2) == ["0", "1", "2"]


@pytest.mark.parametrize("lost", [0, 2])
def test_others_go_on_without_a_lost_worker(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any,
    hidden: set[str], lost: int,
) -> None:
    after_step(3, monkeypatch, lambda: hidden.add(addresses(in_process)[lost]))
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--ranks", 3)
    assert (outcome.code, outcome.err) == (0, "") and "2 ranks from step" in outcome.out
    assert "note" not in outcome.out and "all ranks were lost" not in outcome.out
    assert digest(tmp_path / "run") == digest(alone)
    assert ranks_of(tmp_path / "run", 2) == ["0", "1"]


def test_training_goes_back_to_the_checkpoint_where_all_ranks_are_lost(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any,
    hidden: set[str], changed: threading.Event,
) -> None:
    def lose() -> None:
        if not changed.is_set():
            hidden.update(addresses(in_process)[:2])
            changed.set()

    after_step(4, monkeypatch, lose)
    options = ("--ranks", 2, "--checkpoint-steps", 3)
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search("all ranks were lost; going on from the checkpoint after [0-5] steps? of epoch 1", words(outcome))
    assert digest(tmp_path / "run") == digest(alone)


# Other bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.usefixtures("in_process")
def test_rank_with_other_bits_is_reported(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """One bit of one weight. What was saved before is sound."""
    train, run_dir = Rank.train, tmp_path / "run"

    def flipped(self: Rank, span: Span) -> SpanReport:
        if span.rank == 1 and span.epoch == epoch:
            self._trainer.network.parameters.flat.view(np.uint32)[0] ^= 1
        return train(self, span)

    with monkeypatch.context() as patch:
        patch.setattr(Rank, "train", flipped)
        outcome = logpose("train", dataset, run_dir, *DIVIDED, "--ranks", 2)
    assert outcome.code == 1
    assert f"expected the same weights on all ranks after epoch {epoch}, found " in outcome.error
    assert "check the memory of these machines" in outcome.error and "with --resume" in outcome.error
    outcome = logpose("train", dataset, run_dir, "--resume", "--ranks", 2, "--device", "cpu", "--threads", 1)
    assert outcome.code == 0
    assert digest(run_dir) == digest(alone)


# Workers that cannot be ranks ---------------------------------------------------------------------------


@pytest.fixture(params=["other dataset", "no dataset", "other device"])
def unfit(request: pytest.FixtureRequest, image_folder: Path, tmp_path: Path, logpose: Logpose) -> tuple[str, Any, str]:
    """An attribute of rank.py, what it is on unfit workers, and the message."""
    if request.param == "other device":
        message = "expected the same device on all ranks, cpu, "
        return "device_text", lambda backend: "cpu, abacus", message

    path = tmp_path / "other.zarr"
    if request.param == "other dataset":
        assert logpose("build", image_folder, path, "--size", 16, "--seed", 9).code == 0

    class Elsewhere:
        @staticmethod
        def open(_: Path) -> Dataset:
            return Dataset.open(path)

    message = "expected the same dataset on all machines, found another one at"
    if request.param == "no dataset":
        message = f"expected a dataset built by logpose, found nothing at {path}"
    return "Dataset", Elsewhere, message


def make_unfit(unfit: tuple[str, Any, str], workers: list[str], patch: pytest.MonkeyPatch) -> None:
    name, other, _ = unfit
    fit = getattr(rank_module, name)

    class OnWorkers:
        """The attribute, which is another one on some workers."""

        def __getattr__(self, name: str) -> Any:
            return getattr(self.own(), name)

        def __call__(self, *arguments: Any) -> Any:
            return self.own()(*arguments)

        def own(self) -> Any:
            return other if get_worker().address in workers else fit

    patch.setattr(rank_module, name, OnWorkers())


def test_unfit_worker_is_left_out_with_a_note(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any,
    unfit: tuple[str, Any, str],
) -> None:
    member = addresses(in_process)[1]
    make_unfit(unfit, [member], monkeypatch)
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--ranks", 3)
    assert (outcome.code, outcome.err) == (0, "")
    (note,) = [line for line in outcome.out.splitlines() if "note" in line]
    assert note.startswith(f"note: the worker {member} is left out: {unfit[2]}"), note
    assert digest(tmp_path / "run") == digest(alone)
    assert ranks_of(tmp_path / "run", 1) == ["0", "1"]


@pytest.mark.parametrize("unfit", ["other dataset", "no dataset"], indirect=True)
def test_only_unfit_workers_are_an_error(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any,
    unfit: tuple[str, Any, str],
) -> None:
    make_unfit(unfit, addresses(in_process), monkeypatch)
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--ranks", 3)
    assert outcome.code == 2 and unfit[2] in outcome.error
    assert not (tmp_path / "run").exists()


def test_worker_without_logpose_is_left_out(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, dask_cluster: Any
) -> None:
    """A process in which the package `jobs` cannot be imported."""
    (tmp_path / "without.py").write_text('import sys\nsys.modules["jobs"] = None\n')
    options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", "without", "--preload", "without.py")
    command = [sys.executable, "-m", "dask", "worker", dask_cluster.scheduler_address, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        limit = time.monotonic() + 60
        while len(dask_cluster.scheduler.workers) < 4:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--scheduler", dask_cluster.scheduler_address)
    finally:
        process.kill()
        process.wait(60)
    assert (outcome.code, outcome.err) == (0, "")
    (note,) = [line for line in outcome.out.splitlines() if "note" in line]
    assert "is left out: expected logpose, the same version as here, on all workers, found: " in note
    assert digest(tmp_path / "run") == digest(alone)
    assert ranks_of(tmp_path / "run", 2) == ["0", "1", "2"]
