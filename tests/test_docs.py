"""Agreement of the documents with the code: names, defaults, ranges, links, paths and messages.

    python -m tests.test_docs     # rewrite the tables of docs/models-and-recipes.md after a change of defaults

A table is between `<!-- table: NAME -->` and `<!-- end -->`. Keys and defaults come from the dataclasses; range and
meaning are written by hand, and stay when the table is rewritten.
"""

import ast
import hashlib
import json
import re
import struct
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import safetensors
import xxhash
import zarr
from crc32c import crc32c

from cnn.checkpoint import ModelCard
from cnn.evaluation.metrics import ClassScores
from jobs.classification.table import header, table_settings
from jobs.datasets.verify import REPORT_HEADER
from jobs.options import ClassifyOptions
from jobs.recipes import recipe_names, recipe_text
from jobs.recipes.config import REGISTRIES, Recipe
from jobs.training.metrics import EpochRow
from jobs.training.run_folder import RunFolder, TrainingState
from jobs.training.summary import Summary
from jobs.training.timing import EpochTimes
from logpose.common.errors import LogposeError
from pipeline.dataset.codecs import CODECS
from pipeline.dataset.schema import DUPLICATES_HEADER, FAILURES_HEADER, Attributes, DuplicateCounts
from pipeline.errors import FailureKind
from tests.jobs.conftest import RECIPE, Logpose, draw_classes
from tests.jobs.conftest import logpose as logpose  # the fixture

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FORMAT = (DOCS / "format.md").read_text(encoding="utf-8")
RECIPES = DOCS / "models-and-recipes.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FILES = [path for package in ("logpose", "pipeline", "cnn", "jobs") for path in (ROOT / package).rglob("*.py")]
TABLE = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


# Formats ----------------------------------------------------------------------------------------------


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


ATTRIBUTES = Attributes(("a", "b"), (8, 8), "pad", 0, "", "", DuplicateCounts(0, 0, 0, 0), depth=(0.0, 1.0)).to_json()
IDENTITY = (
    "pictures", "format version", "--size", "--fit", "--val", "--seed", "--codec", "--group-copies", "--depth",
    "--max-pixels",
)  # fmt: skip
SHARD_RESULT = ("part", "shard", "wanted", "failures", "sums", "squares", "digest")
TRANSFORMS = ("same", "flipped", *(f"rotated {angle}" for angle in (90, 180, 270)), "inverted", "cropped", "recoloured")
# Heading of format.md -> the names that its section has to explain.
EXPLAINED: dict[str, list[str]] = {
    "Attributes": [*ATTRIBUTES, *ATTRIBUTES["copies"]],
    "Arrays": [*CODECS],
    "failures.csv": [*FAILURES_HEADER, *get_args(FailureKind)],
    "duplicates.csv": [*DUPLICATES_HEADER, *TRANSFORMS],
    "A build in progress": [*IDENTITY, *SHARD_RESULT],
    "Card": names(ModelCard),
    "The run folder": [path.name for path in vars(RunFolder(Path("run"))).values() if path.suffix],
    "metrics.csv": names(EpochRow),
    "classes.csv": ["class", *ClassScores._fields],
    "summary.json": names(Summary),
    "last.safetensors": [*names(TrainingState), *names(EpochTimes)],
    "The table": header(topk=2),
    "A classification in progress": [*table_settings(ClassifyOptions(), "csv"), "model", "--views", "device"],
    "The verification report": [*REPORT_HEADER],
}


@pytest.mark.parametrize("heading", EXPLAINED)
def test_format_explains_every_name(heading: str) -> None:
    explained = set(re.findall(r"`([^`]+)`", section(heading)))
    missing = [name for name in EXPLAINED[heading] if name not in explained]
    assert not missing, f"docs/format.md, '{heading}': explain {missing}"


