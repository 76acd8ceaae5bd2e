"""The stand-in for CuPy: what it refuses, and that mistakes with streams, graphs and memory show."""

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnn.backends import gpu, pick_backend
from tests import cuda_cpu

CODE = r"""
struct Pair { float first, second; };
extern "C" __global__ void __launch_bounds__(128) scale(float* y, const float* x, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
extern "C" __global__ void count(long long* y, double a, bool flag, Pair pair) {
    y[0] = (long long)(a + pair.first + pair.second) + flag;
}
"""
N = 24


@pytest.fixture(scope="module")
def kernels(device: Any) -> Any:
    return device.RawModule(code=CODE)


@pytest.fixture
def scale(kernels: Any) -> Callable[..., None]:
    kernel = kernels.get_function("scale")

    def call(y: Any, x: Any, factor: float = 2.0, stream: Any = None) -> None:
        kernel((1,), (N,), (y, x, np.float32(factor), x.size), stream=stream)

    return call


@pytest.fixture
def side(emulator: Any) -> Any:
    """A stream that does not wait for the null stream."""
    return emulator.cuda.Stream(non_blocking=True)


def numbers(emulator: Any, value: float = 1.0) -> Any:
    return emulator.asarray(np.full(N, value, np.float32))


def test_the_stand_in_is_gone_after_the_block() -> None:
    usable = not gpu.why_unusable()
    if cuda_cpu.why_unusable():
        pytest.skip(cuda_cpu.why_unusable())
    for _ in range(2):
        with cuda_cpu.emulated_cuda() as cupy:
            assert sys.modules["cupy"] is cupy and not gpu.why_unusable()
            assert pick_backend("auto").name == "cuda"
        assert (not gpu.why_unusable()) == usable
        assert "cupy" not in sys.modules or sys.modules["cupy"] is not cupy


