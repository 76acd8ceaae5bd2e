"""Classify whole folders from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jobs.classification.classify import classify as classify_job
from jobs.options import ClassifyOptions
from logpose.arguments import checked_options, checked_path, running
from pipeline.images.options import MAX_PIXELS


def classify(
    images: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    topk: int = 1,
    threshold: float | None = None,
    format: Literal["csv", "parquet"] | None = None,
    spreadsheet_safe: bool = False,
    views: Literal["none", "mirror", "mirror_shift"] = "none",
    max_pixels: int | str = MAX_PIXELS,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Classify every file of a folder, or every image of a dataset, into a table; return the table's path.

    One row per file, sorted by path; a file that cannot be read is a row with the reason. A classification that was
    interrupted resumes.

    Args:
        images: A folder, however deep, one image, or a dataset.
        model: A model file, or the folder of a training.
        out: The table to write.
        topk: Labels per image, the most likely first.
        threshold: Below this probability the label is "unknown".
        format: Format of the table; None: by the ending of `out`.
        spreadsheet_safe: Escape cells that a spreadsheet would run as formulas.
        views: Test-time augmentation: average over 2 ("mirror") or 6 ("mirror_shift") views of each image.
        max_pixels: Images of more pixels are refused: they would take too much memory.
        batch_size: Images computed at a time.
        device: Where to compute; "auto" takes a GPU if one works.
        precision: Of a GPU's products and feature maps; "auto" is bf16 if the card has it.
        workers: Threads that decode and compute; None: one per CPU. On a cluster, threads that decode for each GPU.
        scheduler: Address of a Dask cluster to work on instead; `device` and `precision` are those of its workers.
        overwrite: Replace a finished table.
        quiet: Print nothing.

    Raises:
        LogposeError: The model, the images or the destination cannot be used.

    >>> table = logpose.classify("images", "runs/colours", "colours.csv", quiet=True)
    >>> table.read_text().splitlines()[0]
    'filename,status,label,prob,error'
    """
    options = checked_options(
        ClassifyOptions, topk=topk, threshold=threshold, format=format, spreadsheet_safe=spreadsheet_safe,
        views=views, max_pixels=max_pixels, batch_size=batch_size, device=device, precision=precision,
        workers=workers, scheduler=scheduler, overwrite=overwrite,
    )  # fmt: skip
    table = checked_path("out", out)
    with running(quiet):
        classify_job(checked_path("images", images), checked_path("model", model), table, options)
    return table
