"""Named recipes: the TOML files in this folder, each with a summary as its first line."""

from collections.abc import Sequence
from pathlib import Path

from jobs.errors import JobError
from logpose.common.errors import suggest

_FOLDER = Path(__file__).parent


def recipe_names() -> Sequence[str]:
    """Return the names of all recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def recipe_text(name: str) -> str:
    """Return the recipe called `name` as TOML with comments. Raises JobError where there is none."""
    names = recipe_names()
    if name not in names:
        raise JobError(f"no recipe is called '{name}'; {suggest(name, names)}")
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Return the recipe's first line, without the comment sign. Raises JobError where there is none."""
    return recipe_text(name).partition("\n")[0].removeprefix("#").strip()
