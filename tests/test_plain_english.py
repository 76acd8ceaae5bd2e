"""Archaic words that must not come back, with the standard terms to use instead (CONTRIBUTING.md)."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Regular expression -> what to write instead.
WORDS = {
    r"\bmend(s|ed|ing)?\b": "repair, correct",
    r"\bturned\b": "rotated, flipped",
    r"\bno UTF-8\b": "not valid UTF-8",
    r"\bgo(es)? on with\b": "resume",
    r"\btaken for\b": "predicted as, treated as",
    r"\blooks? twice\b": "test-time augmentation",
    r"\bstrangers?\b": "new users, untrusted input",
    r"\bjudge[ds]?\b": "evaluate",
    r"\bwho goes\b": "split",
    r"\b(nobody|somebody|whoever)\b": "say what happens, not to whom",
    r"\binterpreter's lock\b": "GIL",
    r"\bderivative by\b": "gradient with respect to",
    r"\b(LEAST|MOST)_": "MIN_, MAX_",
}
SUFFIXES = {".py", ".md", ".toml", ".jinja", ".css", ".ipynb", ".yml", ""}


@pytest.mark.parametrize("pattern", WORDS)
def test_archaic_words_do_not_come_back(pattern: str) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: cannot list the project's files")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__):
            lines = path.read_text(encoding="utf-8").splitlines()
            flags = 0 if "LEAST" in pattern else re.IGNORECASE
            found += [f"{name}:{number}" for number, line in enumerate(lines, 1) if re.search(pattern, line, flags)]
    assert not found, f"write '{WORDS[pattern]}' in {', '.join(found)}"
