"""The job `train`: train a network on a dataset, or resume a training, in a run folder."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

from cnn.checkpoint import Checkpoint, ModelCard, load_checkpoint
from cnn.errors import ModelFileError, NonFiniteError
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.console.device import choose_backend, device_text, has_changed
from jobs.console.output import emit, say
from jobs.console.progress import plural
from jobs.errors import JobError, gpu_errors
from jobs.options import RecipeOptions, TrainOptions
from jobs.recipes.config import differences, model_toml, resolve, to_toml
from jobs.training.artifacts import Artifacts
from jobs.training.device_cache import cached_stream, describe_cache, is_cached
from jobs.training.engine import Engine, LocalEngine
from jobs.training.loop import Training
from jobs.training.memory import explain_memory
from jobs.training.run_folder import RunFolder, TrainingState, is_finished
from jobs.training.setup import (
    build_card,
    build_trainer,
    compile_kernels,
    describe_data,
    describe_training,
    initialise,
    labelled,
    open_streams,
)
from jobs.training.summary import Summary
from jobs.training.timing import EpochClock
from logpose.common.cpus import available_cpus
from logpose.common.errors import printable
from logpose.common.locks import output_lock
from pipeline.dataset.schema import DUPLICATES_FILE
from pipeline.dataset.store import Dataset
from pipeline.faults import is_there


def train(
    dataset: Path,
    run_dir: Path,
    options: TrainOptions,
    recipe: Recipe | None = None,
    objects: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Train a network on `dataset`, write everything into `run_dir`, and return it.

    The recipe's values come from `recipe`, or from the defaults; from `objects`, by the name of the recipe's field; and
    from `options`, which win. With `options.resume` a training in `run_dir` is continued from its last checkpoint; only
    its epochs and patience may differ. Weights and metrics do not depend on interruptions, on the number of threads,
    workers and ranks, or on the RAM budget.

    Raises JobError for options that do not fit the run folder or the recipe; PipelineError for a dataset that is
    missing, damaged or another one; NetworkError for a recipe or a model file that cannot be used; NonFiniteError where
    training diverges; DeviceFailedError and DeviceMemoryError where a GPU fails or has too little memory; Interrupted
    after Ctrl-C, with the training saved; OSError where a file cannot be written.
    """
    data, folder = Dataset.open(dataset), RunFolder(run_dir)
    if not run_dir.resolve().name:
        raise JobError(f"expected a folder for the results, found {run_dir}; give a folder inside it")
    if is_there(run_dir / "zarr.json"):
        raise JobError(f"expected a folder for the results, found a dataset at {run_dir}; give another folder")
    folder.check()
    with output_lock(run_dir, f"training into {run_dir}"):
        _train(data, folder, options, recipe, objects)
    return folder


def _train(
    data: Dataset, folder: RunFolder, options: TrainOptions, recipe: Recipe | None, objects: Mapping[str, Any] | None
) -> None:
    """`train`, under the lock of the run folder."""
    if options.init and options.init.is_dir():  # of a training
        options = replace(options, init=options.init / "model.safetensors")
    given = (to_toml(recipe), "the recipe") if recipe else ("", "")
    if not options.resume and not options.overwrite and is_there(folder.last):
        state, recipe = _finished_before(data, folder, options, given, objects)
        _report_finished(folder, state, recipe, "--resume and ")
        return
    checkpoint = folder.checkpoint_to_resume(resume=options.resume, overwrite=options.overwrite)
    start = load_checkpoint(options.init) if options.init and checkpoint is None else None
    if checkpoint:
        state = TrainingState.from_json(checkpoint.progress, folder.last)
        recipe = recipe_to_resume(options, state, folder, given[0], objects)
        _check_same_dataset(data, state, folder)
    else:
        recipe = _first_recipe(options, start, given, objects)
        state = TrainingState(to_toml(recipe), data.content_hash)
    for line in describe_data(data):
        say(line)
    _warn(data, recipe)
    if is_finished(state, recipe):
        damaged = folder.damaged(state)
        if not damaged:
            _report_finished(folder, state, recipe)
            return
        say(labelled("note", f"missing or damaged, and made again: {', '.join(damaged)}"))
        folder.remove(damaged)
    else:
        state.files = {}
    state.dataset = str(data.path.resolve())

    card = build_card(data, recipe)
    if checkpoint:
        checkpoint.layers(card)
    elif start and start.card.model == card.model:
        start.layers(start.card)
    with _engine(options, data, card, recipe, state, checkpoint, start, folder) as (engine, device, explained):
        if has_changed(state.device, device):
            change = f"trained on {state.device} so far, and now on {device}"
            say(labelled("note", f"{change}: the weights will differ slightly from those of a training on one device"))
        state.device = device
        if not checkpoint:
            folder.clear()
        artifacts = Artifacts(folder, data, card, engine, state, options.checkpoint_minutes, options.checkpoint_steps)
        resume = _resume_command(options, data, card, folder)
        try:
            with explained(artifacts, resume):
                summary = Training(engine, state, artifacts, resume).run()
        except NonFiniteError as error:
            best = f"the best model so far is in {folder.model}" if state.best else "no model is saved yet"
            raise NonFiniteError(f"{error}, and start again with --overwrite; {best}") from error
    for line in summary.lines():
        say(line)
    _report_end(folder, summary)


