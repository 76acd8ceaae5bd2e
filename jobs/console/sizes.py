"""Sizes in memory as a person writes them: 256MB, 1.5GiB, 300000000."""

from jobs.errors import JobError


def parse_bytes(text: str, option: str = "--ram-budget") -> int:
    """Convert a size with an optional unit (kB, MiB, …, in any case) to whole bytes.

    Raises JobError, naming the `option`, where the text is not a size or below one byte.
    """
    from dask import utils

    text = text.strip()
    try:
        size = utils.parse_bytes(text) if text[:1].isdigit() else 0
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise JobError(f"{option} {text}: expected a size above 0, such as 256MB, 1.5GiB or 300000000 (bytes)")
    return int(size)
