"""Build a dataset from a folder of images: split, decode, write shards, resume, report."""
