"""The cache of compiled kernels: private, one folder for each version of the source, and never in the way of a job."""

import os
import pickle
import stat
import subprocess
import sys
import time
from pathlib import Path

import numba
import pytest

from logpose.common import cache_folder, kernels
from logpose.common.cache_folder import private_folder, share_folder

ROOT = Path(__file__).resolve().parents[2]

# Compiles one kernel of its own, and says whether it came from the cache.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from source.kernel import add
from logpose.common.kernels import _version_folder
print(add(1, 2), sum(add.stats.cache_hits.values()), _version_folder.cache_info().misses)
"""
KERNEL = """
from logpose.common.kernels import cached_njit

@cached_njit("int64(int64, int64)", nogil=True)
def add(a, b):
    return a + b
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder and a temporary folder of the test's own; returns the cache folder of the former."""
    for variable in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, name in (("HOME", "home"), ("TMPDIR", "tmp")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(cache_folder.tempfile, "tempdir", None)
    return tmp_path / "home" / ".cache" / "logpose"


def temporary(home: Path) -> Path:
    """The cache folder in the temporary folder."""
    return home.parents[2] / "tmp" / f"logpose-{os.getuid()}"


def block(home: Path) -> None:
    """Leave no place for a cache in the home folder, for root either."""
    home.parent.write_text("a file")


def compile_one(tmp_path: Path) -> tuple[str, str]:
    """Compile a kernel, or load it from the cache, in a process of its own; returns `result hits folders`, stderr."""
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    (source / "kernel.py").write_text(KERNEL)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip(), done.stderr


def test_folder_is_in_the_users_cache_and_private(home: Path) -> None:
    folder = private_folder("kernels-1")
    assert folder == home / "kernels-1"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, folder)] == [0o700, 0o700]
    assert private_folder("kernels-1") == folder


def test_folder_that_others_could_read_is_tightened(home: Path) -> None:
    home.mkdir(parents=True, mode=0o755)
    assert private_folder("kernels-1") == home / "kernels-1"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o770])
def test_folder_of_kernels_that_others_could_enter_is_not_used(home: Path, mode: int) -> None:
    (home / "kernels-1").mkdir(parents=True)
    (home / "kernels-1").chmod(mode)
    assert private_folder("kernels-1") == temporary(home) / "kernels-1"


def test_link_is_not_used(home: Path) -> None:
    elsewhere = home.parents[2] / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    home.parent.mkdir()
    home.symlink_to(elsewhere)
    temporary(home).symlink_to(elsewhere)
    assert private_folder("kernels-1") is None
    assert not list(elsewhere.iterdir())


def test_folder_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block(home)
    assert private_folder("kernels-1") == temporary(home) / "kernels-1"
    monkeypatch.setattr(cache_folder.os, "geteuid", lambda: os.getuid() + 1)
    assert private_folder("kernels-1") is None


def test_folder_that_anybody_can_replace_is_not_used(home: Path) -> None:
    block(home)
    temporary(home).parent.chmod(0o777)  # without the sticky bit, as /tmp should never be
    assert private_folder("kernels-1") is None
    temporary(home).parent.chmod(0o1777)
    assert private_folder("kernels-1") == temporary(home) / "kernels-1"


