"""CUDA graphs: the same bits as without, for any order of shapes and from several threads."""

import gc
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.base import Array
from cnn.backends.gpu.graph import _FIRST_CALLS, _MAX_GRAPHS, Captured
from cnn.inference.folded import FoldedNetwork
from cnn.inputs.preprocess import normalisation, preprocess
from cnn.layers import Conv2D, Dense, Flatten, MaxPool, Residual, Sequential, chain
from cnn.network import Network

SIDE = 6
SHAPES = (3, 1, 2, 5, 4, 3)  # rows; more than there are graphs


@pytest.fixture
def network(device: Any) -> Network:
    branch = chain(conv=Conv2D(4, 3))
    layers: Sequential = chain(
        conv=Conv2D(4, 3), block=Residual(branch, chain(), "relu"), pool=MaxPool(2), flat=Flatten(), head=Dense(3)
    )
    return Network(layers, (SIDE, SIDE, 3), pick_backend("cuda", precision="bf16"), seed=1)


def inputs(network: Network, rows: int, seed: int) -> Array:
    """A batch (rows, 6, 6, 3), with padded channels."""
    mean, std = normalisation(network, np.full(3, 120.0), np.full(3, 60.0))
    images = np.random.default_rng(seed).integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)  # (rows, 6, 6, 3)
    return preprocess(network.backend, images, None, mean, std)


def test_same_bits_as_without_graphs(network: Network, stream_schedule: str) -> None:
    """All results are read at the end: a graph must not overwrite the result of its last launch."""
    infer, eager = FoldedNetwork(network), FoldedNetwork(network)
    eager._run = lambda x: eager._steps(network.backend, x)
    pairs = []
    for rows in SHAPES:
        for seed in range(_FIRST_CALLS + 3):
            x = inputs(network, rows, seed)
            pairs.append((infer(x), eager(x)))
    for found, expected in pairs:
        np.testing.assert_array_equal(*map(network.backend.to_host, (found, expected)))
    assert isinstance(infer._run, Captured) and infer._run._works
    assert len(infer._run._graphs) == _MAX_GRAPHS


def test_graph_replaces_the_launches(network: Network, emulator: Any) -> None:
    infer, x = FoldedNetwork(network), inputs(network, 3, 0)
    for _ in range(_FIRST_CALLS):
        infer(x)
    assert not emulator.cuda.launches["graph"]
    infer(x)
    emulator.cuda.launches.clear()
    emulator.cuda.grown.clear()
    infer(x)
    assert sum(emulator.cuda.launches.values()) == 3  # the graph, and copies of its input and output
    assert not emulator.cuda.grown


def test_large_batches_have_no_graph(network: Network, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnn.backends.gpu.graph._MAX_VALUES", 2 * SIDE * SIDE * 3)
    infer = FoldedNetwork(network)
    for _ in range(_FIRST_CALLS + 2):
        infer(inputs(network, 3, 0))
    assert not emulator.cuda.launches["graph"]


def test_what_cannot_be_recorded_is_launched_each_time(network: Network, emulator: Any) -> None:
    calls = []

    def run(x: Array) -> Array:
        calls.append(len(x))
        return x * float(emulator.asnumpy(x[0, 0, 0, :1]).size)  # waits: CUDA cannot record this

    x = emulator.asarray(np.ones((2, 1, 1, 3), np.float32))
    captured = Captured(run)
    for _ in range(_FIRST_CALLS + 3):
        np.testing.assert_array_equal(emulator.asnumpy(captured(x)), 1.0)
    assert not captured._works and len(calls) == _FIRST_CALLS + 3 + 2  # the attempt runs it twice


def test_memory_of_dropped_graphs_is_freed(network: Network, emulator: Any) -> None:
    batches = [inputs(network, rows, 0) for rows in SHAPES for _ in range(_FIRST_CALLS + 1)]

    def free_bytes_after(run: Any) -> int:
        captured = Captured(run)
        for x in batches:
            captured(x)
        del captured
        gc.collect()  # arrays of earlier tests too
        emulator.get_default_memory_pool().free_all_blocks()
        return int(emulator.cuda.runtime.memGetInfo()[0])

    def fail(x: Array) -> Array:
        float(emulator.empty(1 << 16)[:1].sum())  # cannot be recorded
        return x

    for run in (partial(FoldedNetwork(network)._steps, network.backend), fail):
        assert free_bytes_after(run) == free_bytes_after(run)


def test_threads_take_turns(network: Network) -> None:
    """One predictor for several threads, which wait for their results at the same time, as in a classification."""
    infer, lock, backend = FoldedNetwork(network), threading.Lock(), network.backend
    batches = [[inputs(network, 2 + thread % 2, 10 * thread + step) for step in range(6)] for thread in range(4)]
    expected = [[backend.to_host(infer._steps(backend, x)) for x in each] for each in batches]
    found: list[list[np.ndarray]] = [[] for _ in batches]

    def classify(thread: int) -> None:
        for x in batches[thread]:
            with lock:
                read = backend.read_later(infer(x))
            found[thread].append(read())

    threads = [threading.Thread(target=classify, args=(number,)) for number in range(len(batches))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    np.testing.assert_array_equal(np.array(found[0::2]), np.array(expected[0::2]))
    np.testing.assert_array_equal(np.array(found[1::2]), np.array(expected[1::2]))
