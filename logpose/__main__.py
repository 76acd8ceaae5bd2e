"""Entry point of the command line: `logpose`, or `python -m logpose`."""

import sys
from collections.abc import Sequence

from logpose.own_packages import check_own_packages, prefer_own_packages


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    prefer_own_packages()
    try:
        check_own_packages()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from jobs.cli import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
