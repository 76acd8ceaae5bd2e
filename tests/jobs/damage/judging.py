"""The rule for hostile input: each command ends in a result, or in an error of one line."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout

from jobs.cli import main
from logpose.common.errors import printable

ERROR = re.compile(r"error: [^\n]+\n")


def is_accepted(*arguments: object) -> bool:
    """Run a command line in this process; whether it gave a result. Asserts that it else ended in a good error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(map(str, arguments)))
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    problems = {
        "an exit code": code not in (0, 1, 2),
        "one line": bool(code) and not ERROR.fullmatch(texts[1]) and arguments[0] != "verify",
        "no bug": "this is a bug" in texts[1],
        "less memory": "out of memory" in texts[1],
        "short lines": len(texts[1]) > 3000,
        "no control characters": any(printable(line) != line for text in texts for line in text.split("\n")),
    }
    for expected in (name for name, is_wrong in problems.items() if is_wrong):
        raise AssertionError(f"expected {expected} of {arguments}: {code}, {texts}")
    return code == 0
