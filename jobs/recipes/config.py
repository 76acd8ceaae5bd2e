"""Read a recipe from TOML, `--set a.b=v` and options; write it as TOML.

    [model]                 one of cnn.models.MODELS by `name`, and its fields
    [optimizer]             one of cnn.training.optimizers.OPTIMIZERS
    [schedule]              one of cnn.training.schedules.SCHEDULES
    [loss]                  one of cnn.losses.LOSSES
    [augment]               the fields of cnn.inputs.augment.Augment
    [mix]                   the fields of cnn.inputs.mixup.Mix
    [lookahead]             the fields of cnn.training.averaging.Lookahead
    [ema]                   the field of cnn.training.averaging.EMA
    [train]                 the other fields of Recipe: epochs, batch_size, seed, …

Later overrides earlier: the dataclasses' defaults, the saved model or training that is the base, the named recipe
(`--recipe`), the file (`--config`), the command line. A section whose `name` is overridden loses its other values,
which belonged to the old name.
"""

import dataclasses
import errno
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from cnn.errors import NetworkError
from cnn.losses import LOSSES
from cnn.models import MODELS, import_model
from cnn.training.optimizers import OPTIMIZERS
from cnn.training.recipe import Recipe
from cnn.training.schedules import SCHEDULES
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.options import RecipeOptions
from jobs.recipes import recipe_text
from logpose.common.errors import shortened, suggest

# Sections whose `name` selects a dataclass.
REGISTRIES: dict[str, Mapping[str, type]] = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
}
NONE = "none"  # TOML has no null
MAX_TOML_BYTES = 2**16
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){17}""")
_ADD_MODEL = "for a class of your own, add --model PACKAGE.MODULE:CLASS"


class ConfigValue(NamedTuple):
    """A configured value and where it was written."""

    section: str
    key: str
    value: Any
    source: str


def resolve(options: RecipeOptions | None = None, base: str = "", base_name: str = "") -> Recipe:
    """Return the recipe that `options` ask for, over `base`: TOML from the file called `base_name`.

    A model class given in `options` as package.module:Class is imported and registered; files never import code.
    Raises JobError for anything unknown or of the wrong type, and for a file that cannot be read.
    """
    options = options or RecipeOptions()
    command_line = _from_options(options)
    classes = {value.value: import_model(value.value) for value in command_line if _is_class(value)}
    layers = [_from_toml(base, base_name)]
    if options.recipe:
        layers.append(_from_toml(recipe_text(options.recipe), f"--recipe {options.recipe}"))
    if options.config:
        layers.append(_from_file(options.config))
    layers.append(command_line)

    default, sections = Recipe(), {section: dict[str, ConfigValue]() for section in _sections()}
    names: dict[str, Any] = {section: _name(section, getattr(default, section)) for section in REGISTRIES}
    for layer in layers:
        # Names first: the order within a layer has no meaning.
        for value in sorted(layer, key=lambda value: value.key != "name"):
            if value.section not in sections:
                hint = suggest(value.section, sections)
                raise JobError(f"no section is called '{value.section}' ({value.source}); {hint}")
            if _is_class(value):
                value = value._replace(value=classes.get(value.value, value.value))
            if value.key == "name" and names.get(value.section, value.value) != value.value:
                sections[value.section].clear()
                names[value.section] = value.value
            sections[value.section][value.key] = value
    return _build(sections, default)


def model_toml(name: str, options: Mapping[str, Any]) -> str:
    """Return the [model] section alone, as TOML."""
    return tomli_w.dumps({"model": {"name": name, **{key: _to_toml(value) for key, value in options.items()}}})


def model_of(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of the recipe's model. Raises JobError where it is not registered."""
    return _name("model", recipe.model), dataclasses.asdict(recipe.model)  # type: ignore[call-overload]


def loss_of(recipe: Recipe) -> str:
    """Return the name of the recipe's loss."""
    return _name("loss", recipe.loss)


def to_toml(recipe: Recipe) -> str:
    """Return the complete recipe as TOML, which `resolve` reads back. Raises JobError for an unregistered model."""
    sections: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name in REGISTRIES:
            sections[field.name] = {"name": _name(field.name, value), **_fields_of(value)}
        elif dataclasses.is_dataclass(value):
            sections[field.name] = _fields_of(value)
        else:
            sections.setdefault("train", {})[field.name] = _to_toml(value)
    return tomli_w.dumps(sections)


