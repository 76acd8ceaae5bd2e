"""Make sure that `pipeline`, `cnn` and `jobs` are logpose's own, whatever the current folder or PYTHONPATH hold.

These are everyday names: a project may well have a folder `jobs/` of its own, which Python would import first.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("pipeline", "cnn", "jobs")
ROOT = Path(__file__).resolve().parent.parent  # the checkout, or site-packages


def prefer_own_packages() -> None:
    """For the command line: find our own packages first, and look into the current folder last.

    Last, but look: `--model my_module:MyNetwork` names a class that is likely to be there.
    """
    with suppress(OSError):  # the current folder is deleted
        here = Path.cwd()
        if here != ROOT:
            sys.path[:] = [entry for entry in sys.path if entry not in ("", ".", str(here))] + [str(here)]
    if foreign_package():
        sys.path.insert(0, str(ROOT))
    invalidate_caches()


def check_own_packages() -> None:
    """For `import logpose`: raise ImportError, in one line, where another package stands before one of ours."""
    if found := foreign_package():
        name, place = found
        raise ImportError(
            f"expected logpose's own package '{name}' in {ROOT}, found another one in {place}, which Python imports"
            f" first: start Python in another folder, or take {place.parent} off PYTHONPATH"
        )


def foreign_package() -> tuple[str, Path] | None:
    """Return the first of our package names under which Python finds another package, and where that lies."""
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else find_spec(name)
        places = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        if spec and ROOT / name not in [place.resolve() for place in places]:
            return name, places[0] if places else Path(name)
    return None
