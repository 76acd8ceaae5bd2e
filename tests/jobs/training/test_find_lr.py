"""The learning rate range test: the curve, what is suggested from it, and the command that is printed."""

import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn.backends import pick_backend
from cnn.errors import NonFiniteError
from cnn.training.lookahead import Lookahead
from cnn.training.optimizers import SGD
from cnn.training.schedules import Constant
from cnn.training.trainer import Recipe, Trainer
from jobs.console.interrupts import DeferredInterrupt
from jobs.errors import Interrupted, JobError, WorkFailedError
from jobs.recipes.config import Overrides, resolve
from jobs.training import find_lr as job
from jobs.training.find_lr import RangeTest, find_lr, range_test, smooth, suggest, table
from jobs.training.setup import build_card, build_trainer
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import BatchStream
from tests.jobs.conftest import Logpose

# A network that learns its three colours in a blink.
WISHES = Overrides(sets=["model.width=4"], options={"model.name": "plain", "train.batch_size": 8})


def curve(falls_at: float, climbs_at: float, noise: float = 0.0) -> RangeTest:
    """Rates from 1e-5 to 1, and a loss that falls from 2.5 to 1 at one rate and soars at another."""
    rates = np.geomspace(1e-5, 1.0, 100)  # (S,)
    fall = 1.0 / (1.0 + (falls_at / rates) ** 2)  # (S,) from 0 to 1
    losses = 2.5 - 1.5 * fall + np.minimum((rates / climbs_at) ** 3, 20.0)  # (S,)
    return RangeTest(rates, losses + noise * np.random.default_rng(0).standard_normal(100), True)


def run(dataset: Path, capsys: pytest.CaptureFixture[str], overrides: Overrides = WISHES, steps: int = 30) -> list[str]:
    """The lines that the job prints."""
    capsys.readouterr()
    assert find_lr(dataset, overrides, device="cpu", workers=1, steps=steps) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def trainer_and_stream(dataset: Path, recipe: Recipe) -> tuple[Trainer, BatchStream]:
    data = Dataset.open(dataset)
    trainer = build_trainer(build_card(data, recipe), recipe, pick_backend("cpu"), data)
    return trainer, BatchStream(data.train, recipe.batch_size, seed=recipe.seed, workers=1)


def constant(overrides: Overrides = WISHES) -> Recipe:
    return dataclasses.replace(resolve(overrides), schedule=Constant(), epochs=50)


# The curve ----------------------------------------------------------------------------------------------


def test_rates_rise_geometrically_around_that_of_the_recipe(dataset: Path) -> None:
    recipe = constant()
    told: list[tuple[int, float, float]] = []
    test = range_test(*trainer_and_stream(dataset, recipe), 25, lambda *step: told.append(step))
    lr = recipe.optimizer.lr
    np.testing.assert_allclose(test.rates, np.geomspace(lr * 1e-3, lr * 1e2, 25)[: len(test.rates)])
    assert [done for done, _, _ in told] == list(range(1, len(test.losses) + 1))
    assert [rate for _, rate, _ in told] == test.rates.tolist()
    smoothed = [loss for _, _, loss in told]
    assert smoothed[0] == pytest.approx(test.losses[0])
    assert min(test.losses[:2]) <= smoothed[1] <= max(test.losses[:2])  # bias-corrected: a mean, whatever the decay


def test_every_step_is_one_of_a_training_with_that_rate(dataset: Path) -> None:
    """An optimizer may take more from its rate than the step's length: decoupled decay is divided by it."""
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


