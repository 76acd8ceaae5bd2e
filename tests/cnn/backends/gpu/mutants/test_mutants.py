"""All mutants are found, by the checker or by a wrong result."""

import os
from typing import Any

import pytest

from tests.cnn.backends.gpu.mutants.mutant import Context, Mutant, fresh_kernels, outcome
from tests.cnn.backends.gpu.mutants.of_convolution import CONVOLUTION
from tests.cnn.backends.gpu.mutants.of_host import HOST
from tests.cnn.backends.gpu.mutants.of_layers import ELEMENTWISE, NORM, POOLING
from tests.cnn.backends.gpu.mutants.of_training import INPUTS, LOSSES, OPTIMIZERS

MUTANTS = [*CONVOLUTION, *NORM, *POOLING, *ELEMENTWISE, *LOSSES, *OPTIMIZERS, *INPUTS, *HOST]


@pytest.mark.parametrize("mutant", [pytest.param(each, id=each.name.replace(" ", "-")) for each in MUTANTS])
def test_mutant_is_found(emulator: Any, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    with fresh_kernels():
        found = outcome(mutant, Context(emulator, monkeypatch))
    assert found, "no check finds it"
    assert any(each in found for each in mutant.found.split("|")), found
    if os.environ.get("LOGPOSE_SHOW"):
        print("FOUND", mutant.name, "|", found[:150].replace("\n", " "))
