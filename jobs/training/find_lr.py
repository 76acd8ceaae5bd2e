"""The job `find-lr`: suggest a learning rate by the range test of Smith (2017, arXiv 1506.01186).

Every step of a short training takes a higher rate than the one before, from far too low to far too high. The loss is
first flat, then falls, and finally rises. `suggest` picks a rate from that curve.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnn.errors import NonFiniteError
from cnn.training.averaging import Lookahead
from cnn.training.recipe import Recipe
from cnn.training.schedules import Constant
from cnn.training.trainer import Trainer
from jobs.console.device import choose_backend
from jobs.console.interrupts import DeferredInterrupt
from jobs.console.output import emit, say
from jobs.console.progress import bar, plural
from jobs.drawing.colours import GRID, INK, TRAIN, VAL
from jobs.drawing.plots import figure_png, new_figure, style_axes
from jobs.errors import Interrupted, JobError, WorkFailedError
from jobs.options import FindLrOptions
from jobs.recipes.config import resolve
from jobs.training.memory import explain_memory
from jobs.training.setup import (
    build_card,
    build_trainer,
    compile_kernels,
    describe_data,
    describe_training,
    measure,
)
from logpose.common.cpus import available_cpus
from logpose.common.errors import printable
from logpose.common.files import write_replaceable
from logpose.common.outputs import replaceable_file
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import BatchStream

MIN_FACTOR, MAX_FACTOR = 1e-3, 1e2  # the range of rates, as multiples of the recipe's
MIN_STEPS, MAX_STEPS = 20, 1000  # with fewer steps, five orders of magnitude show no curve
SMOOTHING = 0.02  # time constant of the smoothed loss, as a fraction of all steps
DIVERGENCE_RATIO = 4.0  # the loss has diverged at this multiple of the lowest smoothed loss
LOW_FRACTION = 0.25  # a loss is low if it is above the lowest one by at most this fraction of the fall
MIN_FALL = 2.5  # in standard deviations of a single loss: less is noise
INITIAL_STEPS = 5  # their mean is the initial loss
TABLE_ROWS, BAR_COLUMNS = 11, 40
SOFTWARE = "logpose find-lr"  # identifies a plot: any other existing file is never replaced
KIND = (SOFTWARE.encode(), "a plot")


class RangeTest(NamedTuple):
    """Result of a range test.

    rates     learning rate of every step, float64 (S,)
    losses    loss of its batch before the update, float64 (S,)
    diverged  whether the test ended because the loss diverged
    """

    rates: np.ndarray
    losses: np.ndarray
    diverged: bool


class Suggestion(NamedTuple):
    """The rate to train with, and the lowest and highest rate at which the loss is low."""

    lr: float
    lowest: float
    highest: float


def find_lr(dataset: Path, options: FindLrOptions) -> Suggestion:
    """Try learning rates on `dataset`, print the command that trains with the best one, and return it.

    The rates go from a thousandth of the recipe's to a hundred times it. Nothing is written but `options.plot`, a PNG.
    Raises JobError for a number of steps out of bounds and for a recipe whose rate is 0, WorkFailedError where no rate
    can be suggested, Interrupted after Ctrl-C, and what `train` does for dataset and recipe.
    """
    steps = options.steps
    if not MIN_STEPS <= steps <= MAX_STEPS:
        raise JobError(f"expected {MIN_STEPS} to {MAX_STEPS} --steps, found {steps}; 100 are enough for most networks")
    if options.plot:
        replaceable_file(options.plot, *KIND)
    data = Dataset.open(dataset)
    recipe = resolve(options)
    if not recipe.optimizer.lr:
        raise JobError("optimizer.lr: expected more than 0, since rates around it are tried, found 0; leave it out")
    constant = _without_schedule(recipe, steps, data.train.rows)
    card = build_card(data, recipe)
    backend = choose_backend(options.device, options.precision, options.threads)
    trainer = build_trainer(card, constant, backend, data)
    for line in (*describe_data(data), *describe_training(card, trainer, recipe)):
        say(line)
    compile_kernels(trainer, data)
    measure(trainer, data)
    workers = options.workers or available_cpus()
    stream = BatchStream(
        data.train, recipe.batch_size, seed=recipe.seed, micro_batch=recipe.micro_batch, workers=workers
    )
    with bar("trying rates", "steps", steps, ends=False) as progress, DeferredInterrupt() as interrupt:

        def on_step(done: int, rate: float, loss: float) -> None:
            progress.update(done, f"rate {rate:.2g}, loss {loss:.3f}")
            if interrupt.requested:
                raise Interrupted(f"stopped after {plural(done, 'step')} of {steps}; run the same command again")

        with explain_memory(trainer, lambda option: f"use {option}, which fits"):
            test = range_test(trainer, stream, steps, on_step)
    data.check_unchanged()
    suggestion = suggest(test)
    for line in table(test, suggestion):
        say(line)
    if options.plot:
        say(printable(f"plot: {options.plot}"))
    say(f"the loss is low from {suggestion.lowest:.2g} to {suggestion.highest:.2g}; train with:")
    say("  " + printable(_train_command(data.path, options, suggestion.lr)))
    emit({**suggestion._asdict(), "plot": options.plot})
    if options.plot:
        draw_range_test(options.plot, test, suggestion)
    return suggestion


def _without_schedule(recipe: Recipe, steps: int, rows: int) -> Recipe:
    """The recipe with a constant schedule, without lookahead, and with enough epochs for the test."""
    epochs = max(recipe.epochs, math.ceil(steps / math.ceil(rows / recipe.batch_size)))
    return dataclasses.replace(recipe, schedule=Constant(), lookahead=Lookahead(every=0), epochs=epochs)


def range_test(
    trainer: Trainer, stream: BatchStream, steps: int, on_step: Callable[[int, float, float], None]
) -> RangeTest:
    """Train for at most `steps` steps at rising rates; stop where the loss diverges.

    `on_step(steps done, rate, smoothed loss)` is called after each. The trainer's recipe must have a constant schedule.
    Raises PipelineError where the dataset is damaged.
    """
    recipe = trainer.recipe
    rates = recipe.optimizer.lr * np.geomspace(MIN_FACTOR, MAX_FACTOR, steps)  # (S,)
    losses: list[float] = []
    decay = math.exp(-1.0 / (SMOOTHING * steps))
    total, weight, best, diverged = 0.0, 0.0, math.inf, False
    batches = chain.from_iterable(map(stream.epoch, count(1)))  # without end
    for rate, batch in zip(rates.tolist(), batches, strict=False):
        # As with `--lr rate`: an optimizer may use its peak rate for more than the length of the step.
        optimizer = dataclasses.replace(recipe.optimizer, lr=rate)  # type: ignore[type-var]
        trainer.recipe = dataclasses.replace(recipe, optimizer=optimizer)
        try:
            result = trainer.train_batch(batch.images, batch.labels, batch.rows)
        except NonFiniteError:
            diverged = True
            break
        losses.append(result.loss_sum / result.rows)
        total, weight = decay * total + losses[-1], decay * weight + 1.0
        smoothed = total / weight
        on_step(len(losses), rate, smoothed)
        best = min(best, smoothed)
        diverged = smoothed > DIVERGENCE_RATIO * best
        if diverged:
            break
    return RangeTest(rates[: len(losses)], np.array(losses), diverged)


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return the exponential average (S,) of the losses (S,), in both directions, so that it does not lag behind.

    Losses above the initial loss count as the initial loss; otherwise a divergence would hide the fall before it.
    """
    steps = np.arange(len(losses))  # (S,)
    weights = np.exp(-abs(steps[:, None] - steps) / (SMOOTHING * len(losses)))  # (S, S)
    smoothed: np.ndarray = weights @ np.minimum(losses, _initial_loss(losses)) / weights.sum(axis=1)  # (S,)
    return smoothed


