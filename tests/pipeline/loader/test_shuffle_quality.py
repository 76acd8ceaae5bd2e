"""The quality of the shuffle, and of its measure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loader.epoch_order import WINDOW_BYTES, EpochOrder, window_chunks
from pipeline.loader.micro_batches import MicroBatches
from pipeline.loader.shuffle_quality import all_rows, compare, runs_of

ROW_BYTES = 128 * 128 * 3
CHUNK_ROWS = 16
ROWS = 60_000  # 2.9 GB


@given(st.lists(st.integers(0, 3), max_size=60))
def test_runs_match_a_plain_loop(values: list[int]) -> None:
    lengths: list[int] = []
    for place, value in enumerate(values):
        if place and value == values[place - 1]:
            lengths[-1] += 1
        else:
            lengths.append(1)
    found = runs_of(np.array(values, dtype=np.int64))
    assert found.neighbours == len(values) - len(lengths)
    assert found.longest == max(lengths, default=0)


def large_order(seed: int, epoch: int) -> EpochOrder:
    """The order of a stream over 60,000 images of 128 px."""
    return EpochOrder(ROWS, CHUNK_ROWS, window_chunks(ROWS, CHUNK_ROWS, ROW_BYTES, True), seed, epoch, True)


def test_two_windows_are_less_than_a_twentieth_of_a_large_split() -> None:
    (lane,) = large_order(0, 0).lanes
    held = max(len(lane.window(index).rows) for index in range(lane.windows))
    assert 2 * held * ROW_BYTES <= 2 * WINDOW_BYTES < 0.05 * ROWS * ROW_BYTES


@pytest.mark.parametrize(("rows", "size", "batch_size"), [(ROWS, 128, 128), (50_000, 32, 512)])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_lanes_are_shuffled_like_a_true_permutation(rows: int, size: int, batch_size: int, lanes: int) -> None:
    """Rows stored at random, as `build` does: what `logpose info --shuffle` shows of the order of a training."""
    chunk_rows = 2 ** ((2**20 // (size * size * 3)).bit_length() - 1)
    chunks = window_chunks(rows, chunk_rows, size * size * 3, True, lanes)
    order = EpochOrder(rows, chunk_rows, chunks, 0, 1, True, MicroBatches(rows, batch_size, batch_size // lanes))
    labels = np.random.default_rng(3).permutation(np.arange(rows) * 10 // rows)  # (N,)
    shuffled = all_rows(order)  # (N,)
    for values in (np.arange(rows) // chunk_rows, labels):
        seen = compare(values, shuffled, permutations=100)
        assert seen.within, f"{seen.found.neighbours} not in {seen.low.neighbours}..{seen.high.neighbours}"
        assert seen.longest_within, f"{seen.found.longest} not in {seen.low.longest}..{seen.high.longest}"


@pytest.mark.parametrize("stored", ["at random", "sorted by class"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_epoch_is_shuffled_like_a_true_permutation(stored: str, epoch: int) -> None:
    """Builds store rows at random; but even if they are stored by class, the order shows no trace of it."""
    order = all_rows(large_order(0, epoch))  # (N,)
    np.testing.assert_array_equal(np.sort(order), np.arange(ROWS))
    labels = np.arange(ROWS) * 10 // ROWS  # (N,)
    if stored == "at random":
        labels = np.random.default_rng(3).permutation(labels)
    for values in (np.arange(ROWS) // CHUNK_ROWS, labels):
        seen = compare(values, order)
        assert seen.within, f"{seen.found.neighbours} not in {seen.low.neighbours}..{seen.high.neighbours}"
        assert seen.longest_within, f"{seen.found.longest} not in {seen.low.longest}..{seen.high.longest}"


@pytest.mark.parametrize(("window", "micro_batch"), [(25, 0), (8, 5), (8, 20)])
def test_any_two_rows_are_neighbours_as_often_as_in_a_permutation(window: int, micro_batch: int) -> None:
    """Counted over many epochs of a small split of 100 chunks."""
    rows, epochs = 400, 300
    counts = np.zeros((rows, rows))
    for epoch in range(epochs):
        order = all_rows(EpochOrder(rows, 4, window, 0, epoch, True, MicroBatches(rows, 40, micro_batch)))
        np.add.at(counts, (order[:-1], order[1:]), 1)
    expected = epochs / rows  # of each ordered pair
    chunk = np.arange(rows) // 4
    same = (chunk[:, None] == chunk) & ~np.eye(rows, dtype=bool)
    assert counts[same].mean() == pytest.approx(expected, rel=0.12)
    assert counts[chunk[:, None] != chunk].mean() == pytest.approx(expected, rel=0.01)


def test_poor_shuffles_are_detected() -> None:
    order = all_rows(EpochOrder(ROWS, CHUNK_ROWS, 85, 0, 0, False))
    labels = np.arange(ROWS) * 10 // ROWS
    for values in (np.arange(ROWS) // CHUNK_ROWS, labels):
        seen = compare(values, order, permutations=20)
        assert not seen.within and not seen.longest_within
    # Shuffled within windows, but without separating rows of one chunk: the usual way, and detected.
    generator = np.random.default_rng(0)
    chunks = generator.permutation(ROWS // CHUNK_ROWS)
    usual = np.concatenate(
        [
            generator.permutation((block[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)).ravel())
            for block in np.array_split(chunks, 45)
        ]
    )
    assert not compare(np.arange(ROWS) // CHUNK_ROWS, usual, permutations=20).within