def section(heading: str) -> str:
    """Return the text under a heading of format.md, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", FORMAT, re.DOTALL | re.MULTILINE)
    assert found, f"docs/format.md has no heading '{heading}'"
    return found[1]


def test_hashes_match_the_specification(tmp_path: Path, logpose: Logpose) -> None:
    """Calculate `content_hash` and `crc32` with public libraries, as format.md specifies them."""
    data, run = tmp_path / "d.zarr", tmp_path / "run"
    assert logpose("build", draw_classes(tmp_path / "images", 12), data, "--size", 16, "--val", 0.25).code == 0
    assert logpose("train", data, run, *RECIPE, "--epochs", 1).code == 0

    attributes = dict(zarr.open_group(data, mode="r").attrs)
    content_hash = attributes["content_hash"]
    digests = [shard_digests(data, split) for split in ("train", "val")]
    for key in ("source", "build_hash", "content_hash", "reports", "sealed", "crc32"):
        del attributes[key]
    text = json.dumps([attributes, digests], sort_keys=True)
    assert hashlib.blake2b(text.encode(), digest_size=16).hexdigest() == content_hash

    with safetensors.safe_open(run / "model.safetensors", "numpy") as file:
        digits = json.loads(file.metadata()["logpose"])["crc32"].encode()
    content = (run / "model.safetensors").read_bytes()
    assert content.count(digits) == 1 and int(digits, 16) == zlib.crc32(content.replace(digits, b"0" * 8))


def test_chunk_is_stored_as_specified(tmp_path: Path, logpose: Logpose) -> None:
    """Find the first chunk of the first shard by the index, as format.md specifies it, and check both checksums."""
    data = tmp_path / "d.zarr"
    assert logpose("build", draw_classes(tmp_path / "images", 12), data, "--size", 16, "--val", 0.25).code == 0
    images: Any = zarr.open_array(data / "train" / "images", mode="r")
    shard = (data / "train" / "images" / "c" / "0" / "0" / "0" / "0").read_bytes()
    index = shard[-16 * (images.shards[0] // images.chunks[0]) - 4 : -4]
    assert crc32c(index) == int.from_bytes(shard[-4:], "little")
    offset, length = struct.unpack_from("<QQ", index)
    stored = shard[offset : offset + length - 4]
    assert crc32c(stored) == int.from_bytes(shard[offset + length - 4 : offset + length], "little")
    pixels = np.frombuffer(stored, np.uint8).reshape(images.chunks)  # (rows, H, W, 3)
    rows = min(images.chunks[0], images.shape[0])
    assert np.array_equal(pixels[:rows], images[:rows]) and not pixels[rows:].any()


def shard_digests(data: Path, split: str) -> list[str]:
    group: Any = zarr.open_group(data / split, mode="r")
    digests = []
    for start in range(0, group["images"].shape[0], group["images"].shards[0]):
        rows = slice(start, start + group["images"].shards[0])
        digest = xxhash.xxh3_128(group["images"][rows].tobytes())
        digest.update(group["labels"][rows].astype("<i8").tobytes())
        digest.update("\0".join(map(str, group["paths"][rows])).encode())
        digests.append(digest.hexdigest())
    return digests


# Models and recipes -----------------------------------------------------------------------------------


def option_kinds() -> dict[str, type]:
    """Return table name -> the dataclass that it describes, without models that a test registered."""
    found: dict[str, type] = {"train": Recipe}
    for field in fields(Recipe):
        if field.name in REGISTRIES:
            ours = {name: kind for name, kind in REGISTRIES[field.name].items() if kind.__module__.startswith("cnn.")}
            found |= {f"{field.name}.{name}": kind for name, kind in ours.items()}
        elif is_dataclass(getattr(Recipe(), field.name)):
            found[field.name] = type(getattr(Recipe(), field.name))
    return found


KINDS = option_kinds()


def defaults(kind: type) -> dict[str, str]:
    """Return key -> default as TOML, of the fields that are values."""
    values = {field.name: getattr(kind(), field.name) for field in fields(kind) if field.init}
    return {key: json.dumps(value) for key, value in values.items() if not is_dataclass(value)}


def rendered(name: str, before: str) -> str:
    """Return the table with the code's keys and defaults, and the hand-written cells of `before`."""
    if name == "recipes":
        return recipes_table()
    by_hand = {row[0]: row[2:] for row in rows_of(before)}
    lines = ["| key | default | range | meaning |", "|---|---|---|---|"]
    for key, default in defaults(KINDS[name]).items():
        lines.append("| " + " | ".join([f"`{key}`", f"`{default}`", *by_hand.get(f"`{key}`", ["", ""])]) + " |")
    return "\n".join(lines) + "\n"


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def recipes_table() -> str:
    """Return the table of the values in which the named recipes differ, the default recipe first."""
    columns = sorted(recipe_names(), key=lambda name: name != "quick")
    complete = {name: complete_recipe(name) for name in columns}
    lines = [f"| key | {' | '.join(f'`{name}`' for name in columns)} |", "|---" * (len(columns) + 1) + "|"]
    parts = [*dict.fromkeys(key.partition(".")[0] for recipe in complete.values() for key in recipe)]
    keys = dict.fromkeys(key for recipe in complete.values() for key in recipe)
    for key in sorted(keys, key=lambda key: parts.index(key.partition(".")[0])):
        cells = [complete[name].get(key, "") for name in columns]
        if len(set(cells)) > 1:
            lines.append(f"| `{key}` | {' | '.join(f'`{cell}`' if cell else '–' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def complete_recipe(name: str) -> dict[str, str]:
    """Return `section.key` -> value as TOML, defaults included."""
    found = {}
    given = tomllib.loads(recipe_text(name))
    for part in [field.name for field in fields(Recipe) if is_dataclass(getattr(Recipe(), field.name))] + ["train"]:
        values = given.get(part, {})
        if part in REGISTRIES:
            found[f"{part}.name"] = json.dumps(values["name"])
            kind = REGISTRIES[part][values["name"]]
        else:
            kind = KINDS[part]
        for key, default in defaults(kind).items():
            found[f"{part}.{key}"] = json.dumps(values[key]) if key in values else default
    return found


TABLES = dict(TABLE.findall(RECIPES.read_text(encoding="utf-8")))


def test_every_options_class_has_a_table() -> None:
    assert set(TABLES) == {"recipes", *(name for name, kind in KINDS.items() if defaults(kind))}


@pytest.mark.parametrize("name", TABLES)
def test_table_is_up_to_date(name: str) -> None:
    assert TABLES[name] == rendered(name, TABLES[name]), "run: python -m tests.test_docs"
    assert all(all(row) for row in rows_of(TABLES[name])), "fill in range and meaning"


def values_outside(text: str) -> list[float | str]:
    """Return values just outside a range in the tables' notation; none if the text is not a range."""
    if match := re.fullmatch(r"≥ (\S+)", text):
        return [float(match[1]) - 1]
    if match := re.fullmatch(r"> (\S+)", text):
        return [float(match[1])]
    if match := re.fullmatch(r"(\S+) to (\S+)", text):
        return [float(match[1]) - 1, float(match[2]) + 1]
    if match := re.fullmatch(r"(\S+) ≤ x < (\S+)", text):
        return [float(match[1]) - 1, float(match[2])]
    return ["no such name"] if text.startswith("`") else []


OUTSIDE = [
    (name, row[0].strip("`"), value)
    for name in TABLES if name != "recipes"
    for row in rows_of(TABLES[name])
    for value in values_outside(row[2])
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), OUTSIDE)
def test_value_outside_the_documented_range_is_refused(name: str, key: str, value: float | str) -> None:
    with pytest.raises(LogposeError):
        made = KINDS[name](**{key: value})
        if name.startswith("model."):
            made.layers((32, 32, 3), 4)