def _initial_loss(losses: np.ndarray) -> float:
    """The loss before training, averaged over the first batches."""
    return float(losses[:INITIAL_STEPS].mean())


def suggest(test: RangeTest) -> Suggestion:
    """Return the rate at which the smoothed loss is lowest, and the range in which it is low.

    Others take the middle of the fall (fastai's "valley"), the steepest point (Lightning), or a tenth of the rate of
    the lowest loss, all from a curve that lags behind. In nine runs with three recipes, each with a warm-up and a decay
    to nearly zero, the first and the last were up to 7 times off, the second up to 50. The lowest point of a curve
    without lag was less than 3 times off in eight runs, and 5 times in one, where the curve was flat.

    Raises WorkFailedError where the loss does not fall, diverges at once, or is still low at the highest rate.
    """
    if len(test.losses) < MIN_STEPS // 2:
        raise WorkFailedError("the loss diverges at the lowest rates; try lower ones with --set optimizer.lr=X")
    tried = f"{test.rates[0]:.2g} to {test.rates[-1]:.2g}"
    smoothed = smooth(test.losses)  # (S,)
    best = int(smoothed.argmin())
    fall = _initial_loss(test.losses) - smoothed[best]
    noise = np.diff(test.losses[: best + INITIAL_STEPS]).std() / math.sqrt(2.0)  # std of a single loss
    if fall <= MIN_FALL * noise:
        raise WorkFailedError(
            f"the loss hardly falls at rates from {tried}; try more --steps, or others with --set optimizer.lr=X"
        )
    low = smoothed <= smoothed[best] + LOW_FRACTION * fall  # (S,)
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
    """Return the smoothed loss at some of the rates, the suggested one included, as lines of text with bars."""
    smoothed = smooth(test.losses)  # (S,)
    suggested = int(abs(test.rates - suggestion.lr).argmin())
    evenly = np.linspace(0, len(smoothed) - 1, TABLE_ROWS).round().astype(int)  # (TABLE_ROWS,)
    shown = np.union1d(evenly, [suggested])  # (TABLE_ROWS,) or (TABLE_ROWS + 1,)
    lines = [f"{'rate':>8}  loss"]
    for step in shown:
        bar_length = round(BAR_COLUMNS * smoothed[step] / smoothed[shown].max())
        mark = "  <- suggested" if step == suggested else ""
        lines.append(f"{test.rates[step]:8.2g}  {smoothed[step]:.3f}  {'#' * bar_length}{mark}")
    return lines


def draw_range_test(path: Path, test: RangeTest, suggestion: Suggestion) -> None:
    """Draw the losses and their smoothed curve against the rate, and the suggestion, as a PNG. Raises OSError."""
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
    axes.set_ylim(0, 1.5 * _initial_loss(test.losses))
    style_axes(axes)
    axes.tick_params(which="minor", length=0)
    axes.legend(frameon=False, labelcolor=INK)
    write_replaceable(path, figure_png(figure, SOFTWARE), *KIND)


def _train_command(dataset: Path, options: FindLrOptions, lr: float) -> str:
    """The command line that trains with the suggested rate and the same recipe."""
    words = ["logpose", "train", str(dataset), "RUN_DIR", "--lr", f"{lr:.2g}"]
    for setting in options.set:
        if not setting.startswith("optimizer.lr="):
            words += ["--set", setting]
    for name in ("recipe", "config", "model", "batch_size", "seed"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}".replace("_", "-"), str(value)]
    for name in ("device", "precision"):
        if (value := getattr(options, name)) != "auto":
            words += [f"--{name}", value]
    if options.threads is not None:
        words += ["--threads", str(options.threads)]
    return shlex.join(words)
