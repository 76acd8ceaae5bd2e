"""A short run of the fuzzer of model files; `make fuzz-models` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnn import checkpoint
from tests.fuzzing import Try
from tests.jobs.damage.fuzz_models import Sample, mutated, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def attempt(folder: Path) -> Try:
    return prepare(folder)


def test_mutated_models_give_a_result_or_a_typed_error(attempt: Try) -> None:
    accepted = sum(attempt(number) for number in range(60))
    assert 5 < accepted < 50, "the mutations are too strong or too weak to find anything"


def test_files_follow_from_their_numbers_and_many_are_whole(attempt: Try, folder: Path) -> None:
    samples = [Sample.read(folder / "run" / f"{name}.safetensors") for name in ("model", "last")]
    files = [mutated(number, samples) for number in range(100)]
    assert files == [mutated(number, samples) for number in range(100)]
    ends = [min(8 + int.from_bytes(file[:8], "little"), len(file)) for file in files]
    sums = [checkpoint._CHECKSUM.search(file[:end]) for file, end in zip(files, ends, strict=True)]
    matching = sum(
        found is not None and found[2].decode() == checkpoint._file_checksum(file, end)
        for file, found, end in zip(files, sums, ends, strict=True)
    )
    assert matching > 60, "the checksum would hide what is behind it"


def test_fuzzer_finds_what_escapes(attempt: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "parse_record", lambda kind, values: kind(**values))
    with pytest.raises((AssertionError, TypeError)):
        for number in range(100):
            attempt(number)
