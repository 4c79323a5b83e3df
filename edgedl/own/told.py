"""What a person's own code raises, in a line that says what it was given and where it is."""

from __future__ import annotations

import dataclasses
import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary as Frame
from typing import TYPE_CHECKING, Any

from edgedl.core import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def explained(net: nn.Module, inputs: Mapping[str, torch.Tensor], then: str = "") -> Iterator[None]:
    """Makes one line of whatever a first run raises: which layer, and what it was given; `then` ends it."""
    import torch

    entered: list[tuple[str, nn.Module, tuple[Any, ...]]] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda module, given: entered.append((path, module, given))

    def leave(module: nn.Module, given: Any, result: Any) -> None:
        entered.pop()

    hooks = []
    for path, module in net.named_modules():
        hooks += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # it is a person's code, which may raise anything
        path, module, given = entered[-1] if entered else ("", net, ())
        where = ""
        if path:
            shapes = ", ".join(str(tuple(value.shape)) for value in given if isinstance(value, torch.Tensor))
            where = f" in layer {path}, {_short(module)}, which was given {shapes or 'no tensor'}"
        said = ", ".join(f"{name} {tuple(tensor.shape)} {dtype_of(tensor)}" for name, tensor in inputs.items())
        raise UsageError(
            f"{class_of(net)} does not take {said}: {one_line(error)}{where}{line_of(error)}{then}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def reason(error: Exception) -> str:
    """Why an export has failed, and what to write instead, of what is met most."""
    said, kind = str(error), type(error).__name__
    if "DataDependent" in kind or "data-dependent" in said or "data dependent" in said:
        return (
            "what its forward does depends on values of tensors (an if, a loop, item() or a comparison), which a file "
            "cannot; write it with torch.where, masks, or fixed counts"
        )
    if "ConstraintViolation" in kind or "specialized" in said or "Constraints violated" in said:
        return (
            "its forward takes the number of samples for a fixed one; reshape with x.shape[0] or -1, not with a number"
        )
    if ".numpy()" in said:
        return "a part of it computes outside PyTorch, in numpy, where no export can follow; write it with torch"
    return one_line(error)


def line_of(error: Exception) -> str:
    """Where in a person's code it was, if anywhere."""
    return line_in(traceback.extract_tb(error.__traceback__))


def line_in(stack: Sequence[Frame]) -> str:
    """The innermost line of a person's code, if there is any."""
    here = (str(Path(__file__).parents[1]), str(Path(inspect.getfile(dataclasses)).parent))
    frames = [
        frame
        for frame in stack
        if not frame.filename.startswith((*here, "<")) and f"{os.sep}torch{os.sep}" not in frame.filename
    ]
    if not frames:
        return ""
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})"


def one_line(error: Exception) -> str:
    """An error's kind and what it says, not too long."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {said[:300]}' if said else ''}"


def described(result: Any) -> str:
    """What kind of thing a module returned."""
    import torch

    return f"a {dtype_of(result)} tensor" if isinstance(result, torch.Tensor) else f"a {type(result).__name__}"


def dtype_of(tensor: torch.Tensor) -> str:
    """Such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def class_of(net: nn.Module) -> str:
    """What a person called the module."""
    return type(net).__name__


def _short(module: nn.Module) -> str:
    said = str(module)
    return type(module).__name__ if "\n" in said else said
