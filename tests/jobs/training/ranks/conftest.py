"""A Dask cluster in this process, so that tests can change what a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.training.ranks import mailbox, worker
from jobs.training.ranks.cluster import RankCluster
from tests.jobs.conftest import RECIPE
from tests.pipeline.conftest import failing_after

# Six steps an epoch, of four micro-batches each.
DIVIDED = (*RECIPE, "--set", "train.micro_batch=2", "--epochs", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    with failing_after():
        yield


@pytest.fixture(scope="session")
def dask_cluster() -> Iterator[Any]:
    """A scheduler and three workers, in threads of this process, which exchange bytes as processes do."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=3, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0", silence_logs=50
    ) as started:
        yield started


@pytest.fixture
def in_process(dask_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let --ranks use `dask_cluster`. Asserts that its workers have forgotten the trainings afterwards."""
    from distributed import Client

    @contextmanager
    def local_cluster(ranks: int, threads: int | None, gpus: int) -> Iterator[RankCluster]:
        with Client(dask_cluster, set_as_default=False) as client:
            yield RankCluster(client, "this machine")

    monkeypatch.setattr("jobs.training.ranks.start.local_cluster", local_cluster)
    yield dask_cluster
    assert not worker._ranks and not mailbox._mailboxes


@pytest.fixture(scope="session")
def alone(dataset: Path) -> Path:
    """The run folder of a training without ranks, as `DIVIDED`."""
    run_dir = dataset.parent / "alone"
    assert main(["train", str(dataset), str(run_dir), *DIVIDED]) == 0
    return run_dir