def test_a_subprocess_can_have_the_stand_in(device: Any, cuda_environment: dict[str, str]) -> None:
    program = "from cnn.backends import pick_backend; print(pick_backend('cuda').description)"
    done = subprocess.run([sys.executable, "-c", program], env=cuda_environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cuda: ")


# What it refuses


def test_kernels_get_what_they_declare(emulator: Any, kernels: Any) -> None:
    kernel = kernels.get_function("scale")
    x, y = numbers(emulator), emulator.empty(N, np.float32)
    factor = np.float32(2)
    kernel((1,), (N,), (y, x, factor, N))
    assert (y.get() == 2).all()
    for message, error, args in (
        ("argument 2 is float32, given float", TypeError, (y, x, 2.0, N)),
        ("argument 2 is float32, given int", TypeError, (y, x, 2, N)),
        ("argument 2 is float32, given float64", TypeError, (y, x, np.float64(2), N)),
        ("argument 3 is int32, given int64", TypeError, (y, x, factor, np.int64(N))),
        ("does not fit", OverflowError, (y, x, factor, 1 << 31)),
        ("points to float32, given an array of float64", TypeError, (y, emulator.zeros(N), factor, N)),
        ("strided view", TypeError, (y, emulator.zeros((N, 2), np.float32)[:, 0], factor, N)),
        ("is a pointer, given ndarray", TypeError, (y, np.ones(N, np.float32), factor, N)),
        ("4 arguments expected, 3 given", TypeError, (y, x, factor)),
        ("a null pointer is used", RuntimeError, (y, None, factor, N)),
    ):
        with pytest.raises(error, match=message):
            kernel((1,), (N,), args)


def test_launches_must_be_possible(emulator: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernels.get_function("scale")
    args = (emulator.empty(N, np.float32), numbers(emulator), np.float32(2), N)
    for message, error, grid, block, shared in (
        ("1 or more", ValueError, (0,), (N,), 0),
        ("1 or more", ValueError, (1.5,), (N,), 0),
        ("129,. threads, 128 at most", RuntimeError, (1,), (129,), 0),
        ("too large in y or z", RuntimeError, (1, 65536), (N,), 0),
        ("max_dynamic_shared_size_bytes", RuntimeError, (1,), (N,), 49153),
    ):
        with pytest.raises(error, match=message):
            kernel(grid, block, args, shared_mem=shared)
    kernel.max_dynamic_shared_size_bytes = 227 << 10
    kernel((1,), (N,), args, shared_mem=227 << 10)
    monkeypatch.setenv("CUDA_CPU_CAPABILITY", "7.5")
    assert emulator.cuda.Device().compute_capability == "75"
    with pytest.raises(RuntimeError, match="65536 at most"):
        kernel.max_dynamic_shared_size_bytes = 65537


def test_numbers_and_structs_arrive(emulator: Any, kernels: Any) -> None:
    y = emulator.empty(1, np.int64)
    pair = np.array((1.5, 2.5), np.dtype([("first", np.float32), ("second", np.float32)]))
    kernels.get_function("count")((1,), (1,), (y, 3.0, True, pair))
    assert y.item() == 8


def test_numpy_and_cupy_do_not_mix(emulator: Any) -> None:
    x, host = numbers(emulator), np.ones(N, np.float32)
    for mix in (lambda: x + host, lambda: x.__setitem__(0, host), lambda: np.asarray(x), lambda: x[np.arange(3)],
                lambda: emulator.add(x, host), lambda: x.set(np.ones(N)), lambda: x.get(out=np.empty(N))):  # fmt: skip
        with pytest.raises(TypeError):
            mix()


def test_fresh_memory_is_nan_and_waits_are_counted(emulator: Any, scale: Callable[..., None]) -> None:
    x = emulator.empty(N, np.float32)
    assert np.isnan(x.get()).all()
    x.fill(3)
    y = emulator.empty_like(x)
    scale(y, x[:N])
    assert float(y[0]) == 6 and (y + 1).sum().item() == 7 * N
    assert dict(emulator.cuda.waits) == {"get": 1, "item": 2}
    assert emulator.cuda.launches["scale"] == 1 and emulator.cuda.copied["bytes"] == 0


# Streams: each mistake gives a wrong result in one of the schedules


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


def test_memory_that_a_graph_lost_shows(emulator: Any, captured: tuple[Any, list[Any]], side: Any) -> None:
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


# Memory


def test_the_pool_uses_blocks_again_and_counts_growth(emulator: Any) -> None:
    pool = emulator.get_default_memory_pool()
    emulator.cuda.finish_all()
    pool.free_all_blocks()
    emulator.cuda.grown.clear()
    x = emulator.empty(300, np.uint8)
    address, used = x.data.ptr, pool.used_bytes()
    del x
    y = emulator.empty(512, np.uint8)
    assert y.data.ptr == address and pool.used_bytes() == used
    z = emulator.empty(513, np.uint8)
    assert dict(emulator.cuda.grown) == {"times": 2, "bytes": 512 + 1024}
    assert pool.n_free_blocks() == 0
    del y, z
    assert pool.n_free_blocks() == 2 and pool.free_bytes() == 1536
    assert np.isnan(emulator.empty(128, np.float32).get()).all()


def test_memory_runs_out(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    emulator.get_default_memory_pool().free_all_blocks()
    in_use = emulator.get_default_memory_pool().total_bytes()
    monkeypatch.setenv("CUDA_CPU_MEMORY", str(in_use + (1 << 20)))
    assert emulator.cuda.runtime.memGetInfo() == (1 << 20, in_use + (1 << 20))
    first = emulator.empty(3 << 18, np.uint8)
    with pytest.raises(emulator.cuda.memory.OutOfMemoryError, match="Out of memory allocating"):
        emulator.empty(3 << 18, np.uint8)
    del first
    emulator.empty(1 << 20, np.uint8)  # free blocks of other sizes are given back first


def test_arrays_over_a_block_of_memory(emulator: Any) -> None:
    memory = emulator.cuda.alloc(1024)
    x = emulator.ndarray((2, 3), np.float32, memory + 512)
    x.fill(1)
    assert x.data.ptr == memory.ptr + 512 and x.data.mem.ptr == memory.ptr
    address = memory.ptr
    del memory
    assert emulator.empty(1024, np.uint8).data.ptr != address  # x keeps it
    with pytest.raises(ValueError, match="does not fit"):
        emulator.ndarray((129,), np.float32, x.data)


def test_pools_of_their_own(emulator: Any) -> None:
    pool = emulator.cuda.MemoryPool()
    with emulator.cuda.using_allocator(pool.malloc):
        x = emulator.zeros(N, np.float32)
    assert pool.used_bytes() == 512 and (x.get() == 0).all()
    del x
    assert pool.n_free_blocks() == 1
