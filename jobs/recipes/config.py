"""A recipe from a TOML file, `--set a.b=v` and options, and back to TOML.

    [model]                 one of cnn.models.MODELS by `name`, and its fields
    [optimizer]             one of cnn.training.optimizers.OPTIMIZERS
    [schedule]              one of cnn.training.schedules.SCHEDULES
    [loss]                  one of cnn.losses.LOSSES
    [augment]               the fields of cnn.inputs.augment.Augment
    [mix]                   the fields of cnn.inputs.mixup.Mix
    [lookahead]             the fields of cnn.training.averaging.Lookahead
    [ema]                   the field of cnn.training.averaging.EMA
    [train]                 the other fields of cnn.training.recipe.Recipe: epochs, batch_size, seed, …

Later beats earlier: the defaults of the dataclasses (there is no second list of them), the saved model or
training that is gone on from, the recipe by name (`recipes/`), the file, the command line. Where one of them gives a
section another `name`, the section forgets the values it had: they belonged to the old name.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from cnn.errors import NetworkError
from cnn.losses import LOSSES
from cnn.models import MODELS
from cnn.training.optimizers import OPTIMIZERS
from cnn.training.recipe import Recipe
from cnn.training.schedules import SCHEDULES
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.recipes import recipe_text
from logpose.common.errors import suggest

REGISTRIES: dict[str, Mapping[str, type]] = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
}
NONE = "none"  # TOML has no word for it


class Setting(NamedTuple):
    """One value somebody wrote, and where."""

    section: str
    key: str
    value: Any
    where: str


class Overrides(NamedTuple):
    """What somebody asked for on the command line."""

    file: Path | None = None  # --config
    sets: Sequence[str] = ()  # --set
    options: Mapping[str, Any] = {}  # `section.key` -> value, of options such as --lr; None is not given
    recipe: str | None = None  # --recipe


def resolve(overrides: Overrides, base: str = "", base_name: str = "") -> Recipe:
    """The recipe that is wished for, over `base`: TOML that comes from the file called `base_name`."""
    layers = [
        _from_toml(base, base_name),
        _from_toml(recipe_text(overrides.recipe), f"--recipe {overrides.recipe}") if overrides.recipe else [],
        _from_file(overrides.file) if overrides.file else [],
        [
            *(_from_argument(argument) for argument in overrides.sets),
            *(_from_option(key, value) for key, value in overrides.options.items() if value is not None),
        ],
    ]
    settings: dict[str, dict[str, Setting]] = {}
    for layer in layers:
        # Names first: within a layer it does not matter which is written first.
        for setting in sorted(layer, key=lambda setting: setting.key != "name"):
            section = settings.setdefault(_known_section(setting), {})
            if setting.key == "name" and _other_name(section, setting):
                section.clear()
            section[setting.key] = setting
    return _build(settings)


def model_toml(name: str, options: Mapping[str, Any]) -> str:
    """The [model] section alone."""
    return tomli_w.dumps({"model": {"name": name, **{key: _plain(value) for key, value in options.items()}}})


def model_of(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """The name and options of the recipe's model."""
    return _name("model", recipe.model), dataclasses.asdict(recipe.model)  # type: ignore[call-overload]


def loss_of(recipe: Recipe) -> str:
    """The name of the recipe's loss."""
    return _name("loss", recipe.loss)


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, complete, such that `resolve` reads the same recipe from it."""
    sections: dict[str, dict[str, Any]] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name in REGISTRIES:
            sections[field.name] = {"name": _name(field.name, value), **_plain_fields(value)}
        elif dataclasses.is_dataclass(value):
            sections[field.name] = _plain_fields(value)
        else:
            sections.setdefault("train", {})[field.name] = _plain(value)
    return tomli_w.dumps(sections)


def describe(recipe: Recipe) -> str:
    """The recipe in one line: names, and what differs from their defaults."""
    words = []
    for section in _default_fields():
        value = getattr(recipe, section, None)  # none is called train
        changed = [
            f"{key} {shown:g}" if isinstance(shown, float) else f"{key} {shown}"
            for key, shown in (_changes(value, type(value)) if value else [])
        ]
        if section in REGISTRIES or changed:
            name = _name(section, value) if section in REGISTRIES else section
            words.append(" ".join([name, *([f"({', '.join(changed)})"] if changed else [])]))
    epochs = plural(recipe.epochs, "epoch")
    return f"{', '.join(words)}; {epochs}, batches of {recipe.batch_size}, seed {recipe.seed}"


def differences(before: str, after: str) -> list[str]:
    """What two recipes in TOML disagree on, each as `section.key: before, now after`."""
    old, new = tomllib.loads(before), tomllib.loads(after)
    keys = {(section, key): None for recipe in (old, new) for section in recipe for key in recipe[section]}
    found = []
    for section, key in keys:
        was, now = (recipe.get(section, {}).get(key, NONE) for recipe in (old, new))
        if was != now:
            found.append(f"{section}.{key} was {was}, now {now}")
    return found


def _from_file(path: Path) -> list[Setting]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise JobError(f"cannot read the recipe {path}: {reason}; check --config") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not text in UTF-8: {error}; save it as such") from error
    return _from_toml(text, str(path))


def _from_toml(text: str, name: str) -> list[Setting]:
    try:
        sections = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{name} is not valid TOML: {error}; correct it there") from error
    settings = []
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise JobError(f"'{section}' in {name} is outside of any [section]; {_suggest_full_key(section)}")
        settings += [Setting(section, key, value, f"{name}, [{section}] {key}") for key, value in values.items()]
    return settings


def _from_option(full_key: str, value: Any) -> Setting:
    section, _, key = full_key.partition(".")
    return Setting(section, key, value, f"--{key if section != 'model' else section}".replace("_", "-"))


def _from_argument(argument: str) -> Setting:
    full_key, equals, text = argument.partition("=")
    section, dot, key = full_key.strip().partition(".")
    if not equals:
        raise JobError(f"--set {argument} has no value; write it as --set optimizer.lr=0.1")
    if not dot:
        raise JobError(f"--set {argument} names no section; {_suggest_full_key(section)}")
    return Setting(section, key, _value(text.strip()), f"--set {argument}")


def _value(text: str) -> Any:
    """The text as TOML; words need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _suggest_full_key(key: str) -> str:
    for section, fields in _default_fields().items():
        if key in fields:
            return f"did you mean {section}.{key}?"
    return f"sections are {', '.join(_default_fields())}"


