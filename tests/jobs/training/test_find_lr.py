"""The learning rate range test: the curve, the suggestion, and the printed command."""

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn.backends import pick_backend
from cnn.errors import NonFiniteError
from cnn.training.averaging import Lookahead
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.schedules import Constant
from cnn.training.trainer import Trainer
from jobs.console.interrupts import DeferredInterrupt
from jobs.errors import Interrupted, JobError, WorkFailedError
from jobs.options import FindLrOptions, RecipeOptions, TrainOptions
from jobs.recipes.config import resolve
from jobs.training import find_lr as job
from jobs.training.find_lr import RangeTest, find_lr, range_test, smooth, suggest, table
from jobs.training.setup import build_card, build_trainer
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import BatchStream
from tests.jobs.conftest import Logpose

# A small network, which learns the three colours within a few steps.
OPTIONS = FindLrOptions(model="plain", set=("model.width=4",), batch_size=8, steps=30, device="cpu", workers=1)


def curve(falls_at: float, climbs_at: float, noise: float = 0.0) -> RangeTest:
    """Rates from 1e-5 to 1, and a loss that falls from 2.5 to 1 at one rate and diverges at another."""
    rates = np.geomspace(1e-5, 1.0, 100)  # (S,)
    fall = 1.0 / (1.0 + (falls_at / rates) ** 2)  # (S,) from 0 to 1
    losses = 2.5 - 1.5 * fall + np.minimum((rates / climbs_at) ** 3, 20.0)  # (S,)
    return RangeTest(rates, losses + noise * np.random.default_rng(0).standard_normal(100), True)


def run(dataset: Path, capsys: pytest.CaptureFixture[str], options: FindLrOptions = OPTIONS) -> list[str]:
    """The lines that the job prints."""
    capsys.readouterr()
    find_lr(dataset, options)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def trainer_and_stream(dataset: Path, recipe: Recipe) -> tuple[Trainer, BatchStream]:
    data = Dataset.open(dataset)
    trainer = build_trainer(build_card(data, recipe), recipe, pick_backend("cpu"), data)
    return trainer, BatchStream(data.train, recipe.batch_size, seed=recipe.seed, workers=1)


def constant() -> Recipe:
    return dataclasses.replace(resolve(OPTIONS), schedule=Constant(), epochs=50)


# The curve ----------------------------------------------------------------------------------------------


def test_rates_rise_geometrically_around_the_recipes_rate(dataset: Path) -> None:
    recipe = constant()
    calls: list[tuple[int, float, float]] = []
    test = range_test(*trainer_and_stream(dataset, recipe), 25, lambda *step: calls.append(step))
    lr = recipe.optimizer.lr
    np.testing.assert_allclose(test.rates, np.geomspace(lr * 1e-3, lr * 1e2, 25)[: len(test.rates)])
    assert [done for done, _, _ in calls] == list(range(1, len(test.losses) + 1))
    assert [rate for _, rate, _ in calls] == test.rates.tolist()
    smoothed = [loss for _, _, loss in calls]
    assert smoothed[0] == pytest.approx(test.losses[0])
    assert min(test.losses[:2]) <= smoothed[1] <= max(test.losses[:2])  # bias-corrected: a mean, whatever the decay


def test_every_step_equals_a_training_step_with_that_rate(dataset: Path) -> None:
    """An optimizer may use its rate for more than the step's length: decoupled decay is divided by it."""
    recipe = dataclasses.replace(constant(), optimizer=SGD(lr=0.01, weight_decay=0.3, decoupled=True))
    trainer, stream = trainer_and_stream(dataset, recipe)
    range_test(trainer, stream, 20, lambda *_: None)
    other, stream = trainer_and_stream(dataset, recipe)
    rates = np.geomspace(1e-5, 1.0, 20)  # (S,)
    batches = (batch for epoch in range(1, 9) for batch in stream.epoch(epoch))
    for rate, batch in zip(rates[: trainer.step], batches, strict=False):
        other.recipe = dataclasses.replace(recipe, optimizer=SGD(lr=float(rate), weight_decay=0.3, decoupled=True))
        other.train_batch(batch.images, batch.labels, batch.rows)
    assert trainer.step == other.step >= 10
    np.testing.assert_array_equal(trainer.network.parameters.flat, other.network.parameters.flat)


