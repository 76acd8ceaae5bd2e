"""Networks by name: the built-in architectures, and the registry that a user's own network joins."""

from cnn.models.architectures import Airbench94, Plain, ResNet9, ResNet18, Seed
from cnn.models.registry import MODELS, Model, build_layers, import_model, model_path, register_model

__all__ = [
    "MODELS",
    "Airbench94",
    "Model",
    "Plain",
    "ResNet9",
    "ResNet18",
    "Seed",
    "build_layers",
    "import_model",
    "model_path",
    "register_model",
]
