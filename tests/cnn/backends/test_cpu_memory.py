"""Memory of the CPU backend: constant after the first steps."""

import subprocess
import sys

import pytest

STEPS = """
import resource
import sys
import numpy as np
from cnn.backends import pick_backend
from cnn.inference.folded import FoldedNetwork
from cnn.models import ResNet9, Seed
from cnn.network import Network
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer

recipe = Recipe(model={"resnet9": ResNet9(width=16), "seed": Seed()}[sys.argv[1]])
network = Network(recipe.model.layers((32, 32, 3), 4), (32, 32, 3), pick_backend("cpu", 2))
trainer = Trainer(network, recipe, np.full(3, 128.0), np.full(3, 60.0), 64)
images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
pages = []
for _ in range(6):
    trainer.train_batch(images, np.arange(64) % 4, np.arange(64))
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
infer, x = FoldedNetwork(network), np.zeros((64, 32, 32, 3), np.float32)
for _ in range(4):
    infer(x)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[5] - pages[2], pages[9] - pages[7])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's heap is told not to return freed memory")
@pytest.mark.parametrize("model", ["resnet9", "seed"])
def test_steady_state_allocates_no_pages(model: str) -> None:
    """Page faults in three training steps and two batches of inference."""
    done = subprocess.run([sys.executable, "-c", STEPS, model], capture_output=True, text=True, check=True)
    training, inference = map(int, done.stdout.split())
    megabyte = 256  # pages; one of the networks' larger feature maps takes 1 or 4 MB
    assert training < megabyte and inference < megabyte, done.stdout
