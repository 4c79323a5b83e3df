"""A target's converter, in a copy of the process: it is native code of others, which may crash, hang or eat memory."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from edgedl import child, plugins
from edgedl.core import Limits, Target
from edgedl.torch_tables import keep_tables


def bounds(limits: Limits) -> child.Bounds:
    """What a process may take that builds a file, or opens it first."""
    memory = limits.build_memory_gb
    return child.Bounds(60 * limits.build_minutes, None if memory is None else int(memory * 1e9))


def apart(target: Target, build: Callable[[], Any], limits: Limits) -> Any:
    """What `build` returns, which has to be JSON; where the target cannot be copied, from this very process.

    Raises what it raises, and `TargetError` for a converter that crashes, or takes more than the limits allow.
    """
    if not target.builds_apart:
        return build()
    for module in target.requires["build"]:
        if plugins.installed(module):
            importlib.import_module(module)  # once here, and not in every copy
            if module == "torch":
                _load_exporter()
    return child.call(f"the converter of target {target.label}", build, bounds(limits))


@functools.cache
def _load_exporter() -> None:
    """torch imports some 800 modules at a process's first export, which is this one: no copy has to."""
    import torch

    keep_tables()
    torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)).run_decompositions()
