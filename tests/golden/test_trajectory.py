"""Ten training steps against PyTorch: losses, first gradients and final logits, to 1e-4 in float32."""

import numpy as np
import pytest

from cnn.network import Network
from cnn.training.trainer import Trainer
from tests.cnn.oracles import BACKENDS, get_backend
from tests.golden.trajectory import BATCH, CLASSES, MEAN, STD, STEPS, TRAJECTORIES, Trajectory

RTOL = 1e-4


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=lambda trajectory: trajectory.name)
def test_training_matches_pytorch(trajectory: Trajectory, backend_name: str) -> None:
    with np.load(trajectory.path) as file:
        golden = dict(file)
    shape = (trajectory.size, trajectory.size, 3)
    backend = get_backend(backend_name)
    network = Network(trajectory.model.layers(shape, CLASSES), shape, backend)
    network.load_tensors({name.removeprefix("first."): array for name, array in golden.items()})
    trainer = Trainer(network, trajectory.recipe, MEAN, STD, STEPS * BATCH)

    losses = []
    for step, (images, labels) in enumerate(zip(golden["images"], golden["labels"], strict=True)):
        losses.append(trainer.train_batch(images, labels, np.arange(BATCH)).loss_sum / BATCH)
        if step == 0:
            gradients = network.gradients.to_host()
            for spec in network.parameters.specs:
                if spec.trained_until > 0.0:
                    close(gradients[spec.name], golden[f"gradient.{spec.name}"], spec.name)
    np.testing.assert_allclose(losses, golden["losses"], rtol=RTOL)
    mean, std = backend.asarray(MEAN.astype(np.float32)), backend.asarray(STD.astype(np.float32))
    logits = network.infer((backend.asarray(golden["images"][0]) - mean) / std)
    close(backend.to_host(logits), golden["logits"], "logits")


def close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Assert equality within 1e-4 of the array's largest value: small entries are differences of large ones."""
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    assert worst < RTOL, f"{name}: off by {worst:.1e} of its largest value"
