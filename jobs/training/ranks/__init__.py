"""A training on many workers: each rank computes some micro-batches of every step, and all make the same update.

Dask starts the ranks, knows which workers are alive, and carries the bytes. The process that was started by the user is
not a rank: it forms generations of ranks (`engine.py`), writes the files and shows the progress.

    engine ──tasks──▶ rank 0 ◀──sums, slice by slice──▶ rank 1 ◀──▶ …
       ◀──results of steps, state── rank 0
"""
