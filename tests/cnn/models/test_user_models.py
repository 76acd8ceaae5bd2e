"""User-defined models: registering, importing by name, training, saving and loading."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from cnn.arena import Shape
from cnn.backends import pick_backend
from cnn.checkpoint import ModelCard, load_checkpoint, save_checkpoint
from cnn.errors import ModelFileError, RecipeError
from cnn.inference.predictor import Predictor
from cnn.layers import Conv2D, Dense, GlobalAveragePool, Layer, ReLU, Sequential, chain
from cnn.models import MODELS, ResNet9, build_layers, import_model, model_path, register_model
from cnn.training.trainer import Trainer
from tests.cnn.tiny_task import CARD, MEAN, SHAPE, STD, draw_images, make_recipe, train

SOURCE = """
from dataclasses import dataclass
from cnn.layers import Dense, GlobalAveragePool, chain
from cnn.models import register_model
{decorator}
@dataclass(frozen=True)
class Shallow:
    def layers(self, in_shape, classes):
        return chain(pool=GlobalAveragePool(), head=Dense(classes))
"""


@dataclass(frozen=True)
class Tiny:
    widths: tuple[int, ...] = (8, 16)
    pooled: bool = True

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        named: dict[str, Layer] = {}
        for number, width in enumerate(self.widths):
            named |= {f"conv{number}": Conv2D(width, stride=2), f"relu{number}": ReLU()}
        return chain(**named, pool=GlobalAveragePool(), head=Dense(classes))


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run each test in an empty folder with only the built-in models; unload the modules that it imported."""
    models = dict(MODELS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    MODELS.clear()
    MODELS.update(models)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def save_tiny(path: Path) -> ModelCard:
    register_model(Tiny)
    card = replace(CARD, model="tiny", model_options={"widths": (4, 6)}, model_class=model_path("tiny"))
    save_checkpoint(path, card, card.build_network(pick_backend("cpu"), seed=1).tensors(), {})
    return card


def test_a_registered_model_trains_and_is_saved_and_loaded(tmp_path: Path) -> None:
    assert register_model(Tiny) is Tiny
    model = Tiny(widths=(6, 12))
    assert MODELS["tiny"] is Tiny and model_path("tiny") == "tests.cnn.models.test_user_models:Tiny"
    card = replace(CARD, model="tiny", model_options={"widths": (6, 12)}, model_class=model_path("tiny"))
    network = card.build_network(pick_backend("cpu"), seed=1)
    trainer = Trainer(network, make_recipe(model=model), np.array(MEAN), np.array(STD), 200)
    losses = train(trainer, 42)
    assert losses[-1] < 0.8 * losses[0]
    save_checkpoint(tmp_path / "model.safetensors", card, network.tensors(), {})
    predictor = Predictor(tmp_path / "model.safetensors", pick_backend("cpu"))
    assert predictor.card == card and predictor.card.build_model() == model
    images, labels = draw_images(50, 3)
    np.testing.assert_array_equal(predictor.logits(images), trainer.evaluate([(images, labels)]).outputs)


def test_loading_a_model_file_imports_no_code_and_names_the_missing_class(tmp_path: Path) -> None:
    Path("evil.py").write_text("raise SystemExit('a model file ran code')")
    sys.path.insert(0, str(tmp_path))
    card = replace(save_tiny(tmp_path / "model.safetensors"), model="shallow", model_class="evil:Shallow")
    save_checkpoint(tmp_path / "model.safetensors", card, {}, {})
    assert load_checkpoint(tmp_path / "model.safetensors").card == card
    message = r"needs the model 'shallow', which is not registered; import evil first, or give --model evil:Shallow"
    with pytest.raises(ModelFileError, match=message):
        Predictor(tmp_path / "model.safetensors", pick_backend("cpu"))
    assert "evil" not in sys.modules
    with pytest.raises(ModelFileError, match=r"import PACKAGE\.MODULE first, or give --model PACKAGE\.MODULE:CLASS"):
        replace(card, model_class="").build_model()


def test_files_of_built_in_models_do_not_mention_a_class(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", CARD, {}, {})
    assert b"model_class" not in (tmp_path / "model.safetensors").read_bytes()
    assert model_path("resnet9") == ""
    save_tiny(tmp_path / "tiny.safetensors")
    assert b"tests.cnn.models.test_user_models:Tiny" in (tmp_path / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("decorator", "name"), [("@register_model", "shallow"), ("@register_model(name='flat')", "flat"), ("", "shallow")]
)
def test_import_model_registers_a_class_of_the_current_folder(decorator: str, name: str) -> None:
    Path("my_models.py").write_text(SOURCE.format(decorator=decorator))
    assert import_model("my_models:Shallow") == import_model("my_models:Shallow") == name
    assert model_path(name) == "my_models:Shallow"
    assert replace(CARD, model=name, model_options={}).build_network(pick_backend("cpu")).out_shape == (3,)


def test_import_model_finds_built_in_models() -> None:
    assert import_model("cnn.models:ResNet9") == "resnet9" and MODELS["resnet9"] is ResNet9


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_models", r"model 'my_models': expected PACKAGE\.MODULE:CLASS"),
        ("my models:Tiny", r"expected PACKAGE\.MODULE:CLASS"),
        ("my_models.py:Shallow", r"expected PACKAGE\.MODULE:CLASS"),
        ("missing:Tiny", r"importing missing failed with ModuleNotFoundError: .*; correct it there, or run from"),
        ("broken:Tiny", r"importing broken failed with ZeroDivisionError: division by zero"),
        ("my_models:Shalow", r"my_models has no Shalow; did you mean 'Shallow'"),
        ("my_models:dataclass", r"register_model: expected a class, found <function dataclass"),
    ],
)
def test_import_model_explains_what_is_wrong(path: str, message: str) -> None:
    Path("my_models.py").write_text(SOURCE.format(decorator=""))
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(RecipeError, match=message) as caught:
        import_model(path)
    assert "\n" not in str(caught.value)


