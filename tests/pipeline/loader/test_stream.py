"""Batches: each row once, the same from any step on, bounded memory, and no leaked or hanging threads."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.build import BuildReport
from pipeline.dataset.store import Dataset, Split, shard_file
from pipeline.errors import DamageError, OptionError
from pipeline.loader import epoch_order
from pipeline.loader.reader import Filling, portion_ends
from pipeline.loader.shuffle_quality import all_rows
from pipeline.loader.stream import BatchStream
from tests.pipeline.conftest import SIZE, failing_after

ROWS = 70


@pytest.fixture(scope="module")
def split(seventy: Dataset) -> Split:
    """70 rows in 18 chunks of 4; three chunks per window."""
    return seventy.train


def set_window(patch: pytest.MonkeyPatch, chunks: int) -> None:
    """Windows of this many chunks of 4 rows."""
    for name in ("WINDOW_BYTES", "UNSHUFFLED_BYTES"):
        patch.setattr(epoch_order, name, chunks * 4 * SIZE[0] * SIZE[1] * 3)
    patch.setattr(epoch_order, "MIN_LANE_CHUNKS", 1)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    set_window(monkeypatch, 3)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    with failing_after():
        yield
    gc.collect()
    deadline = time.monotonic() + 60  # a hang, not a slow machine
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("logpose")]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


def rows_of(batches: object) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 80), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.integers(1, 4), st.integers(1, 20))
def test_each_row_comes_once_with_its_image(
    split: Split, batch_size: int, seed: int, epoch: int, shuffle: bool, workers: int, window: int
) -> None:
    everything = split.read(0, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        set_window(patch, window)
        batches = BatchStream(split, batch_size, seed=seed, shuffle=shuffle, workers=workers)
    seen: list[int] = []
    sizes = []
    for batch in batches.epoch(epoch):
        assert batch.images.dtype == np.uint8
        assert batch.labels.dtype == batch.rows.dtype == np.int64
        assert len(batch.images) == len(batch.labels) == len(batch.rows)
        np.testing.assert_array_equal(batch.images, everything[batch.rows])
        np.testing.assert_array_equal(batch.labels, split.labels[batch.rows])
        seen += batch.rows.tolist()
        sizes.append(len(batch.rows))
    assert sorted(seen) == list(range(ROWS))
    assert len(sizes) == batches.steps
    assert set(sizes[:-1]) <= {batch_size}
    if not shuffle:
        assert seen == list(range(ROWS))


@pytest.mark.parametrize("batch_size", [1, 7, 12, 13, 35, 70, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_the_same_from_any_step_on(split: Split, batch_size: int, shuffle: bool) -> None:
    batches = BatchStream(split, batch_size, seed=3, shuffle=shuffle)
    expected = rows_of(batches.epoch(5))
    for start in range(0, batches.steps + 1, max(1, batches.steps // 10)):
        assert rows_of(batches.epoch(5, start)) == expected[start:]


def test_late_start_does_not_read_earlier_windows(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Split.read_into
    monkeypatch.setattr(Split, "read_into", lambda self, out, a, b: reads.append(a) or read(self, out, a, b))
    batches = BatchStream(split, 10, seed=0)
    next(batches.epoch(0, 6))
    assert len(reads) <= 6, "two windows of three chunks at most"


def test_order_depends_on_seed_and_epoch_only(split: Split) -> None:
    order = {(s, e): rows_of(BatchStream(split, 8, seed=s).epoch(e)) for s in (0, 1) for e in (0, 1)}
    assert order[0, 0] == rows_of(BatchStream(split, 8, seed=0, workers=4).epoch(0))
    assert len({str(rows) for rows in order.values()}) == 4


def test_buffers_are_reused(split: Split) -> None:
    batches = BatchStream(split, 10, seed=0)
    buffers = batches._allocate()
    batches._spare = buffers
    own = [*buffers.windows, buffers.batch]
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            assert any(np.shares_memory(batch.images, memory) for memory in own)
    assert batches._spare is buffers


def test_two_epochs_at_a_time_are_independent(split: Split) -> None:
    batches = BatchStream(split, 10, seed=0)
    expected = [rows_of(batches.epoch(0)), rows_of(batches.epoch(1))]
    everything = split.read(0, ROWS)
    for step, (first, second) in enumerate(zip(batches.epoch(0), batches.epoch(1), strict=True)):
        assert [first.rows.tolist(), second.rows.tolist()] == [expected[0][step], expected[1][step]]
        np.testing.assert_array_equal(first.images, everything[first.rows])


@pytest.mark.parametrize(("megabytes", "windows"), [(None, 2), (0.021, 3), (0.025, 4)])
def test_buffers_stay_within_the_budget(split: Split, megabytes: float | None, windows: int) -> None:
    budget = None if megabytes is None else int(megabytes * 1e6)
    batches = BatchStream(split, 4, seed=0, ram_budget=budget)
    assert batches.buffered_windows == windows
    assert budget is None or batches.ram_bytes <= budget
    buffers = batches._allocate()
    held = sum(pixels.nbytes for pixels in (*buffers.windows, buffers.batch, *buffers.scratch))
    assert held <= batches.ram_bytes
    assert sum(window.nbytes for window in buffers.windows) == windows * 12 * SIZE[0] * SIZE[1] * 3


@pytest.mark.parametrize("shuffle", [True, False])
def test_pixels_are_read_once_if_all_fit_in_the_budget(
    split: Split, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = Split.read_into
    monkeypatch.setattr(Split, "read_into", lambda self, out, a, b: reads.append(a) or read(self, out, a, b))
    cached = BatchStream(split, 9, seed=4, shuffle=shuffle, ram_budget=10**6)
    plain = BatchStream(split, 9, seed=4, shuffle=shuffle)
    assert (cached.caches_all, plain.caches_all) == (True, False)
    assert cached.buffered_windows == plain.buffered_windows == 2, "more windows would be useless"
    assert cached.ram_bytes - 10**6 <= 0 < cached.ram_bytes - ROWS * SIZE[0] * SIZE[1] * 3
    for epoch in range(3):
        images = [batch.images.copy() for batch in plain.epoch(epoch)]
        reads.clear()
        for expected, batch in zip(images, cached.epoch(epoch), strict=True):
            np.testing.assert_array_equal(batch.images, expected)
        assert sorted(reads) == (list(range(0, ROWS, 4)) if epoch == 0 else [])


def test_budget_for_less_than_a_window_is_refused(split: Split) -> None:
    with pytest.raises(OptionError, match=r"at least 1 MB for train of .* in batches of 4, found 0.001 MB:"):
        BatchStream(split, 4, seed=0, ram_budget=1000)


# Micro-batches and lanes


SIZES = st.tuples(st.integers(1, 80), st.integers(1, 80)).filter(lambda sizes: sizes[0] <= 16 * sizes[1])


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.booleans(), st.integers(0, 70), st.data())
def test_ranks_divide_each_batch_into_micro_batches(
    split: Split, sizes: tuple[int, int], ranks: int, workers: int, window: int, shuffle: bool, start: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    batch_size, micro_batch = sizes
    everything = split.read(0, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        set_window(patch, window)
        whole = BatchStream(split, batch_size, seed=1, micro_batch=micro_batch, shuffle=shuffle)
        lanes = whole.division.lanes
        ends = sorted(data.draw(st.lists(st.integers(1, lanes), max_size=ranks - 1))) if lanes > 1 else []
        owned = [range(*run) for run in pairwise([0, *ends, lanes]) if run[0] < run[1]]
        budgets = [data.draw(st.sampled_from([None, 200_000])) for _ in owned]
        streams = [
            BatchStream(
                split, batch_size, seed=1, micro_batch=micro_batch, lanes=own, shuffle=shuffle, workers=workers,
                ram_budget=budget,
            )
            for own, budget in zip(owned, budgets, strict=True)
        ]  # fmt: skip
    start = min(start, whole.steps)
    expected = rows_of(whole.epoch(2))
    assert sorted(row for rows in expected for row in rows) == list(range(ROWS))
    assert {len(rows) for rows in expected[:-1]} <= {batch_size}
    order = all_rows(whole.order(2)).tolist()
    assert [row for rows in expected for row in rows] == order
    steps = zip(*(stream.micro_batches(2, start) for stream in streams), strict=True)
    for step, parts in enumerate(steps, start):
        batches = [batch for part in parts for batch in part]
        assert [row for batch in batches for row in batch.rows.tolist()] == expected[step]
        assert [batch.index for batch in batches] == list(range(len(batches)))
        assert [part and part[0].index in own for part, own in zip(parts, owned, strict=True)].count(False) == 0
        lengths = [len(batch.rows) for batch in batches]
        assert lengths == [min(micro_batch, batch_size, len(expected[step]) - sum(lengths[:j]))
                           for j in range(len(lengths))]  # fmt: skip
        for batch in batches:  # all are valid at the same time
            assert batch.global_rows == len(expected[step])
            np.testing.assert_array_equal(batch.images, everything[batch.rows])
            np.testing.assert_array_equal(batch.labels, split.labels[batch.rows])
    assert start + sum(1 for _ in whole.micro_batches(2, start)) == whole.steps


@pytest.mark.parametrize("lanes", [range(3), range(1, 3), range(2, 3)])
def test_whole_batches_are_the_micro_batches_together(split: Split, lanes: range) -> None:
    stream = BatchStream(split, 12, seed=5, micro_batch=5, lanes=lanes)
    parts = [[(b.images.copy(), b.labels, b.rows) for b in batches] for batches in stream.micro_batches(0)]
    for batch, found in zip(stream.epoch(0), parts, strict=True):
        assert batch.index == lanes[0]
        assert batch.rows.tolist() == [row for _, _, rows in found for row in rows.tolist()]
        assert batch.labels.tolist() == [label for _, labels, _ in found for label in labels.tolist()]
        for images in (images for images, _, _ in found[:1]):
            np.testing.assert_array_equal(batch.images[: len(images)], images)
        np.testing.assert_array_equal(batch.images, split.read(0, ROWS)[batch.rows])


def test_one_lane_is_the_order_without_micro_batches(split: Split) -> None:
    expected = rows_of(BatchStream(split, 9, seed=1).epoch(3))
    for micro_batch in (9, 10, 1000):
        stream = BatchStream(split, 9, seed=1, micro_batch=micro_batch)
        assert rows_of(stream.epoch(3)) == expected
        assert [rows_of(batches) for batches in stream.micro_batches(3)] == [[rows] for rows in expected]


def test_micro_batches_are_slices_of_windows(split: Split) -> None:
    stream = BatchStream(split, 12, seed=5, micro_batch=3)
    buffers = stream._spare = stream._allocate()
    windows = 0
    for batches in stream.micro_batches(0):
        for batch in batches:
            inside = [np.shares_memory(batch.images, memory) for memory in (*buffers.windows, buffers.batch)]
            assert inside.count(True) == 1
            windows += not inside[-1]
    assert windows > 10, "copied only where they span two windows"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_read_their_lanes_only(split: Split, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Split.read_into
    monkeypatch.setattr(Split, "read_into", lambda self, out, a, b: reads.append(a) or read(self, out, a, b))
    for rank in range(ranks):
        reads.clear()
        own = range(4 * rank // ranks, 4 * (rank + 1) // ranks)
        stream = BatchStream(split, 8, seed=rank, micro_batch=2, lanes=own)
        rows = [len(batch.rows) for batches in stream.micro_batches(1) for batch in batches]
        lanes = [stream.order(1).lanes[lane] for lane in own]
        assert len(reads) == sum(len(lane.chunks) for lane in lanes)
        assert 4 * len(reads) <= sum(rows) + 8 * len(own), "at most one chunk more than its rows at each end of a lane"


@pytest.mark.parametrize("micro_batch", [3, 4, 12])
def test_budget_is_that_of_the_lanes_of_the_process(split: Split, micro_batch: int) -> None:
    pixels = SIZE[0] * SIZE[1] * 3
    everything = BatchStream(split, 12, seed=0, micro_batch=micro_batch)
    lanes = everything.division.lanes
    assert everything.buffered_windows == 2 * lanes
    for own in {range(lanes), range(1), range(lanes // 2, lanes)}:
        least = BatchStream(split, 12, seed=0, micro_batch=micro_batch, lanes=own).min_bytes
        with pytest.raises(OptionError, match="expected a RAM budget of at least"):
            BatchStream(split, 12, seed=0, micro_batch=micro_batch, lanes=own, ram_budget=least - 1)
        for budget in (least, least + 3000, least + 8000, 10**6):
            stream = BatchStream(split, 12, seed=0, micro_batch=micro_batch, lanes=own, ram_budget=budget)
            assert stream.caches_all == (budget == 10**6)
            assert len(own) <= stream.buffered_windows <= 4 * len(own)
            assert stream.ram_bytes <= budget
            buffers = stream._allocate()
            held = sum(memory.nbytes for memory in (*buffers.windows, buffers.batch, *buffers.scratch))
            assert held + stream.caches_all * ROWS * pixels <= stream.ram_bytes
            rows = [row for batches in stream.micro_batches(0) for batch in batches for row in batch.rows.tolist()]
            assert len(rows) == len(set(rows)) == sum(stream.order(0).lanes[lane].rows for lane in own)


def test_cache_reads_a_chunk_of_two_lanes_once(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Split.read_into
    monkeypatch.setattr(
        Split, "read_into", lambda self, *its: time.sleep(0.001) or reads.append(its[1]) or read(self, *its)
    )
    stream = BatchStream(split, 8, seed=0, micro_batch=1, workers=4, ram_budget=10**6)
    assert stream.caches_all
    for epoch in range(2):
        rows_of(stream.epoch(epoch))
    assert sorted(reads) == list(range(0, ROWS, 4))


def test_waiting_is_measured(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Split.read_into
    monkeypatch.setattr(Split, "read_into", lambda self, *its: time.sleep(0.02) or read(self, *its))
    batches = BatchStream(split, 35, seed=0, workers=1)
    began = time.perf_counter()
    for _ in batches.epoch(0):
        pass
    assert 0.1 < batches.times.wait <= time.perf_counter() - began


def test_iterating_gives_one_epoch_after_the_other(split: Split) -> None:
    batches = BatchStream(split, 8, seed=3)
    assert len(batches) == batches.steps == 9
    for number in range(3):
        assert rows_of(batches) == rows_of(batches.epoch(number))
    first, second = iter(batches), iter(batches)
    assert rows_of(second) == rows_of(batches.epoch(4)), "each iter() is an epoch of its own"
    assert rows_of(first) == rows_of(batches.epoch(3))


@given(st.integers(0, 500), st.integers(1, 9))
def test_tasks_have_each_piece_once_and_the_last_ones_are_small(pieces: int, workers: int) -> None:
    ends = portion_ends(pieces, workers)
    sizes = [end - begin for begin, end in pairwise([0, *ends])]
    assert sum(sizes) == pieces and min(sizes, default=1) > 0
    assert len(sizes) <= 3 * workers
    assert pieces < 20 * workers or max(sizes[-workers:]) <= 1 + pieces // (9 * workers)


def test_windows_come_in_order_whichever_task_ends_first(split: Split) -> None:
    windows = [(window, np.empty((0, *SIZE, 3), np.uint8)) for window in map(
        BatchStream(split, 5, seed=0).order(0).lanes[0].window, range(3)
    )]  # fmt: skip
    filled: queue.SimpleQueue[object] = queue.SimpleQueue()
    filling = Filling(windows, filled)  # type: ignore[arg-type]
    assert len(filling.pieces) == 9, "three chunks each"
    counts = []
    for begin, end in ((7, 9), (2, 4), (4, 5), (0, 2), (5, 7)):
        filling.finish(begin, end)
        counts.append(filled.qsize())
    assert counts == [0, 0, 0, 1, 3]
    assert [filled.get() for _ in windows] == windows


# Ends, errors


@pytest.mark.parametrize("reader", ["reading", "waiting for a free window"])
@pytest.mark.parametrize("how", ["close", "del", "break", "error"])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_leaving_early_ends_the_threads_and_frees_the_buffers(
    split: Split, how: str, reader: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "reading":
        read = Split.read_into
        monkeypatch.setattr(Split, "read_into", lambda self, *its: time.sleep(0.01) or read(self, *its))
    batches = BatchStream(split, 5, seed=0, micro_batch=micro_batch)
    epoch: Iterator[object] = batches.micro_batches(0) if micro_batch else batches.epoch(0)
    next(epoch)
    if reader != "reading":
        time.sleep(0.2)
    if how == "close":
        epoch.close()  # type: ignore[attr-defined]
    elif how == "del":
        del epoch
    elif how == "break":
        for _ in epoch:
            break
        del epoch
    else:
        with pytest.raises(ZeroDivisionError):
            epoch.throw(ZeroDivisionError())  # type: ignore[attr-defined]
    gc.collect()  # then `no_thread_is_left` waits for the threads to end
    assert batches._spare is not None
    assert sorted(row for rows in rows_of(batches.epoch(0)) for row in rows) == list(range(ROWS))


def test_unused_epoch_starts_no_thread(split: Split) -> None:
    before = threading.active_count()
    epoch = BatchStream(split, 5, seed=0).epoch(0)
    assert threading.active_count() == before
    del epoch


@pytest.mark.parametrize("workers", [1, 3])
def test_errors_of_reading_reach_the_consumer(
    split: Split, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Split.read_into

    def fail(self: Split, out: np.ndarray, start: int, stop: int) -> object:
        if start == 40:
            raise SystemExit("the disk failed")  # not even an Exception
        return read(self, out, start, stop)

    monkeypatch.setattr(Split, "read_into", fail)
    batches = BatchStream(split, 5, seed=0, shuffle=False, workers=workers)
    seen = []
    with pytest.raises(SystemExit, match="the disk failed"):
        for batch in batches.epoch(0):
            seen += batch.rows.tolist()
    assert seen == list(range(len(seen))) and len(seen) <= 35, "no rows of the window that failed"


def test_errors_are_raised_before_earlier_windows_are_used_up(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    read, started, failed = Split.read_into, threading.Event(), threading.Event()

    def fail(self: Split, out: np.ndarray, start: int, stop: int) -> object:
        if start == 12:  # the second window of three chunks
            started.wait(60)  # an error that came before the first batch would be raised with it
            failed.set()
            raise OSError("the disk failed")
        return read(self, out, start, stop)

    monkeypatch.setattr(Split, "read_into", fail)
    epoch = BatchStream(split, 2, seed=0, shuffle=False).epoch(0)
    assert next(epoch).rows.tolist() == [0, 1]
    started.set()
    assert failed.wait(60)
    while any(thread.name == "logpose-reader" for thread in threading.enumerate()):
        time.sleep(0.01)
    with pytest.raises(OSError, match="the disk failed"):
        next(epoch)  # the first window has more rows


def test_damage_is_reported_to_the_consumer(
    image_folder: Callable[..., Path], build: Callable[..., BuildReport], small_chunks: None
) -> None:
    dataset = Dataset.open(build(image_folder(a=20, b=20), val=0).path)
    shard_file(dataset.path, "train", 3).unlink()
    with pytest.raises(DamageError, match=r"found damage in train images, chunk .* in .*c/3.*no such file"):
        rows_of(BatchStream(dataset.train, 6, seed=0).epoch(0))
    lanes = [BatchStream(dataset.train, 6, seed=0, micro_batch=3, lanes=range(lane, lane + 1)) for lane in range(2)]
    damaged = [any(start >= 24 for start, _ in stream.order(0).lanes[lane].chunks) for lane, stream in enumerate(lanes)]
    for stream, found in zip(lanes, damaged, strict=True):
        with pytest.raises(DamageError) if found else nullcontext():
            list(stream.micro_batches(0))


def test_empty_splits_and_wrong_arguments(
    split: Split, image_folder: Callable[..., Path], build: Callable[..., BuildReport]
) -> None:
    empty = BatchStream(Dataset.open(build(image_folder(a=2, b=2), val=0).path).val, 4, seed=0)
    assert empty.steps == 0
    assert rows_of(empty.epoch(0)) == []
    with pytest.raises(OptionError, match="batch size of at least 1, found 0"):
        BatchStream(split, 0, seed=0)
    with pytest.raises(OptionError, match="at least one worker, found 0"):
        BatchStream(split, 4, seed=0, workers=0)
    with pytest.raises(OptionError, match="at least 1 row, or 0 for whole batches, found -1"):
        BatchStream(split, 4, seed=0, micro_batch=-1)
    for lanes in (range(0), range(-1, 1), range(1, 3), range(0, 2, 2)):
        with pytest.raises(OptionError, match=r"a range of lanes within range\(0, 2\), found range"):
            BatchStream(split, 4, seed=0, micro_batch=2, lanes=lanes)
    with pytest.raises(OptionError, match=r"a step within 0\.\.18 of the epoch, found 19"):
        BatchStream(split, 4, seed=0).epoch(0, 19)


def test_epoch_dropped_in_a_thread_of_the_reader_does_not_wait_for_itself(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the garbage collector may do it, in whichever thread it runs."""
    stream = BatchStream(split, 5, seed=0, shuffle=False)
    epochs = [stream.epoch(0)]
    read, begun, closed = Split.read_into, threading.Event(), threading.Event()

    def close(self: Split, out: np.ndarray, start: int, stop: int) -> object:
        if start == 12 and begun.wait(60):  # the second window
            epochs.pop().close()  # type: ignore[attr-defined]
            closed.set()
        return read(self, out, start, stop)

    monkeypatch.setattr(Split, "read_into", close)
    next(epochs[0])
    begun.set()
    assert closed.wait(60)
    assert stream._spare is None, "its buffers may still be in use"


