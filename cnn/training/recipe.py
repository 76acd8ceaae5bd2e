"""Training recipe: the model, optimizer, schedule, loss, augmentation and all other hyperparameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cnn.errors import RecipeError, UnknownNameError, check_range
from cnn.inference.tta import VIEWS
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.losses import LOSSES, Loss, SoftmaxCrossEntropy
from cnn.models import MODELS, Model, ResNet9
from cnn.training.averaging import EMA, Lookahead
from cnn.training.optimizers import OPTIMIZERS, AdamW, Optimizer
from cnn.training.schedules import SCHEDULES, Cosine, Schedule


@dataclass(frozen=True)
class Recipe:
    """All hyperparameters of a training.

    epochs: passes over the training images.
    batch_size: images per step.
    micro_batch: images that go through the network together; 0 is the batch. Batch norm normalises each such portion of
        a batch by its own statistics (ghost batch norm; Hoffer et al., 2017).
    clip: upper bound of the gradient's norm; 0 is off.
    patience: number of epochs without improvement after which training stops; 0 is off.
    views: test-time augmentation of the final evaluation, a key of cnn.inference.tta.VIEWS.
    seed: determines the initial weights, the order of the images, and all augmentation.

    Raises `RecipeError` for a value of the wrong type or out of range, `UnknownNameError` for unknown views.

    >>> recipe = logpose.Recipe(optimizer=logpose.optimizers.SGD(lr=0.1), epochs=3)
    >>> recipe.optimizer.momentum, recipe.batch_size
    (0.9, 64)
    """

    model: Model = field(default_factory=ResNet9)
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    loss: Loss = field(default_factory=SoftmaxCrossEntropy)
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    lookahead: Lookahead = field(default_factory=Lookahead)
    ema: EMA = field(default_factory=EMA)
    epochs: int = 20
    batch_size: int = 64
    micro_batch: int = 0
    clip: float = 0.0
    patience: int = 0
    views: Literal["none", "mirror", "mirror_shift"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _OBJECTS:
            _check_object(name, getattr(self, name))
        for name, lowest in (("epochs", 1), ("batch_size", 1), ("micro_batch", 0), ("patience", 0), ("seed", 0)):
            check_range(name, getattr(self, name), lowest, kind=int)
        check_range("clip", self.clip, 0)
        if not isinstance(self.views, str) or self.views not in VIEWS:
            raise UnknownNameError("views", self.views, VIEWS)

    @property
    def micro_rows(self) -> int:
        """The number of images in a whole micro-batch."""
        return min(self.micro_batch or self.batch_size, self.batch_size)

    @property
    def is_divided(self) -> bool:
        """Whether a whole batch is more than one micro-batch."""
        return self.micro_rows < self.batch_size


# The fields that hold an object: an example, the attributes that the object needs, and the registry of its classes.
_OBJECTS: dict[str, tuple[str, tuple[str, ...], Mapping[str, type]]] = {
    "model": ("ResNet9(width=64)", ("layers",), MODELS),
    "optimizer": ("SGD(lr=0.1)", ("lr", "slots", "update"), OPTIMIZERS),
    "schedule": ("Cosine(warmup=0.1)", ("factor",), SCHEDULES),
    "loss": ("SoftmaxCrossEntropy()", ("forward", "probabilities"), LOSSES),
    "augment": ("Augment(flip=True)", ("maps", "colours"), {}),
    "mix": ("Mix('cutmix')", ("draw",), {}),
    "lookahead": ("Lookahead(every=5)", ("first_step", "update"), {}),
    "ema": ("EMA(horizon=0.1)", ("horizon", "update"), {}),
}


def _check_object(name: str, value: Any) -> None:
    """Raise `RecipeError` where the field `name` is given text, a class or the wrong kind of object."""
    example, attributes, registry = _OBJECTS[name]
    fits = all(hasattr(value, attribute) for attribute in attributes)
    if fits and not isinstance(value, type):
        return
    found, meant = repr(value), None
    if isinstance(value, str):
        found, meant = f"the text '{value}'", registry.get(value.lower())
    elif isinstance(value, type):
        found, meant = f"the class {value.__name__}", value if fits else None
    remedy = f"write {name}={f'{meant.__name__}()' if meant else example}"
    raise RecipeError(f"{name}: expected an object such as {example}, found {found}; {remedy}")
