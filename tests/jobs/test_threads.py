"""Whole trainings end with the same bits on any number of threads, and say so where a processor rounds otherwise."""

from pathlib import Path

import pytest

from cnn.backends.cpu import processor
from jobs.cli import main
from jobs.flags import draw_flags
from tests.jobs.conftest import RECIPE, Logpose
from tests.jobs.training.runs import assert_same_weights, before_step, metrics_without_times, press_ctrl_c

RECIPES = {
    "resnet9": ("--model", "resnet9", "--set", "model.width=16", "--batch-size", "48"),
    "airbench94": ("--recipe", "cifar-speedrun", "--set", "model.width=16", "--batch-size", "48"),
    "seed": ("--model", "seed", "--set", "optimizer.name=sgd", "--set", "train.clip=1", "--batch-size", "16"),
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags")
    for split, count, seed in (("train", 14, 1), ("val", 4, 2)):
        draw_flags(folder / "images" / split, count, seed, lambda done, total: None, workers=1)
    assert main(["build", str(folder / "images"), str(folder / "flags.zarr"), "--size", "32"]) == 0
    return folder / "flags.zarr"


@pytest.mark.parametrize(("name", "counts"), [("resnet9", (2, 3, 8)), ("airbench94", (2, 4)), ("seed", (3,))])
def test_any_number_of_threads_gives_the_same_bits(
    logpose: Logpose, flags: Path, tmp_path: Path, name: str, counts: tuple[int, ...]
) -> None:
    common = (*RECIPES[name], "--epochs", 2, "--device", "cpu")
    for threads in (1, *counts):
        outcome = logpose("train", flags, tmp_path / str(threads), *common, "--threads", threads)
        assert outcome.code == 0 and f"cpu: {threads} thread" in outcome.out
        assert_same_weights(tmp_path / str(threads), tmp_path / "1")
        assert metrics_without_times(tmp_path / str(threads)) == metrics_without_times(tmp_path / "1")


def test_resume_with_another_number_of_threads(
    logpose: Logpose, flags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (*RECIPES["resnet9"], "--epochs", 2, "--device", "cpu")
    assert logpose("train", flags, tmp_path / "whole", *common, "--threads", 2).code == 0
    with monkeypatch.context() as patch:
        before_step(2, patch, press_ctrl_c)
        assert logpose("train", flags, tmp_path / "run", *common, "--threads", 1).code == 130
    outcome = logpose("train", flags, tmp_path / "run", "--resume", "--device", "cpu", "--threads", 3)
    assert outcome.code == 0 and "resuming in epoch" in outcome.out and "trained on" not in outcome.out
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(tmp_path / "whole")


def test_resume_on_another_processor_says_so(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr(processor, "instruction_set", lambda: "AVX-512")
    assert logpose("train", dataset, run_dir, *RECIPE, "--epochs", 1).code == 0
    monkeypatch.setattr(processor, "instruction_set", lambda: "AVX2")
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu", "--epochs", 2)
    assert outcome.code == 0
    words = " ".join(outcome.out.split())
    assert "note trained on cpu, AVX-512 so far, and now on cpu, AVX2: the weights will differ slightly" in words
    again = logpose("train", dataset, run_dir, "--resume", "--device", "cpu", "--epochs", 3)
    assert again.code == 0 and "so far, and now on" not in again.out


def test_older_trainings_resume_without_a_note(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their device is only 'cpu', so that nothing is known to have changed."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("jobs.training.train.device_text", lambda backend: "cpu")
        assert logpose("train", dataset, run_dir, *RECIPE, "--epochs", 1).code == 0
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu", "--epochs", 2)
    assert outcome.code == 0 and "so far, and now on" not in outcome.out


def test_instruction_set_is_that_of_this_processor() -> None:
    assert processor.instruction_set() and "\n" not in processor.instruction_set()