def _default_fields() -> dict[str, list[str]]:
    """Every section with the keys it has when nothing is set."""
    return {section: list(values) for section, values in tomllib.loads(to_toml(Recipe())).items()}


def _known_section(setting: Setting) -> str:
    sections = _default_fields()
    if setting.section not in sections:
        hint = suggest(setting.section, sections)
        raise JobError(f"no section is called '{setting.section}' ({setting.where}); {hint}")
    return setting.section


def _other_name(section: Mapping[str, Setting], setting: Setting) -> bool:
    if "name" in section:
        return bool(section["name"].value != setting.value)
    default = getattr(Recipe(), setting.section)
    return setting.section in REGISTRIES and _name(setting.section, default) != setting.value


def _build(settings: Mapping[str, Mapping[str, Setting]]) -> Recipe:
    values: dict[str, Any] = {}
    default = Recipe()
    for section in _default_fields():
        given = dict(settings.get(section, {}))
        if section in REGISTRIES:
            kind = _pick(section, given.pop("name", None), default)
            values[section] = _construct(kind, given, section)
        elif section == "train":
            values |= _checked_values(Recipe, given, section)
        else:
            values[section] = _construct(type(getattr(default, section)), given, section)
    try:
        return Recipe(**values)
    except NetworkError as error:
        raise _located(error, list(settings.get("train", {}).values())) from error


def _pick(section: str, setting: Setting | None, default: Recipe) -> type:
    registry = REGISTRIES[section]
    if setting is None:
        return type(getattr(default, section))
    if setting.value not in registry:
        hint = suggest(str(setting.value), registry)
        raise JobError(f"no {section} is called '{setting.value}' ({setting.where}); {hint}")
    return registry[setting.value]


def _construct(kind: type, given: Mapping[str, Setting], section: str) -> Any:
    values = _checked_values(kind, given, section)
    try:
        return kind(**values)
    except NetworkError as error:
        raise _located(error, list(given.values())) from error


def _located(error: NetworkError, settings: Sequence[Setting]) -> JobError:
    """The dataclass's own complaint, with the place where the value was written if it can be told."""
    places = [setting.where for setting in settings if setting.key in str(error)]
    return JobError(f"{error} ({places[0]})" if places else str(error))


def _checked_values(kind: type, given: Mapping[str, Setting], section: str) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    keys = [field.name for field in dataclasses.fields(kind) if field.init]
    if kind is Recipe:
        keys = _default_fields()["train"]
    for key, setting in given.items():
        if key not in keys:
            hint = suggest(key, keys) if keys else "it has no options"
            raise JobError(f"[{section}] has no '{key}' ({setting.where}); {hint}")
    return {key: _checked(setting, hints[key]) for key, setting in given.items()}


def _checked(setting: Setting, hint: Any) -> Any:
    """The value as the type a field asks for, or an error that says where it was written."""
    for allowed in _alternatives(hint):
        try:
            return _converted(setting.value, allowed)
        except TypeError:
            continue
    expected = " or ".join(_type_name(allowed) for allowed in _alternatives(hint))
    raise JobError(f"{setting.where}: expected {expected}, found {setting.value!r}; correct the value")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _converted(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; TypeError if that would lose or invent something."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal and value in inner:
        return value
    if hint is type(None) and value == NONE:
        return None
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(kinds) == len(value):
            return tuple(_converted(item, kind) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
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


def _name(section: str, value: Any) -> str:
    return next(name for name, kind in REGISTRIES[section].items() if kind is type(value))


def _plain_fields(value: Any) -> dict[str, Any]:
    return {
        field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init
    }


def _plain(value: Any) -> Any:
    """As TOML can hold it."""
    if value is None:
        return NONE
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _changes(value: Any, kind: type) -> list[tuple[str, Any]]:
    values, defaults = _plain_fields(value), _plain_fields(kind())
    return [(key, values[key]) for key in values if values[key] != defaults[key]]
