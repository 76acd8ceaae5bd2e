"""Mutants: copies of the GPU backend with one mistake each, all of which its tests must find.

    LOGPOSE_ALL_MUTANTS=1 pytest tests/cnn/backends/gpu/mutants    # all of them; without the variable, a sample

A mutant that no check finds is a gap in the tests or in the emulator.
"""
