"""Hostile datasets: forged metadata, with checksums that match, through every command that opens a dataset."""

from __future__ import annotations

import json
import resource
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from crc32c import crc32c

import logpose
from logpose.common.errors import LogposeError
from logpose.common.records import checksum
from tests.fuzzing import limit_memory
from tests.jobs.conftest import RECIPE
from tests.jobs.damage.judging import is_accepted
from tests.pipeline.conftest import failing_after

Edit: TypeAlias = tuple[str, Any, Any]  # file; path of keys, or "bytes"; the new value, or a function of the content

COMMANDS = ("python", "info", "verify", "train", "classify", "report", "find-lr")
ROOT, IMAGES, LABELS, PATHS = "zarr.json", *(f"train/{name}/zarr.json" for name in ("images", "labels", "paths"))
SHARD, LABEL_CHUNK, PATH_CHUNK = "train/images/c/0/0/0/0", "train/labels/c/0", "train/paths/c/0"
GRID, INNER = ("chunk_grid", "configuration", "chunk_shape"), ("codecs", 0, "configuration")
ROWS = 48  # of the training split
HUGE, NAN, INF = 10**12, float("nan"), float("inf")
MISSING, SPARSE = object(), object()  # the key is deleted; the file has 40 GB, without using them
LITTLE, SUM = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
GZIP = {"name": "gzip", "configuration": {"level": 1}}
DAYS = {"name": "numpy.datetime64", "configuration": {"unit": "D", "scale_factor": 1}}
BLOSC = {"cname": 5, "clevel": "x", "shuffle": "q", "typesize": [], "blocksize": "z"}


def attribute(**values: Any) -> list[Edit]:
    return [(ROOT, ("attributes", name), value) for name, value in values.items()]


def images(*path: Any, to: Any) -> list[Edit]:
    return [(IMAGES, path, to)]


def chunk(file: str, content: Any) -> list[Edit]:
    return [(file, "bytes", content)]


def report(name: str, content: bytes) -> list[Edit]:
    return [(name, "bytes", lambda _: content), *attribute(reports={name: zlib.crc32(content)})]


