"""Sizes in memory."""

import pytest

from jobs.console.sizes import parse_bytes
from jobs.errors import JobError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("300000000", 300_000_000),
        ("256MB", 256_000_000),
        ("1.5GiB", 1_610_612_736),
        ("0.29kB", 290),
        ("1 mib", 2**20),
        (" 2TB ", 2 * 10**12),
        ("7b", 7),
        ("1.9", 1),
    ],
)
def test_sizes_are_bytes_with_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "0.4", "inf", "nan", "5XB", "1..5GB", "1GB2", "9" * 5000])
def test_invalid_sizes_are_errors(text: str) -> None:
    with pytest.raises(JobError, match=f"--memory {text}: expected a size above 0"):
        parse_bytes(text, "--memory")
