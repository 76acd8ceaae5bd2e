"""Builds, and results in order, on a Dask cluster: a scheduler and two workers, each a process on this machine."""

from __future__ import annotations

import json
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from logging.handlers import QueueHandler
from pathlib import Path

import pytest

from pipeline.build import scheduler
from pipeline.build.build import BuildReport
from pipeline.build.journal import FOLDER
from pipeline.dataset.store import Dataset
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import BuildError, OptionError
from pipeline.parallel import cluster as cluster_module
from pipeline.parallel.ordered import AHEAD_PER_THREAD, in_order_on_cluster
from tests.pipeline.conftest import failing_after

Images = Callable[..., Path]
Build = Callable[..., BuildReport]

# Loaded into each worker: makes the cluster slow enough to kill a worker in time.
SLOW = """
import time
from pipeline.build import shard_task

def slowed(decode):
    return lambda *arguments: time.sleep(0.02) or decode(*arguments)

shard_task.decode_image = slowed(shard_task.decode_image)
"""


class Cluster:
    """A scheduler and its workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        wait_for(self._file.exists, "the scheduler")
        wait_for(lambda: bool(self._file.read_text()), "the scheduler's address")
        self.address: str = json.loads(self._file.read_text())["address"]

    def add_worker(self, preload: str = SLOW, environment: Mapping[str, str] | None = None) -> None:
        """Start a worker that first runs the code `preload`; None: in the environment of this process."""
        file = self._folder / f"preload{len(self.workers)}.py"
        file.write_text(preload)
        options = ("--nthreads", "1", "--no-nanny", "--preload", str(file), "--local-directory", str(self._folder))
        self.workers.append(self._start("worker", *options, environment=environment))

    def wait_for_workers(self) -> None:
        client = cluster_module.connect(self.address)
        wait_for(lambda: len(client.nthreads()) == len(self.workers), "the workers")
        client.close()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.communicate(timeout=60)

    def _start(
        self, what: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "dask", what, "--scheduler-file", str(self._file), "--no-dashboard", *options)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not appear within 60 s"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    with failing_after():
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two workers, which must survive the tests."""
    started = Cluster(tmp_path_factory.mktemp("pair"))
    started.add_worker()
    started.add_worker()
    started.wait_for_workers()
    yield started
    assert all(worker.poll() is None for worker in started.workers)
    started.close()


@pytest.mark.usefixtures("small_chunks")
def test_build_survives_the_loss_of_a_worker(
    cluster: Cluster, image_folder: Images, build: Build, tmp_path: Path
) -> None:
    root, dest = image_folder(a=60, b=60), tmp_path / "cluster.zarr"
    (root / "a" / "0003.png").write_bytes(b"")
    here = build(root, tmp_path / "here.zarr")
    cluster.add_worker()
    cluster.add_worker()

    def kill_one() -> None:
        wait_for(lambda: len(list(dest.glob(f"{FOLDER}/*-*.json"))) >= 3, "the first shards")
        cluster.workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = build(root, dest, scheduler=cluster.address)
    killer.join()
    assert cluster.workers[0].wait(timeout=60) == -signal.SIGKILL
    assert report.content_hash == here.content_hash
    assert report.failures == here.failures
    assert verify_dataset(dest).ok