def _finished_before(
    data: Dataset, folder: RunFolder, options: TrainOptions, given: tuple[str, str], objects: Mapping[str, Any] | None
) -> tuple[TrainingState, Recipe]:
    """Return the state and recipe of the same training, where it is finished. Raises JobError for any other."""
    folder.check()
    init = str(options.init.resolve()) if options.init else ""
    try:
        state = folder.read_state()
        assert state, "last.safetensors exists"
        if (state.content_hash, state.init) != (data.content_hash, init):
            raise folder.exists_error()
        start = load_checkpoint(options.init) if options.init else None
    except ModelFileError as error:
        raise folder.exists_error() from error
    recipe = _first_recipe(options, start, given, objects)
    same = to_toml(recipe) == _complete(state.recipe, folder)
    if not (same and is_finished(state, recipe)) or folder.damaged(state):
        raise folder.exists_error()
    return state, recipe


def _first_recipe(
    options: TrainOptions, start: Checkpoint | None, given: tuple[str, str], objects: Mapping[str, Any] | None
) -> Recipe:
    """The recipe of a new training, perhaps of the saved model `start`; `given` is a recipe as TOML, and its name."""
    if start and not given[0]:  # the saved model determines the architecture; the rest of the recipe is free
        given = model_toml(start.card.model, start.card.model_options), str(options.init)
    return _resolve(options, *given, objects)


# Where it computes: the engine, what its results depend on, and a context that explains errors of a GPU
_Explained: TypeAlias = Callable[[Artifacts, str], AbstractContextManager[None]]


@contextmanager
def _engine(
    options: TrainOptions, data: Dataset, card: ModelCard, recipe: Recipe, state: TrainingState,
    checkpoint: Checkpoint | None, start: Checkpoint | None, folder: RunFolder,
) -> Iterator[tuple[Engine, str, _Explained]]:
    """Print what is trained and where, and yield the engine."""
    if start:
        state.init = str(start.path.resolve())
    if not (options.ranks or options.scheduler):
        with _local_engine(options, data, card, recipe, state, checkpoint, start) as local:
            yield local
        return
    from jobs.training.ranks.start import check_ranks, rank_engine  # needs the package distributed

    check_ranks(options, recipe, card)
    trainer = build_trainer(card, recipe, choose_backend("cpu", "auto", 1), data)
    _say_start(trainer, state, checkpoint)
    with rank_engine(options, data, card, recipe, trainer, state, folder.last, checkpoint is not None) as started:
        engine, device, description = started
        for line in describe_training(card, trainer, recipe, description):
            say(line)
        yield engine, device, lambda artifacts, resume: nullcontext()


@contextmanager
def _local_engine(
    options: TrainOptions, data: Dataset, card: ModelCard, recipe: Recipe, state: TrainingState,
    checkpoint: Checkpoint | None, start: Checkpoint | None,
) -> Iterator[tuple[Engine, str, _Explained]]:
    workers = options.workers or available_cpus()
    streams = open_streams(data, recipe, workers, options.ram_budget)
    backend = choose_backend(options.device, options.precision, options.threads)
    trainer = build_trainer(card, recipe, backend, data)
    caches = is_cached(options.cache, backend, data.train)
    for line in describe_training(card, trainer, recipe):
        say(line)
    if caches:
        say(labelled("cache", describe_cache(data.train)))
    _say_start(trainer, state, checkpoint)
    if not is_finished(state, recipe):
        compile_kernels(trainer, data)
    if checkpoint:
        trainer.load_tensors(checkpoint.tensors, state.step)
    else:
        for line in initialise(trainer, card, data, start):
            say(printable(line))
    engine = LocalEngine(trainer, streams, card, EpochClock(state.times))

    @contextmanager
    def explained(artifacts: Artifacts, resume: str) -> Iterator[None]:
        def after_failure() -> str:
            return f"the training is saved up to step {artifacts.saved_step}; resume with: {resume}"

        def with_less_memory(option: str) -> str:
            others = ", or --cache none" if caches else ""
            others += f"; or free GPU memory and resume with: {resume}" if artifacts.saved_step else ""
            return f"start again with --overwrite {option}, which fits{others}"

        with gpu_errors(after_failure), explain_memory(trainer, with_less_memory):
            if caches and not is_finished(state, recipe):
                engine.streams = streams._replace(train=cached_stream(data.train, recipe, workers, backend))
            yield

    yield engine, device_text(backend), explained


