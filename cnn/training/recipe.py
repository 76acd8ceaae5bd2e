"""The recipe of a training: its model, optimizer, schedule, loss, augmentation and all other hyperparameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from cnn.errors import RecipeError, UnknownNameError
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
    """Everything that decides how a network is trained.

    epochs: passes over the training images.
    batch_size: images per step.
    clip: upper bound of the gradient's norm; 0 is off.
    patience: number of epochs without improvement after which training stops; 0 is off.
    views: test-time augmentation of the final evaluation, a key of cnn.inference.tta.VIEWS.
    seed: of the initial weights, the order of the images, and all augmentation.

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
    clip: float = 0.0
    patience: int = 0
    views: Literal["none", "mirror", "mirror_shift"] = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, field_type in _FIELDS.items():
            field_type.check(name, getattr(self, name))
        for name, lowest in (("epochs", 1), ("batch_size", 1), ("clip", 0), ("patience", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float if name == "clip" else int):
                kind = "a number" if name == "clip" else "a whole number"
                raise RecipeError(f"{name}: expected {kind}, found {value!r}; write {name}={lowest} or more")
            if not value >= lowest:
                raise RecipeError(f"{name}: expected {lowest} or more, found {value}")
        if not isinstance(self.views, str) or self.views not in VIEWS:
            raise UnknownNameError("views", self.views, VIEWS)


class _Field(NamedTuple):
    """What a field of a recipe that holds an object accepts: any with these methods, such as `example`."""

    example: str
    methods: tuple[str, ...]
    registry: Mapping[str, type] = {}

    def check(self, name: str, value: Any) -> None:
        """Raise `RecipeError` where `value` is a name, a class or another kind of object."""
        if not isinstance(value, str | type) and all(hasattr(value, method) for method in self.methods):
            return
        found, remedy = repr(value), f"write {name}={self.example}"
        if isinstance(value, str):
            found = f"the text '{value}'"
            if kind := self.registry.get(value.lower()):
                remedy = f"write {name}={kind.__name__}()"
        elif isinstance(value, type):
            found = f"the class {value.__name__}"
            if all(hasattr(value, method) for method in self.methods):
                remedy = f"write {name}={value.__name__}()"
        raise RecipeError(f"{name}: expected an object such as {self.example}, found {found}; {remedy}")


_FIELDS = {
    "model": _Field("ResNet9(width=64)", ("layers",), MODELS),
    "optimizer": _Field("SGD(lr=0.1)", ("lr", "slots", "update"), OPTIMIZERS),
    "schedule": _Field("Cosine(warmup=0.1)", ("factor",), SCHEDULES),
    "loss": _Field("SoftmaxCrossEntropy()", ("forward", "probabilities"), LOSSES),
    "augment": _Field("Augment(flip=True)", ("maps", "colours")),
    "mix": _Field("Mix('cutmix')", ("draw",)),
    "lookahead": _Field("Lookahead(every=5)", ("first_step", "update")),
    "ema": _Field("EMA(horizon=0.1)", ("horizon", "update")),
}
