"""Vectors of 8 and of 16 numbers: each kernel is written once, and compiled for the width that a call needs.

In a kernel, `LANES` and what depends on it stand for one number, and other functions for their version of that width.
Outside, all of these are a `ByLanes`: `kernel[16]` is the kernel compiled for vectors of 16 numbers.

Results have the same bits at either width, so a width is only a matter of speed: no kernel may sum over the lanes of a
vector, and what is divided into whole vectors depends on `NARROW` or `WIDE`. Where lanes have to be summed, there are
`WIDE` partial sums at either width, in one vector or two, which are added in a fixed order (`narrow.py`).
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

from cnn.backends.cpu import processor

NARROW, WIDE = 8, 16  # the widths


class ByLanes:
    """Something that differs with the width of vectors: `self[lanes]` is `make(lanes)`, made once."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = cache(make)

    def __getitem__(self, lanes: int) -> Any:
        return self._make(lanes)

    def __call__(self, *_: Any) -> Any:
        """Type checkers see the calls in kernels, which are to the version of one width."""
        raise TypeError("expected the width of vectors, as in kernel[8]")


LANES: Any = ByLanes(lambda lanes: lanes)


def by_lanes(compile: Callable[[int], Callable[[Callable[..., Any]], Any]]) -> Callable[[Callable[..., Any]], ByLanes]:
    """A decorator: the function compiled by `compile(lanes)`, for each width that is used."""

    def decorate(function: Any) -> ByLanes:
        def make(lanes: int) -> Any:
            known = function.__globals__
            names = {name: known[name][lanes] for name in _names(function) if isinstance(known.get(name), ByLanes)}
            version = FunctionType(function.__code__, known | names, function.__name__)
            version.__dict__["lanes"] = lanes  # a process that compiles finds it again: `find_kernel`
            return compile(lanes)(version)

        return ByLanes(make)

    return decorate


def _names(function: Any) -> tuple[str, ...]:
    names: tuple[str, ...] = function.__code__.co_names
    return names


def find_kernel(module: Any, name: str, lanes: int | None) -> Any:
    """The kernel of a module; None if it has none of that name, or not for vectors of `lanes` numbers."""
    found = getattr(module, name, None)
    if lanes is None:
        return found
    return found[lanes] if isinstance(found, ByLanes) else None


def lanes_for(count: int) -> int:
    """The best width for rows of `count` numbers: this processor's, unless half of it is enough."""
    return processor.lanes() if count > NARROW else NARROW
