"""A dataset -> a trained network, and everything in RUN_DIR that shows how it went."""

import shlex
from pathlib import Path

from cnn.backends import pick_backend
from cnn.checkpoint import initialise_from, load_checkpoint
from cnn.errors import NonFiniteError
from cnn.training.trainer import Recipe
from jobs.console.output import emit, say
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.options import TrainOptions
from jobs.recipes.config import Overrides, differences, model_toml, resolve, to_toml
from jobs.training.loop import Streams, Training, is_finished
from jobs.training.metrics import write_metrics
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.setup import build_card, build_trainer, describe_data, describe_training, measure
from logpose.common.cpus import available_cpus
from logpose.common.files import write_atomically
from pipeline.build.destination import exclusive_lock
from pipeline.dataset.schema import DUPLICATES_FILE
from pipeline.dataset.store import Dataset
from pipeline.errors import OptionError
from pipeline.loader.stream import BatchStream


def train(dataset: Path, run_dir: Path, options: TrainOptions) -> RunFolder:
    """Train on `dataset` as `wishes` say; with `resume`, go on with what `run_dir` holds.

    Within an epoch the point to resume from is saved every `checkpoint_minutes` or `checkpoint_steps`,
    whichever comes first. The buffers of images read ahead take `ram_budget` bytes at most.
    """
    overrides = Overrides(options.config, options.set, options.recipe_values(), options.recipe)
    resume, overwrite, init = options.resume, options.overwrite, options.init
    data = Dataset.open(dataset)
    folder = RunFolder(run_dir)
    checkpoint = folder.checkpoint_to_resume(resume=resume, overwrite=overwrite)
    start = load_checkpoint(init) if init and checkpoint is None else None
    if checkpoint:
        state = TrainingState.from_json(checkpoint.progress, folder.last)
        recipe = _same_recipe(overrides, state, folder)
        _check_same_dataset(data, state, folder)
    else:
        # A saved model brings its architecture along; the recipe's other parts are free.
        base = model_toml(start.card.model, start.card.model_options) if start else ""
        recipe = resolve(overrides, base, str(init))
        state = TrainingState(to_toml(recipe), data.content_hash)
    say(describe_data(data))
    if data.attributes.copies is not None and data.attributes.copies.leaks:
        leaks = f"{data.attributes.copies.leaks:,} of the {plural(data.val.rows, 'image')} to validate"
        say(f"{leaks} are copies of some to train on, so that the accuracy flatters: see {dataset / DUPLICATES_FILE}")
    if is_finished(state, recipe) and folder.summary.exists():
        done = plural(len(state.history), "epoch")
        what = "--epochs" if len(state.history) >= recipe.epochs else "--patience"
        say(f"{run_dir} is finished ({done}{_best(state)}); to go on, give more {what}")
        _emit(folder, state)
        return folder
    state.dataset = str(data.path.resolve())

    workers = options.workers or available_cpus()
    streams = _open_streams(data, recipe, workers, options.ram_budget)
    card = build_card(data, recipe)
    trainer = build_trainer(card, recipe, pick_backend(options.device), data)
    say(describe_training(card, trainer, recipe))
    if recipe.patience and not data.val.rows:
        say("patience has no effect: without images to validate no epoch is better than another")
    if checkpoint:
        trainer.load_tensors(checkpoint.tensors, state.step)
        steps = f", after {plural(state.batches, 'step')} of it" if state.batches else ""
        over = is_finished(state, recipe)
        say("all epochs are done; its summary is missing" if over else f"going on with epoch {state.epoch}{steps}")
    elif start:
        state.init = str(start.path.resolve())
        say(f"starting from {start.path}")
        for note in initialise_from(trainer.network, card, start):
            say(note)
    else:
        measure(trainer, data)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(run_dir.with_name(f".{run_dir.name}.lock"), f"training into {run_dir}"):
        if not checkpoint:
            folder.clear()
        write_atomically(folder.config, to_toml(recipe))
        for file in (folder.summary, folder.report):  # what they say ends here
            file.unlink(missing_ok=True)
        if state.history:
            write_metrics(folder.metrics, state.history)
        saving = options.checkpoint_minutes, options.checkpoint_steps
        training = Training(data, folder, card, trainer, state, streams, *saving)
        try:
            training.run()
        except NonFiniteError as error:
            kept = f"{folder.model} keeps the best so far" if state.best else "no model is saved yet"
            raise NonFiniteError(f"{error}, and start again with --overwrite; {kept}") from error
    drawn = [path.name for path in (folder.curves, folder.confusion) if path.exists()]
    say(f"done{_best(state)}; see {folder.model}, {' and '.join(drawn)}")
    if state.best and state.best.val_accuracy is not None:
        say(f"where it is wrong, with images: {shlex.join(['logpose', 'report', str(run_dir)])}")
    _emit(folder, state)
    return folder


def _emit(folder: RunFolder, state: TrainingState) -> None:
    best = state.best
    emit(
        {
            "run_dir": folder.path,
            "model": folder.model,
            "epochs": len(state.history),
            "best_epoch": best.epoch if best else None,
            "val_accuracy": best.val_accuracy if best else None,
        }
    )


def _open_streams(data: Dataset, recipe: Recipe, workers: int, ram_budget: int) -> Streams:
    """Both streams, within the budget together: validation takes the little it needs, training what is left."""
    batch_size, seed = recipe.batch_size, recipe.seed
    val, note = None, ""
    if data.val.rows:
        val = BatchStream(data.val, batch_size, seed=seed, shuffle=False, workers=workers)
        ram_budget = max(0, ram_budget - val.ram_bytes)
        note = f" (validation takes {-(-val.ram_bytes // 10**6)} MB of it)"
    try:
        return Streams(BatchStream(data.train, batch_size, seed=seed, workers=workers, ram_budget=ram_budget), val)
    except OptionError as error:
        raise OptionError(f"{error}{note}") from error


def _same_recipe(overrides: Overrides, state: TrainingState, folder: RunFolder) -> Recipe:
    """The recipe the training began with; only for how long it goes on may be wished otherwise."""
    recipe = resolve(overrides, state.recipe, str(folder.config))
    # Read and written once more, since an older training does not say what was added to recipes since.
    before = to_toml(resolve(Overrides(), state.recipe, str(folder.config)))
    free = ("train.epochs ", "train.patience ")
    changed = [line for line in differences(before, to_toml(recipe)) if not line.startswith(free)]
    if changed:
        raise JobError(
            f"{folder.path} was begun with another recipe: {'; '.join(changed)}; leave that out to go on, or"
            " start again with --overwrite"
        )
    state.recipe = to_toml(recipe)
    return recipe


def _check_same_dataset(data: Dataset, state: TrainingState, folder: RunFolder) -> None:
    if data.content_hash != state.content_hash:
        raise JobError(
            f"{folder.path} was begun with another dataset (content {state.content_hash[:8]}, {data.path} has"
            f" {data.content_hash[:8]}); give that one, or start again with --overwrite or --init"
        )


def _best(state: TrainingState) -> str:
    if state.best is None or state.best.val_accuracy is None:
        return ""
    return f", best validation accuracy {state.best.val_accuracy:.1%} in epoch {state.best.epoch}"
