"""Figures as a person reads them."""

from math import isnan


def percent(share: float, digits: int = 1) -> str:
    """A share; a dash where there is nothing to judge by."""
    return "–" if isnan(share) else f"{100 * share:.{digits}f}\u00a0%"  # no line is to break before the sign
