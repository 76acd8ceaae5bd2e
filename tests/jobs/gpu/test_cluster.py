"""Classifications on a Dask cluster whose workers have an emulated GPU each, as dask-cuda starts them.

The machine that submits has none: the command line runs in the tests' process.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.classification import classify, inputs
from tests import cuda_cpu
from tests.jobs.conftest import Logpose
from tests.jobs.gpu.conftest import Gpu
from tests.pipeline.conftest import failing_after
from tests.pipeline.parallel.test_cluster import Cluster, wait_for

OPTIONS = ("--topk", 3, "--batch-size", 4)
DEVICE = "CUDA emulated on the CPU in bf16"

# Run by each worker when it starts: logs its visible GPUs when it has loaded a model, and when it begins a task.
SETUP = """
import glob, os, time
from jobs.classification import task, worker

LOG, FAILS, STALLS = {!r}, {!r}, {!r}

def logged(what, function):
    def call(*arguments):
        os.write(log, f"{{what}} {{os.environ.get('CUDA_VISIBLE_DEVICES', '-')}}\\n".encode())
        return function(*arguments)
    return call

def fail_later(synchronize):
    def call(event):
        calls.append(event)
        if len(calls) <= 2:
            return synchronize(event)
        while not glob.glob(FAILS):
            time.sleep(0.005)
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    calls = []
    return call

def dask_setup(_):
    global cupy, log
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    task._load = logged("load", task._load)
    worker.classify_rows = logged("task", worker.classify_rows)
    if FAILS:
        import cupy
        cupy.cuda.Event.synchronize = fail_later(cupy.cuda.Event.synchronize)
    if STALLS:
        worker.classify_rows = logged("stall", lambda *_: time.sleep(60))
"""


class GpuCluster(Cluster):
    """A cluster, and the log of its workers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._log = folder / "log"

    def add_gpu(self, visible: str = "0,1", fails: str = "", stalls: bool = False, **environment: str) -> None:
        """Start a worker whose GPUs are `visible`, its own first.

        fails   the GPU fails at the third batch, once there is a file like this
        stalls  no task ever ends
        """
        environment = cuda_cpu.environment(CUDA_CPU_CHECK="0", CUDA_VISIBLE_DEVICES=visible, **environment)
        self.add_worker(SETUP.format(str(self._log), fails, stalls), environment)

    def add_cpu(self) -> None:
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        without = os.pathsep.join(path for path in paths if path != str(cuda_cpu.STANDIN))
        self.add_worker(SETUP.format(str(self._log), "", False), {**os.environ, "PYTHONPATH": without})

    def replace_worker(self, add: Callable[[], None]) -> None:
        """Kill the only worker, and start another one."""
        self.workers[-1].kill()
        self.workers.pop().communicate(timeout=60)
        add()
        self.wait_for_workers()

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    with failing_after():
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[GpuCluster]:
    (tmp_path / "cluster").mkdir()
    started = GpuCluster(tmp_path / "cluster")
    yield started
    started.close()


@pytest.fixture
def images(image_folder: Path, tmp_path: Path) -> Path:
    """21 files, one of them broken."""
    root = tmp_path / "images"
    root.mkdir()
    for path in (image_folder / "red").iterdir():
        os.link(path, root / path.name)
    (root / "broken.jpg").write_bytes(b"")
    return root


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FILES_PER_PART", 6)
    monkeypatch.setattr(classify, "FILES_PER_PART", 6)


@pytest.fixture
def expected(gpu: Gpu, images: Path, gpu_run: Path, tmp_path: Path) -> bytes:
    """The table of one local process on the emulated GPU."""
    table = tmp_path / "expected.csv"
    assert gpu("classify", images, gpu_run, table, *OPTIONS, "--device", "cuda").code == 0
    return table.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_table_is_the_same_as_of_one_process(
    cluster: GpuCluster, logpose: Logpose, images: Path, gpu_run: Path, expected: bytes, tmp_path: Path
) -> None:
    cluster.add_gpu("0,1")
    cluster.add_gpu("1,0")
    cluster.wait_for_workers()
    on_cluster = (*OPTIONS, "--device", "cuda", "--scheduler", cluster.address)
    table = tmp_path / "table.csv"
    outcome = logpose("classify", images, gpu_run, table, *on_cluster)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"computing on {DEVICE}\n" in outcome.out
    assert table.read_bytes() == expected
    assert b"broken.jpg,error" in expected
    assert sorted(line for line in cluster.log if "load" in line) == ["load 0,1", "load 1,0"], "once per worker"
    tasks = [line for line in cluster.log if "task" in line]
    assert len(tasks) == 4 and set(tasks) == {"task 0,1", "task 1,0"}
    assert logpose("classify", images, gpu_run, table, *on_cluster, "--workers", 3, "--overwrite").code == 0
    assert table.read_bytes() == expected


