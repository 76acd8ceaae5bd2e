"""A table under kills, reruns, changes of its files and damage, in any order: it is right, or a rerun says why not."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from jobs.classification import table as module
from jobs.classification.table import ResumableTable, error_row, header
from jobs.errors import JobError
from tests.jobs.classification.tables import IDENTITY, PLAIN, image

PARTS = 3
BEFORE_ITS_END, IN_ITS_END, NEVER = PARTS, PARTS + 1, PARTS + 2  # when a run is killed, after its parts


class _Killed(BaseException):
    pass


class Table(RuleBasedStateMachine):
    """The model: the version of the files of each part, from which the table follows."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.path = self.folder / "out.csv"
        self.versions = [0] * PARTS

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def rows(self, part: int) -> list[list[str]]:
        images = [image(f"{part}/{name}.png", f"label {self.versions[part]}") for name in "ab"]
        return [*images, error_row(f"{part}/c.png", "empty: no bytes", 1)]

    def expected(self) -> bytes:
        lines = [header(1), *(row for part in range(PARTS) for row in self.rows(part))]
        return "".join(",".join(line) + "\n" for line in lines).encode()

    def content(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    @rule(part=st.integers(0, PARTS - 1), version=st.integers(0, 2))
    def change_files(self, part: int, version: int) -> None:
        self.versions[part] = version

    @rule(killed=st.sampled_from([0, 1, 2, BEFORE_ITS_END, IN_ITS_END, NEVER, NEVER]), overwrite=st.booleans())
    def run(self, killed: int, overwrite: bool) -> None:
        before = self.content()
        try:
            counts = self._run(killed, overwrite)
        except _Killed:
            assert self.content() in (before, self.expected())
        except JobError as error:
            # Without its fingerprint, a folder of that name might be the user's.
            assert (not overwrite or "it has no fingerprint.json" in str(error)) and "\n" not in str(error)
            assert self.content() == before
        else:
            assert self.content() == self.expected() and counts == (2 * PARTS, PARTS)

    def _run(self, killed: int, overwrite: bool) -> tuple[int, int]:
        table = ResumableTable(self.path, IDENTITY, replace(PLAIN, overwrite=overwrite))
        for part in range(PARTS):
            if part == killed:
                raise _Killed
            digest = hashlib.sha256(f"{part} {self.versions[part]}".encode()).hexdigest()
            if not table.is_finished(part, digest):
                table.write(part, digest, self.rows(part))
        if killed == BEFORE_ITS_END:
            raise _Killed
        with patch.object(module, "_remove", side_effect=_Killed if killed == IN_ITS_END else module._remove):
            return table.finish(PARTS)

    @rule(
        number=st.integers(0, 20), place=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(["bit", "cut", "zeros", "gone"]),
    )  # fmt: skip
    def damage(self, number: int, place: float, how: str) -> None:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        if not files:
            return
        file = files[number % len(files)]
        content, byte = bytearray(file.read_bytes()), int(place * file.stat().st_size)
        if how == "gone":
            file.unlink()
        elif content:
            content[byte] ^= 1 << number % 8
            file.write_bytes({"bit": content, "cut": content[:byte], "zeros": bytes(len(content))}[how])


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=15)
