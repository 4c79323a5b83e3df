"""NVIDIA's GPUs, the engines that they run, and what came with those."""