def test_registering_a_name_of_another_model_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the model name 'resnet9' is taken by a built-in model; choose another"):
        register_model(name="resnet9")(Tiny)
    register_model(Tiny)
    other = type("Tiny", (Tiny,), {"__module__": "elsewhere"})
    with pytest.raises(RecipeError, match=r"'tiny' is taken by tests\.cnn\.models\.test_user_models:Tiny; choose"):
        register_model(other)
    assert MODELS["tiny"] is Tiny


def test_registering_a_notebook_cell_again_replaces_the_class() -> None:
    register_model(Tiny)
    again = dataclass(frozen=True)(type("Tiny", (), {"__module__": __name__, "layers": Tiny.layers}))
    assert register_model(again) is again and MODELS["tiny"] is again


class NotADataclass:
    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        return Tiny().layers(in_shape, classes)


@dataclass
class NotFrozen(NotADataclass):
    width: int = 8


@dataclass(frozen=True)
class NoLayers:
    width: int = 8


@dataclass(frozen=True)
class NoDefault(NotADataclass):
    width: int


@dataclass(frozen=True)
class NoPlainOption(NotADataclass):
    pool: Layer = field(default_factory=GlobalAveragePool)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NotADataclass, r"model NotADataclass: expected a frozen dataclass; write @register_model, and below"),
        (NotFrozen, r"model NotFrozen: expected a frozen dataclass"),
        (NoLayers, r"model NoLayers: it has no method layers; define layers\(self, in_shape, classes\)"),
        (NoDefault, r"model NoDefault: the option 'width' has no default"),
        (NoPlainOption, r"the option 'pool' is GlobalAveragePool\(\), which a model file cannot hold"),
        (Tiny(), r"register_model: expected a class, found Tiny\("),
    ],
)
def test_invalid_model_classes_are_refused(model: object, message: str) -> None:
    before = dict(MODELS)
    with pytest.raises(RecipeError, match=message):
        register_model(model)  # type: ignore[call-overload]
    assert before == MODELS


@dataclass(frozen=True)
class Returns:
    """A model whose `layers` returns `value`."""

    value: object = None

    def layers(self, in_shape: Shape, classes: int) -> object:
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"Returns\.layers: expected a Sequential, found None; return chain\(\.\.\., head=Dense\(classes\)\)"),
        (Sequential(()), r"expected a Sequential, found Sequential\(layers=\(\)\)"),
        (chain(pool=GlobalAveragePool(), fc=Dense(3)), r"expected a last layer called 'head', found 'fc'"),
        (chain(pool=GlobalAveragePool(), head=Dense(2)), r"expected 3 outputs, found shape \(2,\)"),
    ],
)
def test_layers_that_do_not_end_in_a_head_are_refused(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_layers(Returns(value), SHAPE, 3)  # type: ignore[arg-type]
