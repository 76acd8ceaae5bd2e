"""The order of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loader.epoch_order import EpochOrder, permutation, rank_slice
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

ORDER = [[1, 2, 9, 6, 7, 3, 11, 4, 5, 0, 8, 10], [19, 20, 16, 13, 21, 17, 15, 18, 14, 12]]


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
    windows = [order.window(index) for index in range(order.windows)]
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
        start = order.window_starts[index]
        assert order.window_at(start) == order.window_at(start + len(window.rows) - 1) == index


def test_order_never_changes() -> None:
    # Recorded once, like the permutation.
    order = EpochOrder(rows=22, chunk_rows=4, window_chunks=3, seed=7, epoch=3, shuffle=True)
    assert [order.window(index).rows.tolist() for index in range(order.windows)] == ORDER


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_slices_of_all_ranks_are_the_batch(size: int, world_size: int) -> None:
    slices = [rank_slice(size, rank, world_size) for rank in range(world_size)]
    assert [row for start, stop in slices for row in range(start, stop)] == list(range(size))
    lengths = {stop - start for start, stop in slices}
    assert max(lengths) - min(lengths) <= 1


@given(
    st.integers(1, 400), st.integers(1, 20), st.integers(1, 8), st.integers(1, 90), st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(0, 99),
)  # fmt: skip
def test_global_batches_are_the_same_for_any_number_of_ranks(
    row_count: int, chunk_rows: int, window_chunks: int, batch: int, world_size: int, seed: int
) -> None:
    order = all_rows(EpochOrder(row_count, chunk_rows, window_chunks, seed, 0, True))  # (N,)
    assert sorted(order) == list(range(row_count))
    for start in range(0, row_count, batch):
        rows = order[start : start + batch]  # (B,)
        slices = [rows[slice(*rank_slice(len(rows), rank, world_size))] for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(slices), rows)


@pytest.mark.parametrize("chunk_rows", [4, 64])
def test_epochs_and_seeds_differ(chunk_rows: int) -> None:
    orders = [EpochOrder(64, chunk_rows, 4, seed, epoch, True) for seed in range(4) for epoch in range(4)]
    assert len({tuple(order.window(0).rows.tolist()) for order in orders}) == 16
