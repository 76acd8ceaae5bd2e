"""One file a device; `reference.py` says what every kernel means."""
