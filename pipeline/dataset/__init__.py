"""The dataset on disk: its format, and opening, reading, writing, verifying and measuring it."""
