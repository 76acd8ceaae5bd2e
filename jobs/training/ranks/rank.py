"""A rank: the trainer of one worker of a training, which it keeps from one generation to the next."""

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from itertools import islice

import numpy as np
import xxhash
from distributed.metrics import context_meter

from cnn.backends.base import Backend
from cnn.checkpoint import load_checkpoint
from cnn.evaluation.metrics import EvaluatedBatch
from cnn.inputs.training_inputs import MicroBatch
from cnn.models import import_model
from cnn.training.pending import PendingBatch
from cnn.training.rehearsal import prepare_training
from cnn.training.trainer import Trainer
from jobs.console.device import choose_backend, device_text
from jobs.console.output import Verbosity, verbosity_of
from jobs.errors import gpu_errors
from jobs.training.device_cache import cached_stream, is_cached
from jobs.training.engine import StepResult, result_of
from jobs.training.memory import explain_memory
from jobs.training.ranks.mailbox import GenerationOverError, Mailbox
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
from jobs.training.ranks.nccl import Connections
from jobs.training.ranks.record import RankTimes
from jobs.training.setup import Streams, build_trainer, initialise, open_streams
from logpose.common.cpus import available_cpus
from logpose.common.errors import LogposeError
from pipeline.dataset.store import Dataset
from pipeline.errors import DatasetError


