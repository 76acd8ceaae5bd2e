"""Streams and graphs of the stand-in for CuPy: mistakes that a GPU would forgive on some days show here."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

CODE = r"""
extern "C" __global__ void scale(float* y, const float* x, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
"""
N = 24


@pytest.fixture(scope="module")
def kernel(device: Any) -> Any:
    return device.RawModule(code=CODE).get_function("scale")


@pytest.fixture
def scale(kernel: Any) -> Callable[..., None]:
    def call(y: Any, x: Any, factor: float = 2.0, stream: Any = None) -> None:
        kernel((1,), (N,), (y, x, np.float32(factor), x.size), stream=stream)

    return call


@pytest.fixture
def side(emulator: Any) -> Any:
    """A stream that does not wait for the null stream."""
    return emulator.cuda.Stream(non_blocking=True)


def numbers(emulator: Any, value: float = 1.0) -> Any:
    return emulator.asarray(np.full(N, value, np.float32))


def wrong_in_some_schedule(emulator: Any, run: Callable[[], bool]) -> bool:
    """Whether `run` returns False, or is accused, in any schedule."""
    failed = []
    for name in ("late", "early", "copies", "kernels"):
        try:
            with emulator.cuda.schedule(name):
                failed.append(not run())
        except RuntimeError as error:
            assert "freed device memory" in str(error) or "out of bounds" in str(error)
            failed.append(True)
    return any(failed)


def upload_without_wait(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    x, y = numbers(cupy, 0), cupy.empty(N, np.float32)
    side.wait_event(cupy.cuda.Stream.null.record())
    x.set(np.ones(N, np.float32), stream=side)
    if not mistake:
        cupy.cuda.Stream.null.wait_event(side.record())
    scale(y, x)
    return bool((y.get() == 2).all())


def pinned_memory_reused_early(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    import cupyx

    pinned = cupyx.zeros_pinned(N, np.float32)
    x, y = numbers(cupy, 0), cupy.empty(N, np.float32)
    side.wait_event(cupy.cuda.Stream.null.record())
    pinned[...] = 1
    x.set(pinned, stream=side)
    copied = side.record()
    if not mistake:
        copied.synchronize()
    pinned[...] = 5
    cupy.cuda.Stream.null.wait_event(copied)
    scale(y, x)
    return bool((y.get() == 2).all())


def device_memory_reused_early(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    x, y = numbers(cupy, 1), cupy.empty(N, np.float32)
    cupy.cuda.finish_all()
    scale(y, x)
    if not mistake:
        side.wait_event(cupy.cuda.Stream.null.record())
    x.set(np.zeros(N, np.float32), stream=side)
    cupy.cuda.Stream.null.wait_event(side.record())  # x is freed here
    return bool((y.get() == 2).all())


def read_without_wait(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    import cupyx

    out = cupyx.empty_pinned(N, np.float32)
    x = numbers(cupy, 3)
    side.wait_event(cupy.cuda.Stream.null.record())
    x.get(stream=side, out=out, blocking=False)
    copied = side.record()
    if not mistake:
        copied.synchronize()
    return bool((out == 3).all())


def freed_while_another_stream_writes(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    x, y = numbers(cupy, 1), cupy.empty(N, np.float32)
    side.wait_event(cupy.cuda.Stream.null.record())
    scale(y, x, stream=side)
    if not mistake:
        cupy.cuda.Stream.null.wait_event(side.record())
    del x
    other = numbers(cupy, 7)  # in the same memory
    result = y.get(stream=side)
    return bool((result == 2).all() and (other.get() == 7).all())


def allocated_and_used_by_another_stream(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    x, y = numbers(cupy, 1), cupy.empty(N, np.float32)
    cupy.cuda.finish_all()
    scale(y, x)
    del x
    z = cupy.empty(N, np.float32)  # in the memory of x, which is still to be read
    if not mistake:
        side.wait_event(cupy.cuda.Stream.null.record())
    z.set(np.zeros(N, np.float32), stream=side)
    cupy.cuda.Stream.null.wait_event(side.record())
    return bool((y.get() == 2).all() and (z.get() == 0).all())


def two_streams_of_kernels(cupy: Any, scale: Callable[..., None], side: Any, mistake: bool) -> bool:
    main = cupy.cuda.Stream(non_blocking=True)
    x, y = numbers(cupy, 1), cupy.empty(N, np.float32)
    cupy.cuda.finish_all()
    scale(y, x, stream=main)
    if not mistake:
        side.wait_event(main.record())
    x.set(np.zeros(N, np.float32), stream=side)
    side.synchronize()
    return bool((y.get(stream=main) == 2).all())


@pytest.mark.parametrize("mistake", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize(
    "run",
    [
        upload_without_wait, pinned_memory_reused_early, device_memory_reused_early, read_without_wait,
        freed_while_another_stream_writes, allocated_and_used_by_another_stream, two_streams_of_kernels,
    ],
)  # fmt: skip
def test_mistakes_of_streams_show(
    emulator: Any, scale: Callable[..., None], run: Callable[..., bool], mistake: bool
) -> None:
    def attempt() -> bool:
        return run(emulator, scale, emulator.cuda.Stream(non_blocking=True), mistake)

    assert wrong_in_some_schedule(emulator, attempt) == mistake


def test_blocking_streams_and_the_null_stream_wait_for_each_other(
    emulator: Any, scale: Callable[..., None], stream_schedule: str
) -> None:
    x, y, z = numbers(emulator), emulator.empty(N, np.float32), emulator.empty(N, np.float32)
    stream = emulator.cuda.Stream()
    with stream:
        scale(y, x)
    scale(z, y)
    z.set(z.get() + 1, stream=stream)
    assert (z.get() == 5).all()


def test_events_say_whether_they_are_done(emulator: Any, scale: Callable[..., None], side: Any) -> None:
    x, y = numbers(emulator), emulator.empty(N, np.float32)
    scale(y, x, stream=side)
    event = side.record()
    assert not event.done and not side.done
    assert event.done and side.done  # what was asked for once makes progress
    scale(y, x, stream=side)
    again = side.record()
    again.synchronize()
    assert again.done and emulator.cuda.get_elapsed_time(event, again) > 0
    assert dict(emulator.cuda.waits) == {"event.synchronize": 1}


def test_an_asynchronous_copy_is_one_wait(emulator: Any, stream_schedule: str) -> None:
    import cupyx

    out = cupyx.empty_pinned(N, np.float32)
    emulator.asnumpy(numbers(emulator, 4), out=out, blocking=False)
    event = emulator.cuda.Stream.null.record()
    assert not emulator.cuda.waits and np.isnan(out).all()
    event.synchronize()
    assert dict(emulator.cuda.waits) == {"event.synchronize": 1} and (out == 4).all()
    pageable = np.empty(N, np.float32)
    numbers(emulator, 5).get(out=pageable, blocking=False)  # CUDA waits itself for such a copy
    assert emulator.cuda.waits["get"] == 1 and (pageable == 5).all()


def test_memory_is_copied_by_address(emulator: Any, side: Any) -> None:
    runtime = emulator.cuda.runtime
    pinned = emulator.cuda.alloc_pinned_memory(4 * N)
    host = np.frombuffer(pinned, np.float32, N)
    x, y = numbers(emulator), numbers(emulator)
    emulator.cuda.finish_all()
    host[...] = 8
    runtime.memcpyAsync(x.data.ptr, pinned.ptr, 4 * N, runtime.memcpyHostToDevice, side.ptr)
    runtime.memcpyAsync(y.data.ptr, x.data.ptr, 4 * N, runtime.memcpyDefault, side.ptr)
    side.synchronize()
    assert (y.get() == 8).all()
    runtime.memsetAsync(y.data.ptr, 0, 4, side.ptr)
    runtime.memcpyAsync(pinned.ptr, y.data.ptr, 4 * N, runtime.memcpyDeviceToHost, side.ptr)
    side.synchronize()
    assert host[0] == 0 and (host[1:] == 8).all()


# Graphs


@pytest.fixture
def captured(emulator: Any, scale: Callable[..., None], side: Any) -> tuple[Any, list[Any]]:
    """A graph of z = 2 (2 x) with its arrays x, z, y; y is temporary."""
    with side:
        x, y, z = numbers(emulator), emulator.empty(N, np.float32), emulator.zeros(N, np.float32)
        side.begin_capture()
        scale(y, x)
        scale(z, y)
        graph = side.end_capture()
    return graph, [x, z, y]


def test_graphs_replay_by_address(emulator: Any, captured: tuple[Any, list[Any]], side: Any) -> None:
    graph, (x, z, _) = captured
    assert (z.get(stream=side) == 0).all()  # capturing is not doing
    graph.launch(side)
    assert (z.get(stream=side) == 4).all()
    x.set(np.full(N, 3, np.float32), stream=side)
    graph.launch(side)
    assert (z.get(stream=side) == 12).all()
    assert emulator.cuda.launches["graph"] == 2


def test_memory_that_a_graph_lost_shows(
    emulator: Any, checked: None, captured: tuple[Any, list[Any]], side: Any
) -> None:
    graph, arrays = captured
    del arrays[2]
    graph.launch(side)
    with pytest.raises(RuntimeError, match="write out of bounds"):
        side.synchronize()


def test_memory_freed_while_capturing_is_used_again_by_others(
    emulator: Any, scale: Callable[..., None], side: Any
) -> None:
    with side:
        x, z = numbers(emulator), emulator.zeros(N, np.float32)
        emulator.empty(N, np.float32)  # grows the pool, and is freed
        side.begin_capture()
        y = emulator.empty(N, np.float32)
        scale(y, x)
        scale(z, y)
        del y
        graph = side.end_capture()
        graph.launch()
        assert (z.get() == 4).all()
        other = numbers(emulator, 7)
        graph.launch()
        assert (other.get() != 7).all()


def test_memory_freed_while_capturing_is_gone_when_its_pool_gives_it_back(
    emulator: Any, checked: None, scale: Callable[..., None], side: Any
) -> None:
    pool, x = emulator.cuda.MemoryPool(), numbers(emulator)
    with emulator.cuda.using_allocator(pool.malloc), side:
        emulator.empty(N, np.float32)  # grows the pool, and is freed
        side.begin_capture()
        scale(emulator.empty(N, np.float32), x)
        graph = side.end_capture()
    pool.free_all_blocks()
    graph.launch(side)
    with pytest.raises(RuntimeError, match="write out of bounds"):
        side.synchronize()


def test_what_cannot_be_captured(emulator: Any, side: Any) -> None:
    with side:
        x = numbers(emulator)
        for forbidden, message in (
            (lambda: x.get(), "captured"),
            (lambda: float(x[0]), "captured"),
            (lambda: side.synchronize(), "captured"),
            (lambda: emulator.cuda.Device().synchronize(), "captured"),
            (lambda: emulator.asarray(np.ones(N, np.float32)), "captured"),
            (lambda: x.set(np.ones(N, np.float32)), "not pinned"),
            (lambda: emulator.empty(1 << 20), "the memory pool grows"),
        ):
            y = emulator.empty(N, np.float32)  # so that the pool has a block
            del y
            side.begin_capture()
            with pytest.raises(RuntimeError, match=message):
                forbidden()
            side.end_capture()
    with pytest.raises(RuntimeError, match="default"):
        emulator.cuda.Stream.null.begin_capture()
