"""logpose: a folder of images in, a trained convolutional network and a table of labels out.

    import logpose

    data = logpose.build("images", "images.zarr", size=64)  # decode and resize once
    run = logpose.train(data, model="resnet9", epochs=3)  # into runs/images
    model = logpose.load(run.path)
    model.predict("new/dog.jpg")

Names are imported when they are first used, so that `import logpose` itself takes no time.
"""

TYPE_CHECKING = False  # not from typing: the current folder may hold a typing.py
if TYPE_CHECKING:
    from typing import Any

    from cnn import layers, losses
    from cnn.models import register_model
    from cnn.training import optimizers, schedules
    from cnn.training.recipe import Recipe
    from logpose.classification import classify
    from logpose.common.errors import LogposeError
    from logpose.data import build, open
    from logpose.model import Model, Prediction, load
    from logpose.training import History, TrainingRun, load_run, train
    from pipeline.dataset.store import Dataset
    from pipeline.loader.stream import BatchStream

__version__ = "0.2.0"

# The module that each public name is imported from.
_SOURCES = {
    "BatchStream": "pipeline.loader.stream",
    "Dataset": "pipeline.dataset.store",
    "History": "logpose.training",
    "LogposeError": "logpose.common.errors",
    "Model": "logpose.model",
    "Prediction": "logpose.model",
    "Recipe": "cnn.training.recipe",
    "TrainingRun": "logpose.training",
    "build": "logpose.data",
    "classify": "logpose.classification",
    "layers": "cnn",
    "load": "logpose.model",
    "load_run": "logpose.training",
    "losses": "cnn",
    "open": "logpose.data",
    "optimizers": "cnn.training",
    "register_model": "cnn.models",
    "schedules": "cnn.training",
    "train": "logpose.training",
}

__all__ = [
    "BatchStream",
    "Dataset",
    "History",
    "LogposeError",
    "Model",
    "Prediction",
    "Recipe",
    "TrainingRun",
    "__version__",
    "build",
    "classify",
    "layers",
    "load",
    "load_run",
    "losses",
    "open",
    "optimizers",
    "register_model",
    "schedules",
    "train",
]


def __getattr__(name: str) -> "Any":
    """Import a public name when it is first used."""
    if name not in _SOURCES:
        raise AttributeError(f"module 'logpose' has no attribute '{name}'; it has {', '.join(__all__)}")
    from logpose.own_packages import check_own_packages

    check_own_packages()
    source = __import__(_SOURCES[name], fromlist=[name])  # imports `name` too, where it is a module
    value = globals()[name] = getattr(source, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
