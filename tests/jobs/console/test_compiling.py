"""What the user sees while kernels are compiled."""

import pytest

from jobs.console import compiling as module
from jobs.console.compiling import MIN_KERNELS, compiling, expected_seconds
from jobs.console.output import Verbosity, verbosity_of


def test_much_to_compile_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with compiling() as progress:
        for done in range(21):
            progress(done, 20)
    assert capsys.readouterr().out == f"compiling kernels, once, about {expected_seconds(20)} s\n"


def test_little_and_nothing_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    with compiling() as progress:
        progress(0, MIN_KERNELS - 1)
        progress(1, MIN_KERNELS - 1)
    with compiling():
        pass
    with verbosity_of(Verbosity.QUIET), compiling() as progress:
        progress(0, 20)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("cpus", "seconds"), [(1, 11), (2, 6), (4, 4), (64, 4)])
def test_more_cpus_compile_sooner(cpus: int, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: cpus)
    assert expected_seconds(20) == seconds
