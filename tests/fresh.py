"""What tests let a fresh process do, in a module that loads no framework."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping

from edgedl.sessions import UnsupportedOperator


def light(asked: Mapping[str, str]) -> dict[str, object]:
    if asked["do"] == "crash":
        print("last words", flush=True)
        ctypes.string_at(0)
    if asked["do"] == "hang":
        time.sleep(60)
    if asked["do"] == "refuse":
        raise UnsupportedOperator(["aten.foo"])
    return {"pid": os.getpid(), "torch": "torch" in sys.modules, "text": "ü" * 100_000}
