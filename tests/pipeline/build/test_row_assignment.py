"""Who is for validation, and which file has which row: pure, seeded, complete."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build.row_assignment import assign, cut, first_orders, moved
from pipeline.build.split import split, split_by_groups
from pipeline.errors import OptionError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(lambda labels: np.array(labels))


def alone(count: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64)


def groups(draw: st.DrawFn, count: int) -> npt.NDArray[np.int64]:
    """lead (count,): each row leads itself or follows an earlier one that does."""
    lead = alone(count)
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
    to_val = split(labels, fraction, seed)
    np.testing.assert_array_equal(to_val, split(labels, fraction, seed))
    np.testing.assert_array_equal(to_val, split_by_groups(labels, alone(len(labels)), fraction, seed))
    for label in np.unique(labels):
        total, val = np.count_nonzero(labels == label), np.count_nonzero(to_val[labels == label])
        if fraction == 0 or total == 1:
            assert val == 0
        else:
            assert 1 <= val <= total - 1
            assert abs(val - fraction * total) <= 1


@given(grouped_labels(), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_no_group_is_torn_apart(case: tuple[np.ndarray, npt.NDArray[np.int64]], fraction: float, seed: int) -> None:
    labels, lead = case
    to_val = split_by_groups(labels, lead, fraction, seed)
    np.testing.assert_array_equal(to_val, to_val[lead])
    sizes = np.bincount(lead, minlength=len(labels))
    for label in np.unique(labels):
        leads = np.flatnonzero((labels == label) & (lead == alone(len(labels))))
        if fraction == 0:
            assert not to_val[labels == label].any()
        elif len(leads) > 1:
            assert np.count_nonzero(to_val[leads]) < len(leads), "a group of each class to train on"
            assert to_val[labels == label].any(), "and one to validate"
    if len(np.unique(labels)) == 1 and fraction > 0:
        target = split(labels, fraction, seed).sum()
        assert to_val.sum() <= max(target, sizes[lead].min()), "copies do not swell the validation part"


def test_groups_change_little_of_the_split_and_the_end_of_train_most() -> None:
    """Else a build would write most shards twice."""
    labels = np.arange(3000) % 3
    lead = alone(3000)
    lead[np.arange(2000, 2100)] = np.arange(0, 100)  # of another class, mostly
    before, after = split(labels, 0.1, 0), split_by_groups(labels, lead, 0.1, 0)
    np.testing.assert_array_equal(np.bincount(labels[after]), np.bincount(labels[before]))
    changed = np.count_nonzero(before != after)
    assert 20 < changed < 50
    order = first_orders(before, 0)["train"]
    leaving = [place for place, row in enumerate(order) if after[row]]
    assert len(leaving) > 10
    assert min(leaving) > 2700 - 3 * len(leaving)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20, float("nan")])
def test_split_refuses_other_fractions(fraction: float) -> None:
    with pytest.raises(OptionError, match=r"expected a validation fraction in \[0, 1\), found"):
        split(np.zeros(4, np.int64), fraction, 0)


@given(
    st.integers(0, 80).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=n))),
    st.integers(0, 30),
)
def test_assignment_leaves_no_hole_and_moves_little(case: tuple[int, set[int]], joining: int) -> None:
    count, gone = case[0], case[1] if case[0] else set()
    files = assign(range(count), gone, range(1000, 1000 + joining))
    assert sorted(files) == sorted(set(range(count)) - gone) + list(range(1000, 1000 + joining))
    changed = [row for row, file in enumerate(files) if row != file and row < count]
    assert set(changed) <= gone, "only the rows of files that are gone change"


@given(st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), min_size=60, max_size=60), st.integers(0, 9))
def test_files_that_change_sides_are_there_once(first: list[bool], then: list[bool], seed: int) -> None:
    before, after = np.array(first, np.bool_), np.array(then[: len(first)], np.bool_)
    orders = first_orders(before, seed)
    assert sorted(orders["train"] + orders["val"]) == list(range(len(first)))
    joining = moved(orders, after)
    train = assign(orders["train"], joining["val"], joining["train"])
    val = assign(orders["val"], joining["train"], joining["val"])
    assert sorted(train) == np.flatnonzero(~after).tolist()
    assert sorted(val) == np.flatnonzero(after).tolist()


def test_cut() -> None:
    assert list(cut([5, 6, 7, 8, 9], 2)) == [(0, (5, 6)), (1, (7, 8)), (2, (9,))]
