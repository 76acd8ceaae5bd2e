"""Agreement of docs/gpu.md with the code."""

import re
from pathlib import Path

from benchmarks.gpu.traffic import CASES, table
from cnn.backends import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_traffic_table_is_up_to_date() -> None:
    assert "\n".join(table(CASES["resnet9"])) in TEXT, "run: python -m benchmarks.gpu.traffic"


def test_every_file_of_kernels_is_described() -> None:
    described = set(re.findall(r"`(\w+)`", TEXT))
    folder = ROOT / "cnn" / "backends" / "gpu"
    missing = {path.stem for path in folder.glob("cuda/*.cu")} - described
    assert not missing, f"docs/gpu.md does not describe {missing}"


def test_every_precision_is_described() -> None:
    assert set(PRECISIONS) <= set(re.findall(r"`(\w+)`", TEXT))
