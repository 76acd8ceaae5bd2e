"""What is printed after each epoch of a training."""

from cnn.training.recipe import Recipe
from jobs.console.output import detail, say
from jobs.console.progress import duration
from jobs.training.metrics import EpochRow
from jobs.training.run_folder import TrainingState, is_finished
from jobs.training.timing import bottleneck, time_lines


def report_epoch(state: TrainingState, recipe: Recipe) -> None:
    """Print the result of the last finished epoch and, with --verbose, its times."""
    row = state.history[-1]
    left = 0.0 if is_finished(state, recipe) else (recipe.epochs - row.epoch) * row.seconds
    say(epoch_line(row, recipe.epochs, row is state.best, left))
    for line in time_lines(row):
        detail(line)
    *earlier, last = (bottleneck([each]) for each in state.history[-2:])
    if last and last not in earlier:  # once, not in every epoch
        say(f"  data is the bottleneck ({last.activity}): {last.remedy}")


def epoch_line(row: EpochRow, epochs: int, is_best: bool, seconds_left: float) -> str:
    """Return the result of an epoch as a line of at most 80 columns."""
    columns = [f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"]
    columns.append(f"loss {_loss(row.train_loss)} acc {_percent(row.train_accuracy)}")
    if row.val_loss is not None and row.val_accuracy is not None:
        best = "best" if is_best else "    "
        columns.append(f"val {_loss(row.val_loss)} {_percent(row.val_accuracy)} {best}")
    columns.append(duration(row.seconds))
    if seconds_left:
        left = duration(seconds_left) if seconds_left < 36_000 else f"{seconds_left / 3600:.0f} h"
        columns.append(f"{left} left")
    return "  ".join(columns)


def _loss(loss: float) -> str:
    """At least five columns, and no more below 10,000."""
    return f"{loss:.3f}" if loss < 10 else f"{loss:5.4g}" if loss < 10_000 else f"{loss:.0e}"


def _percent(fraction: float) -> str:
    """Five columns."""
    return f"{fraction:5.1%}" if fraction < 0.9995 else " 100%"