def with_sum(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content + int(crc32c(content)).to_bytes(4, "little")


def strings(texts: list[bytes], count: int = ROWS) -> Callable[[bytes], bytes]:
    return with_sum(count.to_bytes(4, "little") + b"".join(len(text).to_bytes(4, "little") + text for text in texts))


def labels(value: int) -> Callable[[bytes], bytes]:
    return with_sum(np.full(ROWS, value, "<i8").tobytes())


def index(offset: int, length: int) -> Callable[[bytes], bytes]:
    entry = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
    return lambda content: content[:-20] + with_sum(entry)(b"")


def counts(value: Any) -> dict[str, Any]:
    return dict.fromkeys(("groups", "pictures", "labels_differ", "leaks"), value)


# Every command refuses these.
REFUSED: dict[str, list[Edit]] = {
    "no classes": attribute(class_names=[]),
    "classes missing": attribute(class_names=MISSING),
    "classes of text": attribute(class_names="abc"),
    "classes of an object": attribute(class_names={"a": 1, "b": 2, "c": 3}),
    "classes of numbers": attribute(class_names=[1, 2, 3]),
    "class without a name": attribute(class_names=["", "b", "c"]),
    "a class twice": attribute(class_names=["b", "b", "c"]),
    "class that is no text": attribute(class_names=["\ud800", "b", "c"]),
    "class of a long name": attribute(class_names=["x" * 100_000, "b", "c"]),
    "thousands of classes": attribute(class_names=[str(number) for number in range(20_000)]),
    "mean of NaN": attribute(mean=[NAN, 1, 1]),
    "mean beyond a float": attribute(mean=[10**400, 1, 1]),
    "mean above white": attribute(mean=[256.0, 1, 1]),
    "mean of texts": attribute(mean=["1", "2", "3"]),
    "mean of truth": attribute(mean=[True, True, True]),
    "no mean": attribute(mean=None),
    "negative std": attribute(std=[-1.0, 1, 1]),
    "tiny std": attribute(std=[1e-300, 1e-300, 1e-300]),
    "infinite std": attribute(std=[INF, 1, 1]),
    "std of two": attribute(std=[1, 2]),
    "endless size": attribute(size=[HUGE, HUGE]),
    "size of fractions": attribute(size=[16.5, 16]),
    "size of texts": attribute(size=["16", "16"]),
    "another size": attribute(size=[8, 8]),
    "unknown fit": attribute(fit="\x1b[2J"),
    "seed of text": attribute(seed="5"),
    "huge seed": attribute(seed=10**400),
    "source of a number": attribute(source=5),
    "long source": attribute(source="s" * 100_000),
    "content hash of a list": attribute(content_hash=[1]),
    "long content hash": attribute(content_hash="h" * 100_000),
    "counts of texts": attribute(copies=counts("a")),
    "negative counts": attribute(copies=counts(-1)),
    "counts of fractions": attribute(copies=counts(1.5)),
    "huge counts": attribute(copies=counts(10**400)),
    "one count": attribute(copies={"groups": 1}),
    "counts of a list": attribute(copies=[1]),
    "reports of texts": attribute(reports={"failures.csv": "a"}),
    "sealed by text": attribute(sealed="false"),
    "depth of NaN": attribute(depth=[NAN, 1]),
    "depth of texts": attribute(depth=["0", "1"]),
    "empty depth": attribute(depth=[1, 1]),
    "another version": attribute(format_version=10**400),
    "attributes of a list": [(ROOT, ("attributes",), [])],
    "root of an array": [(ROOT, ("node_type",), "array")],
    "root of Zarr 2": [(ROOT, ("zarr_format",), 2)],
    "root of a list": [(ROOT, (), [])],
    "endless root": chunk(ROOT, SPARSE),
    "number of 5,000 digits": chunk(ROOT, lambda content: content.replace(b'"seed": 0', b'"seed": ' + b"9" * 5000)),
    "images of a list": images(to=[]),
    "endless metadata": chunk(IMAGES, SPARSE),
    "negative rows": images("shape", 0, to=-1),
    "rows of text": images("shape", to="48"),
    "more rows": images("shape", 0, to=10**20),
    "32 dimensions": images("shape", to=[16] * 32),
    "images of floats": images("data_type", to="float32"),
    "images of a gigabyte each": images("data_type", to="r8000000000"),
    "fill value of text": images("fill_value", to="x"),
    "fill value beyond a byte": images("fill_value", to=-1),
    "no codecs": images("codecs", to=[]),
    "unknown codec": images("codecs", to=[{"name": "os.system", "configuration": {"command": "true"}}]),
    "codecs of numbers": images("codecs", to=[1, 2]),
    "grid of text": images("chunk_grid", to="x"),
    "chunks of fractions": images(*INNER, "chunk_shape", 0, to=6.4),
    "negative chunks": images(*INNER, "chunk_shape", 0, to=-64),
    "huge chunks": [*images(*INNER, "chunk_shape", 0, to=HUGE), *images(*GRID, 0, to=HUGE)],
    "odd shards": images(*GRID, 0, to=65),
    "keys that leave the folder": images("chunk_key_encoding", "configuration", "separator", to="/../"),
    "storage transformer": images("storage_transformers", to=[{"name": "x"}]),
    "chunks without a checksum": images(*INNER, "codecs", to=[{"name": "bytes"}]),
    "chunks of another codec": images(*INNER, "codecs", to=[LITTLE, GZIP, SUM]),
    "blosc of nonsense": images(*INNER, "codecs", to=[LITTLE, {"name": "blosc", "configuration": BLOSC}, SUM]),
    "no codecs of the index": images(*INNER, "index_codecs", to=None),
    "labels of days": [(LABELS, ("data_type",), DAYS)],
    "fewer labels": [(LABELS, ("shape",), [5])],
    "labels of two codecs": [(LABELS, ("codecs",), [LITTLE, SUM, SUM])],
    "huge chunks of labels": [(LABELS, GRID, [HUGE])],
    "paths of numbers": [(PATHS, ("data_type",), "int64")],
    "huge chunks of paths": [(PATHS, GRID, [HUGE])],
}  # fmt: skip

# Not each command reads these: each ends in a result or in a good error.
ODD: dict[str, list[Edit]] = {
    "control characters in names": attribute(class_names=["\x1b[31mred\x07\n", "\r\x00", "\u2028\x9b"]),
    "bytes in names": attribute(class_names=["\udcff", "\u202eb", "<script>"]),
    "formulas in names": attribute(class_names=["=1+1", 'a,"b', "$\\frac{$"]),
    "black images": attribute(mean=[0, 0, 0], std=[0, 0, 0]),
    "attributes nested": attribute(more=json.loads("[" * 900 + "]" * 900)),
    "root of UTF-16": chunk(ROOT, lambda content: content.decode().encode("utf-16")),
    "reports elsewhere": attribute(reports={"/etc/passwd": 1, "../x": 1, "x" * 5000: 1, "a\0b": 1}),
    "endless failures": chunk("failures.csv", SPARSE),
    "failures of bytes": report("failures.csv", b"\xff\0\xfe" * 100),
    "failures of other columns": report("failures.csv", b"a,b\n1,2\n"),
    "failures with short rows": report("failures.csv", b"path,kind,reason\na\n"),
    "failures of control characters": report("failures.csv", b'path,kind,reason\n"\x1b[31m\n",\x1b[32m,\x07\n'),
    "failures of half a character": report("failures.csv", b"path,kind,reason\n\\ud800,empty,\\udc41\n"),
    "failures elsewhere": report("failures.csv", b"path,kind,reason\n../../etc/passwd,unreadable,c\n"),
    "failures of a long name": report("failures.csv", b"path,kind,reason\n" + b"x" * 200_000 + b",empty,c\n"),
    "duplicates of text": report("duplicates.csv", b"group,part,label,path,how,labels\nx,train,a,b,,same\n"),
    "duplicates with short rows": report("duplicates.csv", b"group,part,label,path,how,labels\n1\n1,train\n"),
    "duplicates of one long line": report("duplicates.csv", b"x" * 3_000_000),
    "sheet of another": chunk("contact-sheet.png", lambda _: b"my own"),
    "negative labels": chunk(LABEL_CHUNK, labels(-1)),
    "labels of no class": chunk(LABEL_CHUNK, labels(2**63 - 1)),
    "one label": chunk(LABEL_CHUNK, labels(0)),
    "endless labels": chunk(LABEL_CHUNK, SPARSE),
    "endless paths": chunk(PATH_CHUNK, SPARSE),
    "fewer paths than it says": chunk(PATH_CHUNK, strings([b"a"])),
    "path of two gigabytes": chunk(PATH_CHUNK, with_sum(ROWS.to_bytes(4, "little") + b"\xff\xff\xff\x7fabc")),
    "paths that are not UTF-8": chunk(PATH_CHUNK, strings([b"\xff\xfe"] * ROWS)),
    "paths of control characters": chunk(PATH_CHUNK, strings([b"\x1b[31m\n\0%d" % row for row in range(ROWS)])),
    "paths of half a character": chunk(PATH_CHUNK, strings([b"\\ud800%d" % row for row in range(ROWS)])),
    "equal paths elsewhere": chunk(PATH_CHUNK, strings([b"../../etc/passwd"] * ROWS)),
    "paths without a name": chunk(PATH_CHUNK, strings([b""] * ROWS)),
    "long paths": chunk(PATH_CHUNK, strings([b"x" * 100_000] * ROWS)),
    "chunk without bytes": chunk(SHARD, index(0, 0)),
    "chunk beyond its shard": chunk(SHARD, index(2**63, 64 * 16 * 16 * 3 + 4)),
    "chunk of terabytes": chunk(SHARD, index(0, 2**63)),
    "chunk in the index": chunk(SHARD, index(8, 64 * 16 * 16 * 3 + 4)),
    "missing chunk": chunk(SHARD, index(2**64 - 1, 2**64 - 1)),
    "endless shard": chunk(SHARD, SPARSE),
    "empty shard": chunk(SHARD, lambda _: b""),
}


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    """A minute, and 2 GB of address space more than now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory()
    with failing_after(60):
        yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def forge(dataset: Path, edits: list[Edit]) -> None:
    for name, path, value in edits:
        file = dataset / name
        if value is SPARSE:
            with file.open("r+b") as opened:
                opened.truncate(40 * 2**30)
        elif path == "bytes":
            file.write_bytes(value(file.read_bytes() if file.exists() else b""))
        else:
            file.write_text(json.dumps(_edited(json.loads(file.read_text()), path, value)))


def _edited(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    elif path:
        inner[path[-1]] = value
    else:
        return value
    if path[0] == "attributes" and isinstance(node["attributes"], dict):
        del node["attributes"]["crc32"]
        node["attributes"]["crc32"] = checksum(node["attributes"])
    return node


def results(dataset: Path, trained: Path, tmp_path: Path) -> dict[str, bool]:
    """Whether each command gave a result."""
    commands: dict[str, tuple[object, ...]] = {
        "info": ("info", dataset, "--shuffle"),
        "verify": ("verify", dataset, "--report", tmp_path / "report.csv"),
        "train": ("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 1),
        "classify": ("classify", dataset, trained, tmp_path / "out.csv"),
        "report": ("report", trained, "--dataset", dataset, "--out", tmp_path / "page.html", "--device", "cpu"),
        "find-lr": ("find-lr", dataset, *RECIPE[:6], "--steps", 20, "--device", "cpu"),
    }
    return {"python": _python(dataset)} | {name: is_accepted(*arguments) for name, arguments in commands.items()}


def _python(dataset: Path) -> bool:
    try:
        data = logpose.open(dataset)
        _ = repr(data), data.train[0], data.train.paths, data.train.labels, data.val[:]
    except LogposeError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.fixture
def forged(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "data.zarr"))


def test_dataset_that_is_not_forged_is_accepted(forged: Path, trained: Path, tmp_path: Path) -> None:
    found = results(forged, trained, tmp_path)
    assert found.pop("find-lr") in (True, False), "which may find no rate in so few steps"
    assert found == dict.fromkeys(set(COMMANDS) - {"find-lr"}, True)
    assert logpose.open(forged).train.rows == ROWS


@pytest.mark.parametrize("edits", REFUSED.values(), ids=REFUSED)
def test_hostile_dataset_is_refused(forged: Path, trained: Path, tmp_path: Path, edits: list[Edit]) -> None:
    forge(forged, edits)
    assert results(forged, trained, tmp_path) == dict.fromkeys(COMMANDS, False)


@pytest.mark.parametrize("edits", ODD.values(), ids=ODD)
def test_odd_dataset_gives_a_result_or_an_error(
    forged: Path, trained: Path, tmp_path: Path, edits: list[Edit]
) -> None:
    forge(forged, edits)
    results(forged, trained, tmp_path)
