"""Optional packages that are installed, but fail when they are imported with an unexpected error."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module


@cache
def hide_if_broken(name: str) -> BaseException | None:
    """Import a package that zarr and others try to import. None if that works, or it is not installed.

    Where it raises anything but ImportError, as CuPy may without its driver, return the error; from then on, importing
    the package raises ModuleNotFoundError.
    """
    try:
        import_module(name)
    except ImportError:
        return None
    except KeyboardInterrupt:  # Ctrl-C
        raise
    except BaseException as error:  # SystemExit, too
        sys.modules[name] = None  # type: ignore[assignment]
        return error
    return None
