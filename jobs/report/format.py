"""Numbers formatted for the report."""

from math import isnan


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage; a dash for NaN."""
    return "–" if isnan(fraction) else f"{100 * fraction:.{digits}f}\u00a0%"  # a no-break space before the sign