@pytest.mark.parametrize("shuffle", [True, False])
def test_images_from_elsewhere_are_in_the_same_order_and_not_read(
    split: Split, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = split.read(0, ROWS)
    usual = BatchStream(split, 13, seed=2, shuffle=shuffle)
    expected = [(batch.images.copy(), batch.labels, batch.rows.tolist()) for batch in usual.epoch(1, 2)]
    monkeypatch.setattr(Split, "read_into", None)
    other = BatchStream(split, 13, seed=2, shuffle=shuffle, ram_budget=10**9, images_of=lambda rows: everything[rows])
    assert not other.caches_all and other.ram_bytes < usual.ram_bytes
    divided = BatchStream(split, 13, seed=2, shuffle=shuffle, micro_batch=4, images_of=lambda rows: everything[rows])
    for (whole, batches) in zip(divided.epoch(1, 2), divided.micro_batches(1, 2), strict=True):
        assert [row for batch in batches for row in batch.rows.tolist()] == whole.rows.tolist()
        for batch in (whole, *batches):
            np.testing.assert_array_equal(batch.images, everything[batch.rows])
    for batch, (images, labels, rows) in zip(other.epoch(1, 2), expected, strict=True):
        np.testing.assert_array_equal(batch.images, images)
        np.testing.assert_array_equal(batch.labels, labels)
        assert batch.rows.tolist() == rows
