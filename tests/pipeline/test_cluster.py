"""Builds on a Dask cluster: a scheduler and two workers, processes of their own on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import schedule
from pipeline.build import BuildReport
from pipeline.errors import BuildError, OptionError
from pipeline.journal import FOLDER
from pipeline.store import Dataset
from pipeline.verify import verify_dataset

Pictures = Callable[..., Path]
Build = Callable[..., BuildReport]

# Loaded into each worker: a cluster so slow that there is time to kill a part of it.
SLOW = """
import time
from pipeline import shards

def slowed(decode):
    return lambda *arguments: time.sleep(0.02) or decode(*arguments)

shards.frame_picture = slowed(shards.frame_picture)
"""


class Cluster:
    """A scheduler, and the workers that were started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        (folder / "slow.py").write_text(SLOW)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        wait_for(self._file.exists, "the scheduler")
        wait_for(lambda: bool(self._file.read_text()), "the scheduler's address")
        self.address: str = json.loads(self._file.read_text())["address"]

    def add_worker(self) -> None:
        preload = ("--preload", str(self._folder / "slow.py"), "--local-directory", str(self._folder))
        self.workers.append(self._start("worker", "--nthreads", "1", "--no-nanny", *preload))

    def close(self) -> None:
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.communicate(timeout=60)

    def _start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "dask", what, "--scheduler-file", str(self._file), "--no-dashboard", *options)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not come within 60 s"
        time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.close()


@pytest.mark.usefixtures("small_chunks")
def test_a_worker_that_vanishes_is_made_up_for(
    cluster: Cluster, pictures: Pictures, build: Build, tmp_path: Path
) -> None:
    root, dest = pictures(a=60, b=60), tmp_path / "cluster.zarr"
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
def test_a_cluster_without_workers_is_an_error_and_a_rerun_goes_on(
    cluster: Cluster, pictures: Pictures, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = pictures(a=20, b=20), tmp_path / "cluster.zarr"
    monkeypatch.setattr(schedule, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(BuildError, match=r"found none for 0 s: start some with 'dask worker tcp://") as caught:
        build(root, dest, scheduler=cluster.address)
    assert caught.value.exit_code == 1
    report = build(root, dest)
    assert report.content_hash == build(root, tmp_path / "here.zarr").content_hash
    assert Dataset.open(dest).train.rows == 36


def test_no_scheduler_there(pictures: Pictures, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"expected a Dask scheduler at nonsense://x, found none .*'dask scheduler'"):
        build(pictures(a=3, b=3), scheduler="nonsense://x")
