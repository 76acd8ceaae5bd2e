"""Data pipeline: from a folder of images to a chunked Zarr dataset, and from there to batches."""
