"""What a user may train on ranks: own networks, objects of a recipe, saved models, and recipes with more than steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import logpose
from jobs.cli import main
from tests.jobs.conftest import Logpose, draw_classes
from tests.jobs.training.ranks.conftest import DIVIDED
from tests.jobs.training.ranks.digests import digest

MODULE = """
from dataclasses import dataclass
import logpose
from logpose import layers

@logpose.register_model
@dataclass(frozen=True)
class Tiny:
    width: int = 4

    def layers(self, in_shape, classes):
        return layers.chain(
            conv=layers.Conv2D(self.width, 3), norm=layers.BatchNorm(), average=layers.GlobalAveragePool(),
            head=layers.Dense(classes),
        )
"""
# Run by each rank too, were it not hidden from them.
SCRIPT = """
import logpose, my_networks
from logpose import losses, optimizers

for name, ranks in (("alone", None), ("ranks", 2)):
    logpose.train(
        DATASET, name, model=my_networks.Tiny(width=5), optimizer=optimizers.SGD(0.05, momentum=0.8),
        loss=losses.SoftmaxCrossEntropy(label_smoothing=0.2), epochs=2, batch_size=16,
        values={"train.micro_batch": 5}, ranks=ranks, device="cpu", threads=1, quiet=True,
    )
print("trained")
"""


def test_own_network_of_a_module_and_own_objects(dataset: Path, tmp_path: Path) -> None:
    """From a script without `if __name__ == "__main__"`, on ranks in processes of their own."""
    (tmp_path / "my_networks.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT.replace("DATASET", repr(str(dataset))))
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")
    assert digest(tmp_path / "ranks") == digest(tmp_path / "alone")
    assert (tmp_path / "ranks" / "config.toml").read_text() == (tmp_path / "alone" / "config.toml").read_text()


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose classes have 30, 20 and 10 images of 32 pixels."""
    folder = tmp_path_factory.mktemp("unequal")
    draw_classes(folder / "images", 30)
    for name, count in (("green", 20), ("red", 10)):
        for image in sorted((folder / "images" / name).iterdir())[count:]:
            image.unlink()
    assert main(["build", str(folder / "images"), str(folder / "d.zarr"), "--size", "32", "--val", "0.2"]) == 0
    return folder / "d.zarr"


def train_both(data: Path, folder: Path, **options: Any) -> tuple[logpose.TrainingRun, logpose.TrainingRun]:
    """Train without ranks and on two; assert that the results are the same."""
    common = {"batch_size": 16, "epochs": 2, "device": "cpu", "threads": 1, "workers": 1, "quiet": True} | options
    values = {"train.micro_batch": 6} | common.pop("values", {})
    alone, ranks = (
        logpose.train(data, folder / name, values=values, ranks=count, **common)
        for name, count in (("alone", None), ("ranks", 2))
    )
    assert digest(alone.path) == digest(ranks.path)
    one, other = (json.loads((run.path / "summary.json").read_text()) for run in (alone, ranks))
    for summary in (one, other):
        for name in [name for name in summary if "second" in name]:
            del summary[name]
    assert one == other
    assert (alone.path / "classes.csv").read_text() == (ranks.path / "classes.csv").read_text()
    return alone, ranks


@pytest.mark.usefixtures("in_process")
def test_recipe_with_views_and_averages(unequal: Path, tmp_path: Path) -> None:
    """`best`: the saved model is evaluated with test-time augmentation, by all ranks."""
    _, ranks = train_both(unequal, tmp_path, recipe="best", values={"model.width": 4})
    assert ranks.summary and ranks.summary.accuracy_with_views is not None


@pytest.mark.usefixtures("in_process")
def test_weights_that_are_measured_from_images(unequal: Path, tmp_path: Path) -> None:
    """Whitening: by rank 0, which sends them to the others; `mirror_shift` and lookahead too."""
    train_both(unequal, tmp_path, recipe="cifar-speedrun", values={"model.width": 4}, epochs=1)


@pytest.mark.usefixtures("in_process")
def test_balanced_weights_and_patience(unequal: Path, tmp_path: Path) -> None:
    values = {"model.width": 4, "loss.class_weights": "balanced"}
    _, ranks = train_both(unequal, tmp_path, model="plain", values=values, lr=1e-7, patience=1, epochs=9)
    assert len(ranks.history) < 9
    _, without = train_both(unequal, tmp_path / "without", model="plain", values={"model.width": 4}, epochs=1)
    assert ranks.history[0].train_loss != without.history[0].train_loss


@pytest.mark.usefixtures("in_process")
def test_start_from_a_saved_model(
    logpose: Logpose, dataset: Path, alone: Path, trained: Path, tmp_path: Path
) -> None:
    """Rank 0 reads the file, and says what it took."""
    outcomes = []
    for name, ranks in (("alone", ()), ("ranks", ("--ranks", 3))):
        outcomes.append(logpose("train", dataset, tmp_path / name, *DIVIDED, "--init", trained, *ranks))
        assert (outcomes[-1].code, outcomes[-1].err) == (0, "")
        assert outcomes[-1].out.count(f"starting from {trained / 'model.safetensors'}") == 1
    assert digest(tmp_path / "ranks") == digest(tmp_path / "alone") != digest(alone)
    other = ("--init", trained, "--set", "model.width=6")
    refused = logpose("train", dataset, tmp_path / "x", *DIVIDED, *other, "--ranks", 2)
    assert refused.code == 2 and "parameter " in refused.error and "expected shape" in refused.error
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("in_process")
def test_without_images_to_validate(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    assert logpose("build", image_folder, tmp_path / "d.zarr", "--size", 16, "--val", 0).code == 0
    for name, ranks in (("alone", ()), ("ranks", ("--ranks", 2))):
        outcome = logpose("train", tmp_path / "d.zarr", tmp_path / name, *DIVIDED, *ranks)
        assert (outcome.code, outcome.err) == (0, "")
    assert digest(tmp_path / "ranks") == digest(tmp_path / "alone")
