"""Faults from outside: hostile files, odd file systems, terminals and environments."""
