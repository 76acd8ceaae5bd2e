"""Entry point of the command line: `logpose`, or `python -m logpose`."""

import os  # always imported already, like sys
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run the command line; return the exit code."""
    leave_current_folder()  # before any other import: it may hold a json.py
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # while the rest is imported
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return 130


def _main(arguments: "Sequence[str] | None") -> int:
    prefer_standard_library()
    from logpose.own_packages import check_own_packages, prefer_own_packages

    prefer_own_packages()
    try:
        check_own_packages()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from jobs.cli import main as run

    if not sys.warnoptions and not os.environ.get("LOGPOSE_DEBUG"):
        import warnings

        warnings.simplefilter("ignore")  # libraries' own lines on standard error are for developers
    return run(arguments)


def leave_current_folder() -> None:
    """Take the current folder off the import path, unless logpose itself lies there."""
    try:
        here = os.getcwd()  # noqa: PTH109  # pathlib is not imported yet
    except OSError:  # it is deleted
        here = ""
    if __file__.rpartition(os.sep)[0].rpartition(os.sep)[0] != here:
        sys.path[:] = [entry for entry in sys.path if entry not in ("", ".", here)]


def prefer_standard_library() -> None:
    """Search Python's own modules first: a folder of PYTHONPATH may hold a random.py."""
    library = os.__file__.rpartition(os.sep)[0]
    own = [
        entry for entry in sys.path
        if entry == library or (entry.startswith(library + os.sep) and not entry.endswith("-packages"))
    ]  # fmt: skip
    sys.path[:] = own + [entry for entry in sys.path if entry not in own]


if __name__ == "__main__":
    sys.exit(main())
