"""A dataset that is replaced during a training: the training stops, and keeps what it saved before."""

import shutil
from pathlib import Path

import pytest

from cnn.checkpoint import load_checkpoint
from jobs.training.run_folder import TrainingState
from tests.jobs.conftest import RECIPE, Logpose, draw_classes
from tests.jobs.training.runs import assert_same_weights, before_step, metrics


@pytest.mark.parametrize("how", ["replaced", "built again"])
@pytest.mark.parametrize("step", [9, 12])  # an epoch has 6: in the second one, before its last step and in the middle
def test_training_stops_and_saves_nothing_of_mixed_images(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, step: int
) -> None:
    data, run = Path(shutil.copytree(dataset, tmp_path / "data.zarr")), tmp_path / "run"
    root = draw_classes(tmp_path / "other", 20, ("red", "blue", "green"))
    build = ("build", root, tmp_path / "other.zarr", "--size", 16, "--val", 0.2)
    assert logpose(*build).code == 0

    def change(_: object) -> None:
        shutil.move(data, tmp_path / "before.zarr")
        if how == "replaced":
            shutil.move(tmp_path / "other.zarr", data)
        else:
            shutil.copytree(tmp_path / "before.zarr", data)
            text = (data / "zarr.json").read_text()
            (data / "zarr.json").write_text(text.replace('"sealed": true', '"sealed": false'))

    with monkeypatch.context() as patch:
        before_step(step, patch, change)
        # In steps: checkpoints of the epoch are refused as well.
        outcome = logpose("train", data, run, *RECIPE, "--checkpoint-steps", 3)
    assert outcome.code == 1
    found = "another one" if how == "replaced" else "a build at work on it"
    assert f"expected the dataset at {data} to stay the same while it is read, found {found}" in outcome.error
    assert [row["epoch"] for row in metrics(run)] == ["1"]
    state = TrainingState.from_json(load_checkpoint(run / "last.safetensors").progress, run / "last.safetensors")
    assert state.step <= step - 1, "saved before the change"
    shutil.rmtree(data)
    shutil.move(tmp_path / "before.zarr", data)
    assert logpose("train", data, run, *RECIPE, "--resume").code == 0
    assert logpose("train", dataset, tmp_path / "whole", *RECIPE).code == 0
    assert_same_weights(run, tmp_path / "whole")
