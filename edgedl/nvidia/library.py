"""NVIDIA's libraries, TensorRT (10 or 11) and TensorRT-RTX: functions take the imported package as `trt`.

The APIs are nearly the same. What differs: strong typing is a flag of TensorRT 10 and all that later ones know;
compute capabilities are chosen for TensorRT-RTX alone; a timing cache does something in TensorRT alone; and the first
bytes of files.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
"""The first four bytes of an engine file; bytes 24 to 27 are the version that built it."""


def describe(trt: Any) -> str:
    """The package and its version: "TensorRT 10.3.0"."""
    return f"{NAMES[trt.__name__]} {trt.__version__}"


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """NVIDIA's library logs under a lock that its destructors take too: collecting a dead builder there never ends."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        (gc.enable if enabled else gc.disable)()


def message_log(trt: Any) -> Any:
    """A logger that prints nothing and keeps what went wrong."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:  # the lower, the worse
                kept = self.warnings if severity == trt.ILogger.Severity.WARNING else self.errors
                kept.append(one_line(message))

        def text(self) -> str:
            return "; ".join(dict.fromkeys(self.errors or self.warnings))[:600] or "NVIDIA's library gave no reason"

    return Log()


def one_line(text: str) -> str:
    """What the library says, without what does not belong to it."""
    # Without a driver the library adds a CUDA error to whatever it says, which has nothing to do with the matter.
    return " ".join(re.sub(r"\[checkMacros\.cpp::catchCudaError.*?\)\)", "", text, flags=re.DOTALL).split())
