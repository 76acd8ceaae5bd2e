"""The self-test: it passes on the CPU, and finds a kernel that computes something else."""

import json
from typing import Any

import pytest

from cnn.backends.cpu import CpuBackend
from jobs.selftest import checks
from jobs.selftest.cases import CASES
from tests.cnn.oracles import LAYERS
from tests.jobs.conftest import Logpose
from tests.jobs.conftest import logpose as logpose  # the fixture


@pytest.fixture(autouse=True)
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CASES", {name: CASES[name] for name in ("MaxPool 2x2", "Sequential")})


def test_every_layer_has_a_case() -> None:
    assert {type(layer) for layer, _ in CASES.values()} == set(LAYERS)


def test_the_cpu_passes(logpose: Logpose) -> None:
    result = logpose("selftest", "--device", "cpu", "--json")
    assert result.code == 0, result.out + result.err
    found = json.loads(result.out)
    assert found["ok"] and all(check["ok"] for check in found["checks"])
    assert {check["group"] for check in found["checks"]} == {
        "layer", "loss", "optimizer", "images", "gradient", "training"
    }


def test_a_wrong_kernel_is_named(logpose: Logpose, monkeypatch: pytest.MonkeyPatch) -> None:
    right = CpuBackend.max_pool_backward

    def wrong(self: CpuBackend, *arguments: Any) -> Any:
        return 1.001 * right(self, *arguments)

    monkeypatch.setattr(CpuBackend, "max_pool_backward", wrong)
    result = logpose("selftest", "--device", "cpu")
    assert result.code == 1
    assert "wrong: layer MaxPool 2x2" in result.out and "wrong: gradient MaxPool 2x2" in result.out
    assert "2 of 14 checks failed" in result.out


def test_a_kernel_that_fails_is_reported(logpose: Logpose, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(CpuBackend, "max_pool", fails)
    result = logpose("selftest", "--device", "cpu")
    assert result.code == 1 and "RuntimeError: an illegal memory access" in result.out
