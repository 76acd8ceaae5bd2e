"""What a worker of a Dask cluster does of a classification: tell its device, classify, and name itself in errors.

dask-cuda starts one worker for each GPU, with one thread: one task at a time. The task is 512 files, which a pool of
threads decodes, while the GPU computes the batches that are complete. With two threads (`dask cuda worker --nthreads
2`) the pool also decodes the next task's files while the last batches of a task are computed.
"""

import os
from collections.abc import Callable
from typing import TypeVar

from cnn.errors import DeviceError, DeviceFailedError, DeviceMemoryError, NetworkError, cuda_reason, is_cuda_error
from jobs.classification.task import Row, Task, TaskSettings, classify_rows, thread_predictor
from jobs.console.device import results_device
from jobs.errors import JobError
from logpose.common.cpus import available_cpus
from pipeline.errors import ReadError
from pipeline.parallel.cluster import RESUME, worker_address

T = TypeVar("T")


def worker_device(settings: TaskSettings) -> str:
    """Load the model on this worker, and return the device that its results depend on.

    Raises what `classify_on_worker` raises.
    """
    return _naming_the_worker(lambda: results_device(thread_predictor(settings).backend))


def classify_on_worker(settings: TaskSettings, device: str, task: Task) -> list[Row]:
    """`classify_task` on a worker, which must compute on `device`.

    Raises what `classify_task` raises, and DeviceError where the worker has another device, or not the one of the
    options.
    """
    return _naming_the_worker(lambda: _classify(settings, device, task))


def _classify(settings: TaskSettings, device: str, task: Task) -> list[Row]:
    backend = thread_predictor(settings).backend
    if (found := results_device(backend)) != device:
        raise DeviceError(
            f"expected all workers to compute on {device}, as the first one, found {found} on this one; give a --device"
            " and --precision that all workers have, or stop this one"
        )
    decoders = decoding_threads(settings.options.workers) if backend.name == "cuda" else 0
    return classify_rows(settings, task, decoders)


def decoding_threads(workers: int | None) -> int:
    """Return how many threads decode for this worker's GPU: `workers`, by default its share of the machine's CPUs.

    dask-cuda names all GPUs of the machine in CUDA_VISIBLE_DEVICES, the worker's own first: as many as it has workers.
    It may also bind the worker to the CPUs next to its GPU.
    """
    gpus = len(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))
    return workers or max(1, min(available_cpus(), (os.cpu_count() or 1) // gpus))


def _naming_the_worker(work: Callable[[], T]) -> T:
    """Run `work`, and put the worker's address in front of messages. CuPy's errors become our own."""
    where = f"worker {worker_address()}"
    try:
        return work()
    except ReadError as error:
        failure: Exception = ReadError(f"{error.path} on {where}", error.reason, error.remedy)
    except (NetworkError, JobError) as error:
        error.args = (f"{where}: {error}",)
        failure = error
    except Exception as error:
        if not is_cuda_error(error):
            raise
        failure = _cuda_failure(where, error)
    # Dask would pickle these too, but only workers may have CuPy: the error could not be unpickled elsewhere.
    failure.__cause__ = failure.__context__ = None
    raise failure


def _cuda_failure(where: str, error: Exception) -> NetworkError:
    if isinstance(error, MemoryError):
        return DeviceMemoryError(
            f"{where}: out of GPU memory; use a smaller --batch-size, or close other programs on that GPU, and {RESUME}"
        )
    return DeviceFailedError(
        f"{where}: the GPU failed ({cuda_reason(error)}); check it with nvidia-smi and 'logpose selftest --device"
        f" cuda', restart that worker, and {RESUME}"
    )
