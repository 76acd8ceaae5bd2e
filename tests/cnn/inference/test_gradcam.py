"""Grad-CAM against numeric derivatives, on every backend and for every model."""

import numpy as np
import pytest
from PIL import Image

from cnn.errors import ShapeError
from cnn.inference.gradcam import GradCam
from cnn.layers import (
    GELU,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    GlobalMaxPool,
    Scale,
    Sequential,
    Tanh,
    chain,
)
from cnn.models import MODELS
from cnn.network import Network
from tests.cnn.oracles import BACKENDS, get_backend, random_network

MEAN, STD = np.array([120.0, 100.0, 90.0]), np.array([60.0, 50.0, 70.0])
# BODY ends in feature maps; each tail goes from those to vectors.
BODY = chain(conv=Conv2D(6, 3), norm=BatchNorm(activation="relu"), inner=chain(conv=Conv2D(5, 3, stride=2)))
TAILS = {
    "average": chain(average=GlobalAveragePool(), head=Dense(4)),
    "largest": chain(largest=GlobalMaxPool(), scale=Scale(0.5), drop=Dropout(0.5), head=Dense(4, bias=False)),
    "flat": chain(flat=Flatten(), dense=Dense(7), tanh=Tanh(), more=chain(dense=Dense(6), gelu=GELU()), head=Dense(4)),
}


def random_images(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3), dtype=np.uint8)  # (N, H, W, 3)


def sub_network(network: Network, layers: Sequential, in_shape: tuple[int, ...]) -> Network:
    """Some layers of `network`, with its weights, as a network on the reference backend."""
    result = Network(layers, in_shape, get_backend("reference"), seed=None, dtype=np.float64)
    result.load_tensors(network.tensors())
    return result


def numeric_maps(body: Network, tail: Network, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Grad-CAM by its definition, (N, H, W), with numeric derivatives w.r.t. the feature maps."""
    activations = body.infer((images - MEAN) / STD)  # (N, h, w, C)
    gradient = np.zeros_like(activations)  # (N, h, w, C)
    for pixel in np.ndindex(activations.shape[1:]):
        step = np.zeros_like(activations)
        step[:, *pixel] = 1e-3
        near, far = (tail.infer(activations + n * step) - tail.infer(activations - n * step) for n in (1, 2))
        change = (8 * near - far) / 12e-3  # (N, classes), of fourth order
        gradient[:, *pixel] = change[np.arange(len(classes)), classes]
    maps = []
    for values, slopes in zip(activations, gradient, strict=True):
        found = np.zeros(values.shape[:2])  # (h, w)
        for channel in range(values.shape[2]):
            found += slopes[..., channel].mean() * values[..., channel]
        found = np.where(found > 0, found, 0)
        found = found / (found.max() or 1.0)
        large = Image.fromarray(found.astype(np.float32)).resize(images.shape[2:0:-1], Image.Resampling.BILINEAR)
        maps.append(np.asarray(large))
    return np.stack(maps)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("tail", TAILS)
def test_maps_match_the_definition(backend_name: str, tail: str) -> None:
    backend, in_shape = get_backend(backend_name), (12, 10, 3)
    network = random_network(Sequential(BODY.layers + TAILS[tail].layers), in_shape, backend, 1, np.float64)
    for name, view in network.state.views.items():  # running statistics as after training
        network.state.assign(name, np.random.default_rng(5).uniform(0.5, 2.0, view.shape))
    images, classes = random_images(6, in_shape[:2]), np.array([0, 1, 2, 3, 3, 0])
    body = sub_network(network, BODY, in_shape)
    expected = numeric_maps(body, sub_network(network, TAILS[tail], body.out_shape), images, classes)
    found = GradCam(network, MEAN, STD).maps(images, classes)
    assert found.shape == (6, 12, 10) and found.dtype == np.float64
    assert len(np.unique(expected.round(3))) > 30, "the expected maps are nearly constant"
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("model", MODELS)
def test_maps_of_every_model(model: str, side: int) -> None:
    options = {} if model == "seed" else {"width": 4}
    layers = MODELS[model](**options).layers((side, side, 3), 3)
    network = random_network(layers, (side, side, 3), get_backend("cpu"), 0, np.float32)
    images = random_images(3, (side, side))
    by_class = [GradCam(network, MEAN, STD).maps(images, np.full(3, label)) for label in range(3)]  # (N, H, W) each
    for maps in by_class:
        assert maps.shape == (3, side, side)
        assert np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1 + 1e-6
    assert max(np.ptp(maps) for maps in by_class) > 0.1
    assert any(np.abs(by_class[0] - other).max() > 0.1 for other in by_class[1:]), "all classes have the same map"


def test_maps_show_where_the_class_is() -> None:
    """A network that sums red for class 0 and blue for class 1, and images with one corner of each."""
    network = Network(chain(average=GlobalAveragePool(), head=Dense(3)), (8, 8, 3), get_backend("cpu"), seed=None)
    network.parameters.assign("head.weight", np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0]]))  # (channels, classes)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:2, :2, 0] = image[5:, 5:, 2] = 200
    maps = GradCam(network, np.zeros(3), np.ones(3)).maps(np.stack([image] * 3), np.arange(3))  # (3, 8, 8)
    np.testing.assert_array_equal(maps[0], image[..., 0] / 200)
    np.testing.assert_array_equal(maps[1], image[..., 2] / 200)
    assert not maps[2].any(), "the third class has no evidence"


def test_unsupported_networks_are_refused() -> None:
    backend = get_backend("reference")
    with pytest.raises(ShapeError, match="found outputs of shape"):
        GradCam(Network(chain(conv=Conv2D(4)), (8, 8, 3), backend), MEAN, STD)
    normed = chain(average=GlobalAveragePool(), norm=BatchNorm(), head=Dense(3))
    with pytest.raises(ShapeError, match="found BatchNorm"):
        GradCam(Network(normed, (8, 8, 3), backend), MEAN, STD)
