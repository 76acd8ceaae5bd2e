"""Recipes from TOML, --set and options; mistakes are reported with the place where they were written."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import tomli_w

from cnn.checkpoint import load_checkpoint
from cnn.inputs.augment import Augment
from cnn.layers import Whitening
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import MODELS
from cnn.training.averaging import Lookahead
from cnn.training.optimizers import OPTIMIZERS, SGD
from cnn.training.recipe import Recipe
from cnn.training.schedules import SCHEDULES, Triangular
from cnn.training.trainer import Trainer
from jobs.cli import main
from jobs.errors import JobError
from jobs.options import RecipeOptions, TrainOptions
from jobs.recipes import recipe_names, recipe_summary
from jobs.recipes.config import REGISTRIES, describe, differences, resolve, to_toml
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.train import recipe_to_resume
from pipeline.dataset.store import Dataset
from tests.jobs.conftest import Logpose


def write_recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_no_options_give_the_defaults() -> None:
    assert resolve() == resolve(RecipeOptions()) == Recipe()


def test_options_override_set_which_overrides_the_file(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "[optimizer]\nlr = 0.5\nweight_decay = 0.25\n[train]\nepochs = 7\nseed = 3\n")
    recipe = resolve(TrainOptions(config=path, set=("train.epochs=8", "optimizer.lr=1"), epochs=9))
    assert (recipe.epochs, recipe.seed, recipe.optimizer.lr) == (9, 3, 1.0)
    assert recipe.optimizer == type(recipe.optimizer)(lr=1.0, weight_decay=0.25)
    assert isinstance(recipe.optimizer.lr, float)


def test_another_name_drops_the_values_of_the_old_one(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, '[optimizer]\nname = "sgd"\nlr = 0.5\nmomentum = 0.5\n')
    assert resolve(RecipeOptions(config=path, set=("optimizer.name=adamw",))).optimizer == OPTIMIZERS["adamw"]()
    recipe = resolve(RecipeOptions(config=path, set=("optimizer.name=sgd",)))
    assert recipe.optimizer == OPTIMIZERS["sgd"](lr=0.5, momentum=0.5)
    recipe = resolve(RecipeOptions(config=path, set=("model.width=4",), model="plain"))
    assert recipe.model == MODELS["plain"](width=4)


def test_a_file_overrides_the_base(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "[train]\nepochs = 7\n")
    recipe = resolve(RecipeOptions(config=path), '[model]\nname = "plain"\nwidth = 4\n', "a model")
    assert recipe == Recipe(model=MODELS["plain"](width=4), epochs=7)


def test_set_reads_lists_words_and_booleans() -> None:
    assert resolve(RecipeOptions(set=("augment.flip=alternate",))).augment.flip == "alternate"
    values = ("schedule.name=step", "schedule.milestones=[0.3, 1]", "augment.flip=false", 'model.activation="gelu"')
    recipe = resolve(RecipeOptions(set=values))
    assert recipe.schedule == SCHEDULES["step"](milestones=(0.3, 1.0))
    assert recipe.augment.flip is False
    assert recipe.model == MODELS["resnet9"](activation="gelu")


@pytest.mark.parametrize("section", REGISTRIES)
def test_every_registered_name_round_trips_through_toml(section: str, tmp_path: Path) -> None:
    for name in REGISTRIES[section]:
        recipe = resolve(RecipeOptions(set=(f"{section}.name={name}", "train.seed=5")))
        assert resolve(RecipeOptions(config=write_recipe(tmp_path, to_toml(recipe)))) == recipe
        assert name in describe(recipe)


# Recipes by name


def test_quick_equals_the_defaults() -> None:
    assert resolve(RecipeOptions(recipe="quick")) == Recipe()


def test_speedrun_has_the_values_of_the_paper() -> None:
    recipe = resolve(RecipeOptions(recipe="cifar-speedrun"))
    assert recipe.model == MODELS["airbench94"]()  # whose defaults are the paper's
    assert recipe.optimizer == SGD(11.5, 0.85, True, 0.0153, decoupled=True)
    assert recipe.schedule == Triangular(warmup=0.23, floor=0.07, start=0.2)
    assert recipe.loss == SoftmaxCrossEntropy(label_smoothing=0.2)
    assert recipe.augment == Augment("alternate", shift=2 / 32, crop_scale=1.0)
    assert recipe.lookahead == Lookahead(every=5, start=0.3, decay=0.95, power=3.0)
    assert (recipe.epochs, recipe.batch_size, recipe.views) == (10, 1024, "mirror_shift")


@pytest.mark.parametrize("name", recipe_names())
def test_named_recipes_round_trip_and_have_a_summary(name: str, tmp_path: Path) -> None:
    recipe = resolve(RecipeOptions(recipe=name))
    assert resolve(RecipeOptions(config=write_recipe(tmp_path, to_toml(recipe)))) == recipe
    assert 20 < len(recipe_summary(name)) <= 64 and "#" not in recipe_summary(name)


def test_file_and_options_override_a_named_recipe_which_overrides_the_base(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "[optimizer]\nlr = 9\nmomentum = 0.5\n[train]\nepochs = 7\n")
    options = RecipeOptions(batch_size=8, recipe="cifar-speedrun", config=path, set=("optimizer.momentum=0.6",))
    recipe = resolve(options, '[model]\nname = "plain"\nwidth = 4\n', "a model")
    assert recipe.optimizer == SGD(9.0, 0.6, True, 0.0153, decoupled=True)
    assert (recipe.epochs, recipe.batch_size, recipe.model) == (7, 8, MODELS["airbench94"]())


def test_training_saved_before_a_value_was_added_resumes(tmp_path: Path) -> None:
    older = tomllib.loads(to_toml(Recipe()))
    del older["lookahead"], older["train"]["views"]
    state = TrainingState(tomli_w.dumps(older), "hash")
    assert recipe_to_resume(TrainOptions(epochs=30), state, RunFolder(tmp_path)) == Recipe(epochs=30)
    with pytest.raises(JobError, match=r"begun with another recipe: lookahead\.every was 0, now 5; leave that out to"):
        recipe_to_resume(TrainOptions(set=("lookahead.every=5",)), state, RunFolder(tmp_path))


# A training by the speed run's recipe, on images of 16 pixels

SMALL = ("--recipe", "cifar-speedrun", "--epochs", "3", "--batch-size", "8", "--device", "cpu", "--workers", "2",
         "--set", "model.width=4", "--set", "optimizer.lr=0.5", "--set", "lookahead.every=4")  # fmt: skip


def test_speedrun_is_whitened_resumes_exactly_and_is_evaluated_with_views(
    logpose: Logpose, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, killed, evaluate = tmp_path / "uninterrupted", tmp_path / "killed", Trainer.evaluate
    accuracies: dict[str, list[str]] = {}

    def recording_evaluate(self: Trainer, batches: Any, views: str = "none", network: Any = None) -> Any:
        evaluation = evaluate(self, batches, views, network)
        accuracies.setdefault(views, []).append(f"{evaluation.accuracy:.2%}")
        return evaluation

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", recording_evaluate)
        outcome = logpose("train", dataset, uninterrupted, *SMALL)
    assert (outcome.code, outcome.err) == (0, "")
    best = re.search(r"^epoch (\d): accuracy ([\d.]+%) of 12 images", outcome.out, re.MULTILINE)
    views = r"^with test-time augmentation \(--views mirror_shift\): accuracy ([\d.]+%)$"
    found = re.search(views, outcome.out, re.MULTILINE)
    assert found and best and found[1] == accuracies["mirror_shift"][0]
    assert best[2] == accuracies["none"][int(best[1]) - 1]
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["views"] == "mirror_shift" and f"{summary['accuracy_with_views']:.2%}" == found[1]

    start_micro_batches = Trainer.start_micro_batches

    def kill_in_step_11(self: Trainer, *arguments: Any) -> Any:
        if self.step == 10:
            raise KeyboardInterrupt  # nothing is saved
        return start_micro_batches(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "start_micro_batches", kill_in_step_11)
        assert logpose("train", dataset, killed, *SMALL, "--checkpoint-steps", 3).code == 130
    assert logpose("train", dataset, killed, "--resume", "--device", "cpu").code == 0
    one, other = (load_checkpoint(run_dir / "last.safetensors").tensors for run_dir in (uninterrupted, killed))
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)

    data = Dataset.open(dataset)
    x = (data.train.read(0, data.train.rows) - np.array(data.mean)) / np.array(data.std)
    expected = Whitening(24).parameters_from_images(x)["weight"]
    np.testing.assert_allclose(one["whiten.weight"], expected, rtol=1e-3, atol=1e-4)


def test_unknown_recipe_is_refused() -> None:
    with pytest.raises(JobError, match="no recipe is called 'cifar'; choose one of: best, cifar-speedrun, quick"):
        resolve(RecipeOptions(recipe="cifar"))


def test_recipes_command_lists_and_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["best", "cifar-speedrun", "quick"]
    assert listed[2] == f"quick           {recipe_summary('quick')}"
    assert main(["recipes", "cifar-speedrun"]) == 0
    printed = write_recipe(tmp_path, capsys.readouterr().out)
    assert resolve(RecipeOptions(config=printed)) == resolve(RecipeOptions(recipe="cifar-speedrun"))
    assert main(["recipes", "cifar-speedrnu"]) == 2
    assert "did you mean 'cifar-speedrun'?" in capsys.readouterr().err


def test_differences_show_both_values() -> None:
    before, after = resolve(), resolve(RecipeOptions(set=("train.seed=5", "model.name=plain")))
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
        ("model.name=none", "choose one of: airbench94, plain, resnet18, resnet9, seed; for a class of your own, add"),
        ("train.epochs=2.5", "--set train.epochs=2.5: expected a whole number, found 2.5; correct the value"),
        ("train.epochs=true", "--set train.epochs=true: expected a whole number, found True; correct the value"),
        ("augment.flip=1", "expected true or false or one of 'alternate', found 1; correct the value"),
        ("augment.flip=sometimes", "expected true or false or one of 'alternate', found 'sometimes'"),
        ("train.views=all", "expected one of 'none', 'mirror', 'mirror_shift', found 'all'; correct the value"),
        ("lookahead.every=-1", "lookahead every: expected a number of 0 or more, found -1 (--set lookahead.every=-1)"),
        ("optimizer.lr=fast", "--set optimizer.lr=fast: expected a number, found 'fast'; correct the value"),
        ("optimizer.lr", "--set optimizer.lr has no value; write it as --set optimizer.lr=0.1"),
        ("lr=1", "--set lr=1 names no section; did you mean optimizer.lr?"),
        ("wings=1", "no section; sections are model, optimizer, schedule, loss, augment, mix, lookahead, ema, train"),
        ("model.name=9", "called '9' (--set model.name=9); choose one of: airbench94, plain, resnet18, resnet9, seed"),
        ("train.model=seed", "[train] has no 'model' (--set train.model=seed); choose one of"),
        ("train.epochs=0", "epochs: expected a whole number of 1 or more, found 0 (--set train.epochs=0)"),
        ("optimizer.lr=-1", "lr: expected a number of 0 or more, found -1.0 (--set optimizer.lr=-1)"),
    ],
)
def test_mistakes_in_set_are_reported_with_the_argument(argument: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        resolve(RecipeOptions(set=(argument,)))
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
def test_mistakes_in_a_file_are_reported_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        resolve(RecipeOptions(config=write_recipe(tmp_path, text)))
    assert message in str(error.value)
    assert "recipe.toml" in str(error.value)


def test_file_of_an_editor_that_marks_the_encoding(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf[train]\r\nepochs = 7\r\n")
    assert resolve(RecipeOptions(config=file)).epochs == 7


def test_file_may_be_a_pipe_to_which_something_writes(tmp_path: Path) -> None:
    ours, other = os.pipe()
    os.write(other, b"[train]\nepochs = 7\n")
    os.close(other)
    assert resolve(RecipeOptions(config=Path(f"/dev/fd/{ours}"))).epochs == 7
    os.close(ours)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JobError, match="pipe: a pipe to which nothing writes; check --config"):
        resolve(RecipeOptions(config=tmp_path / "pipe"))


def test_numbers_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"[train]\nepochs = {'9' * 5000}")
    with pytest.raises(JobError, match=r"is not valid TOML: Exceeds the limit .* has 5000 digits; correct it"):
        resolve(RecipeOptions(config=tmp_path / "mine.toml"))
    with pytest.raises(JobError, match=r"expected a whole number, found '9999"):
        resolve(RecipeOptions(set=(f"train.epochs={'9' * 5000}",)))


def test_missing_file_is_refused() -> None:
    with pytest.raises(JobError, match=r"cannot read the recipe nowhere\.toml: no such file"):
        resolve(RecipeOptions(config=Path("nowhere.toml")))


def test_help_gives_the_defaults_of_the_recipe() -> None:
    """Written out in the options, since help must not wait for the recipe's own modules."""
    recipe, hints = Recipe(), get_type_hints(TrainOptions, include_extras=True)
    name = next(name for name, kind in MODELS.items() if kind is type(recipe.model))
    for option, default in {
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "lr": recipe.optimizer.lr, "model": name,
    }.items():  # fmt: skip
        assert get_args(hints[option])[1].help.endswith(f"default: {default}."), option
