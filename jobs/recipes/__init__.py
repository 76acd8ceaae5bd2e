"""Recipes by name: TOML files in this folder, each with a first line that says what it is for."""

from collections.abc import Sequence
from pathlib import Path

from jobs.errors import JobError
from logpose.common.errors import suggest

_FOLDER = Path(__file__).parent


def recipe_names() -> Sequence[str]:
    """All there are, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """The file of the recipe `name`, TOML with comments. Raises JobError where there is none."""
    names = recipe_names()
    if name not in names:
        raise JobError(f"no recipe is called '{name}'; {suggest(name, names)}")
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """The recipe's first line, without the comment sign."""
    return recipe_text(name).partition("\n")[0].removeprefix("#").strip()