@pytest.mark.usefixtures("small_chunks")
def test_cluster_without_workers_is_an_error_and_a_rerun_resumes(
    cluster: Cluster, image_folder: Images, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = image_folder(a=20, b=20), tmp_path / "cluster.zarr"
    monkeypatch.setattr(cluster_module, "NO_WORKERS_TIMEOUT", 0.5)
    with pytest.raises(BuildError, match=r"found none for 0 s: start some with 'dask worker tcp://") as caught:
        build(root, dest, scheduler=cluster.address)
    assert caught.value.exit_code == 1
    report = build(root, dest)
    assert report.content_hash == build(root, tmp_path / "here.zarr").content_hash
    assert Dataset.open(dest).train.rows == 36


def test_missing_scheduler_is_an_error(image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"expected a Dask scheduler at nonsense://x, found none .*'dask scheduler'"):
        build(image_folder(a=3, b=3), scheduler="nonsense://x")


@pytest.mark.usefixtures("small_chunks")
def test_build_that_loses_all_workers_at_the_end_is_an_error(
    cluster: Cluster, image_folder: Images, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_worker(_: object) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    cluster.add_worker()
    cluster.wait_for_workers()
    monkeypatch.setattr(cluster_module, "NO_WORKERS_TIMEOUT", 0.5)
    monkeypatch.setattr(cluster_module, "WORKER_POLL_SECONDS", 0.1)
    monkeypatch.setattr(scheduler, "run_shard_on_worker", kill_worker)
    with pytest.raises(BuildError, match=r"expected workers at tcp://.*, found none for 0 s"):
        build(image_folder(a=3, b=3), scheduler=cluster.address)


# In order -------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_items(pair: Cluster) -> None:
    def later_is_quicker(number: int) -> int | None:
        time.sleep((7 - number % 8) * 0.004)
        return number if number % 3 else None

    results = list(in_order_on_cluster(later_is_quicker, range(40), pair.address))
    assert results == [number if number % 3 else None for number in range(40)]
    assert list(in_order_on_cluster(later_is_quicker, [], pair.address)) == []


def test_slow_task_limits_submission_and_the_cluster_releases_results(
    pair: Cluster, tmp_path: Path
) -> None:
    taken: list[int] = []
    limit = AHEAD_PER_THREAD * 2

    def work(number: int) -> int:
        deadline = time.monotonic() + 60
        while number == 0 and not (tmp_path / "proceed").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        (tmp_path / str(number)).touch()
        return number

    def items() -> Iterator[int]:
        for number in count():
            taken.append(number)
            yield number

    def release() -> None:
        wait_for(lambda: (tmp_path / str(limit - 1)).exists(), "the others")
        time.sleep(0.3)  # time to take too many
        (tmp_path / "proceed").touch()

    results = in_order_on_cluster(work, items(), pair.address)
    helper = threading.Thread(target=release, daemon=True)
    helper.start()
    assert next(results) == 0
    helper.join()
    assert taken == list(range(limit))
    assert [next(results) for _ in range(20)] == list(range(1, 21))
    client = cluster_module.connect(pair.address)
    wait_for(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0, "dropped tasks")
    client.close()
    results.close()


@pytest.mark.parametrize("error", [OSError(28, "no space left"), SystemExit(3)])
def test_exceptions_of_tasks_are_raised_unchanged(pair: Cluster, error: BaseException) -> None:
    def work(number: int) -> int:
        if number == 5:
            raise error
        return number

    with pytest.raises(type(error)) as caught:
        list(in_order_on_cluster(work, count(), pair.address))
    assert caught.value.args == error.args


def test_exceptions_of_the_items_cancel_the_tasks(pair: Cluster, tmp_path: Path) -> None:
    def items() -> Iterator[int]:
        yield from range(3)  # one more than there are threads
        raise LookupError("no more of them")

    def work(number: int) -> None:
        time.sleep(0.2)
        (tmp_path / str(number)).touch()

    with pytest.raises(LookupError, match="no more of them"):
        list(in_order_on_cluster(work, items(), pair.address))
    list(in_order_on_cluster(work, [8, 9], pair.address))  # after these, no earlier task is left
    assert not (tmp_path / "2").exists()


def test_leaving_early_cancels_waiting_tasks(pair: Cluster, tmp_path: Path) -> None:
    def work(number: int) -> int:
        time.sleep(0.1)
        (tmp_path / str(number)).touch()
        return number

    for number in in_order_on_cluster(work, count(), pair.address):
        assert number == 0
        break
    list(in_order_on_cluster(work, [50, 51], pair.address))
    assert not (tmp_path / "4").exists()


def test_loss_of_a_worker_costs_no_result_and_loss_of_all_is_an_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(number: int) -> int:
        time.sleep(0.02 if number < 60 else 60)
        return number

    monkeypatch.setattr(cluster_module, "WORKER_POLL_SECONDS", 0.1)
    cluster.add_worker()
    cluster.add_worker()
    cluster.wait_for_workers()
    results = in_order_on_cluster(work, range(61), cluster.address)
    first = [next(results) for _ in range(10)]
    cluster.workers[0].send_signal(signal.SIGKILL)
    assert [*first, *(next(results) for _ in range(50))] == list(range(60))
    assert cluster.workers[0].wait(timeout=60) == -signal.SIGKILL

    # With nothing left to submit, the cluster must still be polled.
    monkeypatch.setattr(cluster_module, "NO_WORKERS_TIMEOUT", 0.5)
    cluster.workers[1].send_signal(signal.SIGKILL)
    with pytest.raises(
        BuildError, match=r"found none for 0 s: start some with 'dask worker tcp://.*run the same command again"
    ) as caught:
        next(results)
    assert caught.value.exit_code == 1


def test_loss_of_the_scheduler_is_an_error(cluster: Cluster) -> None:
    """The message is one line, and Dask logs no tracebacks."""

    def items() -> Iterator[int]:
        yield 0
        yield 60
        cluster.scheduler.kill()
        yield 0

    logged: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = QueueHandler(logged)
    cluster.add_worker()
    cluster.wait_for_workers()
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    for logger in loggers:
        logger.addHandler(handler)
    with pytest.raises(BuildError, match=r"connection lost.*run the same command again, it resumes where it stopped"):
        list(in_order_on_cluster(time.sleep, items(), cluster.address))
    for logger in loggers:
        logger.removeHandler(handler)
    assert logged.empty()


def test_cluster_that_adapts_from_no_worker_gets_one() -> None:
    """It starts workers for waiting tasks only."""
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=0, processes=False, threads_per_worker=1, dashboard_address=":0") as adaptive:
        adaptive.adapt(minimum=0, maximum=1, interval="50ms")
        address = adaptive.scheduler_address
        assert list(in_order_on_cluster(len, ["a", "bb", "ccc"], address)) == [1, 2, 3]


def test_worker_without_logpose_is_named(pair: Cluster) -> None:
    """Its own error would be 'no module named pipeline', of which a user knows nothing."""
    with pytest.raises(BuildError, match=r"expected logpose, of the same version, .*No module named 'pipeline_'"):
        list(in_order_on_cluster(_import_what_is_missing, [1], pair.address))


def _import_what_is_missing(_: int) -> None:
    raise ModuleNotFoundError("No module named 'pipeline_'")
