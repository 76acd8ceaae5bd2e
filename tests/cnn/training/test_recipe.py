"""Arguments of wrong types to recipes and layers."""

from collections.abc import Callable

import pytest

from cnn.errors import RecipeError, UnknownNameError
from cnn.inputs.augment import Augment
from cnn.layers import BatchNorm, Conv2D, Dense, ReLU, Residual, Sequential, chain
from cnn.models import ResNet9
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.schedules import Cosine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, r"optimizer: expected .* SGD\(lr=0\.1\), found the text 'sgd'; write optimizer=SGD\(\)"),
        ({"optimizer": "sdg"}, r"found the text 'sdg'; write optimizer=SGD\(lr=0\.1\)"),
        ({"optimizer": SGD}, r"optimizer: .* found the class SGD; write optimizer=SGD\(\)"),
        ({"optimizer": Cosine()}, r"optimizer: .* found Cosine\(.*\); write optimizer=SGD\(lr=0\.1\)"),
        ({"model": "ResNet9"}, r"model: .* found the text 'ResNet9'; write model=ResNet9\(\)"),
        ({"model": ResNet9}, r"model: .* found the class ResNet9; write model=ResNet9\(\)"),
        ({"loss": "softmax_cross_entropy"}, r"loss: .* write loss=SoftmaxCrossEntropy\(\)"),
        ({"schedule": "cosine"}, r"schedule: .* write schedule=Cosine\(\)"),
        ({"augment": None}, r"augment: .* found None; write augment=Augment\(flip=True\)"),
        ({"augment": Augment}, r"augment: .* found the class Augment; write augment=Augment\(\)"),
        ({"mix": "cutmix"}, r"mix: .* found the text 'cutmix'; write mix=Mix\('cutmix'\)"),
        ({"ema": 0.1}, r"ema: .* found 0\.1; write ema=EMA\(horizon=0\.1\)"),
        ({"lookahead": True}, r"lookahead: .* found True; write lookahead=Lookahead\(every=5\)"),
        ({"epochs": "5"}, r"epochs: expected a whole number of 1 or more, found '5'"),
        ({"epochs": 0}, r"epochs: expected a whole number of 1 or more, found 0"),
        ({"batch_size": 2.5}, r"batch_size: expected a whole number of 1 or more, found 2\.5"),
        ({"clip": "off"}, r"clip: expected a number of 0 or more, found 'off'"),
    ],
)
def test_wrong_types_are_refused_with_the_right_expression(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe(**changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: chain(head=Dense), r"head: expected a layer, found the class Dense; write Dense\(\.\.\.\)"),
        (lambda: chain(act="relu"), r"act: expected a layer such as Dense\(10\), found 'relu'"),
        (lambda: Sequential((Conv2D(8), ReLU())), r"Sequential: expected pairs of a name and a layer, found Conv2D"),
        (lambda: Residual(Conv2D(8), ReLU), r"shortcut: expected a layer, found the class ReLU"),
        (lambda: Residual(None), r"body: expected a layer such as Dense\(10\), found None"),
        (lambda: BatchNorm(activation=ReLU()), r"activation: expected a name, found ReLU\(\); write one of 'relu'"),
    ],
)
def test_wrong_layers_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()


def test_an_unknown_activation_is_refused() -> None:
    for build in (
        lambda: BatchNorm(activation="swish"),
        lambda: Residual(Conv2D(8), activation="swish"),
        lambda: ResNet9(activation="swish").layers((32, 32, 3), 2),
    ):
        with pytest.raises(UnknownNameError, match="no activation is called 'swish'; choose one of: gelu, relu, "):
            build()
    with pytest.raises(UnknownNameError, match="no activation is called ''"):
        ResNet9(activation="").layers((32, 32, 3), 2)
