"""Streams, events and graphs. Work on a stream is done as late, or as early, as CUDA allows.

CUDA_CPU_STREAMS chooses the schedule. Where a `wait_event` is missing, or memory is used again too early, one of them
gives wrong results:

late     the null stream works at once, the others only when the host or another stream waits for them (the default)
early    the others work at once, the null stream only when something waits for it
copies   streams that have not run a kernel so far work at once, all others when something waits for them
kernels  the other way round
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ._errors import CUDARuntimeError

waits: Counter[str] = Counter()  # what made the host wait for the device
launches: Counter[str] = Counter()  # kernels, array functions and graphs
SCHEDULES = ("late", "early", "copies", "kernels")
STUCK_SECONDS = 60  # that the host may wait for the work of another process
_lock = threading.RLock()  # held while work is added or done: the emulator runs one kernel at a time
_busy = False  # whether work is being done


class Work:
    """Something that a stream does, after what it needs. `light` work only keeps accounts.

    `arrived`, which `run` may set, tells whether other processes have done their part; the stream waits until then.
    """

    __slots__ = ("arrived", "done", "light", "needs", "number", "run", "seen", "stream", "time")

    def __init__(self, stream: "Stream", run: "Run | None", light: bool) -> None:
        self.stream, self.run, self.light = stream, run, light
        self.needs = stream._needs()
        self.arrived: Callable[[], bool] | None = None
        self.done = False
        self.time = 0.0
        stream._count += 1
        self.number = stream._count
        # Of each stream, up to which number its work is done when this is.
        seen = dict(stream._seen)
        for each in self.needs:
            for pointer, number in each.seen.items():
                seen[pointer] = max(number, seen.get(pointer, 0))
        self.seen = stream._seen = {**seen, stream.ptr: self.number}

    def do(self) -> None:
        waits = False
        try:
            run, self.run = self.run, None
            if run:
                run(self)
            waits = self.arrived is not None and not self.arrived()
        finally:
            if not waits:
                self.done, self.needs, self.time = True, [], time.perf_counter()


Run = Callable[[Work], None]


def add(stream: "Stream", run: Run | None, *, light: bool = False, prepare: Callable[[], None] | None = None) -> Work:
    """Put work on a stream, and do it now if the schedule says so; or record it where the stream is captured.

    `light` work is never a reason to do what comes before it. `prepare` is called now, and at each launch of the graph.
    """
    with _lock:
        if stream._graph is not None and not light:
            stream._graph._calls.append((run, prepare))
            return stream._mark()
        if prepare:
            prepare()
        work = Work(stream, run, light)
        stream._queue.append(work)
        if light:
            _settle(stream)
        elif _at_once(stream):
            advance(work)
        return work


def finish(work: Work) -> None:
    """Do this work now, and before it all that it needs; wait for other processes that have a part in it."""
    until = time.monotonic() + STUCK_SECONDS
    while not advance(work):
        if time.monotonic() > until:
            raise CUDARuntimeError(f"the host has waited {STUCK_SECONDS} s for another process: a GPU would hang")
        time.sleep(0.001)


def advance(work: Work) -> bool:
    """Do this work, and before it all that it needs, unless another process first has to do its part; whether it is
    done."""
    with _no_light_work():
        queue = work.stream._queue
        while not work.done:
            if not all(map(advance, list(queue[0].needs))):
                return False
            first = queue.popleft()
            first.do()
            if not first.done:
                queue.appendleft(first)
                return False
    _settle(work.stream)
    return True


def _settle(stream: "Stream") -> None:
    """Do the light work that is next, if no other work is under way."""
    with _lock:
        if _busy:
            return
        with _no_light_work():
            queue = stream._queue
            while queue and queue[0].light and all(each.done for each in queue[0].needs):
                queue.popleft().do()


@contextmanager
def _no_light_work() -> Iterator[None]:
    """Only add light work, and leave it: a garbage collection, at any time, frees arrays."""
    global _busy
    with _lock:
        before, _busy = _busy, True
        try:
            yield
        finally:
            _busy = before


def _at_once(stream: "Stream") -> bool:
    null, kernels = stream is Stream.null, stream._runs_kernels
    return {"late": null, "early": not null, "copies": not kernels, "kernels": kernels}[_schedule]


def wait(what: str, *works: Work) -> None:
    """The host waits for works; what they copied to pinned memory is there from now on."""
    if _capturing():
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream is captured")
    waits[what] += 1
    _arrive(*works)


def _arrive(*works: Work) -> None:
    with _lock:
        for work in works:
            finish(work)
            for stream in _all_streams():
                until = work.seen.get(stream.ptr, 0)
                while stream._arriving and stream._arriving[0][0] <= until:
                    stream._arriving.popleft()[1]()


def finish_all() -> None:
    """Do all work of all streams, as if the host had waited for the device."""
    _arrive(*(stream._queue[-1] if stream._queue else stream._mark() for stream in _all_streams()))


def discard_all() -> None:
    """Forget all work that is put off, and captures: what is left of a test that failed, or was to fail."""
    with _lock:
        for stream in _all_streams():
            stream._graph = None
            stream._waiting.clear()
            stream._arriving.clear()
            while stream._queue:
                work = stream._queue.popleft()
                work.run, work.arrived = work.run if work.light else None, None
                work.do()


@contextmanager
def schedule(name: str) -> Iterator[None]:
    """Use another of SCHEDULES within a block; all work is finished before and after it."""
    global _schedule
    if name not in SCHEDULES:
        raise ValueError(f"CUDA_CPU_STREAMS must be one of {', '.join(SCHEDULES)}, found {name}")
    finish_all()
    before, _schedule = _schedule, name
    try:
        yield
        finish_all()
    except BaseException:
        discard_all()
        raise
    finally:
        _schedule = before


def count_launch(what: str) -> None:
    if get_current_stream()._graph is not None:
        raise CUDARuntimeError(f"{what} while its stream is captured: the stand-in replays kernels, copies and fills")
    launches[what] += 1


class Stream:
    """A CUDA stream. As in CUDA, a stream that is not `non_blocking` and the null stream wait for each other."""

    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False, priority: int | None = None) -> None:
        if null:
            self.__dict__ = Stream.null.__dict__
            return
        self._start(len(_streams), non_blocking)

    def _start(self, ptr: int, non_blocking: bool) -> None:
        self.ptr = ptr  # 0 is the null stream
        self.is_non_blocking = non_blocking
        self.device_id = 0
        self._queue: deque[Work] = deque()
        self._count = 0
        self._seen: dict[int, int] = {}
        self._waiting: list[Work] = []  # for events
        self._last: Work | None = None
        self._arriving: deque[tuple[int, Callable[[], None]]] = deque()  # copies to pinned memory, until the host waits
        self._graph: Graph | None = None
        self._runs_kernels = ptr == 0
        self._before: list[Stream] = []
        _streams.append(self)

    def _needs(self) -> list[Work]:
        needs = [each for each in self._waiting if not each.done or each.seen]
        self._waiting = []
        if not self.is_non_blocking:
            others = [Stream.null] if self.ptr else [s for s in _all_streams() if s.ptr and not s.is_non_blocking]
            needs += [other._queue[-1] for other in others if other._queue]
        return needs

    def _mark(self) -> Work:
        """A point in the stream, which is reached when all work before it is done."""
        return add(self, None, light=True)

    @property
    def done(self) -> bool:
        return not self._queue

    def synchronize(self) -> None:
        wait("stream.synchronize", self._mark())

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        if self._graph is not None:
            raise CUDARuntimeError("wait_event while the stream is captured: the stand-in's graphs have one stream")
        if event._work is not None:
            self._waiting.append(event._work)
            self._mark()

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._graph is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is captured already")
        _arrive(self._mark())
        self._graph = Graph._new()

    def end_capture(self) -> "Graph":
        if self._graph is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not captured")
        graph, self._graph = self._graph, None
        return graph

    def is_capturing(self) -> bool:
        return self._graph is not None

    def use(self) -> "Stream":
        _thread.stream = self
        return self

    def __enter__(self) -> "Stream":
        self._before.append(get_current_stream())
        return self.use()

    def __exit__(self, *_: object) -> None:
        _thread.stream = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self) -> int:
        return self.ptr


_streams: list[Stream] = []  # all of them, by `ptr`; tests make few
_thread = threading.local()
_schedule = os.environ.get("CUDA_CPU_STREAMS") or "late"


def _all_streams() -> list[Stream]:
    return _streams


def _capturing() -> bool:
    """Whether this thread captures a stream: in CuPy's mode, relaxed, other threads may wait meanwhile."""
    return any(stream._graph is not None and stream._graph._thread == threading.get_ident() for stream in _streams)