def test_folder_below_one_that_others_can_replace_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the home folder of another user, which `sudo -E` keeps."""
    above, status = home.parents[1], Path.stat

    def of_another_user(path: Path, **options: bool) -> os.stat_result:
        found = status(path, **options)
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:])) if path == above else found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", of_another_user)
        assert private_folder("kernels-1") == temporary(home) / "kernels-1"
    above.chmod(0o777)
    assert private_folder("kernels-1") == temporary(home) / "kernels-1"
    above.chmod(0o755)
    assert private_folder("kernels-1") == home / "kernels-1"


def test_kernel_is_compiled_once(home: Path, tmp_path: Path) -> None:
    assert compile_one(tmp_path) == ("3 0 1", "")
    assert compile_one(tmp_path) == ("3 1 1", "")


def test_another_installation_of_the_same_version_loads_them(home: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert compile_one(tmp_path) == ("3 0 1", "")
    assert compile_one(tmp_path / "other") == ("3 1 1", "")


def test_pickles_that_others_could_write_are_not_loaded(home: Path, tmp_path: Path) -> None:
    """A complete cache in the temporary folder that others can write: the kernel is compiled, and the user is told."""
    block(home)
    assert compile_one(tmp_path)[0] == "3 0 1"
    assert compile_one(tmp_path)[0] == "3 1 1"
    for folder in temporary(home).iterdir():
        folder.chmod(0o777)
    result, said = compile_one(tmp_path)
    assert result == "3 0 1"
    assert said.count("compiled kernels cannot be kept") == 1


def test_job_works_where_nothing_can_be_written(home: Path, tmp_path: Path) -> None:
    block(home)
    temporary(home).write_text("a file")
    result, said = compile_one(tmp_path)
    assert result == "3 0 1"
    assert said.strip() == kernels.NOT_CACHED.format("no folder is both private and writable")


@pytest.mark.parametrize("damage", [b"", b"\0" * 300])
def test_damaged_cache_is_replaced(home: Path, tmp_path: Path, damage: bytes) -> None:
    """A power cut leaves files that are empty, or full of zeros."""
    compile_one(tmp_path)
    files = [path for path in home.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert len(files) == 2
    for file in files:
        before = file.read_bytes()
        file.write_bytes(damage)
        assert compile_one(tmp_path) == ("3 0 1", "")
        assert compile_one(tmp_path) == ("3 1 1", ""), file
        assert len(file.read_bytes()) == len(before)


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_flipped_bits_are_never_run(home: Path, tmp_path: Path, ending: str) -> None:
    """Machine code has none to spare. Each is found where the file is read, with no need to run it."""
    compile_one(tmp_path)
    (file,) = home.rglob(f"*{ending}")
    whole = file.read_bytes()
    begin = len(pickle.dumps(numba.__version__, protocol=-1)) if ending == ".nbi" else 0
    for place in (*range(begin, len(whole), 97), len(whole) - 1, len(whole) - 9):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="is damaged"):
            kernels._check(file)
    (result, _), again = compile_one(tmp_path), compile_one(tmp_path)
    assert result == "3 0 1" and again == ("3 1 1", ""), "compiled again, and kept"


def test_each_source_version_has_its_own_folder(home: Path, tmp_path: Path) -> None:
    compile_one(tmp_path)
    (tmp_path / "source" / "helper.py").write_text("a = 1")
    assert compile_one(tmp_path)[0] == "3 0 1", "a kernel may call a function of another file"
    assert len(list(home.iterdir())) == 2


def test_unused_versions_are_removed(home: Path, tmp_path: Path) -> None:
    old, recent = home / "kernels-old", home / "kernels-recent"
    for folder in (old, recent):
        folder.mkdir(parents=True)
    long_ago = time.time() - 100 * 86400
    os.utime(old, (long_ago, long_ago))
    compile_one(tmp_path)
    assert not old.exists() and recent.exists()


def test_other_libraries_keep_their_own_folder_if_it_is_the_users(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_CACHE", "")
    assert share_folder("A_CACHE", "~/.a/cache", "a") and not os.environ["A_CACHE"]
    (tmp_path / "home" / ".a" / "cache").chmod(0o777)
    assert share_folder("A_CACHE", "~/.a/cache", "a") and os.environ["A_CACHE"] == str(home / "a")
    monkeypatch.setenv("A_CACHE", "chosen")
    assert share_folder("A_CACHE", "~/.a/cache", "a") and os.environ["A_CACHE"] == "chosen"


# A kernel and a function that only it calls. Says the result, and what was made of the function by itself.
INNER = """
from logpose.common.kernel_compiler import INNER_OPTIONS
from logpose.common.kernels import cached_njit, inner

@inner
def half(x):
    total = 0.0
    for _ in range(4):
        total += x
    return total / 8

@cached_njit(nogil=True)
def add(a, b):
    return half(a) + half(b)
"""
LIBRARIES = """
import sys
sys.path.insert(0, sys.argv[1])
from source import kernel
result = kernel.add(2.0, 4.0)
libraries = [each.library for each in kernel.half.overloads.values()]
machine_code = [bool(each.get_pointer_to_function(next(each.get_defined_functions()).name)) for each in libraries]
print(result, sum(kernel.add.stats.cache_hits.values()), machine_code)
"""


def compile_with_inner(tmp_path: Path, before: str = "") -> str:
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source" / "kernel.py").write_text(INNER)
    command = [sys.executable, "-c", before + LIBRARIES, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_inner_functions_are_only_a_part_of_kernels(home: Path, tmp_path: Path) -> None:
    assert compile_with_inner(tmp_path) == "3.0 0 [False]"
    assert compile_with_inner(tmp_path) == "3.0 1 []"


def test_kernels_are_compiled_as_usual_where_numba_is_another(home: Path, tmp_path: Path) -> None:
    """Its version lacks what inner functions need to be linked only."""
    lacks = "from numba.core.codegen import CPUCodeLibrary as Library\n"
    lacks += "Library._renamed = Library._optimize_functions\ndel Library._optimize_functions\n"
    lacks += "Library.add_llvm_module = lambda self, module: self._final_module.link_in(module)\n"
    assert compile_with_inner(tmp_path, lacks) == "3.0 0 [True]"


def test_kernel_is_loaded_but_not_compiled(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "kernel.py").write_text(KERNEL.replace('"int64(int64, int64)", ', ""))
    script = SCRIPT.rpartition("print")[0] + """
from numba import int64
from logpose.common.kernels import is_ready
print(is_ready(add, (int64, int64)), len(add.overloads), add(1, 2), is_ready(add, (int64, int64)))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    for found in ("False 0 3 True", "True 1 3 True"):
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.stdout.strip() == found, done.stderr
