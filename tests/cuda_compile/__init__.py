"""Compile the CUDA kernels for real GPUs, without one: NVRTC and a disassembler, both from wheels."""
