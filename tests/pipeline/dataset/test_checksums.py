"""Checksums of a dataset's attributes, and of the reports beside its arrays."""

import pytest

from pipeline.build.reports import read_failures
from pipeline.dataset.store import Dataset
from pipeline.dataset.verify import verify_dataset
from pipeline.errors import DatasetError
from tests.pipeline.dataset.test_store import change
from tests.pipeline.dataset.test_store import dataset as dataset  # the fixture


def test_each_flipped_bit_of_the_attributes_is_found(dataset: Dataset) -> None:
    """None is believed, except in the key of the checksum, which is then that of an older dataset."""
    metadata = dataset.path / "zarr.json"
    content = metadata.read_bytes()
    begin, believed = content.index(b'"attributes"'), []
    end = content.index(b'"crc32"')
    for place in range(8 * begin, 8 * end):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        metadata.write_bytes(flipped)
        try:
            if Dataset.open(dataset.path).attributes != dataset.attributes:
                believed.append(place)
        except DatasetError:
            continue
    assert not believed


def test_attributes_of_an_older_version_are_read(dataset: Dataset) -> None:
    change(dataset.path / "zarr.json", lambda node: node["attributes"].pop("reports"))  # type: ignore[attr-defined]
    (dataset.path / "failures.csv").write_text("path,kind,reason\na,empty,b\n")
    assert Dataset.open(dataset.path).attributes.reports is None
    assert verify_dataset(dataset.path).ok and len(read_failures(dataset.path)) == 1


@pytest.mark.parametrize("name", ["failures.csv", "duplicates.csv"])
@pytest.mark.parametrize("how", ["a bit", "cut", "a row more", "empty"])
def test_damaged_reports_are_found(dataset: Dataset, name: str, how: str) -> None:
    path = dataset.path / name
    content = path.read_bytes()
    cuts = {"a bit": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "a row more": content + b"a,b,c\n"}
    path.write_bytes(cuts.get(how, b""))
    report = verify_dataset(dataset.path)
    assert not report.ok and report.damaged_reports == (path,) and not report.damage
    if name == "failures.csv":
        with pytest.raises(DatasetError, match=r"found ValueError another file than the build wrote at .*\.csv"):
            read_failures(dataset.path)
