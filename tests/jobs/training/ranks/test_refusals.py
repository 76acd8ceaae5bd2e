"""Trainings on ranks that are refused, or fail: one line on standard error, as without ranks, and nothing is lost."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.arena import Shape
from cnn.checkpoint import load_checkpoint
from cnn.layers import Dense, GlobalAveragePool, Sequential, chain
from cnn.models import MODELS, register_model
from cnn.training.trainer import Trainer
from jobs.errors import JobError
from jobs.options import TrainOptions
from jobs.training.train import train
from pipeline.dataset.store import Split
from pipeline.errors import Damage, DamageError
from tests.jobs.conftest import RECIPE, Logpose
from tests.jobs.training.ranks.conftest import DIVIDED
from tests.jobs.training.ranks.digests import digest
from tests.jobs.training.runs import RESULTS

# Refused ------------------------------------------------------------------------------------------------


def test_batches_of_one_micro_batch_are_refused(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--ranks", 2)
    assert outcome.code == 2
    assert "--ranks 2: expected batches of several micro-batches" in outcome.error
    assert "add --set train.micro_batch=4, whose results do not depend on" in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("in_process")
def test_one_rank_needs_no_micro_batches(logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--ranks", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert digest(tmp_path / "run") == digest(trained)


def test_network_of_a_notebook_is_refused(dataset: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Small:
        def layers(self, in_shape: Shape, classes: int) -> Sequential:
            return chain(pool=GlobalAveragePool(), head=Dense(classes))

    Small.__module__, Small.__qualname__ = "__main__", "Small"
    options = TrainOptions(batch_size=8, set=("train.micro_batch=2",), ranks=2, device="cpu")
    try:
        register_model(Small)
        with pytest.raises(JobError, match=r"that the ranks can import, found __main__:Small, .* a module of its own"):
            train(dataset, tmp_path / "run", options, objects={"model": Small()})
    finally:
        MODELS.pop("small", None)
    assert not (tmp_path / "run").exists()


def test_address_without_a_scheduler_is_refused(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--scheduler", "nonsense://x")
    assert outcome.code == 2
    assert "expected a Dask scheduler at nonsense://x, found none" in outcome.error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("in_process")
def test_small_ram_budget_leaves_the_training_there(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(alone, tmp_path / "run"))
    outcome = logpose("train", dataset, run_dir, *DIVIDED, "--overwrite", "--ranks", 2, "--ram-budget", "1kB")
    assert outcome.code == 2 and "expected a RAM budget of at least " in outcome.error
    assert {path.name for path in run_dir.iterdir()} == RESULTS
    assert digest(run_dir) == digest(alone)


@pytest.mark.usefixtures("in_process")
def test_more_ranks_than_micro_batches_are_a_note(
    logpose: Logpose, dataset: Path, tmp_path: Path
) -> None:
    recipe = (*DIVIDED, "--set", "train.micro_batch=5", "--epochs", 1)
    outcome = logpose("train", dataset, tmp_path / "run", *recipe, "--ranks", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert "note 2 ranks instead of 3: a batch has no more micro-batches" in " ".join(outcome.out.split())
    assert logpose("train", dataset, tmp_path / "alone", *recipe).code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "alone")


# Failing ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
def test_diverging_training_ends_with_the_message_of_one_without_ranks(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = ("--set", "optimizer.name=sgd", "--lr", "1e9", "--set", "schedule.name=constant")
    found = []
    for ranks in ((), ("--ranks", 1), ("--ranks", 3)):
        outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, *diverging, "--overwrite", *ranks)
        assert outcome.code == 1
        found.append(outcome.error)
    assert found[1:] == found[:1] * 2
    assert "lower --lr (try 1e+08)" in found[0] and "no model is saved yet" in found[0]

    compute = Trainer.compute

    def poisoned(self: Trainer, *arguments: Any) -> Any:
        if self.step == 8:  # in the second epoch
            self.network.parameters.flat[...] = np.nan
        return compute(self, *arguments)

    monkeypatch.setattr(Trainer, "compute", poisoned)
    for ranks in ((), ("--ranks", 2)):
        outcome = logpose("train", dataset, tmp_path / "run", *DIVIDED, "--overwrite", *ranks)
        assert outcome.code == 1
        found.append(outcome.error)
    assert found[3] == found[4]
    assert "at step 9" in found[3] and f"the best model so far is in {tmp_path / 'run'}" in found[3]
    for name in ("model.safetensors", "last.safetensors"):
        tensors = load_checkpoint(tmp_path / "run" / name).tensors
        assert all(np.isfinite(values).all() for values in tensors.values())


@pytest.mark.usefixtures("in_process")
def test_damaged_chunk_in_mid_training_stops_it_and_loses_nothing(
    logpose: Logpose, dataset: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank waits for the one that cannot read; both have the state of the last finished step."""
    run_dir, compute, read, errors = tmp_path / "run", Trainer.compute, Split.read_into, []
    steps: set[int] = set()

    def counting(self: Trainer, *arguments: Any) -> Any:
        steps.add(self.step)
        return compute(self, *arguments)

    def damaged(self: Split, out: np.ndarray, start: int, stop: int) -> Any:
        if len(steps) >= 8:  # in the second epoch
            raise DamageError(Damage("train", "images", 0, (0, 48), Path("shard"), "a bit has flipped", ()), self.path)
        return read(self, out, start, stop)

    for ranks in ((), ("--ranks", 2)):
        steps.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "compute", counting)
            patch.setattr(Split, "read_into", damaged)
            outcome = logpose("train", dataset, run_dir, *DIVIDED, "--overwrite", *ranks)
        assert outcome.code == 2
        errors.append(outcome.error)
    assert "found damage in train images, chunk 0 in shard" in errors[0] and errors[0] == errors[1]
    assert load_checkpoint(run_dir / "last.safetensors").progress["step"] >= 8
    outcome = logpose("train", dataset, run_dir, "--resume", "--ranks", 3, "--device", "cpu", "--threads", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert digest(run_dir) == digest(alone)
