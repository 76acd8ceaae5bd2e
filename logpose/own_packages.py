"""Make sure that `pipeline`, `cnn` and `jobs` are logpose's own, whatever the current folder or PYTHONPATH hold.

These names are common: a project may have a folder `jobs/` of its own, which Python would import first.
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
    """For the command line, whose import path lacks the current folder by now: append that, and put our own first.

    It must be searched, since `--model my_module:MyNetwork` often names a module in it; last, so that ours win.
    """
    with suppress(OSError):  # the current folder is deleted
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
    if foreign_package():
        sys.path.insert(0, str(ROOT))
    invalidate_caches()


def check_own_packages() -> None:
    """For `import logpose`: raise ImportError where Python would import another package instead of one of ours."""
    if found := foreign_package():
        name, place = found
        raise ImportError(
            f"expected logpose's own package '{name}' in {ROOT}, found another one in {place}, which Python imports"
            f" first: start Python in another folder, or take {place.parent} off PYTHONPATH"
        )


def foreign_package() -> tuple[str, Path] | None:
    """Return the first of our package names that Python finds elsewhere, and where; None if all are ours."""
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else find_spec(name)
        places = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
        if spec and ROOT / name not in [place.resolve() for place in places]:
            return name, places[0] if places else Path(name)
    return None
