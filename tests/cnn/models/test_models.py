"""Built-in models, layers that do not fit, and the choice of a device."""

import numpy as np
import pytest

from cnn.backends import pick_backend
from cnn.backends.gpu import why_unusable
from cnn.backends.reference import ReferenceBackend
from cnn.errors import DeviceError, RecipeError, ShapeError, UnknownNameError
from cnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPool, Residual, Run, Whitening, chain
from cnn.models import MODELS
from cnn.network import Network

REFERENCE = ReferenceBackend()


def test_dropout_keeps_the_mean_and_is_the_identity_in_inference() -> None:
    x = np.ones((50, 200))
    layer = Dropout(0.25)
    y, _ = layer.forward(Run(REFERENCE, training=True, key=1), {}, {}, x)
    assert set(np.unique(y)) == {0.0, 1 / 0.75} and abs(y.mean() - 1) < 0.02
    assert layer.forward(Run(REFERENCE, training=False), {}, {}, x)[0] is x
    again, _ = layer.forward(Run(REFERENCE, training=True, key=1, rows=np.arange(50)), {}, {}, x)
    np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 17, 3), (32, 32, 3), (65, 64, 3), (130, 100, 3)])
def test_models_accept_any_image_size_and_number_of_classes(name: str, shape: tuple[int, int, int]) -> None:
    model = MODELS[name](**({} if name == "seed" else {"width": 8}))
    for classes in (2, 11):
        network = Network(model.layers(shape, classes), shape, pick_backend("reference"))
        assert network.out_shape == (classes,)
        other = Network(model.layers(shape, classes + 1), shape, pick_backend("reference"), seed=None)
        shapes, others = ({spec.name: spec.shape for spec in one.parameters.specs} for one in (network, other))
        assert {key.partition(".")[0] for key in shapes if shapes[key] != others[key]} == {"head"}
    assert network.infer(np.zeros((2, *shape), np.float32)).shape == (2, 11)


def test_seed_has_its_documented_shapes() -> None:
    """Three 3x3 convolutions of 5 channels on 256x256 images, then dense 128, 64, 18 and 18 classes."""
    specs = MODELS["seed"]().layers((256, 256, 3), 18).specs((256, 256, 3)).parameters
    weights = {spec.name: spec.shape for spec in specs if spec.name.endswith("weight")}
    assert list(weights.values()) == [
        (3, 3, 3, 5), (3, 3, 5, 5), (3, 3, 5, 5), (250 * 250 * 5, 128), (128, 64), (64, 18), (18, 18)
    ]  # fmt: skip


def test_airbench94_is_the_network_of_the_speed_runs() -> None:
    """Its shapes, its frozen and faster parameters, and the published number of trained parameters."""
    network = Network(MODELS["airbench94"]().layers((32, 32, 3), 10), (32, 32, 3), REFERENCE)
    specs = {spec.name: spec for spec in network.parameters.specs}
    weights = [spec.shape for spec in network.layer.specs((32, 32, 3)).parameters if spec.name.endswith("weight")]
    assert weights == [
        (2, 2, 3, 24), (3, 3, 24, 64), (3, 3, 64, 64), (3, 3, 64, 256), (3, 3, 256, 256), (3, 3, 256, 256),
        (3, 3, 256, 256), (256, 10),
    ]  # fmt: skip
    assert {name for name, spec in specs.items() if spec.trained_until == 0.0} == {
        "whiten.weight", *(f"group{group}.norm{norm}.scale" for group in (1, 2, 3) for norm in (1, 2))
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name, spec in specs.items() if spec.lr_factor == 64.0} == {"shift"}
    assert (specs["whiten.bias"].trained_until, specs["whiten.bias"].decay) == (0.3, True)
    assert [(group.lr_factor, group.trained_until) for group in network.parameters.groups] == [
        (1.0, 1.0), (64.0, 1.0), (1.0, 0.3), (1.0, 0.0)
    ]  # fmt: skip
    assert network.needs_data and network.parameters.trained_groups(0.0)[-1].last == 1_971_352
    centre = network.tensors()["group2.conv1.weight"][1, 1, :, :64]
    np.testing.assert_array_equal(centre, np.eye(64))


def test_airbench94_without_whitening_and_identity() -> None:
    layers = MODELS["airbench94"](whiten=False, identity=False).layers((32, 32, 3), 10)  # type: ignore[call-arg]
    network = Network(layers, (32, 32, 3), REFERENCE)
    assert not network.needs_data and network.parameters.views["conv.weight"].shape == (2, 2, 3, 24)
    assert {spec.trained_until for spec in network.parameters.specs if spec.name.startswith("conv.")} == {1.0}
    assert abs(network.tensors()["group2.conv1.weight"]).max() < 0.1


def test_layers_that_do_not_fit_their_input_are_refused() -> None:
    for layer, shape, message in (
        (Conv2D(4, 5, padding=0), (3, 3, 1), "does not fit an image of 3x3"),
        (Conv2D(4), (12,), "expects images"),
        (Dense(3), (4, 4, 1), "put Flatten or a global pool before"),
        (MaxPool(4), (2, 2, 1), "use larger images"),
        (MaxPool(2, padding=2), (8, 8, 1), "padding at most half"),
        (Whitening(24), (8, 8, 1), "needs 8 filters for images of 1 channels"),
        (Residual(chain(flatten=Flatten())), (2, 2, 1), "give the shortcut a 1x1 convolution"),
    ):
        with pytest.raises(ShapeError, match=message):
            layer.specs(shape)  # type: ignore[attr-defined]


def test_unknown_names_and_invalid_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cpu'"):
        pick_backend("cpuu")
    with pytest.raises(DeviceError, match="threads must be 1 or more"):
        pick_backend("cpu", 0)
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        MODELS["plain"](activation="rellu").layers((8, 8, 3), 2)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="model width: expected a whole number of 1 or more, found 0"):
        MODELS["resnet9"](width=0).layers((8, 8, 3), 2)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="model whiten_bias: expected a number from 0 to 1, found 3"):
        MODELS["airbench94"](whiten_bias=3.0).layers((8, 8, 3), 2)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="model shift_lr_factor: expected a number above 0, found 0"):
        MODELS["airbench94"](shift_lr_factor=0.0).layers((8, 8, 3), 2)  # type: ignore[call-arg]


@pytest.mark.skipif(not why_unusable(), reason="this machine has a working GPU")
def test_without_a_gpu_auto_is_the_cpu_and_gives_the_reason() -> None:
    assert pick_backend("auto").name == "cpu"
    with pytest.raises(DeviceError, match=r"no usable GPU: .*; use --device cpu"):
        pick_backend("cuda")
