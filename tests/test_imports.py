"""Import rules of docs/architecture.md, checked in the syntax tree of every file of the product."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("logpose", "pipeline", "cnn", "jobs")
FILES = sorted(path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py"))

# The other packages that each package may import. All may import `logpose.common`, which imports none of them.
MAY_IMPORT = {"pipeline": set[str](), "cnn": set[str](), "jobs": {"pipeline", "cnn"}, "logpose": set(PACKAGES)}
MAX_FILES = 15  # per folder, except those that have one file per kernel
KERNEL_FOLDERS = {"cnn/backends/cpu", "cnn/backends/gpu", "tests/cnn/backends/gpu"}

# Library -> the only files that may import it.
ONLY_IMPORTED_BY = {
    # store.py reads and writer.py writes. Pixels are read and written by shard_format.py, without zarr.
    "zarr": ["pipeline/dataset/store.py", "pipeline/dataset/writer.py", "pipeline/dataset/codecs.py"],
    "numcodecs": ["pipeline/dataset/codecs.py"],
    "cupy": ["cnn/backends/gpu/*.py"],
    "cupyx": ["cnn/backends/gpu/*.py"],
    "numba": ["cnn/backends/cpu/*.py", "pipeline/images/resize.py", "logpose/common/kernel*.py"],
    "llvmlite": ["cnn/backends/cpu/*.py", "pipeline/images/resize.py"],
    "dask": [
        "pipeline/build/scheduler.py", "pipeline/loader/reader.py", "pipeline/parallel/cluster.py",
        "jobs/console/sizes.py", "jobs/training/ranks/cluster.py",
    ],
    "PIL": [
        "pipeline/images/decode.py", "pipeline/images/colours.py", "pipeline/images/opening.py",
        "pipeline/images/deep_colour.py", "pipeline/images/depth.py", "pipeline/images/sources.py",
        "jobs/drawing/contact_sheet.py",
        "jobs/drawing/fonts.py", "jobs/report/thumbnails.py", "jobs/flags*", "logpose/model.py",
    ],
    "matplotlib": ["jobs/drawing/plots.py", "logpose/training.py"],
    "pyarrow": ["jobs/classification/parquet.py"],
    "jinja2": ["jobs/report/page.py"],
    "typer": ["jobs/cli.py", "jobs/commands/*.py"],
}  # fmt: skip

# Import name -> name of the distribution, where they differ.
INSTALLED_AS = {
    "PIL": "pillow", "tomli_w": "tomli-w", "cupy": "cupy-cuda12x",
    "cupyx": "cupy-cuda12x",
}  # fmt: skip


def imported_modules(path: str) -> Iterator[str]:
    """Every module that a file imports, also inside functions, by its full dotted name."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # `from ..x import y` in a/b/c.py is a.x
                parents = list(Path(path).parent.parts)
                parents = parents[: len(parents) - node.level + 1]
                yield ".".join([*parents, *([node.module] if node.module else [])])
            elif node.module:
                yield node.module


def imported_libraries(path: str) -> set[str]:
    return {module.partition(".")[0] for module in imported_modules(path)}


def test_every_package_has_files() -> None:
    assert {path.partition("/")[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES)
def test_packages_import_only_the_packages_they_may(path: str) -> None:
    package = path.partition("/")[0]
    others = {module for module in imported_modules(path) if module.partition(".")[0] in set(PACKAGES) - {package}}
    others = {module for module in others if not module.startswith("logpose.common")}
    forbidden = {module for module in others if module.partition(".")[0] not in MAY_IMPORT[package]}
    assert not forbidden, f"{path} imports {sorted(forbidden)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("logpose/common/")])
def test_common_imports_no_other_package(path: str) -> None:
    ours = {module for module in imported_modules(path) if module.partition(".")[0] in PACKAGES}
    assert all(module.startswith("logpose.common") for module in ours), f"{path} imports {sorted(ours)}"


def test_imports_have_no_cycle() -> None:
    """Imports inside functions count too."""
    files = set(FILES)
    imports = {path: sorted({_file_of(module, files) for module in _targets(path)} - {None, path}) for path in FILES}
    done: set[str] = set()

    def visit(path: str, chain: tuple[str, ...]) -> None:
        assert path not in chain, " -> ".join([*chain[chain.index(path) :], path])
        if path not in done:
            for target in imports[path]:
                visit(target, (*chain, path))  # type: ignore[arg-type]
            done.add(path)

    for path in FILES:
        visit(path, ())


def _targets(path: str) -> Iterator[str]:
    """The modules that a file imports from; `from a.b import c` counts as a.b.c where that is a module."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if _file_of(inner, set(FILES)) else node.module


def _file_of(module: str, files: set[str]) -> str | None:
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in files), None)


FOLDERS = {path.parent for top in (*PACKAGES, "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")}


@pytest.mark.parametrize("folder", sorted(folder.relative_to(ROOT).as_posix() for folder in FOLDERS))
def test_folder_has_few_files(folder: str) -> None:
    count = sum(path.is_file() and path.suffix != ".pyc" for path in (ROOT / folder).iterdir())
    assert count <= MAX_FILES or folder in KERNEL_FOLDERS, f"{folder} has {count} files"


@pytest.mark.parametrize("path", FILES)
def test_library_is_imported_only_where_allowed(path: str) -> None:
    for library in imported_libraries(path) & set(ONLY_IMPORTED_BY):
        assert any(fnmatch(path, pattern) for pattern in ONLY_IMPORTED_BY[library]), (
            f"{path} imports {library}; only {', '.join(ONLY_IMPORTED_BY[library])} may"
        )


@pytest.mark.parametrize("path", FILES)
def test_no_file_imports_pickle(path: str) -> None:
    assert not imported_libraries(path) & {"pickle", "cPickle", "dill", "cloudpickle", "shelve"}


@pytest.mark.parametrize("path", FILES)
def test_imported_libraries_are_listed_in_pyproject(path: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for_developers = {"test", "bench", "dev"}
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras.keys() - for_developers)]
    declared = {_distribution(requirement) for requirements in lists for requirement in requirements}
    third_party = imported_libraries(path) - set(sys.stdlib_module_names) - set(PACKAGES)
    undeclared = {name for name in third_party if INSTALLED_AS.get(name, name) not in declared}
    assert not undeclared, f"{path} imports {sorted(undeclared)}, which pyproject.toml does not list"


def _distribution(requirement: str) -> str:
    """The distribution's name in a requirement such as `cupy-cuda12x[ctk]>=14.0`."""
    return requirement.split(">")[0].split("[")[0].strip()


@pytest.mark.parametrize("path", FILES)
def test_file_has_at_most_400_lines(path: str) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path} has {lines} lines, over 400: split it"


def test_command_line_starts_without_heavy_libraries() -> None:
    heavy = ["numpy", "zarr", "dask", "numba", "matplotlib", "PIL", "safetensors", "rich", "jinja2"]
    script = f"import sys, jobs.cli; print(sorted(set({heavy!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
