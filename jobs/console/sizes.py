"""Sizes in memory as a person writes them: 256MB, 1.5GiB, 300000000."""

import re
from fractions import Fraction

from jobs.errors import JobError

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def parse_bytes(text: str, option: str = "--ram-budget") -> int:
    """The number of bytes that `text` says, a part of a byte left off; upper and lower case are the same.

    Raises JobError, naming the `option`, where it is no size or none at all.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(Fraction(match[1]) * _UNITS.get(match[2].lower(), 0)) if match else 0
    if size < 1:
        raise JobError(f"{option} {text}: expected a size above 0, such as 256MB, 1.5GiB or 300000000 (bytes)")
    return size
