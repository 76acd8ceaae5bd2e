"""A learning rate to begin with, by the range test of Smith (2017, arXiv 1506.01186).

A training is begun, and every step takes a higher rate than the one before, from far too little to far too much. The
loss stays where it is, falls, and at last climbs again. Which rate to take from that: see `suggest`.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnn.backends import pick_backend
from cnn.errors import NonFiniteError
from cnn.training.lookahead import Lookahead
from cnn.training.schedules import Constant
from cnn.training.trainer import Recipe, Trainer
from jobs.console.interrupts import DeferredInterrupt
from jobs.console.output import emit, say
from jobs.console.progress import bar, plural
from jobs.errors import Interrupted, JobError, WorkFailedError
from jobs.options import FindLrOptions
from jobs.recipes.config import Overrides, resolve
from jobs.training.plots import GRID, INK, TRAIN, VAL, new_figure, plain_axes, save_figure
from jobs.training.setup import build_card, build_trainer, describe_data, describe_training, measure
from logpose.common.cpus import available_cpus
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import Batch, BatchStream

BELOW, ABOVE = 1e-3, 1e2  # the rates that are tried, as multiples of the recipe's own
LEAST_STEPS, MOST_STEPS = 20, 1000  # with fewer no curve is to be seen over five powers of ten
REACH = 0.02  # of all steps: how far the smoothed loss looks to either side
DIVERGED = 4.0  # times the best smoothed loss: it will not come back
FLOOR = 0.25  # of the fall: losses that are no higher above the lowest count as low
NOISE = 2.5  # times the deviation of a single loss: a fall of less is none
FIRST = 5  # steps, whose mean is the loss to begin with
LINES, BAR = 11, 40  # of the table, and of its longest bar
OPTIONS = {"model.name": "--model", "train.batch_size": "--batch-size", "train.seed": "--seed"}


class RangeTest(NamedTuple):
    """The rate of every step and the loss of its batch before the update, float64 (S,) each; how it ended."""

    rates: np.ndarray
    losses: np.ndarray
    diverged: bool


class Suggestion(NamedTuple):
    """The rate to train with, and the lowest and highest at which the loss is low."""

    lr: float
    lowest: float
    highest: float


def find_lr(dataset: Path, options: FindLrOptions) -> Suggestion:
    """Try learning rates on `dataset` for so many steps, and print the command that trains with the best.

    The rates go from a thousandth of the recipe's to a hundred times it. Nothing is written but `plot`, a PNG.
    Raises JobError for a number of steps out of bounds and for a recipe whose rate is 0, WorkFailedError where no
    rate can be told, Interrupted after Ctrl-C.
    """
    overrides = Overrides(options.config, options.set, options.recipe_values(), options.recipe)
    steps, plot, device, workers = options.steps, options.plot, options.device, options.workers
    if not LEAST_STEPS <= steps <= MOST_STEPS:
        raise JobError(f"expected {LEAST_STEPS} to {MOST_STEPS} --steps, found {steps}; 100 do for most networks")
    data = Dataset.open(dataset)
    wished = resolve(overrides)
    recipe = _constant(wished, steps, data.train.rows)
    if not recipe.optimizer.lr:
        raise JobError("optimizer.lr: expected more than 0, since rates around it are tried, found 0; leave it out")
    say(describe_data(data))
    stream = BatchStream(data.train, recipe.batch_size, seed=recipe.seed, workers=workers or available_cpus())
    card = build_card(data, recipe)
    trainer = build_trainer(card, recipe, pick_backend(device), data)
    say(describe_training(card, trainer, wished))
    measure(trainer, data)
    with bar("trying rates", "steps", steps, ends=False) as progress, DeferredInterrupt() as interrupt:

        def on_step(done: int, rate: float, loss: float) -> None:
            progress.update(done, f"rate {rate:.2g}, loss {loss:.3f}")
            if interrupt.requested:
                raise Interrupted(f"stopped after {plural(done, 'step')} of {steps}; run the same command again")

        test = range_test(trainer, stream, steps, on_step)
    suggestion = suggest(test)
    say("\n".join(table(test, suggestion)))
    where = f" (drawn into {plot})" if plot else ""
    say(f"the loss is low from {suggestion.lowest:.2g} to {suggestion.highest:.2g}{where}; train with:")
    say(_command(data.path, overrides, device, suggestion.lr))
    if plot:
        draw_range_test(plot, test, suggestion)
    emit({**suggestion._asdict(), "plot": plot})
    return suggestion


def _constant(recipe: Recipe, steps: int, rows: int) -> Recipe:
    """The recipe without what changes as a training goes on, and long enough for the test."""
    epochs = max(recipe.epochs, math.ceil(steps / math.ceil(rows / recipe.batch_size)))
    return dataclasses.replace(recipe, schedule=Constant(), lookahead=Lookahead(every=0), epochs=epochs)


def range_test(
    trainer: Trainer, stream: BatchStream, steps: int, on_step: Callable[[int, float, float], None]
) -> RangeTest:
    """Train for at most `steps` steps at rising rates; ends where the loss diverges.

    `on_step(done, rate, smoothed loss)` is called after each. The trainer's recipe has a constant schedule.
    """
    recipe = trainer.recipe
    rates = recipe.optimizer.lr * np.geomspace(BELOW, ABOVE, steps)  # (S,)
    losses: list[float] = []
    keep = math.exp(-1.0 / (REACH * steps))
    total, weight, best, diverged = 0.0, 0.0, math.inf, False
    for rate, batch in zip(rates.tolist(), _batches(stream), strict=False):
        # As `--lr rate` would have it: an optimizer may take more from its peak rate than the length of the step.
        optimizer = dataclasses.replace(recipe.optimizer, lr=rate)  # type: ignore[type-var]
        trainer.recipe = dataclasses.replace(recipe, optimizer=optimizer)
        try:
            result = trainer.train_batch(batch.images, batch.labels, batch.rows)
        except NonFiniteError:
            diverged = True
            break
        losses.append(result.loss_sum / result.rows)
        total, weight = keep * total + losses[-1], keep * weight + 1.0
        smoothed = total / weight
        on_step(len(losses), rate, smoothed)
        best = min(best, smoothed)
        diverged = smoothed > DIVERGED * best
        if diverged:
            break
    return RangeTest(rates[: len(losses)], np.array(losses), diverged)


def _batches(stream: BatchStream) -> Iterator[Batch]:
    """One epoch after the other, without end."""
    for epoch in count(1):
        yield from stream.epoch(epoch)


def smooth(losses: np.ndarray) -> np.ndarray:
    """The exponential average (S,) of the losses (S,), to both sides: one that only looks back comes too late.

    What is above the first losses counts as these, or the end would drown the fall before it.
    """
    steps = np.arange(len(losses))  # (S,)
    weights = np.exp(-abs(steps[:, None] - steps) / (REACH * len(losses)))  # (S, S)
    smoothed: np.ndarray = weights @ np.minimum(losses, _first(losses)) / weights.sum(axis=1)  # (S,)
    return smoothed


def _first(losses: np.ndarray) -> float:
    """The loss before anything is learned: one batch alone says little."""
    return float(losses[:FIRST].mean())


def suggest(test: RangeTest) -> Suggestion:
    """The rate at which the smoothed loss is lowest, and from where to where it is low.

    Others take a rate in the middle of the fall (fastai's "valley"), the steepest point (Lightning) or a tenth of the
    lowest, from a curve that is smoothed backwards only. Nine runs with three recipes, each with a warm-up and a decay
    to nearly zero, had the first and the last up to 7 times off, the second up to 50; the lowest point of a curve that
    does not come late was less than 3 times off in eight, and 5 times in one, where the curve was flat.

    Raises WorkFailedError where the loss does not fall, or is still low at the highest rate.
    """
    if len(test.losses) < LEAST_STEPS // 2:
        raise WorkFailedError("the loss diverges at the lowest rates; try lower ones with --set optimizer.lr=X")
    tried = f"{test.rates[0]:.2g} to {test.rates[-1]:.2g}"
    smoothed, first = smooth(test.losses), _first(test.losses)  # (S,)
    best = int(smoothed.argmin())
    fall = first - smoothed[best]
    noise = np.diff(test.losses[: best + FIRST]).std() / math.sqrt(2.0)
    if fall <= NOISE * noise:
        raise WorkFailedError(
            f"the loss hardly falls at rates from {tried}; try more --steps, or others with --set optimizer.lr=X"
        )
    low = smoothed <= smoothed[best] + FLOOR * fall  # (S,)
    begin, end = best, best
    while begin and low[begin - 1]:
        begin -= 1
    while end + 1 < len(low) and low[end + 1]:
        end += 1
    if end + 1 == len(low) and not test.diverged:
        raise WorkFailedError(
            f"the loss is still low at the highest rate of {tried}; try higher ones with "
            f"--set optimizer.lr={test.rates[-1]:.2g}"
        )
    return Suggestion(float(test.rates[best]), float(test.rates[begin]), float(test.rates[end]))


def table(test: RangeTest, suggestion: Suggestion) -> list[str]:
    """The smoothed loss at some of the rates, the suggested one among them, as lines of text with bars."""
    smoothed = smooth(test.losses)  # (S,)
    suggested = int(abs(test.rates - suggestion.lr).argmin())
    evenly = np.linspace(0, len(smoothed) - 1, LINES).round().astype(int)  # (LINES,)
    shown = np.union1d(evenly, [suggested])  # (LINES + 1,), or one less
    lines = [f"{'rate':>8}  loss"]
    for step in shown:
        bar_length = round(BAR * smoothed[step] / smoothed[shown].max())
        mark = "  <- suggested" if step == suggested else ""
        lines.append(f"{test.rates[step]:8.2g}  {smoothed[step]:.3f}  {'#' * bar_length}{mark}")
    return lines


def draw_range_test(path: Path, test: RangeTest, suggestion: Suggestion) -> None:
    """The loss against the rate, as it was and smoothed, and the rate that is suggested: a PNG."""
    figure = new_figure(8, 4.6)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.axvspan(suggestion.lowest, suggestion.highest, color=GRID, alpha=0.6, linewidth=0, label="low")
    axes.plot(test.rates, test.losses, ".", color=TRAIN, markersize=4, label="each batch")
    axes.plot(test.rates, smooth(test.losses), color=TRAIN, linewidth=1.8, label="smoothed")
    axes.axvline(suggestion.lr, color=VAL, linewidth=1.4, label=f"suggested: {suggestion.lr:.2g}")
    axes.set_title("Training loss at rising learning rates", loc="left", color=INK, fontweight="bold")
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.set_xlim(test.rates[0], test.rates[-1])
    axes.set_ylim(0, 1.5 * _first(test.losses))
    plain_axes(axes)
    axes.tick_params(which="minor", length=0)
    axes.legend(frameon=False, labelcolor=INK)
    save_figure(figure, path)


def _command(dataset: Path, overrides: Overrides, device: str, lr: float) -> str:
    """The training that the rate is for, as a line for the shell."""
    words = ["logpose", "train", str(dataset), "RUN_DIR", "--lr", f"{lr:.2g}"]
    if overrides.recipe:
        words += ["--recipe", overrides.recipe]
    if overrides.file:
        words += ["--config", str(overrides.file)]
    for setting in overrides.sets:
        if not setting.startswith("optimizer.lr="):
            words += ["--set", setting]
    for key, value in ((key, value) for key, value in overrides.options.items() if value is not None):
        words += [OPTIONS[key], str(value)] if key in OPTIONS else ["--set", f"{key}={value}"]
    if device != "auto":
        words += ["--device", device]
    return shlex.join(words)
