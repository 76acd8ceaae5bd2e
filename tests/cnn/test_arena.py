"""Flat vectors, their named views and their groups."""

import numpy as np

from cnn.arena import Arena, Group, Spec
from cnn.backends.reference import ReferenceBackend
from cnn.initialise import he_normal, zeros

REFERENCE = ReferenceBackend()


def test_decayed_parameters_come_first_and_views_share_memory() -> None:
    specs = [Spec("a.bias", (2,), zeros), Spec("a.weight", (3, 2), he_normal, decay=True), Spec("b.shift", (1,), zeros)]
    arena = Arena(specs, REFERENCE)
    assert (arena.size, arena.groups) == (9, (Group(0, 9, 6, 1.0, 1.0),))
    assert list(arena.views) == ["a.weight", "a.bias", "b.shift"]
    arena.tree["a"]["weight"][...] = 5
    np.testing.assert_array_equal(arena.flat, [5] * 6 + [0] * 3)


def test_parameters_trained_alike_are_contiguous_and_frozen_ones_last() -> None:
    specs = [
        Spec("early", (2,), zeros, trained_until=0.5), Spec("frozen", (3,), zeros, True, trained_until=0.0),
        Spec("a", (4,), zeros), Spec("fast", (5,), zeros, lr_factor=64.0), Spec("b", (6,), zeros, True),
        Spec("quick", (1,), zeros, True, 64.0),
    ]  # fmt: skip
    arena = Arena([spec.under("x") for spec in specs], REFERENCE)
    assert list(arena.views) == ["x.b", "x.a", "x.quick", "x.fast", "x.early", "x.frozen"]
    assert arena.groups == (
        Group(0, 10, 6, 1.0, 1.0), Group(10, 16, 1, 64.0, 1.0), Group(16, 18, 0, 1.0, 0.5), Group(18, 21, 3, 1.0, 0.0),
    )  # fmt: skip
    assert [arena.trained_groups(progress)[-1].last for progress in (0.0, 0.49, 0.5, 1.0)] == [18, 18, 16, 16]
