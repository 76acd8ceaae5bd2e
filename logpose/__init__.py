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

# Where each public name comes from: a module, and the name in it (none for the module itself).
_SOURCES: dict[str, tuple[str, str]] = {
    "BatchStream": ("pipeline.loader.stream", "BatchStream"),
    "Dataset": ("pipeline.dataset.store", "Dataset"),
    "History": ("logpose.training", "History"),
    "LogposeError": ("logpose.common.errors", "LogposeError"),
    "Model": ("logpose.model", "Model"),
    "Prediction": ("logpose.model", "Prediction"),
    "Recipe": ("cnn.training.recipe", "Recipe"),
    "TrainingRun": ("logpose.training", "TrainingRun"),
    "build": ("logpose.data", "build"),
    "classify": ("logpose.classification", "classify"),
    "layers": ("cnn.layers", ""),
    "load": ("logpose.model", "load"),
    "load_run": ("logpose.training", "load_run"),
    "losses": ("cnn.losses", ""),
    "open": ("logpose.data", "open"),
    "optimizers": ("cnn.training.optimizers", ""),
    "register_model": ("cnn.models", "register_model"),
    "schedules": ("cnn.training.schedules", ""),
    "train": ("logpose.training", "train"),
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
    from importlib import import_module

    from logpose.own_packages import check_own_packages

    check_own_packages()
    module_name, attribute = _SOURCES[name]
    module = import_module(module_name)
    value = globals()[name] = getattr(module, attribute) if attribute else module
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
