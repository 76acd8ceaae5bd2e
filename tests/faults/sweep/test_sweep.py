"""A sample of the failure sweep; `make fault-sweep` tries all points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.sweep.__main__ import outcomes, table
from tests.faults.sweep.cases import CASES
from tests.faults.sweep.shim import ERRORS, compile_shim, why_unusable
from tests.faults.sweep.sweep import Outcome

pytestmark = pytest.mark.skipif(bool(why_unusable()), reason=why_unusable())

PROGRAM = """
import json, os, sys
from pathlib import Path
from tests.faults.sweep.shim import SHORT, Call, Shim

root, error = Path(sys.argv[1]), int(sys.argv[2])
shim, path = Shim(root), root / "a"

def work():
    path.write_bytes(b"12345678")
    path.read_bytes()
    path.rename(root / "b")
    folder = os.open(root, os.O_RDONLY)
    os.unlink("b", dir_fd=folder)
    os.close(folder)

calls = shim.calls_of(work)
shim.arm(Call(*json.loads(sys.argv[3])), error)
try:
    work()
    result = ""
except OSError as failed:
    result = failed.strerror
print(json.dumps([[f"{call.kind} {call.path}" for call in calls], result, shim.hits]))
"""


def run_program(folder: Path, error: int, *call: object) -> tuple[list[str], str, int]:
    (folder / "root").mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM, str(folder / "root"), str(error), json.dumps(call)]
    environment = {**os.environ, "LD_PRELOAD": str(compile_shim(folder))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    calls, result, hits = json.loads(done.stdout)
    return calls, result, hits


def test_shim_sees_the_calls_below_a_folder(tmp_path: Path) -> None:
    calls, result, hits = run_program(tmp_path, 5, "write", "a", 1)
    assert [call for call in calls if not call.startswith("fstat")] == [
        "create a", "write a", "close a", "open a", "read a", "read a", "close a", "rename b", "open .", "unlink b",
        "close .",
    ]  # fmt: skip
    assert (result, hits) == ("Input/output error", 1)


@pytest.mark.parametrize("call", [("read", "a", 2), ("rename", "b", 1), ("unlink", "b", 1), ("close", ".", 1)])
def test_shim_lets_one_call_fail(tmp_path: Path, call: tuple[object, ...]) -> None:
    assert run_program(tmp_path, 28, *call)[1:] == ("No space left on device", 1)


def test_shim_lets_no_other_call_fail(tmp_path: Path) -> None:
    assert run_program(tmp_path, 28, "read", "a", 4)[1:] == ("", 0)
    assert run_program(tmp_path, 28, "read", "other", 1)[1:] == ("", 0)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    return list(outcomes(tmp_path_factory.mktemp("sweep"), [], "sample"))


@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_failed_call_ends_in_the_same_results_or_one_line(sample: list[Outcome], case: str) -> None:
    own = [outcome for outcome in sample if outcome.case == case]
    assert own
    assert not [outcome for outcome in own if outcome.problem], "\n".join(table(own))


def test_sample_has_calls_and_errors_of_each_kind(sample: list[Outcome]) -> None:
    met = [outcome for outcome in sample if outcome.hits]
    assert len(met) >= 60
    assert {outcome.code for outcome in met} >= {0, 1}
    # No job links, copies or changes rights below its folder.
    assert {outcome.call.kind for outcome in met} == set(ERRORS) - {"link", "copy", "chmod"}
    errors = {"ENOSPC", "EIO", "EMFILE", "ENOMEM", "ESTALE", "EDQUOT", "EACCES", "EAGAIN", "short", "done"}
    assert {outcome.error for outcome in met} >= errors
