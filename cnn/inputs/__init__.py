"""From uint8 images and labels to a network's inputs and targets: checks, augmentation, normalisation."""
