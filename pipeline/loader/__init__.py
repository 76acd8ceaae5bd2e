"""Minibatches for training: the order of an epoch, and threads that read ahead."""
