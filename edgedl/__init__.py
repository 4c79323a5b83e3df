"""edgedl: compress a PyTorch model for a small device, and measure the very files that ship."""

__version__ = "0.1.0"
