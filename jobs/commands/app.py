"""The Typer program, and the decorator that makes a command from a function and an options dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from jobs.console.output import Verbosity, verbosity_of
from jobs.errors import JobError
from logpose.common.limits import check_address_space
from logpose.common.options import Option
from logpose.common.outputs import local_path

Job: TypeAlias = Callable[[], int]  # does the work, returns the exit code
Command: TypeAlias = Callable[..., int | None]

_NUMBERS = {int: "a whole number", float: "a number"}
_COMMON = "Common options"  # heading in the help

_options: dict[str, type[Any] | None] = {}  # of each command, by its name

app = typer.Typer(
    name="logpose",
    help="""Train an image classifier on a folder of images, with a CNN written from scratch.

\b
  logpose build    images flags.zarr        decode and resize the images once
  logpose train    flags.zarr runs/flags    train a network on them
  logpose classify new runs/flags out.csv   label other images

Run an interrupted command again to resume it (train: with --resume).""",
    epilog="'logpose COMMAND --help' explains a command. 'logpose demo' runs all of them.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"logpose {version('logpose-cnn')}")
        raise typer.Exit


@app.callback()
def _logpose(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def command(options_type: type[Any] | None = None) -> Callable[[Command], Command]:
    """Register a function as a command; the fields of `options_type` become its options.

    The function's own parameters are the command's arguments. It also gets `options`, an instance of
    `options_type`, and returns the exit code, or None for 0.
    Typer only reads the arguments: it gets a function that returns the job, which `jobs.cli.main` runs, so that
    errors and Ctrl-C reach `main` unchanged.
    """

    def register(function: Command) -> Command:
        arguments = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name != "options"
        ]
        parameters = [*arguments, *_option_parameters(options_type), *_OUTPUT_PARAMETERS]
        for info in (each for parameter in parameters for each in get_args(parameter.annotation)[1:]):
            info.readable = False  # left to the job: Typer says of a failing disk that a path is not readable

        def read(**values: Any) -> Job:
            for value in values.values():
                if isinstance(value, Path):
                    local_path(value)
            paths = [values[argument.name] for argument in arguments]

            def job() -> int:
                with verbosity_of(_verbosity(values)):
                    check_address_space()
                    if options_type is None:
                        return function(*paths) or 0
                    return function(*paths, options=_build_options(options_type, values)) or 0

            return job

        read.__name__, read.__doc__ = function.__name__, function.__doc__
        read.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(cls=_GroupedHelp)(read)
        _options[function.__name__.replace("_", "-")] = options_type
        return function

    return register


def _descriptions(options_type: type[Any]) -> Iterator[tuple[str, Any, Any, Option]]:
    """Yield the name, type, default and description of each option."""
    hints = get_type_hints(options_type, include_extras=True)
    for field in fields(options_type):
        hint, option = get_args(hints[field.name])
        yield field.name, hint, field.default, option


def expected_value(command: str, parameter: str) -> str:
    """Return what an option of a command takes, for a message; '' if that is not a number or one of some words."""
    options_type = _options.get(command)
    for name, hint, _, option in _descriptions(options_type) if options_type else ():
        types = get_args(hint) or (hint,)  # int | None, Literal["a", "b"]
        if name != parameter or option.parse:
            continue
        if number := next((name_of for kind, name_of in _NUMBERS.items() if kind in types), ""):
            low, high = option.minimum, option.maximum
            bounds = "" if low is None else f" of {low:,} or more" if high is None else f" from {low:,} to {high:,}"
            return f"expected {number}{bounds}"
        if words := next((get_args(kind) for kind in (hint, *types) if get_origin(kind) is Literal), ()):
            return f"expected {', '.join(words[:-1])} or {words[-1]}"
    return ""


def _option_parameters(options_type: type[Any] | None) -> list[inspect.Parameter]:
    parameters = []
    for name, hint, default, option in _descriptions(options_type) if options_type else ():
        flag = option.flag or f"--{name.replace('_', '-')}"
        if hint == tuple[str, ...]:
            hint, default = list[str] | None, None
        elif option.parse:
            hint, default = str | None, option.default or None
        elif hint is bool and default:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        info = typer.Option(
            flag,
            help=option.help,
            metavar=option.metavar or None,
            min=option.minimum,
            max=option.maximum,
            rich_help_panel=option.group,
        )
        parameters.append(_parameter(name, hint, default, info))
    return parameters


def _build_options(options_type: type[Any], values: dict[str, Any]) -> Any:
    """Build the options object from the values that Typer read. Raises LogposeError, from an option's `parse`."""
    given = {}
    for name, hint, default, option in _descriptions(options_type):
        value = values[name]
        if option.parse:
            is_default = value is None or (value and value == option.default)
            value = default if is_default else option.parse(value)
        given[name] = tuple(value or ()) if hint == tuple[str, ...] else value
    return options_type(**given)


def _parameter(name: str, hint: Any, default: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info])


_OUTPUT_PARAMETERS = [
    _parameter(name, bool, False, typer.Option(*flags, help=text, rich_help_panel=_COMMON))
    for name, flags, text in (
        ("quiet", ("--quiet", "-q"), "Print errors only."),
        ("verbose", ("--verbose", "-v"), "Print more details."),
        ("json", ("--json",), "Print the result as one JSON object, and nothing else."),
    )
]


def _verbosity(values: dict[str, Any]) -> Verbosity:
    """Return the chosen verbosity. Raises JobError where options contradict each other."""
    levels = {"quiet": Verbosity.QUIET, "verbose": Verbosity.VERBOSE, "json": Verbosity.JSON}
    chosen = [name for name in levels if values[name]]
    if len(chosen) > 1:
        raise JobError(f"--{' and --'.join(chosen)} contradict each other; give one of them")
    return levels[chosen[0]] if chosen else Verbosity.NORMAL


class _GroupedHelp(TyperCommand):
    """A command whose help lists its options under the headings of their groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                # --help comes last and has no group of its own.
                group = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or _COMMON
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
