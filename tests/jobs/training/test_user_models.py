"""User-defined model classes: given to a command, saved by their registered name, never imported by a file."""

import os
import signal
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cnn.arena import Shape
from cnn.checkpoint import load_checkpoint
from cnn.layers import Conv2D, Dense, GlobalAveragePool, Sequential, chain
from cnn.models import MODELS
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.errors import Interrupted, JobError
from jobs.options import RecipeOptions, TrainOptions
from jobs.recipes.config import resolve, to_toml
from jobs.training.train import train
from logpose.common.errors import LogposeError
from tests.jobs.conftest import Logpose

TINY = '''
from dataclasses import dataclass

from cnn.layers import Conv2D, Dense, GlobalAveragePool, chain


@dataclass(frozen=True)
class Tiny:
    width: int = 4

    def layers(self, in_shape, classes):
        return chain(conv=Conv2D(self.width), pool=GlobalAveragePool(), head=Dense(classes))
'''
CLASS = "my_models:Tiny"
OPTIONS = TrainOptions(model=CLASS, batch_size=8, epochs=1, device="cpu", workers=1)


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `my_models` that can be imported, in a process that has not done so yet."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_models.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    forget()


def forget() -> None:
    """Unregister `Tiny`, as in a new process."""
    MODELS.pop("tiny", None)
    sys.modules.pop("my_models", None)


@pytest.mark.parametrize("options", [RecipeOptions(model=CLASS), RecipeOptions(set=(f"model.name={CLASS}",))])
def test_class_on_the_command_line_is_imported_and_registered(options: RecipeOptions) -> None:
    recipe = resolve(options)
    assert type(recipe.model).__name__ == "Tiny" and MODELS["tiny"] is type(recipe.model)
    assert tomllib.loads(to_toml(recipe))["model"] == {"name": "tiny", "width": 4}


@pytest.mark.parametrize("name", [CLASS, "tiny"])
def test_file_keeps_its_model_options_when_the_class_is_given(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[model]\nname = "{name}"\nwidth = 6\n')
    recipe = resolve(RecipeOptions(model=CLASS, config=path))
    assert recipe.model == MODELS["tiny"](width=6)  # type: ignore[call-arg]


def test_file_that_names_a_class_does_not_import_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[model]\nname = "{CLASS}"\n')
    with pytest.raises(JobError, match=rf"\[model\] name is a class, .* not import code; add --model {CLASS}$"):
        resolve(RecipeOptions(config=path))
    assert "my_models" not in sys.modules


def test_file_that_names_an_unregistered_model_asks_for_its_class(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[model]\nname = "tiny"\n')
    with pytest.raises(JobError, match=r"no model is called 'tiny' .*add --model PACKAGE\.MODULE:CLASS$"):
        resolve(RecipeOptions(config=path))


def test_unregistered_model_in_a_recipe_is_refused() -> None:
    @dataclass(frozen=True)
    class Small:
        def layers(self, in_shape: Shape, classes: int) -> Sequential:
            return chain(conv=Conv2D(2), pool=GlobalAveragePool(), head=Dense(classes))

    with pytest.raises(JobError, match=r"Small .* is not registered; put @logpose\.register_model above class Small"):
        to_toml(Recipe(model=Small()))


def test_training_with_a_user_model_resumes_with_its_class(
    logpose: Logpose, dataset: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    folder = train(dataset, run_dir, OPTIONS)
    assert tomllib.loads(folder.config.read_text())["model"]["name"] == "tiny"
    card = load_checkpoint(folder.model).card
    assert (card.model, card.model_class) == ("tiny", CLASS)
    forget()
    refused = logpose("train", dataset, run_dir, "--resume", "--epochs", 2)
    assert refused.code == 2 and "add --model PACKAGE.MODULE:CLASS" in refused.error
    resumed = logpose("train", dataset, run_dir, "--resume", "--epochs", 2, "--model", CLASS, "--device", "cpu")
    assert (resumed.code, resumed.err) == (0, "")
    assert len(folder.read_history()) == 2


def test_resume_command_after_ctrl_c_names_the_class(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_micro_batches = Trainer.start_micro_batches

    def interrupt(self: Trainer, *arguments: Any) -> Any:

        os.kill(os.getpid(), signal.SIGINT)
        return start_micro_batches(self, *arguments)

    monkeypatch.setattr(Trainer, "start_micro_batches", interrupt)
    with pytest.raises(LogposeError, match=f"--resume --model {CLASS}$") as raised:
        train(dataset, tmp_path / "run", OPTIONS)
    assert isinstance(raised.value, Interrupted)


def test_recipe_object_is_the_base_of_the_options(dataset: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=MODELS["plain"](width=4), batch_size=8, epochs=5)  # type: ignore[call-arg]
    options = TrainOptions(epochs=1, device="cpu", workers=1)
    folder = train(dataset, tmp_path / "run", options, recipe)
    saved = tomllib.loads(folder.config.read_text())
    assert saved["model"]["name"] == "plain" and saved["train"]["batch_size"] == 8
    assert [row.epoch for row in folder.read_history()] == [1]
    more = TrainOptions(resume=True, device="cpu", workers=1)
    train(dataset, tmp_path / "run", more, Recipe(model=recipe.model, batch_size=8, epochs=2))
    assert len(folder.read_history()) == 2
    with pytest.raises(JobError, match=r"begun with another recipe: train\.batch_size was 8, now 16"):
        train(dataset, tmp_path / "run", more, Recipe(model=recipe.model, batch_size=16, epochs=3))
