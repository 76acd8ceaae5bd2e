"""Layers: frozen dataclasses with a forward and a backward pass. One family per file; `base.py` has the protocol.

>>> layers = logpose.layers
>>> layers.chain(conv=layers.Conv2D(8, 3), pool=layers.MaxPool(2), flatten=layers.Flatten()).specs((8, 8, 3)).out_shape
(128,)
"""

from cnn.layers.activations import GELU, ReLU, Scale, Sigmoid, SiLU, Softmax, Tanh
from cnn.layers.base import Cache, DataInitialised, Layer, Run, Specs
from cnn.layers.containers import Residual, Sequential, chain
from cnn.layers.convolution import Conv2D
from cnn.layers.dense import Dense, Flatten
from cnn.layers.dropout import Dropout
from cnn.layers.normalisation import BatchNorm
from cnn.layers.pooling import AveragePool, GlobalAveragePool, GlobalMaxPool, MaxPool
from cnn.layers.whitening import Whitening

__all__ = [
    "GELU",
    "AveragePool",
    "BatchNorm",
    "Cache",
    "Conv2D",
    "DataInitialised",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Layer",
    "MaxPool",
    "ReLU",
    "Residual",
    "Run",
    "Scale",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Specs",
    "Tanh",
    "Whitening",
    "chain",
]
