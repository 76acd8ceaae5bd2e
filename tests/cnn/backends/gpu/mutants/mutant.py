"""What a mutant is, and running a check with its mistake in the code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

from cnn.backends.gpu import kernels

WRONG = "wrong result"  # what a failed assertion is called
_BACKEND = Path(kernels.__file__).parent
_PACKAGE = _BACKEND.parents[1]  # cnn


class Context(NamedTuple):
    """What checks get: the emulated device, and patches that are undone after the check."""

    device: Any
    patch: pytest.MonkeyPatch


class Mutant(NamedTuple):
    """One mistake: `old` text, found once in the file, becomes `new`, and then `check` must fail.

    file   a kernel file in cnn/backends/gpu/cuda/, a module in cnn/backends/gpu/, or a path within cnn/
    found  what the failure's message contains; `WRONG` for a failed assertion. Of several by "|", one
    """

    name: str
    file: str
    old: str
    new: str
    check: Callable[[Context], None]
    found: str = WRONG


def outcome(mutant: Mutant, context: Context) -> str:
    """How the mutant's check ends: the message of its failure; "" if it passes."""
    path = path_of(mutant)
    text = path.read_text(encoding="utf-8")
    mistaken = text.replace(mutant.old, mutant.new)
    assert mistaken != text
    with context.patch.context() as patch:
        if path.suffix == ".py":
            _replace_module(patch, path, mistaken)
        else:
            _replace_source(patch, text, mistaken)
        return failure(lambda: mutant.check(Context(context.device, patch)), context.device)


def failure(run: Callable[[], None], device: Any) -> str:
    """How a check ends, with all work done or given up that it started."""
    from cupy._build import CompileError

    message = ""
    try:
        run()
        device.cuda.finish_all()
    except CompileError:
        raise
    except AssertionError as error:
        message = f"{WRONG}: {error}"
    except Exception as error:  # what the checker and the stand-in raise
        message = f"{type(error).__name__}: {error}"
    while True:
        try:
            device.cuda.finish_all()
            return message
        except device.cuda.CUDARuntimeError as error:
            message = message or str(error)


def path_of(mutant: Mutant) -> Path:
    """The file that it changes."""
    folder = _BACKEND if "/" not in mutant.file else _PACKAGE
    return folder / mutant.file if mutant.file.endswith(".py") else _BACKEND / "cuda" / mutant.file


# Kernels: the changed source, and of each module only the kernels that the check uses ---------------------


def _replace_source(patch: pytest.MonkeyPatch, text: str, mistaken: str) -> None:
    original = kernels.source
    patch.setattr(kernels, "source", lambda file: original(file).replace(text, mistaken))
    patch.setattr(kernels, "_module", lambda file, names: _OneByOne(kernels.source(file)))


class _OneByOne:
    """A module whose kernels are compiled when they are asked for."""

    def __init__(self, code: str) -> None:
        self._code = code

    def get_function(self, name: str) -> Any:
        import cupy

        module = cupy.RawModule(code=self._code, options=("-std=c++17",), name_expressions=(name,))
        return module.get_function(name)


def forget_kernels() -> None:
    """Clear what the backend's modules cache."""
    for module in _modules("cnn.backends.gpu"):
        for each in list(vars(module).values()):
            if hasattr(each, "cache_clear"):
                each.cache_clear()


@contextmanager
def fresh_kernels() -> Iterator[None]:
    """Cached kernels neither get into the block nor out of it."""
    forget_kernels()
    try:
        yield
    finally:
        forget_kernels()


# Modules: their changed functions and classes, wherever they were imported --------------------------------


def _replace_module(patch: pytest.MonkeyPatch, path: Path, mistaken: str) -> None:
    module = import_module(".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts))
    changed = ModuleType(module.__name__)
    changed.__file__ = str(path)
    exec(compile(mistaken, str(path), "exec"), vars(changed))
    cached = type(cache(lambda: None))
    own = {
        name: value
        for name, value in vars(changed).items()
        if isinstance(value, FunctionType | type | cached) and value.__module__ == module.__name__
    }
    places = {id(vars(module)[name]): own[name] for name in own}
    for user in _modules("cnn", "tests.cnn.backends.gpu"):
        for name, value in list(vars(user).items()):
            if id(value) in places:
                patch.setattr(user, name, places[id(value)])


def _modules(*packages: str) -> list[ModuleType]:
    """The imported modules of packages."""
    wanted = tuple(f"{package}." for package in packages)
    return [module for name, module in list(sys.modules.items()) if f"{name}.".startswith(wanted)]
