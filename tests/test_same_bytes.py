"""Comparison of the dataset, weights and tables with the recorded hashes: see same_bytes.py."""

import json
from pathlib import Path

import pytest

from tests.same_bytes import machine, measure


def test_results_equal_the_recorded_hashes(tmp_path: Path) -> None:
    recorded = json.loads(Path(__file__).with_name("same_bytes.json").read_text(encoding="utf-8"))
    if machine() != recorded["machine"]:
        pytest.skip(f"recorded on another machine: {recorded['machine']}, this is {machine()}")
    assert measure(tmp_path) == recorded["results"]
