"""A short run of the fuzzer; `make fuzz-decode` is the long one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from pipeline.images import decode
from tests.pipeline.images.fuzz_decode import all_files, decode_one, mutated


def test_mutated_files_give_pixels_or_a_decode_error_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    samples = all_files()
    whole = sum(decode_one(number, samples) for number in range(1500))
    assert 150 < whole < 1350, "the mutations are too strong or too weak to find anything"
    assert capfd.readouterr() == ("", "")


def test_files_follow_from_their_numbers() -> None:
    samples = all_files()
    assert [mutated(number, samples) for number in range(50)] == [mutated(number, samples) for number in range(50)]


def test_fuzzer_finds_what_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = all_files()
    monkeypatch.setattr(decode, "_failures", lambda *_: nullcontext())
    with pytest.raises((OSError, SyntaxError, ValueError)):
        for number in range(50):
            decode_one(number, samples)
