"""Rules of the GPU backend's host side that no single kernel's test covers; mutants break each of them."""

import threading
from typing import Any

import numpy as np
import pytest

from cnn.backends.base import Array, Window
from cnn.backends.gpu import backend, elementwise, graph, memory
from tests.cnn.backends.gpu.storage import error, random, to_device, to_host

ONE = Window((1, 1), (1, 1))
SAME = Window((3, 3), (1, 1), 1, 1, 1, 1)


def test_each_pass_converts_the_parameters_as_they_are(device: Any) -> None:
    """Bfloat16 copies of one pass are not those of the next, after an update."""
    own, generator = backend.GpuBackend("bf16"), np.random.default_rng(0)
    flat = random(generator, (8 * 16 + 8,), "float32")  # (136,): something before the weight, too
    x, weight = random(generator, (2, 3, 3, 8), "bf16"), flat[8:].reshape(1, 1, 8, 16)  # (N, H, W, C), (1, 1, C, K)
    for _ in range(2):
        own.begin_pass(flat)
        y = own.conv2d(x, weight, None, ONE)  # (N, H, W, K)
        own.end_pass()
        assert error(y, to_host(x) @ to_host(weight)[0, 0]) < 5e-3
        flat[...] = random(generator, flat.shape, "float32")


def test_statistics_of_a_convolution_are_used_for_its_own_output_only(device: Any) -> None:
    own, generator = backend.GpuBackend("float32"), np.random.default_rng(1)
    x, weight = random(generator, (2, 5, 5, 4), "float32"), random(generator, (3, 3, 4, 8), "float32")
    other = to_device(generator.normal(size=(2, 5, 5, 8)) + 3, "float32")  # (N, H, W, K)
    ones = to_device(np.ones(8), "float32")  # (K,)
    y = own.conv2d(x, weight, None, SAME, before_norm=True)  # (N, H, W, K)
    for layer_input in (other, y):
        running = [to_device(np.full(8, value), "float32") for value in (0.0, 1.0)]  # (K,) each
        mean = own.batch_norm_train(layer_input, ones, ones, *running, 0.1, 1e-5, "")[1]  # (K,)
        assert error(mean, to_host(layer_input).mean(axis=(0, 1, 2))) < 1e-4


def test_vectors_are_wide(device: Any) -> None:
    own = backend.GpuBackend("bf16")
    x = random(np.random.default_rng(2), (3, 2, 2, 5), "bf16")  # (N, H, W, C)
    flat = own.flatten(x)  # (N, H * W * C)
    assert flat.dtype == np.float32 and (to_host(flat) == to_host(x).reshape(3, 20)).all()
    dx = own.flatten_backward(flat, x.shape, x.dtype)  # (N, H, W, C)
    assert dx.dtype == np.uint16 and (to_host(dx) == to_host(x)).all()
    assert own.to_host(x).dtype == np.float32 and (own.to_host(x) == to_host(x)).all()


def test_uploads_of_another_thread_leave_arrays_alone(device: Any) -> None:
    uploads = memory.Uploads()
    own = uploads.upload(np.ones(100))[0]  # (100,)
    thread = threading.Thread(target=lambda: [uploads.upload(np.zeros(100)) for _ in range(6)])
    thread.start()
    thread.join()
    assert (own.get() == 1).all()


def small_network(x: Array) -> Array:
    """Two kernels with an array between them."""
    return elementwise.scale(elementwise.add(x, x, "relu"), 0.5)  # shape of x


@pytest.mark.parametrize("kind", ["float32", "bf16"])
def test_a_graph_computes_what_its_function_does(device: Any, kind: str) -> None:
    captured, generator, kept = graph.Captured(small_network), np.random.default_rng(3), []  # type: ignore[var-annotated]
    for count in (4, 4, 4, 3, 4, 3, 3, 4):
        buffer = random(generator, (count, 2, 2, 8), kind)  # (N, H, W, P)
        buffer[..., 3:] = to_device(np.zeros((count, 2, 2, 5)), kind)
        x = buffer[..., :3]  # (N, H, W, 3), padded
        kept.append((captured(x), np.maximum(to_host(x), 0)))
        device.get_default_memory_pool().free_all_blocks()
        other = [random(generator, (count, 2, 2, size), kind) for size in (3, 8, 3)]  # in what memory is free
        kept += [(array, to_host(array)) for array in other]
    for found, expected in kept:
        assert error(found, expected) < 5e-3


def test_a_graph_is_launched_in_place_of_its_kernels(emulator: Any) -> None:
    captured = graph.Captured(small_network)
    x = random(np.random.default_rng(4), (4, 2, 2, 8), "float32")  # (N, H, W, C)
    for _ in range(4):
        captured(x)
    emulator.cuda.launches.clear()
    captured(x)
    assert emulator.cuda.launches["graph"] == 1
    assert not any(name.startswith(("add<", "scale<")) for name in emulator.cuda.launches)


def test_a_graph_sees_padded_channels(emulator: Any) -> None:
    """Its input has the strides of the arrays that it is called with, so that kernels use 16-byte copies."""
    strides = set()

    def network(x: Array) -> Array:
        strides.add(x.strides)
        return small_network(x)

    captured = graph.Captured(network)
    x = random(np.random.default_rng(5), (4, 2, 2, 8), "bf16")[..., :3]  # (4, 2, 2, 3)
    for _ in range(4):
        captured(x)
    assert strides == {x.strides}
