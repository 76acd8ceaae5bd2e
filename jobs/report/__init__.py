"""`logpose report`: evaluate a trained model and write one self-contained HTML file about it."""

from pathlib import Path

import numpy as np

from cnn.errors import ShapeError
from cnn.inference.gradcam import GradCam
from cnn.inference.predictor import Predictor
from cnn.models import import_model
from jobs.console.device import choose_backend
from jobs.console.output import detail, emit, say
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.options import ReportOptions
from jobs.report.evaluation import ValidationResult, evaluate_model
from jobs.report.load_run import TrainedRun, load_run, open_dataset
from jobs.report.page import render
from jobs.training.run_folder import RunFolder
from logpose.common.cpus import available_cpus
from logpose.common.errors import printable
from logpose.common.files import write_replaceable
from logpose.common.outputs import replaceable_file

MARK = b'<meta name="generator" content="logpose report">'


def report(run_dir: Path, options: ReportOptions) -> Path:
    """Write the report on the training in `run_dir`; return its path. An existing report is replaced, no other file.

    The images are read batch by batch; only the model's outputs for them are all in memory.
    Raises JobError, ModelFileError or DatasetError where a file is missing or damaged, or the dataset is another one.
    """
    path = options.out or RunFolder(run_dir).report
    if path.suffix.lower() not in (".html", ".htm"):
        raise JobError(f"--out {path}: expected a name that ends in .html; choose another name")
    is_usual = path.absolute() == RunFolder(run_dir).report.absolute()
    kind = (b"" if is_usual else MARK, "a report")  # an older version wrote no mark
    replaceable_file(path, *kind)
    if options.model:
        import_model(options.model)
    run = load_run(run_dir)
    data = open_dataset(run, options.dataset)
    result = cam = None
    if data.val.rows:
        backend = choose_backend(options.device, options.precision)
        say(backend.description)
        predictor = Predictor(run.model, backend)  # not the file again: it may be another one by now
        result = evaluate_model(predictor, data.val, options.workers or available_cpus())
        cam = _grad_cam(run, predictor)
    # Paths may hold bytes that are not valid UTF-8.
    html = render(run, data, result, cam).encode("utf-8", "backslashreplace")
    data.check_unchanged()
    write_replaceable(path, html, *kind)
    _print(path, len(html), result)
    return path


def _grad_cam(run: TrainedRun, predictor: Predictor) -> GradCam | None:
    """None for a network that Grad-CAM does not support: the report then has no heatmaps."""
    network = run.model.build_network(predictor.backend)
    try:
        return GradCam(network, np.array(run.model.card.mean), np.array(run.model.card.std))  # (3,) each
    except ShapeError:
        detail("no heatmaps: Grad-CAM needs a network with feature maps")
        return None


def _print(path: Path, size: int, result: ValidationResult | None) -> None:
    summary: dict[str, object] = {"report": path, "accuracy": None}
    if result:
        accuracy, images, (low, high) = result.evaluation.accuracy, result.evaluation.rows, result.interval
        say(
            f"accuracy {accuracy:.2%} on {plural(images, 'validation image')}"
            f" (95 % interval {low:.1%} to {high:.1%})"
        )
        summary |= {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "val_images": images}
    say(printable(f"report: {path} ({size / 1e6:.1f} MB)"))
    emit(summary)
