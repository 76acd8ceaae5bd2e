"""All mutants are found, by the checker or by a wrong result."""

import os
from typing import Any

import pytest

from tests.cnn.backends.gpu.mutants.checks import Check
from tests.cnn.backends.gpu.mutants.mutant import Context, Mutant, failure, fresh_kernels, outcome, path_of
from tests.cnn.backends.gpu.mutants.of_convolution import CONVOLUTION
from tests.cnn.backends.gpu.mutants.of_host import HOST
from tests.cnn.backends.gpu.mutants.of_layers import ELEMENTWISE, NORM, POOLING
from tests.cnn.backends.gpu.mutants.of_training import INPUTS, LOSSES, MICRO_BATCHES, OPTIMIZERS

# Each compiles kernels.
KERNELS = (*CONVOLUTION, *NORM, *POOLING, *ELEMENTWISE, *LOSSES, *MICRO_BATCHES, *OPTIMIZERS, *INPUTS)
ALL = (*KERNELS, *HOST)
# With those of the host, which compile nothing of their own. One per family, and per kind of failure.
SAMPLE = (
    "slices not awaited", "columns past the last are read", "means are merged without their distance",
    "the last of equals wins", "draws equal to the rate are dropped", "groups without a row leave their warp",
    "sgd after a failed step", "padding is not zero",
)  # fmt: skip
CHOSEN = ALL if os.environ.get("LOGPOSE_ALL_MUTANTS") else (*(each for each in KERNELS if each.name in SAMPLE), *HOST)


_passed: set[Check] = set()  # checks that pass without a mistake


def without_mistake(check: Check, context: Context) -> str:
    """How the check ends; "" if it passes."""
    if check in _passed:
        return ""
    with context.patch.context() as patch:
        message = failure(lambda: check(Context(context.device, patch)), context.device)
    if not message:
        _passed.add(check)
    return message


@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name.replace(" ", "-")) for each in CHOSEN])
def test_mutant_is_found(emulator: Any, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    context = Context(emulator, monkeypatch)
    with fresh_kernels():
        assert not without_mistake(mutant.check, context), "the check fails without the mistake"
    with fresh_kernels():
        found = outcome(mutant, context)
    assert found, "no check finds it"
    assert any(each in found for each in mutant.found.split("|")), found


def test_all_mutants_fit_the_code() -> None:
    names = [each.name for each in ALL]
    assert len(set(names)) == len(names) > 180
    assert set(SAMPLE) <= set(names)
    stale = [each.name for each in ALL if path_of(each).read_text(encoding="utf-8").count(each.old) != 1]
    assert not stale, f"their text is not found once in the file: {stale}"
