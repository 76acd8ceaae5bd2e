"""Near-duplicate detection: fingerprint each image, find candidate pairs, match them, group them."""
