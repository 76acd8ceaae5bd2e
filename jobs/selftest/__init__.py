"""The self-test: whether this machine's device computes what the reference backend computes."""