def test_range_test_ends_where_the_loss_is_not_finite(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, stream = trainer_and_stream(dataset, constant())
    train_batch = trainer.train_batch

    def diverges(*batch: np.ndarray) -> object:
        if trainer.step == 12:
            raise NonFiniteError("the loss is not finite")
        return train_batch(*batch)

    monkeypatch.setattr(trainer, "train_batch", diverges)
    test = range_test(trainer, stream, 30, lambda *_: None)
    assert test.diverged
    assert len(test.rates) == len(test.losses) == 12


def test_range_test_ends_where_the_loss_diverges(dataset: Path) -> None:
    recipe = dataclasses.replace(constant(), optimizer=SGD(lr=1.0, nesterov=False))
    test = range_test(*trainer_and_stream(dataset, recipe), 60, lambda *_: None)
    assert test.diverged
    assert len(test.losses) < 60
    assert test.losses[-1] > 4 * test.losses.min()


# The suggestion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize(("falls_at", "climbs_at"), [(1e-4, 1e-2), (1e-3, 0.1), (3e-4, 0.3)])
def test_suggestion_lies_in_the_valley(falls_at: float, climbs_at: float, noise: float) -> None:
    suggestion = suggest(curve(falls_at, climbs_at, noise))
    assert falls_at < suggestion.lowest < suggestion.lr < suggestion.highest < 1.5 * climbs_at


def test_suggestion_moves_with_the_curve() -> None:
    low, high = suggest(curve(1e-4, 1e-2)), suggest(curve(1e-3, 1e-1))
    assert high.lr == pytest.approx(10 * low.lr, rel=0.15)


def test_smoothing_has_no_lag_and_limits_a_divergence() -> None:
    losses = np.full(100, 2.0)  # (S,)
    losses[40:60] = 1.0
    middle = smooth(losses)
    np.testing.assert_allclose(middle, middle[::-1])
    assert int(middle.argmin()) in (49, 50)
    diverged = np.where(np.arange(100) >= 60, 1e6, losses)
    np.testing.assert_allclose(smooth(diverged), middle)


@pytest.mark.parametrize("seed", range(5))
def test_flat_curve_is_refused(seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(100)  # (S,)
    flat = RangeTest(np.geomspace(1e-5, 1.0, 100), 2.5 + 0.2 * noise, False)
    with pytest.raises(WorkFailedError, match="the loss hardly falls at rates from 1e-05 to 1; try more --steps"):
        suggest(flat)


def test_constant_loss_is_refused() -> None:
    with pytest.raises(WorkFailedError, match="the loss hardly falls"):
        suggest(RangeTest(np.geomspace(1e-5, 1.0, 100), np.zeros(100), False))


def test_loss_that_is_low_at_the_highest_rate_asks_for_higher_rates() -> None:
    still_low = curve(1e-3, 100.0)._replace(diverged=False)
    with pytest.raises(WorkFailedError, match=r"still low at the highest rate of 1e-05 to 1; try .*optimizer.lr=1$"):
        suggest(still_low)
    assert suggest(still_low._replace(diverged=True)).highest == 1.0  # the next step was not finite


def test_loss_that_diverges_at_once_asks_for_lower_rates() -> None:
    with pytest.raises(WorkFailedError, match=r"diverges at the lowest rates; try lower ones"):
        suggest(RangeTest(np.geomspace(1, 10, 9), np.full(9, 50.0), True))


# The job ------------------------------------------------------------------------------------------------


def test_find_lr_prints_the_suggestion_and_writes_nothing(
    dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(dataset.parent.iterdir())
    lines = run(dataset, capsys)
    assert lines[1].startswith("images   48 to train on, 12 to validate; 3 classes, 16×16 (pad)")
    assert lines[3].startswith("model    plain, ")
    assert lines[4].startswith("recipe   plain (width 4), adamw, cosine")
    assert lines[5].startswith(" " * 9)  # second line of the recipe
    assert sum(line.endswith("<- suggested") for line in lines) == 1
    assert lines[-2].startswith("the loss is low from ")
    assert lines[-1].startswith(f"  logpose train {dataset} RUN_DIR --lr ")
    assert sorted(dataset.parent.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_same_seed_gives_the_same_rate(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(dataset, capsys)
    assert run(dataset, capsys) == first
    other = dataclasses.replace(OPTIONS, seed=1)
    assert run(dataset, capsys, other)[8:-1] != first[8:-1]


def test_printed_command_trains_with_the_same_recipe(
    dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, logpose: Logpose
) -> None:
    toml = tmp_path / "my recipe.toml"
    toml.write_text('[loss]\nname = "softmax_cross_entropy"\nlabel_smoothing = 0.3\n')
    values = ("optimizer.lr=0.01", "model.width=4", "train.epochs=1", "optimizer.weight_decay=0.25")
    options = dataclasses.replace(OPTIONS, seed=3, recipe="quick", config=toml, set=values)
    words = shlex.split(run(dataset, capsys, options)[-1])
    assert "optimizer.lr=0.01" not in words
    assert words[-2:] == ["--device", "cpu"]
    lr = words[words.index("--lr") + 1]
    run_dir = tmp_path / "run"
    assert logpose(*(run_dir if word == "RUN_DIR" else word for word in words[1:]), "--workers", 1).code == 0
    expected = TrainOptions(
        model="plain", batch_size=8, seed=3, recipe="quick", config=toml, set=values, lr=float(lr)
    )
    assert resolve(RecipeOptions(config=run_dir / "config.toml")) == resolve(expected)


def test_table_marks_the_suggestion() -> None:
    test = curve(1e-3, 0.1)
    suggestion = suggest(test)
    lines = table(test, suggestion)
    assert len(lines) in (12, 13)  # a heading, 11 rates, and the suggestion unless it is one of these
    (marked,) = (line for line in lines if line.endswith("  <- suggested"))
    assert marked.split()[0] == f"{suggestion.lr:.2g}"
    lengths = [line.count("#") for line in lines[1:]]
    assert max(lengths) == 40 and lengths[lines.index(marked) - 1] < 25


def test_plot_is_written(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rates.png"
    find_lr(dataset, dataclasses.replace(OPTIONS, plot=path))
    assert f"plot: {path}\n" in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.width > 800
    assert list(tmp_path.iterdir()) == [path]


def test_recipe_with_whitening_and_lookahead_is_tried_without_lookahead(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whitening layer is computed from images; lookahead's average would hide the effect of a rate."""
    options = FindLrOptions(
        recipe="cifar-speedrun", set=("model.width=4", "lookahead.start=0"), batch_size=16, steps=60,
        device="cpu", workers=1,
    )  # fmt: skip
    assert resolve(options).lookahead.every
    command = run(dataset, capsys, options)[-1]
    assert " --set model.width=4 --set lookahead.start=0 --recipe cifar-speedrun --batch-size 16" in command
    tried = job._without_schedule(resolve(options), 1000, 48)
    assert tried.lookahead == Lookahead(every=0)
    assert tried.epochs * 6 >= 1000


def test_bad_options_are_refused(dataset: Path) -> None:
    for steps in (19, 1001):
        with pytest.raises(JobError, match=f"expected 20 to 1000 --steps, found {steps}"):
            find_lr(dataset, dataclasses.replace(OPTIONS, steps=steps))
    with pytest.raises(JobError, match=r"optimizer.lr: expected more than 0"):
        find_lr(dataset, FindLrOptions(set=("optimizer.lr=0",)))


def test_ctrl_c_stops_after_the_step(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(DeferredInterrupt):
        def __init__(self) -> None:
            super().__init__()
            self.requested = True

    monkeypatch.setattr(job, "DeferredInterrupt", Asked)
    with pytest.raises(Interrupted, match="stopped after 1 step of 30; run the same command again"):
        find_lr(dataset, OPTIONS)


def test_find_lr_prints_a_train_command_and_writes_the_plot(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    arguments = ("--model", "plain", "--set", "model.width=4", "--batch-size", 8, "--device", "cpu", "--steps", 30)
    outcome = logpose("find-lr", dataset, *arguments, "--plot", tmp_path / "rates.png")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].startswith(f"  logpose train {dataset} RUN_DIR --lr 0.0")
    assert (tmp_path / "rates.png").stat().st_size > 1000
    refused = logpose("find-lr", dataset, "--steps", 3)
    assert refused.code == 2 and "(see 'logpose find-lr --help')" in refused.err


def test_batch_beyond_any_memory(logpose: Logpose, dataset: Path) -> None:
    for size in (10**13, 10**18):
        outcome = logpose("find-lr", dataset, "--batch-size", size)
        assert outcome.code == 1
        assert outcome.error.startswith("error: out of memory; use a smaller --batch-size")
