"""What `torch.export` makes of a person's module, and why it makes nothing of it."""

from __future__ import annotations

import copy
import io
import logging
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from traceback import FrameSummary as Frame
from typing import TYPE_CHECKING

from edgedl import dimensions
from edgedl.core import Dimension, UsageError
from edgedl.dimensions import Dynamic
from edgedl.own.told import class_of, line_in, line_of, reason

if TYPE_CHECKING:
    import torch
    from torch import nn

RECURRENT = str(Path("torch", "nn", "modules", "rnn.py"))


def program_of(
    net: nn.Module, own: nn.Module, inputs: Mapping[str, torch.Tensor], named: Dynamic
) -> torch.export.ExportedProgram:
    """`net` as PyTorch exports it, for any number of samples, as files are made, and any size of what is `named`.

    Raises `UsageError`, which speaks of the module `own`, where PyTorch cannot, with the line that is why.
    """
    try:
        return _program(net, inputs, named)
    except Exception as error:  # of a dozen kinds, some of them a person's own
        said = f"{class_of(own)} cannot be exported"
        for name, one in dimensions.by_name(named).items():
            where = _where_fixed(net, inputs, _only(named, name))
            if where is not None:
                raise UsageError(f"{said} for any {name}: {_why_fixed(where, one)}") from error
        raise UsageError(f"{said}: {reason(error)}{line_of(error)}") from error


def _where_fixed(net: nn.Module, inputs: Mapping[str, torch.Tensor], named: Dynamic) -> list[Frame] | None:
    """The stack where an export takes a dimension for a fixed one; None where it does not.

    PyTorch raises only when it is through; what it notes on its way, it notes where it happens.
    """
    found: list[list[Frame]] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("set_replacement"):
                found.append(list(traceback.extract_stack()))

    logger, handler = logging.getLogger("torch.fx.experimental.symbolic_shapes"), Noting()
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        _program(net, inputs, named)
    except Exception as error:  # the same as the first time
        fixed = "specialized" in str(error) or "Constraints violated" in str(error)
        return (found or [[]])[0] if fixed else None
    finally:
        logger.handlers, _, logger.propagate = before
        logger.setLevel(before[1])
    return None


def _why_fixed(where: Sequence[Frame], one: Dimension) -> str:
    if any(frame.filename.endswith(RECURRENT) for frame in where):
        what = f"PyTorch exports an LSTM or GRU for one number of steps, here {one.size}{line_in(where)}"
        return f"{what}; leave {one.name} out of dynamic, or use convolutions or attention in its place"
    return (
        f"its forward takes that for a fixed {one.size}{line_in(where)}; compute with sizes of tensors, such as "
        f"x.shape[1] or -1, instead of numbers, or leave {one.name} out of dynamic"
    )


def _program(net: nn.Module, inputs: Mapping[str, torch.Tensor], named: Dynamic) -> torch.export.ExportedProgram:
    import torch

    dynamic = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for name, tensor in inputs.items():
        dynamic[tensor] = dict.fromkeys((0, *named.get(name, {})), torch.export.Dim.DYNAMIC)
    copied = copy.deepcopy(net)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # whole graphs are printed there
        return torch.export.export(copied, tuple(inputs.values()), dynamic_shapes=dynamic)  # type: ignore[arg-type]


def _only(named: Dynamic, dimension: str) -> Dynamic:
    return {name: {axis: one for axis, one in axes.items() if one.name == dimension} for name, axes in named.items()}
