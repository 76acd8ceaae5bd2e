"""The registry of models. A user's own model joins it by a decorator:

    @register_model
    @dataclass(frozen=True)
    class Tiny:
        width: int = 16

        def layers(self, in_shape, classes):
            return chain(conv=Conv2D(self.width), pool=GlobalAveragePool(), head=Dense(classes))

A model file holds the model's name and options, never code: before a file of `Tiny` is loaded, the module that defines
the class must be imported. `import_model` does that, and is given only text that a user typed, never a file's content.
"""

import dataclasses
import importlib
import re
import sys
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from cnn.arena import Shape
from cnn.errors import NetworkError, RecipeError, first_line
from cnn.layers import Sequential
from cnn.models.architectures import Airbench94, Plain, ResNet9, ResNet18, Seed
from cnn.models.check import checked
from logpose.common.errors import suggest


class Model(Protocol):
    """A frozen dataclass of options, each with a default; `layers` builds the network."""

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        """The layers for images of `in_shape` (H, W, C). The last is called `head` and has `classes` outputs."""
        ...


Registered = TypeVar("Registered", bound=type)

MODELS: dict[str, type[Model]] = {
    "seed": Seed,
    "plain": Plain,
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "airbench94": Airbench94,
}
_BUILT_IN = set(MODELS)


@overload
def register_model(model: Registered) -> Registered: ...
@overload
def register_model(*, name: str) -> Callable[[Registered], Registered]: ...
def register_model(model: Any = None, *, name: str = "") -> Any:
    """Class decorator: add a model to MODELS under `name`, by default the class's name in lower case.

    A class of the same module and name is replaced, so that a notebook cell can be run again. Raises `RecipeError` for
    a name that is taken, and for a class that is not a frozen dataclass of options with defaults, or has no method
    `layers`.

    >>> import dataclasses
    >>> @logpose.register_model
    ... @dataclasses.dataclass(frozen=True)
    ... class Linear:
    ...     def layers(self, in_shape, classes):
    ...         return logpose.layers.chain(flatten=logpose.layers.Flatten(), head=logpose.layers.Dense(classes))
    >>> logpose.train("colours.zarr", "runs/linear", model="linear", epochs=1, quiet=True).model.class_names
    ('blue', 'green', 'red')
    """
    if model is None:
        return partial(register_model, name=name)
    _check_class(model)
    name = name or model.__name__.lower()
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise RecipeError(f"the model name {name!r}: expected letters, digits, '_', '-' and '.'; choose another")
    present = MODELS.get(name, model)
    if _path(present) != _path(model):
        owner = "a built-in model" if name in _BUILT_IN else _path(present)
        raise RecipeError(f"the model name '{name}' is taken by {owner}; choose another: @register_model(name=\"...\")")
    MODELS[name] = model
    return model


def import_model(path: str) -> str:
    """Import the model class at `path`, as package.module:Class, register it, and return its name in MODELS.

    The current folder is searched too. Importing a module runs its code: call this only with text that a user typed.
    Raises `RecipeError` where `path` has another form, the module cannot be imported, or the class not registered.
    """
    module_name, _, class_name = path.partition(":")
    names = (*module_name.split("."), *class_name.split("."))
    if not all(map(str.isidentifier, names)) or module_name.endswith(".py"):
        raise RecipeError(f"model '{path}': expected PACKAGE.MODULE:CLASS; write it as my_models:Tiny, for example")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # last, so that its files hide no installed module
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise RecipeError(
            f"model '{path}': importing {module_name} failed with {type(error).__name__}: {first_line(error)}; "
            "correct it there, or run from the folder that holds the module"
        ) from error
    for attribute in class_name.split("."):
        if not hasattr(found, attribute):
            raise RecipeError(f"model '{path}': {module_name} has no {class_name}; {suggest(attribute, dir(found))}")
        found = getattr(found, attribute)
    if found not in MODELS.values():
        register_model(found)
    return next(name for name, model in MODELS.items() if model is found)


def model_path(name: str) -> str:
    """The class of a registered model, as package.module:Class; empty for a built-in one."""
    return "" if name in _BUILT_IN else _path(MODELS[name])


def build_layers(model: Model, in_shape: Shape, classes: int) -> Sequential:
    """`model.layers`, checked. Raises `RecipeError` unless it ends in a layer `head` with `classes` outputs."""
    kind, example = type(model).__name__, "chain(..., head=Dense(classes))"
    try:
        layers = model.layers(in_shape, classes)
    except NetworkError:
        raise
    except Exception as error:  # a user's model may raise anything
        raise RecipeError(
            f"{kind}.layers failed with {type(error).__name__}: {first_line(error)}; correct it there"
        ) from error
    if not isinstance(layers, Sequential) or not layers.layers:
        raise RecipeError(f"{kind}.layers: expected a Sequential, found {layers!r}; return {example}")
    last = layers.layers[-1][0]
    if last != "head":
        raise RecipeError(f"{kind}.layers: expected a last layer called 'head', found '{last}'; return {example}")
    if (out_shape := checked(layers).specs(in_shape).out_shape) != (classes,):
        raise RecipeError(f"{kind}.layers: expected {classes} outputs, found shape {out_shape}; return {example}")
    return layers


def _check_class(model: Any) -> None:
    if not isinstance(model, type):
        raise RecipeError(f"register_model: expected a class, found {model!r}; put @register_model above a class")
    kind = model.__name__
    if not dataclasses.is_dataclass(model) or not model.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise RecipeError(
            f"model {kind}: expected a frozen dataclass; write @register_model, and below it @dataclass(frozen=True)"
        )
    if not callable(getattr(model, "layers", None)):
        raise RecipeError(f"model {kind}: it has no method layers; define layers(self, in_shape, classes)")
    try:
        typing.get_type_hints(model)
    except Exception as error:  # annotations are code
        raise RecipeError(f"model {kind}: the type of an option is unknown, {first_line(error)}; define it") from error
    for field in dataclasses.fields(model):
        if field.name == "name":
            raise RecipeError(f"model {kind}: an option cannot be called 'name', as the model has one; rename it")
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if default is dataclasses.MISSING:
            raise RecipeError(f"model {kind}: the option '{field.name}' has no default; give it one")
        if not _is_plain(default):
            raise RecipeError(
                f"model {kind}: the option '{field.name}' is {default!r}, which a model file cannot hold; use "
                "numbers, text, True or False, and tuples of these"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _path(model: type) -> str:
    return f"{model.__module__}:{model.__qualname__}"
