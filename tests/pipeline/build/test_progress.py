"""Progress counters while tasks are being cancelled."""

from pathlib import Path

import pytest

from pipeline.build.journal import ShardResult
from pipeline.build.progress import BuildCancelled, BuildProgress
from pipeline.scan.class_folders import list_images


def test_finished_shard_is_counted_after_cancel(tmp_path: Path) -> None:
    """Otherwise BuildCancelled would hide a task's real error, such as a full disk."""
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    progress = BuildProgress(list_images(tmp_path))
    progress.cancel()
    with pytest.raises(BuildCancelled):
        progress.count_file(0, None)
    fields = dict.fromkeys(ShardResult.__dataclass_fields__, ())
    progress.count_shard(ShardResult(**fields | {"split": "train", "shard": 0, "assigned": (0, 1, 2)}))  # type: ignore[arg-type]
    assert progress.done == 3
