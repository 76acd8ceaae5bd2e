"""PyTorch's side of the benchmarks: a training step and inference. Skipped without PyTorch (the extra `bench`)."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch, of the extra `bench`, is not installed")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by an import of `fuse`
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["plain", "resnet9"])  # a chain and one with residuals
def test_step_updates_all_parameters_and_folding_keeps_the_outputs(name: str, layout: str) -> None:
    from benchmarks.training.side_torch import TorchSide

    side = TorchSide(name, layout)
    side.x, side.labels = side.x[:4], side.labels[:4]
    before = {key: value.detach().clone() for key, value in side.module.named_parameters()}
    side.pick_optimizer()
    side.optimizer.param_groups[0]["lr"] = side.optimizer.param_groups[1]["lr"] = 1e-3
    side.step()
    unmoved = [key for key, value in side.module.named_parameters() if torch.equal(value, before[key])]
    assert not unmoved

    assert set(side.infer(0.0, 1)) == {"", "+fold"}
    with torch.inference_mode():
        plain, folded = (module(side.x) for module in side.ready.values())  # (4, classes) each
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
