"""A training -> one HTML file that says how good it is and where to look; it needs nothing but itself."""

from pathlib import Path

import numpy as np

from cnn.backends import pick_backend
from cnn.errors import ShapeError
from cnn.inference.gradcam import GradCam
from cnn.inference.predictor import Predictor
from jobs.console.output import emit, say
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.options import ReportOptions
from jobs.report.evaluation import evaluate_run
from jobs.report.load_run import TrainedRun, load_run, open_dataset
from jobs.report.page import render
from jobs.training.run_folder import RunFolder
from logpose.common.cpus import available_cpus
from logpose.common.files import atomic_writer


def report(run_dir: Path, options: ReportOptions) -> Path:
    """Write the report on the training in `run_dir` to `out`, or into its folder; an earlier one is replaced.

    `dataset` says where its dataset is, unless it is where it was. Memory does not grow with the images, only with
    what the network says of each.
    Raises JobError, ModelFileError, DatasetError: what is missing, damaged, or does not belong together.
    """
    dataset, device, workers = options.dataset, options.device, options.workers
    place = options.out or RunFolder(run_dir).report
    if place.suffix.lower() not in (".html", ".htm"):
        raise JobError(f"--out {place}: expected a name that ends in .html; choose such a one")
    run, state = load_run(run_dir)
    data = open_dataset(run, state, dataset)
    results = cam = None
    if data.val.rows:
        backend = pick_backend(device)
        say(backend.description)
        predictor = Predictor(run.folder.model, backend)
        results = evaluate_run(predictor, data.val, workers or available_cpus())
        cam = _cam(run, predictor)
    html = render(run, data, results, cam).encode()
    with atomic_writer(place) as file:
        file.write(html)
    if results:
        low, high = results.interval
        say(
            f"accuracy {results.evaluation.accuracy:.2%} of {plural(data.val.rows, 'validation image')}"
            f" ({low:.1%} to {high:.1%} with 95 % confidence)"
        )
    say(f"report: {place} ({len(html) / 1e6:.1f} MB)")
    emit({"report": place, "accuracy": results.evaluation.accuracy if results else None})
    return place


def _cam(run: TrainedRun, predictor: Predictor) -> GradCam | None:
    """None for a network that Grad-CAM cannot explain: the page then does without."""
    network = run.model.card.build_network(predictor.backend, seed=None)
    run.model.load_into(network)
    try:
        return GradCam(network, np.array(run.model.card.mean), np.array(run.model.card.std))  # (3,) each
    except ShapeError:
        return None
