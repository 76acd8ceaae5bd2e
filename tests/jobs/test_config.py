"""Recipes: TOML, --set and options become frozen dataclasses; a mistake is named with its place."""

from pathlib import Path

import pytest

from cnn.models import MODELS
from cnn.optim import OPTIMIZERS
from cnn.schedules import SCHEDULES
from cnn.train import Recipe
from jobs.config import REGISTRIES, Wishes, describe, differences, resolve, to_toml
from jobs.errors import JobError


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_nothing_wished_is_the_dataclasses_own_defaults() -> None:
    assert resolve(Wishes()) == Recipe()


def test_file_set_and_options_in_their_order(tmp_path: Path) -> None:
    path = file(tmp_path, "[optimizer]\nlr = 0.5\nweight_decay = 0.25\n[train]\nepochs = 7\nseed = 3\n")
    recipe = resolve(Wishes(path, ["train.epochs=8", "optimizer.lr=1"], {"train.epochs": 9}))
    assert (recipe.epochs, recipe.seed, recipe.optimizer.lr) == (9, 3, 1.0)
    assert recipe.optimizer == type(recipe.optimizer)(lr=1.0, weight_decay=0.25)
    assert isinstance(recipe.optimizer.lr, float)


def test_another_name_forgets_what_belonged_to_the_old_one(tmp_path: Path) -> None:
    path = file(tmp_path, '[optimizer]\nname = "sgd"\nlr = 0.5\nmomentum = 0.5\n')
    assert resolve(Wishes(path, ["optimizer.name=adamw"])).optimizer == OPTIMIZERS["adamw"]()
    assert resolve(Wishes(path, ["optimizer.name=sgd"])).optimizer == OPTIMIZERS["sgd"](lr=0.5, momentum=0.5)
    recipe = resolve(Wishes(path, ["model.width=4"], {"model.name": "plain"}))
    assert recipe.model == MODELS["plain"](width=4)


def test_a_saved_model_is_the_base_that_a_file_builds_on(tmp_path: Path) -> None:
    path = file(tmp_path, "[train]\nepochs = 7\n")
    recipe = resolve(Wishes(path), '[model]\nname = "plain"\nwidth = 4\n', "a model")
    assert recipe == Recipe(model=MODELS["plain"](width=4), epochs=7)


def test_lists_words_and_switches() -> None:
    wishes = ["schedule.name=step", "schedule.milestones=[0.3, 1]", "augment.flip=false", 'model.activation="gelu"']
    recipe = resolve(Wishes(sets=wishes))
    assert recipe.schedule == SCHEDULES["step"](milestones=(0.3, 1.0))
    assert recipe.augment.flip is False
    assert recipe.model == MODELS["resnet9"](activation="gelu")


@pytest.mark.parametrize("section", REGISTRIES)
def test_every_choice_survives_the_way_through_toml(section: str, tmp_path: Path) -> None:
    for name in REGISTRIES[section]:
        recipe = resolve(Wishes(sets=[f"{section}.name={name}", "train.seed=5"]))
        assert resolve(Wishes(file(tmp_path, to_toml(recipe)))) == recipe
        assert name in describe(recipe)


def test_differences_name_both_values() -> None:
    before, after = resolve(Wishes()), resolve(Wishes(sets=["train.seed=5", "model.name=plain"]))
    assert differences(to_toml(before), to_toml(before)) == []
    found = differences(to_toml(before), to_toml(after))
    assert "train.seed was 0, now 5" in found
    assert "model.name was resnet9, now plain" in found


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lrr=1", "[optimizer] has no 'lrr' (--set optimizer.lrr=1); did you mean 'lr'?"),
        ("optimiser.lr=1", "no section is called 'optimiser' (--set optimiser.lr=1); did you mean 'optimizer'?"),
        ("model.name=resnet", "no model is called 'resnet' (--set model.name=resnet); did you mean 'resnet9'?"),
        ("train.epochs=2.5", "--set train.epochs=2.5: expected a whole number, found 2.5; correct the value"),
        ("train.epochs=true", "--set train.epochs=true: expected a whole number, found True; correct the value"),
        ("augment.flip=1", "--set augment.flip=1: expected true or false, found 1; correct the value"),
        ("optimizer.lr=fast", "--set optimizer.lr=fast: expected a number, found 'fast'; correct the value"),
        ("optimizer.lr", "--set optimizer.lr has no value; write it as --set optimizer.lr=0.1"),
        ("lr=1", "--set lr=1 names no section; did you mean optimizer.lr?"),
        ("wings=1", "--set wings=1 names no section; sections are model, optimizer, schedule, loss, augment, train"),
        ("model.name=9", "no model is called '9' (--set model.name=9); known are plain, resnet18, resnet9, seed"),
        ("train.model=seed", "[train] has no 'model' (--set train.model=seed); known are"),
        ("train.epochs=0", "epochs: expected 1 or more, found 0 (--set train.epochs=0)"),
        ("optimizer.lr=-1", "lr: expected a number of 0 or more, found -1.0 (--set optimizer.lr=-1)"),
    ],
)
def test_mistakes_are_named_with_their_place(argument: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        resolve(Wishes(sets=[argument]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3\n", "recipe.toml, [train] epoch); did you mean 'epochs'?"),
        ("epochs = 3\n", "is outside of any [section]; did you mean train.epochs?"),
        ("[train\n", "is not valid TOML"),
        ('[schedule]\nmilestones = [1]\nname = "cosine"\n', "[schedule] has no 'milestones'"),
    ],
)
def test_mistakes_in_a_file_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        resolve(Wishes(file(tmp_path, text)))
    assert message in str(error.value)
    assert "recipe.toml" in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(JobError, match=r"cannot read the recipe nowhere\.toml: no such file"):
        resolve(Wishes(Path("nowhere.toml")))
