"""The order of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loader.epoch_order import MIN_LANE_CHUNKS, WINDOW_BYTES, EpochOrder, permutation, window_chunks
from pipeline.loader.micro_batches import MicroBatches
from pipeline.loader.shuffle_quality import all_rows

ORDERS = st.builds(
    EpochOrder,
    rows=st.integers(1, 300),
    chunk_rows=st.integers(1, 20),
    window_chunks=st.integers(1, 8),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
)
BATCHES = st.tuples(st.integers(1, 90), st.integers(0, 100))  # batch size, micro-batch

ORDER = [[1, 2, 9, 6, 7, 3, 11, 4, 5, 0, 8, 10], [19, 20, 16, 13, 21, 17, 15, 18, 14, 12]]
LANES = [[10, 9, 4, 5, 8, 11, 6, 7], [13, 15, 14, 12], [16, 18, 21, 17, 20, 19], [2, 1, 0, 3]]


@given(st.integers(0, 500), st.lists(st.integers(-(2**40), 2**64), max_size=3))
def test_permutation_has_each_index_once(count: int, key: list[int]) -> None:
    assert sorted(permutation(count, *key)) == list(range(count))


def test_permutation_never_changes() -> None:
    # Recorded once: if this changes, every seed gives another order.
    assert permutation(10, 7, 3).tolist() == [2, 3, 1, 6, 9, 5, 7, 8, 0, 4]


def test_permutation_depends_on_each_word_of_the_key_and_is_uniform() -> None:
    orders = [permutation(1000, *key) for key in ((0, 0), (0, 1), (1, 0), (1,), (2**32, 0))]
    for first in range(len(orders)):
        for second in range(first):
            same = np.count_nonzero(orders[first] == orders[second])
            assert same < 10, f"orders {first} and {second} share {same} of 1000 places"
    # Over many keys, the mean of the indices at each place is near the middle.
    means = np.mean([permutation(20, key) for key in range(2000)], axis=0)  # (20,)
    assert np.abs(means - 9.5).max() < 0.7


@given(ORDERS)
def test_epoch_has_each_row_once(order: EpochOrder) -> None:
    (lane,) = order.lanes
    windows = [lane.window(index) for index in range(lane.windows)]
    rows = np.concatenate([window.rows for window in windows])
    assert sorted(rows) == list(range(order.rows))
    if not order.shuffle:
        assert rows.tolist() == list(range(order.rows))
    sizes = [len(window.chunks) for window in windows]
    assert not order.shuffle or max(sizes) - min(sizes) <= 1, "windows have about the same size"
    for index, window in enumerate(windows):
        assert len(window.chunks) <= order.window_chunks
        for chunk, places in zip(window.chunks, window.places, strict=True):
            np.testing.assert_array_equal(window.rows[places], np.arange(*chunk))
        start = lane.window_starts[index]
        assert lane.window_at(start) == lane.window_at(start + len(window.rows) - 1) == index


def test_order_never_changes() -> None:
    # Recorded once, like the permutation.
    order = EpochOrder(rows=22, chunk_rows=4, window_chunks=3, seed=7, epoch=3, shuffle=True)
    assert [order.lanes[0].window(index).rows.tolist() for index in range(2)] == ORDER


def test_order_of_lanes_never_changes() -> None:
    order = EpochOrder(22, 4, 2, seed=7, epoch=3, shuffle=True, division=MicroBatches(22, 6, 3))
    assert [lane.window(index).rows.tolist() for lane in order.lanes for index in range(lane.windows)] == LANES


@given(st.integers(0, 300), BATCHES)
def test_micro_batches_divide_every_batch(rows: int, sizes: tuple[int, int]) -> None:
    batch_size, micro_batch = sizes
    division = MicroBatches(rows, batch_size, micro_batch)
    lanes, most = range(division.lanes), min(micro_batch, batch_size) or batch_size
    assert division.lanes == -(-batch_size // most)
    taken = [0] * division.lanes
    count = 0
    for step in range(division.steps):
        found = [division.micro_rows(step, lane) for lane in lanes]
        whole = division.batch_rows(step)
        assert found == [min(most, max(0, whole - lane * most)) for lane in lanes], "filled in order"
        assert sum(found) == whole
        assert [division.position(step, lane) for lane in lanes] == taken
        taken = [before + now for before, now in zip(taken, found, strict=True)]
        count += sum(size > 0 for size in found)
    assert [division.position(division.steps, lane) for lane in lanes] == taken
    assert sum(taken) == division.lane_starts()[-1] == rows
    assert division.count == count


@given(ORDERS, BATCHES)
def test_lanes_have_each_row_once_in_a_run_of_the_chunks(order: EpochOrder, sizes: tuple[int, int]) -> None:
    division = MicroBatches(order.rows, *sizes)
    order = replace(order, division=division)
    chunk_order = [chunk for (lane,) in [replace(order, division=None).lanes] for chunk in lane.chunks.tolist()]
    pieces: list[list[int]] = []
    for number, lane in enumerate(order.lanes):
        windows = [lane.window(index) for index in range(lane.windows)]
        assert lane.window_starts == [0, *np.cumsum([len(window.rows) for window in windows]).astype(int)]
        assert lane.rows == lane.window_starts[-1] == division.position(division.steps, number)
        for window in windows:
            assert 0 < len(window.chunks) <= order.window_chunks
            for (start, stop), places in zip(window.chunks, window.places, strict=True):
                np.testing.assert_array_equal(window.rows[places], np.arange(start, stop))
        pieces += lane.chunks.tolist()
    whole: list[list[int]] = []
    for start, stop in pieces:  # those of one chunk joined
        joins = whole and whole[-1][1] == start and start % order.chunk_rows
        whole = [*whole[:-1], [whole[-1][0], stop]] if joins else [*whole, [start, stop]]
    assert whole == chunk_order
    rows = all_rows(order)  # (N,)
    assert sorted(rows) == list(range(order.rows))
    if division.lanes == 1:
        np.testing.assert_array_equal(rows, all_rows(replace(order, division=None)))


@pytest.mark.parametrize(("rows", "size", "batch_size", "micro_batch"), [
    (1_281_167, 224, 256, 16), (60_000, 128, 128, 16), (50_000, 32, 512, 64), (50_000, 32, 1024, 128),
])  # fmt: skip
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_ranks_divide_the_bytes(rows: int, size: int, batch_size: int, micro_batch: int, ranks: int) -> None:
    row_bytes = size * size * 3
    chunk_rows = 2 ** ((2**20 // row_bytes).bit_length() - 1)
    division = MicroBatches(rows, batch_size, micro_batch)
    assert division.lanes % 8 == 0
    chunks = window_chunks(rows, chunk_rows, row_bytes, True, division.lanes)
    lanes = EpochOrder(rows, chunk_rows, chunks, 0, 1, True, division).lanes
    read = [chunk_rows * sum(len(lane.chunks) for lane in lanes[own.start : own.stop]) for own in runs(lanes, ranks)]
    most = max(len(own) for own in runs(lanes, ranks)) / len(lanes)  # 3 ranks cannot have the same number of lanes
    assert max(read) <= 1.1 * most * rows


def runs(lanes: Sequence[object], ranks: int) -> list[range]:
    """The numbers of the lanes of each rank."""
    ends = [len(lanes) * rank // ranks for rank in range(ranks + 1)]
    return [range(*run) for run in pairwise(ends)]


def test_windows_of_all_lanes_together_have_the_size_of_one() -> None:
    for lanes in (1, 2, 4, 8):
        assert WINDOW_BYTES * 0.9 <= lanes * window_chunks(10**6, 16, 65536, True, lanes) * 2**20 <= WINDOW_BYTES
    assert window_chunks(10**6, 16, 65536, True, 1000) == MIN_LANE_CHUNKS
    assert window_chunks(40, 16, 65536, True, 1000) == 3


@pytest.mark.parametrize("chunk_rows", [4, 64])
def test_epochs_and_seeds_differ(chunk_rows: int) -> None:
    orders = [EpochOrder(64, chunk_rows, 4, seed, epoch, True) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order.lanes[0].window(0).rows.tolist()) for order in orders}) == 16
