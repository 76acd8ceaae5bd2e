"""The split, and the assignment of files to rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.build.row_assignment import assign_rows, by_shard, initial_orders, joining_files
from pipeline.build.split import split_files, split_groups
from pipeline.errors import OptionError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(lambda labels: np.array(labels))


def ungrouped(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64)


def groups(draw: st.DrawFn, count: int) -> npt.NDArray[np.int64]:
    """Draw lead (count,): each file leads itself, or has an earlier file that leads itself as its lead."""
    lead = ungrouped(count)
    for row in draw(st.sets(st.integers(1, max(1, count - 1)), max_size=count // 2)) if count > 1 else ():
        lead[row] = lead[draw(st.integers(0, row - 1))]
    for row in range(count):
        lead[row] = lead[lead[row]]
    return lead


@st.composite
def grouped_labels(draw: st.DrawFn) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
    labels = draw(LABELS)
    return labels, groups(draw, len(labels))


@given(LABELS, st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_split_is_stratified(labels: np.ndarray, fraction: float, seed: int) -> None:
    in_val = split_files(labels, fraction, seed)
    np.testing.assert_array_equal(in_val, split_files(labels, fraction, seed))
    np.testing.assert_array_equal(in_val, split_groups(labels, ungrouped(len(labels)), fraction, seed))
    for label in np.unique(labels):
        total, val = np.count_nonzero(labels == label), np.count_nonzero(in_val[labels == label])
        if fraction == 0 or total == 1:
            assert val == 0
        else:
            assert 1 <= val <= total - 1
            assert abs(val - fraction * total) <= 1


# Groups of several classes, all of one class's in val at first.
@example((np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 3, 1, 1])), 0.8, 18050)
@given(grouped_labels(), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_no_group_is_divided(case: tuple[np.ndarray, npt.NDArray[np.int64]], fraction: float, seed: int) -> None:
    labels, lead = case
    in_val = split_groups(labels, lead, fraction, seed)
    np.testing.assert_array_equal(in_val, in_val[lead])
    sizes = np.bincount(lead, minlength=len(labels))
    for label in np.unique(labels):
        if fraction == 0:
            assert not in_val[labels == label].any()
        elif len(np.unique(lead[labels == label])) > 1:
            assert not in_val[labels == label].all(), "each class has a group in train"
            if (labels[lead] == labels).all():  # groups of several classes may leave one of them without
                assert in_val[labels == label].any(), "and one in val"
    if len(np.unique(labels)) == 1 and fraction > 0:
        target = split_files(labels, fraction, seed).sum()
        assert in_val.sum() <= max(target, sizes[lead].min()), "groups do not make the validation split larger"


def test_groups_change_few_rows_mostly_at_the_end_of_train() -> None:
    """Otherwise a build would write most shards twice."""
    labels = np.arange(3000) % 3
    lead = ungrouped(3000)
    lead[np.arange(2000, 2100)] = np.arange(0, 100)  # mostly of another class
    before, after = split_files(labels, 0.1, 0), split_groups(labels, lead, 0.1, 0)
    np.testing.assert_array_equal(np.bincount(labels[after]), np.bincount(labels[before]))
    changed = np.count_nonzero(before != after)
    assert 20 < changed < 50
    order = initial_orders(before, 0)["train"]
    leaving = [place for place, row in enumerate(order) if after[row]]
    assert len(leaving) > 10
    assert min(leaving) > 2700 - 3 * len(leaving)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20, float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(OptionError, match=r"expected a validation fraction in \[0, 1\), found"):
        split_files(np.zeros(4, np.int64), fraction, 0)


@given(
    st.integers(0, 80).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=n))),
    st.integers(0, 30),
)
def test_assignment_leaves_no_row_empty_and_moves_few_files(case: tuple[int, set[int]], joining: int) -> None:
    count, leaving = case[0], case[1] if case[0] else set()
    files = assign_rows(range(count), leaving, range(1000, 1000 + joining))
    assert sorted(files) == sorted(set(range(count)) - leaving) + list(range(1000, 1000 + joining))
    changed = [row for row, file in enumerate(files) if row != file and row < count]
    assert set(changed) <= leaving, "only the rows of files that left change"


@given(st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), min_size=60, max_size=60), st.integers(0, 9))
def test_files_that_change_splits_have_one_row(first: list[bool], then: list[bool], seed: int) -> None:
    before, after = np.array(first, np.bool_), np.array(then[: len(first)], np.bool_)
    orders = initial_orders(before, seed)
    assert sorted(orders["train"] + orders["val"]) == list(range(len(first)))
    joining = joining_files(orders, after)
    train = assign_rows(orders["train"], joining["val"], joining["train"])
    val = assign_rows(orders["val"], joining["train"], joining["val"])
    assert sorted(train) == np.flatnonzero(~after).tolist()
    assert sorted(val) == np.flatnonzero(after).tolist()


def test_by_shard_cuts_rows_into_numbered_shards() -> None:
    assert list(by_shard([5, 6, 7, 8, 9], 2)) == [(0, (5, 6)), (1, (7, 8)), (2, (9,))]
