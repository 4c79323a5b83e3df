"""edgedl: compress a PyTorch model for a small device, and measure the very files that ship.

    import edgedl

    run = edgedl.compress(model, (images, labels))
    run.best("tflite")

These names are the whole Python interface; docs/own-model.md tells more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgedl.api import EdgedlError, Run, bench, compare, compress, load_run, open

__version__ = "0.1.0"
__all__ = ["EdgedlError", "Run", "bench", "compare", "compress", "load_run", "open"]


def __getattr__(name: str) -> object:
    """Only then are they imported: `edgedl --help` shall not wait for them."""
    if name not in __all__:
        raise AttributeError(f"module 'edgedl' has no attribute {name!r}")
    from edgedl import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