def test_the_test_ends_where_the_loss_is_no_number(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, stream = trainer_and_stream(dataset, constant())
    train_batch = trainer.train_batch

    def diverges(*batch: np.ndarray) -> object:
        if trainer.step == 12:
            raise NonFiniteError("the loss is no finite number")
        return train_batch(*batch)

    monkeypatch.setattr(trainer, "train_batch", diverges)
    test = range_test(trainer, stream, 30, lambda *_: None)
    assert test.diverged
    assert len(test.rates) == len(test.losses) == 12


def test_the_test_ends_where_the_loss_has_long_diverged(dataset: Path) -> None:
    recipe = dataclasses.replace(constant(), optimizer=SGD(lr=1.0, nesterov=False))
    test = range_test(*trainer_and_stream(dataset, recipe), 60, lambda *_: None)
    assert test.diverged
    assert len(test.losses) < 60
    assert test.losses[-1] > 4 * test.losses.min()


# What is suggested --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize(("falls_at", "climbs_at"), [(1e-4, 1e-2), (1e-3, 0.1), (3e-4, 0.3)])
def test_the_suggestion_lies_in_the_valley(falls_at: float, climbs_at: float, noise: float) -> None:
    suggestion = suggest(curve(falls_at, climbs_at, noise))
    assert falls_at < suggestion.lowest < suggestion.lr < suggestion.highest < 1.5 * climbs_at


def test_a_rate_that_is_ten_times_as_high_where_the_curve_is() -> None:
    low, high = suggest(curve(1e-4, 1e-2)), suggest(curve(1e-3, 1e-1))
    assert high.lr == pytest.approx(10 * low.lr, rel=0.15)


def test_smoothing_does_not_come_late_and_an_explosion_does_not_drown_what_was_before() -> None:
    losses = np.full(100, 2.0)  # (S,)
    losses[40:60] = 1.0
    middle = smooth(losses)
    np.testing.assert_allclose(middle, middle[::-1])  # the same from both sides
    assert int(middle.argmin()) in (49, 50)
    exploded = np.where(np.arange(100) >= 60, 1e6, losses)
    np.testing.assert_allclose(smooth(exploded), middle)


@pytest.mark.parametrize("seed", range(5))
def test_a_curve_that_does_not_fall_suggests_nothing(seed: int) -> None:
    noise = np.random.default_rng(seed).standard_normal(100)  # (S,)
    flat = RangeTest(np.geomspace(1e-5, 1.0, 100), 2.5 + 0.2 * noise, False)
    with pytest.raises(WorkFailedError, match="the loss hardly falls at rates from 1e-05 to 1; try more --steps"):
        suggest(flat)


def test_a_single_class_leaves_nothing_to_learn() -> None:
    with pytest.raises(WorkFailedError, match="the loss hardly falls"):
        suggest(RangeTest(np.geomspace(1e-5, 1.0, 100), np.zeros(100), False))


def test_a_loss_that_is_still_low_at_the_highest_rate_asks_for_higher_ones() -> None:
    still_low = curve(1e-3, 100.0)._replace(diverged=False)
    with pytest.raises(WorkFailedError, match=r"still low at the highest rate of 1e-05 to 1; try .*optimizer.lr=1$"):
        suggest(still_low)
    assert suggest(still_low._replace(diverged=True)).highest == 1.0  # the next step was no number


def test_a_loss_that_diverges_at_once_asks_for_lower_ones() -> None:
    with pytest.raises(WorkFailedError, match=r"diverges at the lowest rates; try lower ones"):
        suggest(RangeTest(np.geomspace(1, 10, 9), np.full(9, 50.0), True))


# The job ------------------------------------------------------------------------------------------------


def test_the_job_says_what_it_found_and_leaves_nothing(
    dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(dataset.parent.iterdir())
    lines = run(dataset, capsys)
    assert "3 classes, 16×16 (pad); 48 images to train on" in lines[0]
    assert lines[2].startswith("plain, ")
    assert lines[3].startswith("plain (width 4), adamw, cosine")
    assert sum(line.endswith("<- suggested") for line in lines) == 1
    assert lines[-2].startswith("the loss is low from ")
    assert lines[-1].startswith(f"logpose train {dataset} RUN_DIR --lr ")
    assert sorted(dataset.parent.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_rate(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(dataset, capsys)
    assert run(dataset, capsys)[4:] == first[4:]
    other = WISHES._replace(options={**WISHES.options, "train.seed": 1})
    assert run(dataset, capsys, other)[6:-1] != first[6:-1]


def test_the_printed_command_trains_with_the_same_recipe(
    dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, logpose: Logpose
) -> None:
    toml = tmp_path / "my recipe.toml"
    toml.write_text('[loss]\nname = "softmax_cross_entropy"\nlabel_smoothing = 0.3\n')
    sets = ["optimizer.lr=0.01", "model.width=4", "train.epochs=1"]
    options = {"model.name": "plain", "train.batch_size": 8, "train.seed": 3, "optimizer.weight_decay": 0.25}
    words = shlex.split(run(dataset, capsys, Overrides(toml, sets, options, "quick"))[-1])
    assert "optimizer.lr=0.01" not in words
    assert words[-2:] == ["--device", "cpu"]
    lr = words[words.index("--lr") + 1]
    run_dir = tmp_path / "run"
    assert logpose(*(run_dir if word == "RUN_DIR" else word for word in words[1:]), "--workers", 1).code == 0
    trained = resolve(Overrides(run_dir / "config.toml"))
    wished = Overrides(toml, sets, {**options, "optimizer.lr": float(lr)}, "quick")
    assert trained == resolve(wished)


def test_the_suggestion_is_marked_in_the_table() -> None:
    test = curve(1e-3, 0.1)
    suggestion = suggest(test)
    lines = table(test, suggestion)
    assert len(lines) in (12, 13)  # a heading, 11 rates, and the suggestion where it is none of these
    (marked,) = (line for line in lines if line.endswith("  <- suggested"))
    assert marked.split()[0] == f"{suggestion.lr:.2g}"
    lengths = [line.count("#") for line in lines[1:]]
    assert max(lengths) == 40 and lengths[lines.index(marked) - 1] < 25


def test_a_plot(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rates.png"
    assert find_lr(dataset, WISHES, device="cpu", workers=1, steps=30, plot=path) == 0
    assert f"drawn into {path}" in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.width > 800
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_is_measured_and_lookahead(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe whose network computes its first layer from images; the average would hide what a rate does."""
    sets = ["model.width=4", "lookahead.start=0"]
    overrides = Overrides(sets=sets, options={"train.batch_size": 16}, recipe="cifar-speedrun")
    assert resolve(overrides).lookahead.every
    lines = run(dataset, capsys, overrides, steps=60)
    assert lines[-1].split("--recipe ")[1].startswith("cifar-speedrun --set model.width=4 --set lookahead.start=0")
    constant = job._constant(resolve(overrides), 1000, 48)
    assert constant.lookahead == Lookahead(every=0)
    assert constant.epochs * 6 >= 1000


def test_what_is_refused(dataset: Path) -> None:
    for steps in (19, 1001):
        with pytest.raises(JobError, match=f"expected 20 to 1000 --steps, found {steps}"):
            find_lr(dataset, WISHES, steps=steps)
    with pytest.raises(JobError, match=r"optimizer.lr: expected more than 0"):
        find_lr(dataset, Overrides(sets=["optimizer.lr=0"]))


def test_interrupt_ends_it_after_the_step(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AtOnce(DeferredInterrupt):
        def __init__(self) -> None:
            super().__init__()
            self.requested = True

    monkeypatch.setattr(job, "DeferredInterrupt", AtOnce)
    with pytest.raises(Interrupted, match="stopped after 1 step of 30; run the same command again"):
        find_lr(dataset, WISHES, device="cpu", workers=1, steps=30)


def test_it_is_a_command(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    arguments = ("--model", "plain", "--set", "model.width=4", "--batch-size", 8, "--device", "cpu", "--steps", 30)
    outcome = logpose("find-lr", dataset, *arguments, "--plot", tmp_path / "rates.png")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].startswith(f"logpose train {dataset} RUN_DIR --lr 0.0")
    assert (tmp_path / "rates.png").stat().st_size > 1000
    refused = logpose("find-lr", dataset, "--steps", 3)
    assert refused.code == 2 and "(see 'logpose find-lr --help')" in refused.err
