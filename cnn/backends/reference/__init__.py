"""Reference backend in plain NumPy. The other backends are tested against it; read it before them, from `layers.py` on.

Arrays are made only by functions of `self.xp`, so that CuPy runs this code unchanged on a GPU, and computed in the
precision of the inputs, so that tests check gradients in float64.
"""

from cnn.backends.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
