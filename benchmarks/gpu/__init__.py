"""What a first session on a real GPU proves and measures, in under nine minutes: see `first_run`."""
