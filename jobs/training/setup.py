"""What a training begins with, from a dataset and a recipe."""

from dataclasses import replace

import numpy as np

from cnn.backends.base import Backend
from cnn.checkpoint import ModelCard
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import model_path
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.console.progress import plural
from jobs.recipes.config import describe, loss_of, model_of
from pipeline.dataset.store import Dataset

_MEASURED_PIXELS = 5_000 * 32 * 32  # from which a network computes what it does not learn


def build_card(data: Dataset, recipe: Recipe) -> ModelCard:
    """What a model file is to say of the network."""
    name, options = model_of(recipe)
    return ModelCard(
        model=name,
        model_options=options,
        in_shape=(*data.size, 3),
        class_names=data.class_names,
        fit=data.fit,
        mean=data.mean,
        std=data.std,
        loss=loss_of(recipe),
        model_class=model_path(name),
    )


def build_trainer(card: ModelCard, recipe: Recipe, backend: Backend, data: Dataset) -> Trainer:
    """A fresh network and its trainer."""
    network = card.build_network(backend, recipe.seed)
    if isinstance(recipe.loss, SoftmaxCrossEntropy):
        counts = np.bincount(data.train.labels, minlength=len(data.class_names))  # (classes,)
        recipe = replace(recipe, loss=recipe.loss.balanced(counts))
    return Trainer(network, recipe, np.array(data.mean), np.array(data.std), data.train.rows)


def describe_data(data: Dataset) -> str:
    """The dataset in one line."""
    height, width = data.size
    val = f"{data.val.rows:,} to validate" if data.val.rows else "none to validate: the last epoch counts as the best"
    classes = plural(len(data.class_names), "class", "classes")
    images = plural(data.train.rows, "image")
    return f"{data.path}: {classes}, {width}×{height} ({data.fit}); {images} to train on, {val}"


def describe_training(card: ModelCard, trainer: Trainer, recipe: Recipe) -> str:
    """On what device, which network and by which recipe: three lines."""
    network = trainer.network
    return f"{network.backend.description}\n{card.model}, {network.parameters.size:,} parameters\n{describe(recipe)}"


def measure(trainer: Trainer, data: Dataset) -> None:
    """Let a network that computes something from images see some to train on, before the first step."""
    if not trainer.network.needs_data:
        return
    some = max(1, _MEASURED_PIXELS // (data.size[0] * data.size[1]))  # rows are in random order
    trainer.initialise_from_images(data.train.read(0, min(data.train.rows, some)))
