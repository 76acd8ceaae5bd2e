"""Trained networks: fast forward pass, test-time augmentation, prediction and Grad-CAM."""
