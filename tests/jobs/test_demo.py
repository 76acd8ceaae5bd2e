"""The demo, with few flags: runs to the end, prints the results' paths, and skips finished steps."""

from pathlib import Path

import pytest

from jobs import demo as job
from jobs.flags import CREWS
from tests.jobs.conftest import Logpose


def test_demo_runs_and_can_be_repeated(logpose: Logpose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "TRAIN", (2, 1))
    monkeypatch.setattr(job, "VAL", (1, 2))
    monkeypatch.setattr(job, "NEW", (1, 3))
    monkeypatch.setattr(job, "SIZE", 8)
    monkeypatch.setattr(job, "RECIPE", {"model.name": "plain", "model.width": 4, "train.epochs": 1})
    folder = tmp_path / "demo"

    first = logpose("demo", folder)
    assert (first.code, first.err) == (0, "")
    commands = first.out.replace(" \\\n    ", " ")
    assert f"$ logpose train {folder}/flags.zarr {folder}/run --resume --set model.name=plain" in commands
    assert "filename,status,label,prob,error,label_2,prob_2" in first.out
    assert f"of {len(CREWS)} correct" in first.out
    assert (folder / "run" / "curves.png").exists()

    again = logpose("demo", folder)
    assert (again.code, again.err) == (0, "")
    assert "flags.zarr exists already" in again.out
    assert "is finished (1 epoch" in again.out


def test_training_and_validation_flags_differ() -> None:
    assert len({job.TRAIN[1], job.VAL[1], job.NEW[1]}) == 3