def test_table_of_a_dataset_is_the_same(
    cluster: GpuCluster, gpu: Gpu, logpose: Logpose, dataset: Path, gpu_run: Path, tmp_path: Path
) -> None:
    cluster.add_gpu()
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert gpu("classify", dataset, gpu_run, here, *OPTIONS, "--device", "cuda").code == 0
    assert logpose("classify", dataset, gpu_run, there, *OPTIONS, "--scheduler", cluster.address).code == 0
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_worker_that_dies_is_replaced(
    cluster: GpuCluster, logpose: Logpose, images: Path, gpu_run: Path, expected: bytes, tmp_path: Path
) -> None:
    """The first one never finishes its task; it is killed, and another one started, while the second works."""
    cluster.add_gpu("0,1", stalls=True)
    cluster.add_gpu("1,0")
    cluster.wait_for_workers()

    def replace_one() -> None:
        wait_for(lambda: "stall 0,1" in cluster.log, "the task")
        cluster.workers[0].send_signal(signal.SIGKILL)
        cluster.add_gpu("2,3")

    killer = threading.Thread(target=replace_one)
    killer.start()
    table = tmp_path / "table.csv"
    outcome = logpose("classify", images, gpu_run, table, *OPTIONS, "--scheduler", cluster.address)
    killer.join()
    assert (outcome.code, outcome.err) == (0, "")
    assert cluster.workers[0].wait(timeout=60) == -signal.SIGKILL
    assert table.read_bytes() == expected


@pytest.mark.usefixtures("small_parts")
def test_workers_that_differ_are_refused(
    cluster: GpuCluster, logpose: Logpose, images: Path, gpu_run: Path, tmp_path: Path
) -> None:
    cluster.add_gpu()
    cluster.add_cpu()
    cluster.wait_for_workers()
    table, cpu = tmp_path / "table.csv", tmp_path / "cpu.csv"
    on_cluster = ("--scheduler", cluster.address, *OPTIONS)
    outcome = logpose("classify", images, gpu_run, table, *on_cluster)
    assert outcome.code == 2
    first, other = (DEVICE, "cpu") if f"computing on {DEVICE}" in outcome.out else ("cpu", DEVICE)
    assert re.fullmatch(
        rf"error: worker tcp://\S+: expected all workers to compute on {first}, as the first one, found {other} on this"
        " one; give a --device and --precision that all workers have, or stop this one",
        outcome.error,
    )
    assert not table.exists()
    outcome = logpose("classify", images, gpu_run, table, *on_cluster, "--device", "cuda", "--overwrite")
    assert outcome.code == 2
    assert re.match(r"error: worker tcp://\S+: no usable GPU: CuPy is not installed .*; use --dev", outcome.error)
    assert logpose("classify", images, gpu_run, table, *on_cluster, "--device", "cpu", "--overwrite").code == 0
    assert logpose("classify", images, gpu_run, cpu, *OPTIONS, "--device", "cpu").code == 0
    assert table.read_bytes() == cpu.read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_cards_of_different_precision_are_refused(
    cluster: GpuCluster, logpose: Logpose, images: Path, gpu_run: Path, tmp_path: Path
) -> None:
    cluster.add_gpu()
    cluster.add_gpu(CUDA_CPU_CAPABILITY="7.5")
    cluster.wait_for_workers()
    table, on_cluster = tmp_path / "table.csv", ("--scheduler", cluster.address, *OPTIONS)
    outcome = logpose("classify", images, gpu_run, table, *on_cluster)
    assert outcome.code == 2
    assert "expected all workers to compute on CUDA emulated on the CPU in " in outcome.error
    outcome = logpose("classify", images, gpu_run, table, *on_cluster, "--precision", "bf16", "--overwrite")
    assert outcome.code == 2
    assert re.match(r"error: worker tcp://\S+: precision bf16: expected a card of .* newer, found 7.5", outcome.error)


@pytest.mark.usefixtures("small_parts")
def test_card_that_fails_is_named_and_other_devices_do_not_resume_its_table(
    cluster: GpuCluster, gpu: Gpu, logpose: Logpose, images: Path, gpu_run: Path, expected: bytes, tmp_path: Path
) -> None:
    """The first part is finished before the card fails."""
    table = tmp_path / "table.csv"
    on_cluster = ("--scheduler", cluster.address, *OPTIONS)
    cluster.add_gpu(fails=f"{table}.parts/part-000000-*")
    outcome = logpose("classify", images, gpu_run, table, *on_cluster)
    assert outcome.code == 1
    assert re.fullmatch(
        r"error: worker tcp://\S+: the GPU failed \(cudaErrorIllegalAddress: an illegal memory access was encountered"
        r"\); check it with nvidia-smi and 'logpose selftest --device cuda', restart that worker, and run the same"
        r" command again, it resumes where it stopped",
        outcome.error,
    )
    outcome = logpose("classify", images, gpu_run, table, *OPTIONS, "--device", "cpu")
    assert outcome.code == 2
    assert f"holds an unfinished classification with other device ({DEVICE}, now cpu); remove it" in outcome.error
    cluster.replace_worker(cluster.add_cpu)
    outcome = logpose("classify", images, gpu_run, table, *on_cluster)
    assert outcome.code == 2
    assert f"with other device ({DEVICE}, now cpu); remove it, give --overwrite" in outcome.error
    cluster.replace_worker(cluster.add_gpu)
    outcome = logpose("classify", images, gpu_run, table, *on_cluster)
    assert (outcome.code, outcome.err) == (0, "")
    assert "resuming: 6 files already classified" in outcome.out
    assert table.read_bytes() == expected


def test_too_little_gpu_memory_names_the_worker(
    cluster: GpuCluster, logpose: Logpose, images: Path, gpu_run: Path, tmp_path: Path
) -> None:
    cluster.add_gpu(CUDA_CPU_MEMORY="15000")
    outcome = logpose("classify", images, gpu_run, tmp_path / "table.csv", *OPTIONS, "--scheduler", cluster.address)
    assert outcome.code == 1
    assert re.match(r"error: worker tcp://\S+: (expected memory for one image|out of GPU memory)", outcome.error)
    assert {path.name for path in tmp_path.iterdir()} == {"cluster", "images"}
