"""What a first run on a real GPU proves and measures, in under nine minutes: see `first_run`."""