def get_current_stream(device_id: int = -1) -> Stream:
    return getattr(_thread, "stream", Stream.null)


def stream_of(pointer: int) -> Stream:
    return _streams[pointer]


Stream.null = Stream.__new__(Stream)
Stream.null._start(0, False)


class Event:
    """A CUDA event. `done` is False when it is first asked of work that the schedule puts off."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._work: Work | None = None
        self._timed = not disable_timing
        self._asked = False

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or get_current_stream()
        if stream._graph is not None:
            raise CUDARuntimeError("record while the stream is captured: the stand-in's graphs have one stream")
        self._work, self._asked = stream._mark(), False

    def synchronize(self) -> None:
        if self._work is None:
            return
        wait("event.synchronize", self._work)

    @property
    def done(self) -> bool:
        if self._work is None:
            return True
        if not self._work.done and not self._asked and not _at_once(self._work.stream):
            self._asked = True
            return False
        with _lock:
            if not advance(self._work):
                return False
        _arrive(self._work)
        return True


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events that are done."""
    if start._work is None or end._work is None or not (start._timed and end._timed):
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    if not (start._work.done and end._work.done):
        raise CUDARuntimeError("cudaErrorNotReady: device not ready")
    return max(1e-3, 1000 * (end._work.time - start._work.time))


class Graph:
    """What was put on a stream while it was captured, by address: arrays that died since are dead memory."""

    def __init__(self) -> None:
        raise NotImplementedError("graphs are made by Stream.begin_capture and end_capture")

    @classmethod
    def _new(cls) -> "Graph":
        graph = cls.__new__(cls)
        graph._thread = threading.get_ident()
        graph._calls: list[tuple[Run | None, Callable[[], None] | None]] = []
        return graph

    def launch(self, stream: Stream | None = None) -> None:
        launches["graph"] += 1
        for run, prepare in self._calls:
            add(stream or get_current_stream(), run, prepare=prepare)

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing to do: on a GPU, this makes the first launch faster."""
