"""A training -> one HTML file that says how good it is and where to look; it needs nothing but itself."""

from pathlib import Path

import numpy as np

from cnn.backend import pick_backend
from cnn.errors import ShapeError
from cnn.gradcam import GradCam
from cnn.predict import Predictor
from jobs.cores import usable_cores
from jobs.errors import JobError
from jobs.files import written_atomically
from jobs.progress import plural
from jobs.report.gather import TrainedRun, gather_run, open_dataset
from jobs.report.judge import judge
from jobs.report.page import render
from jobs.run_folder import RunFolder


def report(
    run_dir: Path,
    *,
    out: Path | None = None,
    dataset: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> int:
    """Write the report on the training in `run_dir` to `out`, or into its folder; an earlier one is replaced.

    `dataset` says where its dataset is, unless it is where it was. Memory does not grow with the pictures, only with
    what the network says of each.
    Raises JobError, ModelFileError, DatasetError: what is missing, damaged, or does not belong together.
    """
    place = out or RunFolder(run_dir).report
    if place.suffix.lower() not in (".html", ".htm"):
        raise JobError(f"--out {place}: expected a name that ends in .html; choose such a one")
    run, state = gather_run(run_dir)
    data = open_dataset(run, state, dataset)
    judgement = cam = None
    if data.val.rows:
        backend = pick_backend(device)
        print(backend.description)
        predictor = Predictor(run.folder.model, backend)
        judgement = judge(predictor, data.val, workers or usable_cores())
        cam = _cam(run, predictor)
    html = render(run, data, judgement, cam).encode()
    with written_atomically(place) as file:
        file.write(html)
    if judgement:
        low, high = judgement.interval
        print(
            f"accuracy {judgement.evaluation.accuracy:.2%} of {plural(data.val.rows, 'validation picture')}"
            f" ({low:.1%} to {high:.1%} with 95 % confidence)"
        )
    print(f"report: {place} ({len(html) / 1e6:.1f} MB)")
    return 0


def _cam(run: TrainedRun, predictor: Predictor) -> GradCam | None:
    """None for a network that Grad-CAM cannot explain: the page then does without."""
    network = run.model.card.build_network(predictor.backend, seed=None)
    run.model.load_into(network)
    try:
        return GradCam(network, np.array(run.model.card.mean), np.array(run.model.card.std))  # (3,) each
    except ShapeError:
        return None
