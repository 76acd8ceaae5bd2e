"""What runs on a Dask worker: tasks, which take a thread of it, and answers to the engine, in its event loop."""

import asyncio
import threading
import time
from typing import Any

from distributed import Worker, get_worker

from cnn.evaluation.metrics import EvaluatedBatch
from jobs.training.engine import StepResult
from jobs.training.ranks.mailbox import Mailbox, mailbox, remove_mailbox
from jobs.training.ranks.messages import (
    Preparation,
    Prepared,
    RankMissingError,
    RankSettings,
    RankState,
    Share,
    Span,
    SpanReport,
)
from jobs.training.ranks.rank import Rank

NEWS_SECONDS = 0.2  # that an answer may wait for news
STATE_SECONDS = 1.0
WATCH_SECONDS = 0.5  # between looks whether the engine is still there

_ranks: dict[tuple[str, str], Rank] = {}  # of this process, by training and worker
_making = threading.Lock()


def hold_rank(settings: RankSettings) -> None:
    """Task: make the rank of this worker, so that it is ready for `prepare_rank`.

    The rank lives as long as the engine keeps the future of this task: where the engine is killed, Dask forgets the
    task, and then the worker forgets the training, instead of waiting for ranks that will never come.
    """
    _make_rank(settings)
    worker = get_worker()
    key, loop = worker.get_current_task(), worker.loop.asyncio_loop

    async def watch() -> None:
        while key in worker.state.tasks:
            await asyncio.sleep(WATCH_SECONDS)
        await leave(settings.training, worker)

    asyncio.run_coroutine_threadsafe(watch(), loop)


def _make_rank(settings: RankSettings) -> None:
    worker = get_worker()
    with _making:
        key = settings.training, worker.address
        if key not in _ranks:
            loop = worker.loop.asyncio_loop
            box = asyncio.run_coroutine_threadsafe(_mailbox(worker, settings.training), loop).result()
            _ranks[key] = Rank(settings, box, worker.state.nthreads)


def prepare_rank(settings: RankSettings, task: Preparation) -> Prepared | None:
    """Task: have the rank of this worker hold the state of a step. None where the generation has ended meanwhile."""
    _make_rank(settings)
    return _rank(settings.training, get_worker()).prepare(task)


def train_steps(training: str, span: Span) -> SpanReport:
    """Task: see `Rank.train`."""
    return _rank(training, get_worker()).train(span)


def evaluate_share(training: str, share: Share) -> list[EvaluatedBatch]:
    """Task: see `Rank.evaluate`."""
    return _rank(training, get_worker()).evaluate(share)


async def join(training: str, dask_worker: Worker) -> None:
    """Have this worker answer the other ranks."""
    mailbox(dask_worker, training)


async def news(training: str, since: int, dask_worker: Worker) -> list[StepResult]:
    """Return the results of steps from `since` on, as soon as there are some; none after NEWS_SECONDS."""
    rank, until = _rank(training, dask_worker), time.monotonic() + NEWS_SECONDS
    while not (results := rank.results_since(since)) and time.monotonic() < until:
        await asyncio.sleep(NEWS_SECONDS / 20)
    return results


async def validated(training: str, dask_worker: Worker) -> int:
    """Return the number of images of the current evaluation that the rank has finished."""
    return _rank(training, dask_worker).validated


async def state(training: str, since: int, dask_worker: Worker) -> RankState | None:
    """Return the rank's state; None where it has not come to the end of a step in STATE_SECONDS."""
    rank = _rank(training, dask_worker)
    request = await asyncio.get_running_loop().run_in_executor(None, rank.state, since)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(request), STATE_SECONDS)
    except TimeoutError:
        return None


async def end_generation(training: str, number: int, dask_worker: Worker) -> None:
    """Have the rank stop at its step: see `Mailbox.end`."""
    mailbox(dask_worker, training).end(number)


async def leave(training: str, dask_worker: Worker) -> None:
    """Forget the training."""
    remove_mailbox(dask_worker, training)
    _ranks.pop((training, dask_worker.address), None)


async def _mailbox(worker: Worker, training: str) -> Mailbox:
    return mailbox(worker, training)


def _rank(training: str, worker: Any) -> Rank:
    try:
        return _ranks[training, worker.address]
    except KeyError:
        raise RankMissingError from None
