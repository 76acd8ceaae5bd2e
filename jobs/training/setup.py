"""Build the model card, the trainer and the batch streams for a dataset and a recipe."""

import textwrap
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cnn.backends.base import Backend
from cnn.checkpoint import Checkpoint, ModelCard, initialise_from
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import build_layers, model_path
from cnn.models.check import check_passes
from cnn.training.recipe import Recipe
from cnn.training.rehearsal import prepare_training
from cnn.training.trainer import Trainer
from jobs.console.compiling import compiling
from jobs.console.progress import plural
from jobs.recipes.config import describe, loss_of, model_of
from logpose.common.errors import printable
from pipeline.dataset.store import Dataset
from pipeline.errors import OptionError
from pipeline.loader.stream import BatchStream, megabytes

_MEASURED_PIXELS = 5_000 * 32 * 32  # for weights that are computed from images, such as whitening


class Streams(NamedTuple):
    """Batches of the training split and, unless it is empty, of the validation split."""

    train: BatchStream
    val: BatchStream | None


def build_card(data: Dataset, recipe: Recipe) -> ModelCard:
    """Return the description of the network that its model file will hold. Raises JobError for a model without name."""
    name, options = model_of(recipe)
    return ModelCard(
        model=name,
        model_options=options,
        in_shape=(*data.size, 3),
        class_names=data.class_names,
        fit=data.fit,
        mean=data.mean,
        std=data.std,
        depth=data.attributes.depth,
        loss=loss_of(recipe),
        model_class=model_path(name),
    )


def build_trainer(card: ModelCard, recipe: Recipe, backend: Backend, data: Dataset) -> Trainer:
    """Return a trainer of a freshly initialised network. Raises NetworkError where the options do not fit."""
    if model_path(card.model):
        check_passes(build_layers(recipe.model, card.in_shape, len(card.class_names)), card.in_shape, backend)
    network = card.build_network(backend, recipe.seed)
    if isinstance(recipe.loss, SoftmaxCrossEntropy):
        counts = np.bincount(data.train.labels, minlength=len(data.class_names))  # (C,)
        recipe = replace(recipe, loss=recipe.loss.balanced(counts))
    return Trainer(network, recipe, np.array(data.mean), np.array(data.std), data.train.rows)


def open_streams(
    data: Dataset, recipe: Recipe, workers: int, ram_budget: int, lanes: range | None = None
) -> Streams:
    """Open both streams within one RAM budget, in bytes: validation gets the little it needs, training the rest.

    `lanes` are the micro-batches to read, None for all. Raises OptionError where the budget is too small.
    """
    batch_size, seed, micro_batch = recipe.batch_size, recipe.seed, recipe.micro_batch
    val, reserved = None, 0
    if data.val.rows:
        val = BatchStream(data.val, batch_size, seed=seed, shuffle=False, workers=workers)
        reserved = val.ram_bytes

    def open_train(budget: int | None) -> BatchStream:
        return BatchStream(
            data.train, batch_size, seed=seed, micro_batch=micro_batch, lanes=lanes, workers=workers, ram_budget=budget
        )

    needed = open_train(None).min_bytes + reserved
    if ram_budget < needed:
        raise OptionError(
            f"expected a RAM budget of at least {-(-needed // 10**6):,} MB for {data.path} in batches of"
            f" {batch_size:,}, found {megabytes(ram_budget)}: raise --ram-budget, or lower --batch-size or --workers"
        )
    return Streams(open_train(ram_budget - reserved), val)


def compile_kernels(trainer: Trainer, data: Dataset, processes: int | None = None) -> None:
    """Compile the kernels of the training that are not in the cache, and say so: before any clock starts."""
    with compiling() as progress:
        prepare_training(trainer, data.train.rows, progress, processes)


def initialise(trainer: Trainer, card: ModelCard, data: Dataset, start: Checkpoint | None) -> list[str]:
    """Take the weights of the model `start`, or initialise what depends on data; return what was done, as lines.

    Raises ModelFileError where the model does not fit, PipelineError where the dataset is damaged.
    """
    if start is None:
        measure(trainer, data)
        return []
    return [f"starting from {start.path}", *initialise_from(trainer.network, card, start)]


def measure(trainer: Trainer, data: Dataset) -> None:
    """Compute the weights that depend on data, such as a whitening layer's, from training images.

    Does nothing for a network without such a layer. Call it before the first step. Raises PipelineError where the
    dataset is damaged.
    """
    if trainer.network.needs_data:
        rows = max(1, _MEASURED_PIXELS // (data.size[0] * data.size[1]))  # rows are stored in random order
        trainer.initialise_from_images(data.train.read(0, min(data.train.rows, rows)))


def describe_data(data: Dataset) -> list[str]:
    """Return the dataset as lines of text, ready to print."""
    height, width = data.size
    val = f"{data.val.rows:,} to validate" if data.val.rows else "none to validate"
    classes = plural(len(data.class_names), "class", "classes")
    lines = [
        printable(f"dataset  {data.path}"),
        labelled("images", f"{data.train.rows:,} to train on, {val}; {classes}, {width}×{height} ({data.fit})"),
    ]
    if not data.val.rows:
        lines.append(labelled("note", "no images to validate: the last epoch counts as the best"))
    return lines


def describe_training(card: ModelCard, trainer: Trainer, recipe: Recipe, device: str = "") -> list[str]:
    """Return device, by default the trainer's, network and recipe as lines of text, ready to print."""
    network = trainer.network
    return [
        labelled("device", device or network.backend.description),
        labelled("model", f"{card.model}, {network.parameters.size:,} parameters"),
        labelled("recipe", describe(recipe)),
    ]


def labelled(label: str, text: str) -> str:
    """Return `text` after a label, in lines of at most 80 columns where its words allow, ready to print."""
    return textwrap.fill(
        printable(text), 80, initial_indent=f"{label:9}", subsequent_indent=" " * 9,
        break_long_words=False, break_on_hyphens=False, replace_whitespace=False,
    )  # fmt: skip
