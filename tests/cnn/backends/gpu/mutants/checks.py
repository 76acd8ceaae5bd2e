"""What mutants are checked with: tests of the backend, with as little work as finds the mistake."""

import inspect
from collections.abc import Callable
from typing import Any

from cnn.backends.gpu import convolution
from cnn.backends.gpu.convolution import TILES, Tile
from tests.cnn.backends.gpu import test_convolution, test_preprocess
from tests.cnn.backends.gpu.measures.costs import counted_costs, wasteful
from tests.cnn.backends.gpu.mutants.mutant import Context
from tests.cnn.backends.gpu.storage import error
from tests.cnn.backends.gpu.test_convolution import Case, Layer

Check = Callable[[Context], None]


def run(function: Callable[..., None], *arguments: Any) -> Check:
    """A test with these arguments, in the order of its parameters that are no fixtures."""

    def check(context: Context) -> None:
        fixtures = {
            "device": context.device, "emulator": context.device, "monkeypatch": context.patch, "stream_schedule": "",
        }  # fmt: skip
        rest, names = iter(arguments), inspect.signature(function).parameters
        function(*(fixtures[name] if name in fixtures else next(rest) for name in names))

    return check


def in_schedules(check: Check, *schedules: str) -> Check:
    """A check in several schedules of the device's streams."""

    def check_in_all(context: Context) -> None:
        for name in schedules:
            with context.device.cuda.schedule(name):
                check(context)

    return check_in_all


def costs(check: Check) -> Check:
    """That what a check does accesses memory in whole sectors, and shared memory in all banks."""

    def check_costs(context: Context) -> None:
        with counted_costs() as counted:
            check(context)
        assert counted and not wasteful(counted)

    return check_costs


def one_pass(which: str, case: Case, precision: str = "bf16", tile: Tile = TILES[-1], activation: str = "") -> Check:
    """One of a convolution's passes y, dx and d_weight."""

    def check(context: Context) -> None:
        layer = Layer(precision, case)
        if activation == "":
            layer.weight, layer.bias = layer.weight.copy(), layer.bias.copy()  # begin at a multiple of 16 bytes
        with test_convolution._only(context.patch, tile):
            if which == "y":
                found = layer.forward(activation)[0]  # (N, OH, OW, K)
            elif which == "dx":
                found = layer.input_gradient()  # (N, H, W, C)
            else:
                found = context.device.empty(layer.weight_shape, layer.wide)  # (KH, KW, C, K)
                convolution.weight_gradient(layer.dy, layer.x, layer.window, layer.math, found)
        expected = layer.expected()[("y", "dx", "d_weight").index(which)]
        if activation:
            expected = test_convolution.REFERENCE.activate(activation, expected)
        assert error(found, expected) < layer.tolerance

    return check


def augment_in_type(dtype: Any) -> Check:
    """Images of a type, and the zeros that their pixels are padded with."""

    def check(context: Context) -> None:
        module, buffers = test_preprocess.preprocess, []  # type: ignore[var-annotated]
        padded = module._padded
        with context.patch.context() as patch:
            patch.setattr(module, "_padded", lambda *given: buffers.append(padded(*given)) or buffers[-1])
            test_preprocess.test_augment_in_every_type(dtype, False, buffers)

    return check
