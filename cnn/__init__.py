"""A convolutional network written from scratch: every forward and backward pass is ours.

Start with `layers/`, then `network.py` and `train.py`; `backends/reference.py` holds the arithmetic in plain
NumPy. Nothing here knows of files of images, of Zarr or of Dask.
"""