def describe(recipe: Recipe) -> str:
    """Return the recipe as one line of text: names, and values that differ from their defaults."""
    described = []
    for section in _sections():
        if section == "train":
            continue
        value = getattr(recipe, section)
        values, defaults = _fields_of(value), _fields_of(type(value)())
        changed = [
            f"{key} {each:g}" if isinstance(each, float) else f"{key} {each}"
            for key, each in values.items()
            if each != defaults[key]
        ]
        if section in REGISTRIES or changed:
            name = _name(section, value) if section in REGISTRIES else section
            described.append(f"{name} ({', '.join(changed)})" if changed else name)
    epochs = plural(recipe.epochs, "epoch")
    batches = f"batches of {recipe.batch_size}"
    if recipe.is_divided:
        batches += f" in micro-batches of {recipe.micro_batch}"
    return f"{', '.join(described)}; {epochs}, {batches}, seed {recipe.seed}"


def differences(before: str, after: str) -> list[str]:
    """Return the differences between two recipes in TOML, each as `section.key was x, now y`."""
    old, new = _parse_toml(before, "the recipe before"), _parse_toml(after, "the recipe")
    keys = {(section, key): None for recipe in (old, new) for section in recipe for key in recipe[section]}
    found = []
    for section, key in keys:
        was, now = (recipe.get(section, {}).get(key, NONE) for recipe in (old, new))
        if was != now:
            found.append(f"{section}.{key} was {was}, now {now}")
    return found


# Reading ------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> list[ConfigValue]:
    try:
        text = _read(path).decode("utf-8-sig")  # some editors begin with a mark of the encoding
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise JobError(f"cannot read the recipe {path}: {reason}; check --config") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not valid UTF-8: {error}; save it as UTF-8") from error
    return _from_toml(text, str(path))


