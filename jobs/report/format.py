"""Numbers formatted for the report."""

from math import isnan


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage; a dash for NaN."""
    return "–" if isnan(fraction) else f"{100 * fraction:.{digits}f}\u00a0%"  # a no-break space before the sign


def rate(per_second: float) -> str:
    """A rate with three digits, or all of those before the decimal point."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
