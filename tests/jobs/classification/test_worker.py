"""A worker's threads decode while its GPU computes. Here the CPU takes the GPU's place; see also tests/jobs/gpu/."""

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cnn.checkpoint import load_checkpoint
from cnn.inference.predictor import Predictor
from jobs.classification import task, worker
from jobs.classification.task import FileTask, RowTask, TaskSettings, classify_rows
from jobs.options import ClassifyOptions
from pipeline.build import rounds, shard_task
from pipeline.build.build import build_dataset
from pipeline.build.journal import ShardResult
from pipeline.build.options import BuildOptions
from pipeline.build.shard_task import ShardJob
from pipeline.dataset.store import Dataset
from pipeline.errors import DecodeError, ReadError

BATCH = 4


@pytest.fixture(autouse=True)
def no_threads_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker keeps its threads; here, other tests look for threads that are left."""
    make, pools = task._pool, list[ThreadPoolExecutor]()
    monkeypatch.setattr(task, "_pool", lambda threads: pools.append(make(threads)) or pools[-1])
    yield
    for pool in pools:
        pool.shutdown()
    make.cache_clear()


@pytest.fixture
def settings(model: Path) -> TaskSettings:
    return TaskSettings(model, load_checkpoint(model).digest, ClassifyOptions(device="cpu", batch_size=BATCH))


@pytest.fixture
def files(image_folder: Path) -> FileTask:
    names = sorted(path.name for path in (image_folder / "red").iterdir())
    names[2:2] = ["missing.png", "gone.png"]
    return FileTask(str(image_folder / "red"), [*names, "none.png"])


@pytest.mark.parametrize("decoders", [1, 3])
def test_rows_do_not_depend_on_the_threads(
    settings: TaskSettings, files: FileTask, dataset: Path, decoders: int
) -> None:
    rows = classify_rows(settings, files)
    assert [row[0] for row in rows] == files.names
    assert [row[0] for row in rows if row[1] == "error"] == ["missing.png", "gone.png", "none.png"]
    assert classify_rows(settings, files, decoders) == rows
    train = Dataset.open(dataset).train
    names = [str(name) for name in train.read_column("paths", 0, train.rows)]
    assert train.generation
    of_dataset = RowTask(dataset, train.generation, train.name, 0, names)
    assert classify_rows(settings, of_dataset, decoders) == classify_rows(settings, of_dataset)


def test_first_batch_is_computed_while_the_last_image_is_decoded(
    settings: TaskSettings, files: FileTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, decode, probabilities = threading.Event(), task.decode_image, Predictor.probabilities

    def wait_at_the_end(path: str, *arguments: object) -> None:
        if path.endswith("019.png"):
            assert computed.wait(60), "nothing is computed before all images are decoded"
        decode(path, *arguments)  # type: ignore[arg-type]

    def note(predictor: Predictor, images: np.ndarray) -> np.ndarray:
        computed.set()
        return probabilities(predictor, images)

    monkeypatch.setattr(task, "decode_image", wait_at_the_end)
    monkeypatch.setattr(Predictor, "probabilities", note)
    assert len(classify_rows(settings, files, 1)) == len(files.names)


def test_error_cancels_the_images_that_wait(
    settings: TaskSettings, files: FileTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    raised = threading.Event()

    def fail_first(path: str, *_: object) -> None:
        begun.append(path)
        if len(begun) == 1:
            raise OSError("no such thing")
        assert raised.wait(60)
        raise DecodeError("broken", "not looked at")

    monkeypatch.setattr(task, "decode_image", fail_first)
    with pytest.raises(OSError, match="no such thing"):
        classify_rows(settings, files, 1)
    raised.set()
    task._pool(1).submit(int).result(60)  # after all that were not cancelled
    assert len(begun) <= 2


def test_error_of_reading_names_the_worker(
    settings: TaskSettings, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of several workers may lack the drive."""
    monkeypatch.setattr("pipeline.faults.PAUSES", (0,))
    monkeypatch.setattr(worker, "worker_address", lambda: "tcp://1.2.3.4:5")
    missing = FileTask(str(tmp_path / "not mounted"), ["a.png"])
    with pytest.raises(ReadError, match=r"read .*not mounted/a.png on worker tcp://1.2.3.4:5, found no such file"):
        worker.classify_on_worker(settings, "cpu", missing)
    moved = Path(shutil.copytree(image_folder, tmp_path / "images"))
    monkeypatch.setattr(shard_task, "worker_address", lambda: "tcp://1.2.3.4:5")

    def build_there(jobs: Sequence[ShardJob], *_: object) -> Iterator[ShardResult]:
        moved.rename(tmp_path / "away")
        yield from map(shard_task.run_shard_on_worker, jobs)

    monkeypatch.setattr(rounds, "run_on_cluster", build_there)
    with pytest.raises(ReadError, match=r"read .*images/.*png on worker tcp://1.2.3.4:5, found no such file"):
        build_dataset(moved, tmp_path / "d.zarr", BuildOptions((8, 8), scheduler="tcp://1.2.3.4:1"))


@pytest.mark.parametrize(
    ("visible", "workers", "cpus", "mine", "threads"),
    [
        ("0", None, 16, 16, 16),
        ("2,3,0,1", None, 16, 16, 4),
        ("MIG-a,MIG-b", None, 16, 16, 8),
        ("0,1,2,3,4,5,6,7", None, 128, 64, 16),  # bound to the CPUs next to the GPU, which it shares
        ("0", None, 128, 6, 6),  # a container
        ("0,1,2", None, 2, 2, 1),
        ("0,1", 5, 16, 16, 5),
        (None, None, 16, 16, 16),
    ],
)
def test_decoding_threads_are_a_share_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, workers: int | None, cpus: int, mine: int, threads: int
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(worker, "available_cpus", lambda: mine)
    assert worker.decoding_threads(workers) == threads
