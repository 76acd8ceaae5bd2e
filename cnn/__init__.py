"""A small CNN library: every forward and backward pass is implemented here, without autograd.

Start with `layers/`, then `network.py` and `training/trainer.py`; `backends/reference.py` holds the arithmetic in plain
NumPy. Nothing here depends on image files, Zarr or Dask.
"""
