"""A small CNN library: every forward and backward pass is implemented here, without autograd.

Reading order: `layers/base.py`, `layers/convolution.py`, `backends/reference/layers.py` (the arithmetic in plain
NumPy), `network.py`, `training/recipe.py`, `training/trainer.py`, `models/architectures.py`. Nothing here depends on
image files, Zarr or Dask.
"""
