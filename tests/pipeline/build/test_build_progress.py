"""Counting files while tasks are being stopped."""

from pathlib import Path

import pytest

from pipeline.build.journal import ShardResult
from pipeline.build.progress import BuildProgress, Stopped
from pipeline.build.source_files import survey
from pipeline.scan.class_folders import list_images


def test_a_finished_shard_is_counted_even_while_the_others_are_stopped(tmp_path: Path) -> None:
    """Else a task's real error, such as a full disk, would be hidden behind Stopped."""
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    tally = BuildProgress(survey(list_images(tmp_path)))
    tally.stop()
    with pytest.raises(Stopped):
        tally.tick(0, None)
    fields = dict.fromkeys(ShardResult.__dataclass_fields__, ())
    tally.add(ShardResult(**fields | {"part": "train", "shard": 0, "wanted": (0, 1, 2)}))  # type: ignore[arg-type]
    assert tally.done == 3