def recipe_to_resume(
    options: TrainOptions,
    state: TrainingState,
    folder: RunFolder,
    given: str = "",
    objects: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe to resume with, and store it in `state`: `given` (TOML) or the saved one, under `options`.

    Raises JobError where it differs from the saved one in more than the training's length.
    """
    recipe = _resolve(options, given or state.recipe, "the recipe" if given else str(folder.config), objects)
    saved = _complete(state.recipe, folder)
    may_differ = ("train.epochs ", "train.patience ")
    changed = [line for line in differences(saved, to_toml(recipe)) if not line.startswith(may_differ)]
    if changed:
        raise JobError(
            f"{folder.path} was begun with another recipe: {'; '.join(changed)}; leave that out to resume, or"
            " start again with --overwrite"
        )
    state.recipe = to_toml(recipe)
    return recipe


def _complete(recipe: str, folder: RunFolder) -> str:
    """A saved recipe with the defaults of what was added to recipes since."""
    return to_toml(resolve(base=recipe, base_name=str(folder.config)))


def _resolve(options: TrainOptions, base: str, base_name: str, objects: Mapping[str, Any] | None) -> Recipe:
    """`resolve`, with `objects` in place of the fields of those names, below the values of `options`."""
    if not objects:
        return resolve(options, base, base_name)
    start = resolve(RecipeOptions(recipe=options.recipe, config=options.config), base, base_name)
    return resolve(replace(options, recipe=None, config=None), to_toml(replace(start, **objects)), "the recipe")


def _check_same_dataset(data: Dataset, state: TrainingState, folder: RunFolder) -> None:
    if data.content_hash != state.content_hash:
        raise JobError(
            f"{folder.path} was begun with another dataset (content {state.content_hash[:8]}, {data.path} has"
            f" {data.content_hash[:8]}); give that one, start again with --overwrite, or give another folder and"
            f" --init {folder.path}"
        )


def _warn(data: Dataset, recipe: Recipe) -> None:
    """Print why the accuracy is inflated, and which options have no effect."""
    counts = data.attributes.duplicates
    if counts and counts.leaks:
        leaks = f"{counts.leaks:,} of the {data.val.rows:,} images to validate are near-duplicates of training images"
        say(labelled("note", f"{leaks}, so the accuracy is inflated: see {data.path / DUPLICATES_FILE}"))
    if recipe.patience and not data.val.rows:
        say(labelled("note", "patience has no effect without images to validate"))


def _say_start(trainer: Trainer, state: TrainingState, checkpoint: Checkpoint | None) -> None:
    """Print where a training resumes."""
    if checkpoint and is_finished(state, trainer.recipe):
        say("training is done; only its summary is missing")
    elif checkpoint:
        done = f" after {plural(state.batches, 'step')}" if state.batches else ""
        say(f"resuming in epoch {state.epoch}{done}")


def _resume_command(options: TrainOptions, data: Dataset, card: ModelCard, folder: RunFolder) -> str:
    precision = None if options.precision == "auto" else options.precision
    return folder.resume_command(
        data.path, card, precision=precision, ranks=options.ranks, scheduler=options.scheduler
    )


def _report_finished(folder: RunFolder, state: TrainingState, recipe: Recipe, option: str = "") -> None:
    """Print that there is nothing to do, and what `_report_end` does."""
    summary = folder.read_summary()
    assert summary, "it is not damaged"
    done = plural(len(state.history), "epoch")
    more = "--epochs" if len(state.history) >= recipe.epochs else "--patience"
    say(printable(f"{folder.path} is finished ({done}); to train longer, give {option}more {more}"))
    _report_end(folder, summary)


def _report_end(folder: RunFolder, summary: Summary) -> None:
    """Print where the model is and which commands come next."""
    run_dir = printable(shlex.quote(str(folder.path)))
    say(printable(f"done: the model of epoch {summary.epoch} is in {folder.model}"))
    say("next:")
    if summary.accuracy is not None:
        say(f"  logpose report {run_dir}")
    say(f"  logpose classify IMAGES {run_dir} OUT.csv")
    emit({"run_dir": folder.path, "model": folder.model, **asdict(summary)})