def _read(path: Path) -> bytes:
    """The beginning of a file, or of a pipe to which something writes, as `--config <(…)`. Raises OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if is_pipe := stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            os.set_blocking(file.fileno(), True)
        content = file.read(MAX_TOML_BYTES + 1)
    if is_pipe and not content:  # opening it as usual would wait for ever
        raise OSError(errno.EPIPE, "a pipe to which nothing writes", str(path))
    return content


def _from_toml(text: str, name: str) -> list[ConfigValue]:
    sections, found = _parse_toml(text, name), []
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise JobError(f"'{section}' in {name} is outside of any [section]; {_suggest_full_key(section)}")
        found += [ConfigValue(section, key, value, f"{name}, [{section}] {key}") for key, value in values.items()]
    return found


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    """Parse the recipe called `name`. Raises JobError where it is none, also for what would keep the parser busy."""
    if not _is_small(text):
        raise JobError(
            f"{name}: expected a recipe of at most {MAX_TOML_BYTES // 1024} KiB, with keys of two parts, found more;"
            " see 'logpose recipes'"
        )
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError; and int's, for thousands of digits
        reason = f"{error}".partition(";")[0]
        raise JobError(f"{name} is not valid TOML: {reason}; correct it there") from error
    except RecursionError:
        raise JobError(f"{name} is not a recipe: brackets nested too deeply; see 'logpose recipes'") from None


def _is_small(text: str) -> bool:
    # The parser's time grows with the square of the number of parts of a key.
    return len(text) <= MAX_TOML_BYTES and not _LONG_KEY.search(text)


def _from_options(options: RecipeOptions) -> list[ConfigValue]:
    found = [_from_argument(argument) for argument in options.set]
    for full_key, value in options.recipe_values().items():
        section, _, key = full_key.partition(".")
        flag = "--model" if full_key == "model.name" else f"--{key}".replace("_", "-")
        found.append(ConfigValue(section, key, value, flag))
    return found


def _from_argument(argument: str) -> ConfigValue:
    full_key, equals, text = argument.partition("=")
    section, dot, key = full_key.strip().partition(".")
    if not equals:
        raise JobError(f"--set {shortened(argument)} has no value; write it as --set optimizer.lr=0.1")
    if not dot:
        raise JobError(f"--set {shortened(argument)} names no section; {_suggest_full_key(section)}")
    value: Any = text.strip()
    with suppress(ValueError, RecursionError):  # a word needs no quotes
        if _is_small(text):
            value = tomllib.loads(f"value = {value}")["value"]
    return ConfigValue(section, key, value, f"--set {shortened(argument)}")


def _suggest_full_key(key: str) -> str:
    for section, keys in _sections().items():
        if key in keys:
            return f"did you mean {section}.{key}?"
    return f"sections are {', '.join(_sections())}"


def _is_class(value: ConfigValue) -> bool:
    """Whether the value is a model as package.module:Class."""
    return (value.section, value.key) == ("model", "name") and isinstance(value.value, str) and ":" in value.value


# Checking -----------------------------------------------------------------------------------------------


@cache
def _sections() -> dict[str, list[str]]:
    """Every section with the keys of its default."""
    return {section: list(values) for section, values in tomllib.loads(to_toml(Recipe())).items()}


def _build(sections: dict[str, dict[str, ConfigValue]], default: Recipe) -> Recipe:
    train, values = sections.pop("train"), {}
    for section, given in sections.items():
        kind = type(getattr(default, section))
        if section in REGISTRIES and "name" in given:
            kind = _pick(section, given.pop("name"))
        keys = [field.name for field in dataclasses.fields(kind) if field.init]
        values[section] = _construct(kind, section, keys, given)
    return _construct(Recipe, "train", _sections()["train"], train, **values)


def _pick(section: str, name: ConfigValue) -> type:
    registry = REGISTRIES[section]
    if name.value in registry:
        return registry[name.value]
    if _is_class(name):
        raise JobError(f"{name.source} is a class, and a file does not import code; add --model {name.value}")
    hint = suggest(str(name.value), registry)
    if section == "model":
        hint += f"{'' if hint.endswith('?') else ';'} {_ADD_MODEL}"
    raise JobError(f"no {section} is called '{name.value}' ({name.source}); {hint}")


def _construct(
    kind: type, section: str, keys: Iterable[str], given: Mapping[str, ConfigValue], **values: Any
) -> Any:
    """Call the dataclass with `values` and those of `given`, converted to the types of its fields.

    Raises JobError, with the place where the value was written, for an unknown key or a value that does not fit.
    """
    hints = typing.get_type_hints(kind)
    for key, value in given.items():
        if key not in keys:
            hint = suggest(key, keys) if keys else "it has no options"
            raise JobError(f"[{section}] has no '{key}' ({value.source}); {hint}")
        try:
            values[key] = _converted(value.value, hints[key])
        except TypeError:
            expected = " or ".join(_type_name(member) for member in _members(hints[key]))
            found = shortened(repr(value.value))
            raise JobError(f"{value.source}: expected {expected}, found {found}; correct the value") from None
    try:
        return kind(**values)
    except NetworkError as error:
        sources = [value.source for key, value in given.items() if key in str(error)]
        raise JobError(f"{error} ({sources[0]})" if sources else str(error)) from error
    except Exception as error:  # the __post_init__ of a user's model may raise anything
        options = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise JobError(f"{kind.__name__}({options}): {type(error).__name__}: {error}; give other values") from error


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; for any other type, the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _converted(value: Any, hint: Any) -> Any:
    """Convert `value` to the type `hint`. Raises TypeError where that would change it."""
    for member in _members(hint):
        origin, inner = typing.get_origin(member), typing.get_args(member)
        if origin is typing.Literal and value in inner:
            return value
        if member in (Any, object, tuple):
            if isinstance(value, list):
                return tuple(_converted(item, Any) for item in value)
            if member is not tuple:
                return value
        if member is type(None) and value == NONE:
            return None
        if origin is tuple and isinstance(value, list):
            kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
            if len(kinds) == len(value):
                return tuple(_converted(item, kind) for item, kind in zip(value, kinds, strict=True))
        if member is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if member in (int, str, bool) and type(value) is member:
            return value
    raise TypeError


def _type_name(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        return "a list such as [0.1, 0.2]" if inner[1:] == (...,) else f"a list of {len(inner)}"
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return "none" if hint is type(None) else names.get(hint, str(hint))


# Writing ------------------------------------------------------------------------------------------------


def _name(section: str, value: Any) -> str:
    kind, registry = type(value), REGISTRIES[section]
    for name, registered in registry.items():
        if registered is kind:
            return name
    remedy = f"choose one of: {', '.join(registry)}"
    if section == "model":
        remedy = f"put @logpose.register_model above class {kind.__name__}"
    raise JobError(f"the {section} {kind.__name__} of {kind.__module__} is not registered; {remedy}")


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: _to_toml(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}


def _to_toml(value: Any) -> Any:
    if value is None:
        return NONE
    if isinstance(value, tuple):
        return [_to_toml(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, bool | int | float | str):
        raise JobError(f"expected a number, text, True or False in a recipe, found {value!r}; correct the value")
    return value