class Rank:
    """The trainer of one worker. Its methods run in one thread at a time, except for `results_since` and `state`.

    validated  images of the current evaluation that are done
    """

    def __init__(self, settings: RankSettings, mailbox: Mailbox, threads: int) -> None:
        self._settings, self._mailbox = settings, mailbox
        self._data = Dataset.open(settings.dataset)
        if self._data.content_hash != settings.content_hash:
            raise DatasetError(
                f"expected the same dataset on all machines, found another one at {settings.dataset} on"
                f" {socket.gethostname()}; give a path at which all machines see the same files"
            )
        if settings.card.model_class:
            import_model(settings.card.model_class)
        backend = choose_backend(settings.device, settings.precision, settings.threads or threads)
        self._trainer = self._new_trainer(backend)
        prepare_training(self._trainer, self._data.train.rows)  # one of a machine's ranks compiles for all
        self._connections = Connections(mailbox, backend)
        self._streams: dict[range, Streams] = {}  # of the lanes that are computed now
        self._pending: PendingBatch | None = None
        self._results: list[StepResult] = []  # of the epoch's steps
        self.validated = 0  # images of the current evaluation
        self._has_state = False
        self._busy, self._lock = False, threading.Lock()  # whether a task runs
        self._requests: deque[Future[RankState]] = deque()
        self._since = 0

    # Tasks

    def prepare(self, task: Preparation) -> Prepared | None:
        """Take the state of `task.step`, from the file or another rank if it is not this rank's own already.

        Returns None where the generation has ended meanwhile. Raises RankMissingError where it should have the state.
        """
        with self._working():
            self._mailbox.begin(task.generation)
            trainer, lines = self._trainer, list[str]()
            own = task.source is None or (task.rank == task.source and not task.begins)
            if own and not (self._has_state and trainer.step == task.step):
                raise RankMissingError
            try:
                with self._gpu_explained():  # before anything is written, as it may fail
                    self._streams_of(task.generation.lanes[task.rank])
                if task.rank == task.source:
                    if task.begins == "checkpoint":
                        trainer.load_tensors(load_checkpoint(self._settings.last).tensors, task.step)
                        self._results.clear()
                    elif task.begins == "weights":
                        if self._has_state:  # of a training that all other ranks have lost
                            trainer = self._trainer = self._new_trainer(trainer.backend)
                            self._results.clear()
                        start = load_checkpoint(self._settings.init) if self._settings.init else None
                        lines = initialise(trainer, self._settings.card, self._data, start)
                    self._mailbox.offer("state", [(self._results, trainer.tensors())] * task.generation.size)
                elif task.source is not None:
                    ((results, tensors),) = self._mailbox.fetch("state", task.rank, [task.source])
                    trainer.load_tensors(tensors, task.step)
                    self._results = list(results)
                lines += self._connections.begin(task.generation, task.rank)
            except GenerationOverError:
                return None
            self._has_state = True
            backend, sums = trainer.backend, self._connections.description
            description = f"{backend.description}; {sums}" if sums else backend.description
            return Prepared(device_text(backend), description, socket.gethostname(), lines)

    def train(self, span: Span) -> SpanReport:
        """Compute this rank's micro-batches of an epoch's steps, until its end or that of the generation."""
        report = SpanReport()
        with self._working():
            self._mailbox.withdraw("state")  # all ranks are ready: they have it
            if span.start == 0:
                self._results.clear()
            try:
                with self._gpu_explained():
                    self._train(span, report.times)
                report.finished, report.digest = True, self._digest()
            except GenerationOverError:
                self._settle()
            except LogposeError as error:
                report.error = error
            report.step = self._trainer.step
        return report

    def evaluate(self, share: Share) -> list[EvaluatedBatch]:
        """Evaluate some batches of the validation split."""
        with self._working(), self._gpu_explained():
            network = None
            if share.model:
                network = self._settings.card.build_network(self._trainer.backend, seed=None)
                load_checkpoint(share.model).load_into(network)
            val = next(iter(self._streams.values())).val if self._streams else self._open(range(1)).val
            assert val
            self.validated = 0

            def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
                with closing(val.epoch(0, share.first)) as chosen:
                    for batch in islice(chosen, share.last - share.first):
                        yield batch.images, batch.labels  # uint8 (B, H, W, 3), int64 (B,)
                        self.validated += len(batch.labels)
                        self._serve()

            return list(self._trainer.evaluate_batches(batches(), share.views, network))

    # Requests of the engine, from another thread

    def results_since(self, since: int) -> list[StepResult]:
        """Return the results of the training's steps from `since` on that are of the current epoch."""
        return [result for result in list(self._results) if result.step >= since]

    def state(self, since: int) -> "Future[RankState]":
        """Return the state, between two steps, with the results of `results_since`."""
        request: Future[RankState] = Future()
        with self._lock:
            self._since = since
            self._requests.append(request)
            if not self._busy:
                self._serve_all()
        return request

    def _new_trainer(self, backend: Backend) -> Trainer:
        return build_trainer(self._settings.card, self._settings.recipe, backend, self._data)

    # The steps

    def _train(self, span: Span, times: RankTimes) -> None:
        generation, lanes = span.generation, span.generation.lanes[span.rank]
        trainer, stream = self._trainer, self._streams_of(lanes).train
        assert trainer.step == (span.epoch - 1) * stream.division.steps + span.start, "the engine knows the state"
        exchange = None
        if generation.size > 1:
            assert trainer.layout is not None, "the engine divides only batches of several micro-batches"
            exchange = self._connections.exchange(
                generation, span.rank, trainer.step, stream.division, trainer.layout
            )
        mailbox, connections, began = self._mailbox, self._connections, time.monotonic()
        read, sent, wire = stream.times, connections.sent_bytes, mailbox.wire_seconds

        def spent(column: str, since: float) -> float:
            now = time.monotonic()
            setattr(times, column, getattr(times, column) + now - since)
            return now

        lap = began
        try:
            with closing(stream.micro_batches(span.epoch, span.start)) as steps:
                for step, batches in enumerate(steps, span.start):
                    lap = spent("wait_seconds", lap)
                    if self._mailbox.is_over:
                        raise GenerationOverError
                    parts = [MicroBatch(batch.images, batch.labels, batch.rows) for batch in batches]
                    total = trainer.compute(parts, stream.division.batch_rows(step), lanes.start)
                    if exchange:
                        lap = spent("compute_seconds", lap)
                        total = trainer.combine(total, exchange)
                        lap = spent("exchange_seconds", lap)
                    before, self._pending = self._pending, trainer.start_update(total)
                    self._keep(before)  # a GPU computes the step that was started meanwhile
                    times.micro_batches += len(parts)
                    times.images += sum(len(part.labels) for part in parts)
                    self._serve()
                    lap = spent("compute_seconds", lap)
                self._settle()
                lap = spent("compute_seconds", lap)
        finally:
            times.seconds = time.monotonic() - began
            grown = stream.times.since(read)
            times.read_seconds, times.decode_seconds, times.copy_seconds = grown.read, grown.decode, grown.copy
            times.sent_megabytes = (connections.sent_bytes - sent) / 1e6
            times.wire_seconds = mailbox.wire_seconds - wire
            for activity in ("compute", "wait", "exchange"):  # for Dask's dashboard
                context_meter.digest_metric(activity, getattr(times, f"{activity}_seconds"), "seconds")

    def _keep(self, batch: PendingBatch | None) -> None:
        """Wait for a step that was started, and keep its result."""
        if batch is not None:
            self._results.append(result_of(batch))

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        self._keep(pending)

    def _streams_of(self, lanes: range) -> Streams:
        """The streams of these lanes, which replace those of others."""
        if lanes not in self._streams:
            self._streams = {lanes: self._open(lanes)}
        return self._streams[lanes]

    def _open(self, lanes: range) -> Streams:
        settings, recipe, backend = self._settings, self._trainer.recipe, self._trainer.backend
        workers = settings.workers or max(1, available_cpus() // settings.ranks_a_host)
        budget = settings.ram_budget // settings.ranks_a_host
        streams = open_streams(self._data, recipe, workers, budget, lanes)
        if is_cached(settings.cache, backend, self._data.train):
            streams = streams._replace(train=cached_stream(self._data.train, recipe, workers, backend, lanes))
        return streams

    def _digest(self) -> str:
        """A checksum of weights, state and optimizer."""
        checksum = xxhash.xxh3_128()
        for name, values in self._trainer.tensors().items():
            checksum.update(name.encode())
            checksum.update(np.ascontiguousarray(values).data)
        return checksum.hexdigest()

    # Requests between steps

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            self._busy = True
        try:
            with verbosity_of(Verbosity.QUIET):  # the engine's terminal may be this process's too
                yield
        finally:
            with self._lock:
                self._busy = False
                self._serve_all()

    def _serve(self) -> None:
        if self._requests:
            with self._lock:
                self._serve_all()

    def _serve_all(self) -> None:
        while self._requests:
            request = self._requests.popleft()
            if not request.set_running_or_notify_cancel():
                continue  # it was given up
            try:
                self._settle()
                trainer = self._trainer
                best = trainer.eval_network.tensors()
                request.set_result(
                    RankState(trainer.step, self.results_since(self._since), trainer.tensors(), best)
                )
            except BaseException as error:
                request.set_exception(error)
                raise

    @contextmanager
    def _gpu_explained(self) -> Iterator[None]:
        def remedy(option: str) -> str:
            return f"start again with --overwrite {option}, which fits"

        host = socket.gethostname()
        failed = f"check {host} with nvidia-smi; run the same command again with --resume"
        with gpu_errors(lambda: failed), explain_memory(self._trainer, remedy):
            yield
