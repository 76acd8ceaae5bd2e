"""Tasks in parallel, on threads or on a Dask cluster."""
