"""Short versions of kill_trainings and kill_classifications."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.jobs.classification.kill_classifications import Classifications, kill_classifications, kill_workers, scatter
from tests.jobs.training.kill_trainings import Trainings, kill_trainings

FILES, BROKEN = 1300, 9  # three parts


@pytest.mark.usefixtures("trained")  # compiles the kernels
def test_killed_trainings_end_with_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    """A short version of `python -m tests.jobs.training.kill_trainings`."""
    trainings = Trainings(dataset, epochs=2, batch_size=1, checkpoint_steps=3)
    done, steps = kill_trainings(trainings, kills=2, seed=56, folder=tmp_path, max_kills=2)
    assert steps == 2 * 48
    assert sum(len(outcome.hits) for outcome in done) == 2
    assert [outcome.wrong for outcome in done] == [[]] * len(done)


@pytest.fixture
def classifications(image_folder: Path, model: Path, tmp_path: Path) -> Classifications:
    names = scatter(image_folder, tmp_path / "tree", FILES, BROKEN, random.Random(0))
    return Classifications(tmp_path / "tree", model, names, BROKEN, tmp_path)


def test_killed_classifications_end_with_the_same_table(classifications: Classifications) -> None:
    """A short version of `python -m tests.jobs.classification.kill_classifications`."""
    done = kill_classifications(classifications, kills=2, seed=68, max_kills=2)
    assert sum(len(outcome.hits) for outcome in done) == 2
    assert [outcome.wrong for outcome in done] == [[]] * len(done)


def test_cluster_that_loses_a_worker_classifies_everything(classifications: Classifications) -> None:
    """A short version of `python -m tests.jobs.classification.kill_classifications --cluster`."""
    done = kill_workers(classifications, kills=1, seed=0)
    assert [outcome.wrong for outcome in done] == [[]] * len(done)