def test_every_model_loss_and_recipe_is_described() -> None:
    text = RECIPES.read_text(encoding="utf-8")
    for name in [*(name.partition(".")[2] for name in KINDS if "." in name), *recipe_names()]:
        assert f"`{name}`" in text, f"docs/models-and-recipes.md does not describe {name}"


@pytest.mark.parametrize("name", [name.partition(".")[2] for name in KINDS if name.startswith("model.")])
def test_layers_of_every_model_are_listed(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \| (.*`head`.*) \|$", RECIPES.read_text(encoding="utf-8"), re.MULTILINE)
    network = KINDS[f"model.{name}"]().layers((64, 64, 3), 10)
    first = [layer.partition(".")[0] for layer, _ in network.layers]
    listed = [re.sub(r"\d+", "", layer) for layer in re.findall(r"`(\w+)`", row)]
    assert not [layer for layer in first if re.sub(r"\d+", "", layer) not in listed]


# Links and paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_targets(document: Path) -> None:
    broken = [link for link in links(document) if not has_target(document, link)]
    assert not broken, f"{document.name} links to {broken}"


def links(document: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from (link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "mailto:")))


def has_target(document: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (document.parent / name) if name else document
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def file_of(module: str) -> Path:
    """The file that `python -m MODULE` runs."""
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_modules_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    if document.name == "CHANGELOG.md":  # names old paths
        text = text.partition("\n## [0.1.0]")[0]
    paths = set(re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|toml|jinja|css|ipynb|md))?)`", text))
    ours = {path for path in paths if path.partition("/")[0] in {entry.name for entry in ROOT.iterdir()}}
    modules = set(re.findall(r"python -m ((?:benchmarks|tests)\.[\w.]+)", text))
    missing = sorted(path for path in ours if not (ROOT / path).exists())
    missing += sorted(name for name in modules if not file_of(name).exists())
    assert not missing, f"{document.name} names {missing}"


def test_identifiers_in_architecture_md_exist() -> None:
    quoted = re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)?)`", (DOCS / "architecture.md").read_text(encoding="utf-8"))
    words = {word for path in FILES for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert not [name for name in quoted if not set(name.split(".")) <= words]


# Messages ---------------------------------------------------------------------------------------------


def test_quoted_messages_are_in_the_code() -> None:
    """Each message in the first column of troubleshooting.md, split at …, is part of a string literal of the code."""
    strings = [text for path in FILES for text in strings_of(path)]
    rows = re.findall(r"^\| (`.+?) \| ", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    messages = [message for cell in rows for message in re.findall(r"`([^`]+)`", cell)]
    ours = [message for message in messages if not message.startswith(NOT_OURS)]
    fragments = [fragment.strip() for message in ours for fragment in message.split("…")]
    unknown = [fragment for fragment in fragments if not any(fragment in text for text in strings)]
    assert not unknown, f"docs/troubleshooting.md quotes {unknown}, which no message contains"


NOT_OURS = ("logpose: command not found", "pip install", "logpose needs Python")  # from the shell, pip and Makefile


def strings_of(path: Path) -> Iterator[str]:
    """Yield the string literals of a file; of an f-string the text between its values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


if __name__ == "__main__":
    text = RECIPES.read_text(encoding="utf-8")
    text = TABLE.sub(lambda found: f"<!-- table: {found[1]} -->\n{rendered(found[1], found[2])}<!-- end -->", text)
    RECIPES.write_text(text, encoding="utf-8")
