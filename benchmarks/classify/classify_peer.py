"""Classification of a folder with our network in PyTorch: the peer of `classify_speed`.

    PYTHON -m benchmarks.classify.classify_peer FOLDER MODEL.npz BATCH WORKERS

PYTHON is an interpreter with Pillow and PyTorch. MODEL.npz has the model file's tensors and its card as JSON, as
`classify_speed` exports them, so that no safetensors library is needed. A worker: see `benchmarks.worker`.

A DataLoader of WORKERS persistent processes decodes: Pillow opens, converts to RGB, resizes bicubically and pads. The
main process normalises the uint8 batches and computes in inference mode, with PyTorch's default number of threads, in
the fastest of contiguous or channels-last memory, with batch norm folded or not.
"""

import argparse
import copy
import csv
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.data import DataLoader, Dataset

from benchmarks.build.build_peers import decode_padded
from benchmarks.training.side_torch import speed_up
from benchmarks.training.torch_peer import load_ours, to_torch
from benchmarks.worker import median_ms, serve
from cnn.models import MODELS

Network = Callable[[Tensor], Tensor]  # uint8 images (B, H, W, 3) -> probabilities (B, classes)


def list_files(folder: Path) -> list[str]:
    """All files below `folder`, relative to it, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Files(Dataset[np.ndarray]):
    """The named images of a folder: uint8 (size, size, 3) each."""

    def __init__(self, folder: Path, names: list[str], size: int) -> None:
        self.folder, self.names, self.size = folder, names, size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(decode_padded(f"{self.folder}/{self.names[index]}", self.size))  # writable, as PyTorch requires


class Model:
    """The network of a model file, in all of PyTorch's variants."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as found:
            tensors = {name: found[name] for name in found.files}
        card = json.loads(tensors.pop("card").item())
        if card["fit"] != "pad":
            raise SystemExit(f"expected a model of padded images, found fit {card['fit']!r}")
        self.class_names: list[str] = card["class_names"]
        self.size: int = card["in_shape"][0]
        self.mean, self.std = (torch.tensor(card[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        layers = MODELS[card["model"]](**card["model_options"]).layers(tuple(card["in_shape"]), len(self.class_names))
        self.networks: dict[str, Network] = {}
        for layout, form in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            loaded, module = (to_torch(layers, tuple(card["in_shape"])) for _ in range(2))
            load_ours(loaded, tensors)
            speed_up(module, "channels_last")  # contiguous would flatten in another order than our weights
            # Its batch norms have other names, in the same order.
            module.load_state_dict(dict(zip(module.state_dict(), loaded.state_dict().values(), strict=True)))
            module = module.eval().to(memory_format=form)
            self.networks[layout] = partial(self._probabilities, module, form)
            self.networks[f"{layout}+fold"] = partial(self._probabilities, fuse(copy.deepcopy(module)), form)

    def _probabilities(self, module: nn.Module, form: torch.memory_format, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        x = x.sub_(self.mean).div_(self.std).contiguous(memory_format=form)
        return torch.softmax(module(x), 1)

    @torch.inference_mode()
    def fastest(self, batch: int) -> str:
        """The name of the fastest variant for batches of `batch`."""
        images = torch.randint(0, 256, (batch, self.size, self.size, 3), dtype=torch.uint8)  # (B, H, W, 3)
        return min(self.networks, key=lambda name: median_ms(partial(self.networks[name], images), 1.0))


class Side:
    """The files, their DataLoader, and the fastest variant of the network."""

    def __init__(self, folder: Path, model: Path, batch: int, workers: int) -> None:
        self.folder, self.model = folder, Model(model)
        self.fastest = self.model.fastest(batch)
        self.names = list_files(folder)
        files = Files(folder, self.names, self.model.size)
        self.loader = DataLoader(files, batch, num_workers=workers, persistent_workers=True)

    @torch.inference_mode()
    def classify(self, out: str) -> float:
        """Write the table to `out`; returns seconds from listing the files."""
        began = time.perf_counter()
        if list_files(self.folder) != self.names:  # already sent to the worker processes
            raise SystemExit(f"{self.folder} has changed")
        network, done = self.model.networks[self.fastest], 0
        with Path(out).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["filename", "label", "prob"])
            for images in self.loader:
                best, labels = network(images).max(1)  # (B,) each
                names = self.names[done : done + len(images)]
                for name, label, prob in zip(names, labels.tolist(), best.tolist(), strict=True):
                    writer.writerow([name, self.model.class_names[label], f"{prob:.6f}"])
                done += len(images)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("batch", type=int)
    parser.add_argument("workers", type=int)
    side = Side(**vars(parser.parse_args()))
    serve({"classify": side.classify, "fastest": lambda: side.fastest, "threads": torch.get_num_threads})


if __name__ == "__main__":
    main()
