"""The dataset on disk: its format, and opening, reading, writing, verifying and measuring it."""

from logpose.common.broken_packages import hide_if_broken

hide_if_broken("cupy")  # before zarr tries to import it
