"""OUT.csv: written in finished parts, which a rerun skips, and put together at the end.

While a classification runs, OUT.csv.parts/ holds `fingerprint.json`, which says of what model, files and
options the parts are, and `part-000000.csv` and so on. Each appears whole or not at all.
"""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jobs.errors import JobError
from jobs.files import write_text_atomically, written_atomically

# Names of files may hold bytes that are no UTF-8; they come out of the CSV as they went in.
ERRORS = "surrogateescape"


def header(topk: int) -> list[str]:
    """The columns: `filename,status,label,prob,error`, then `label_2,prob_2,…` up to `topk`."""
    more = [f"{column}_{rank}" for rank in range(2, topk + 1) for column in ("label", "prob")]
    return ["filename", "status", "label", "prob", "error", *more]


def ok_row(filename: str, ranked: Sequence[tuple[str, float]]) -> list[str]:
    """The row of a picture: its likeliest labels with their probabilities, best first."""
    (label, prob), *others = ranked
    more = [text for other, share in others for text in (other, f"{share:.6f}")]
    return [filename, "ok", label, f"{prob:.6f}", "", *more]


def error_row(filename: str, reason: str, topk: int) -> list[str]:
    """The row of a file that cannot be read, as wide as the others."""
    return [filename, "error", "", "", reason, *[""] * (2 * (topk - 1))]


class PartedCsv:
    """The CSV at `path` in the making."""

    def __init__(self, path: Path, fingerprint: Mapping[str, str | int], *, overwrite: bool) -> None:
        self.path = path
        self.folder = path.with_name(path.name + ".parts")
        if path.is_dir():
            raise JobError(f"{path} is a folder; give the name of a CSV file, such as {path / 'out.csv'}")
        if path.exists() and not overwrite:
            raise JobError(f"{path} is there already; give --overwrite to replace it, or another name")
        self._claim(dict(fingerprint), overwrite)

    def has(self, number: int) -> bool:
        """Whether this part was finished, now or by an earlier run."""
        return self._part(number).exists()

    def write(self, number: int, rows: Iterable[Sequence[str]]) -> None:
        """Finish one part."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text_atomically(self._part(number), text.getvalue())

    def count(self, number: int) -> tuple[int, int]:
        """The rows of a finished part: (ok, error)."""
        with self._part(number).open(encoding="utf-8", errors=ERRORS, newline="") as file:
            statuses = [row[1] for row in csv.reader(file)]
        return statuses.count("ok"), statuses.count("error")

    def finish(self, columns: Sequence[str], parts: int) -> None:
        """Put all parts together under the final name, and remove them."""
        with written_atomically(self.path) as whole:
            whole.write((",".join(columns) + "\n").encode())
            for number in range(parts):
                with self._part(number).open("rb") as part:
                    shutil.copyfileobj(part, whole)
        shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.csv"

    def _claim(self, fingerprint: dict[str, str | int], overwrite: bool) -> None:
        """Take over the parts of the same classification; refuse those of another."""
        if self.folder.exists():
            found = self._found_fingerprint()
            changed = [name for name in fingerprint if found.get(name) != fingerprint[name]]
            if changed and not overwrite and any(self.folder.glob("part-*.csv")):
                raise JobError(
                    f"{self.folder} holds an unfinished classification with other {' and '.join(changed)};"
                    f" remove it, give --overwrite, or choose another name than {self.path.name}"
                )
            if changed:
                shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.folder / "fingerprint.json", json.dumps(fingerprint, indent=1) + "\n")

    def _found_fingerprint(self) -> dict[str, str | int]:
        try:
            found = json.loads((self.folder / "fingerprint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
