"""Lines of figures for the console."""

from collections.abc import Sequence

from rich.cells import cell_len

from logpose.common.errors import printable

KEY_WIDTH = 12  # columns


def line(key: str, value: str) -> str:
    """Return a line with a key and its value."""
    return f"{key:<{KEY_WIDTH}}{printable(value)}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align rows: names to the left, figures to the right."""
    first, *others = zip(*rows, strict=True)
    width = max(KEY_WIDTH - 2, *map(cell_len, first))  # a Japanese character takes two columns
    widths = [max(map(len, column)) for column in others]
    lines = []
    for name, *figures in rows:
        right = (figure.rjust(places) for figure, places in zip(figures, widths, strict=True))
        lines.append("  ".join([name + " " * (width - cell_len(name)), *right]))
    return lines
