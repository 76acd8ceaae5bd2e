"""What kernels and whole steps cost, as the emulator counts it: tests, and tables for docs/gpu.md."""
