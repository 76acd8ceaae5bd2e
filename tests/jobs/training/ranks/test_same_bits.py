"""Trainings on ranks end with the bits of one without: any number of ranks and threads, and resumed with others.

`python -m tests.jobs.training.ranks.matrix` is the long version.
"""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.training.loop import Training
from jobs.training.run_folder import RunFolder
from tests.jobs.conftest import Logpose
from tests.jobs.training.ranks.conftest import DIVIDED
from tests.jobs.training.ranks.digests import digest
from tests.jobs.training.runs import RESULTS


def press_ctrl_c_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when the result of this step, counted from 1, is there."""
    count = Training._count

    def counted(self: Training, *arguments: Any) -> None:
        count(self, *arguments)
        if self.state.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(Training, "_count", counted)


def test_two_processes_with_two_threads_each(logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--threads", 2, "--ranks", 2)
    assert (outcome.code, outcome.err) == (0, "")
    assert "2 ranks on this machine, each cpu: 2 threads" in " ".join(outcome.out.split())
    assert digest(tmp_path / "run") == digest(alone)


def test_three_processes_resume_what_one_rank_began(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Any
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        press_ctrl_c_after(4, patch)
        outcome = logpose("train", dataset, run_dir, *DIVIDED, "--ranks", 1)
    assert outcome.code == 130 and f"resume with: logpose train {dataset} {run_dir} --resume --ranks 1" in outcome.err
    assert 4 <= RunFolder(run_dir).checkpoint_to_resume(resume=True, overwrite=False).progress["step"] < 12  # type: ignore[union-attr]
    monkeypatch.undo()  # ranks in processes of their own from here on
    outcome = logpose("train", dataset, run_dir, "--resume", "--ranks", 3, "--device", "cpu", "--threads", 1)
    assert (outcome.code, outcome.err) == (0, "") and "resuming in epoch 1 after" in outcome.out
    assert digest(run_dir) == digest(alone)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.usefixtures("in_process")
def test_any_number_of_ranks(logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, ranks: int) -> None:
    run_dir = tmp_path / "run"
    outcome = logpose("train", dataset, run_dir, *DIVIDED, "--ranks", ranks)
    assert (outcome.code, outcome.err) == (0, "") and "note" not in outcome.out
    assert digest(run_dir) == digest(alone)
    assert {path.name for path in run_dir.iterdir()} == {*RESULTS, "ranks.csv"}
    with (run_dir / "ranks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["rank"]) for row in rows] == [(e, str(r)) for e in "12" for r in range(ranks)]
    for epoch in "12":
        own = [row for row in rows if row["epoch"] == epoch]
        assert sum(int(row["images"]) for row in own) == 48
        assert sum(int(row["micro_batches"]) for row in own) == 24
        assert all((float(row["sent_megabytes"]) > 0) == (ranks > 1) for row in own)


@pytest.mark.usefixtures("in_process")
def test_ranks_resume_what_began_without_and_without_what_began_on_ranks(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first, then in (((), ("--ranks", 3)), (("--ranks", 2), ())):
        run_dir = tmp_path / f"run {first}"
        with monkeypatch.context() as patch:
            press_ctrl_c_after(8, patch)
            assert logpose("train", dataset, run_dir, *DIVIDED, *first).code == 130
        outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu", "--threads", 1, *then)
        assert (outcome.code, outcome.err) == (0, "") and "so far, and now on" not in outcome.out
        assert digest(run_dir) == digest(alone)


@pytest.mark.usefixtures("in_process")
def test_checkpoints_within_an_epoch_change_nothing(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tensors and sums are of the same step: from each of them, a training ends with the same bits."""
    saved: list[bytes] = []
    save_last = RunFolder.save_last

    def keep(self: RunFolder, *arguments: Any) -> None:
        save_last(self, *arguments)
        saved.append(self.last.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_last", keep)
        arguments = ("train", dataset, tmp_path / "run", *DIVIDED, "--ranks", 2, "--checkpoint-steps", 1)
        assert logpose(*arguments).code == 0
    assert digest(tmp_path / "run") == digest(alone)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    assert len(saved) > 6
    for checkpoint in (saved[2], saved[-4]):
        for file in resumed.iterdir():
            file.unlink()
        (resumed / "last.safetensors").write_bytes(checkpoint)
        assert logpose("train", dataset, resumed, "--resume", "--device", "cpu", "--threads", 1).code == 0
        assert digest(resumed) == digest(alone)
