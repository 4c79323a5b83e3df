"""Weights from files of other programs, without running what such a file may hold."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import plugins
from edgedl.core import ModelFileError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Keys under which training scripts keep a state dict."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put before the names of parameters: data parallel, compiled, Lightning."""
NUM_NAMED = 3


def loaded(net: nn.Module, file: str, unpickle: bool = False) -> nn.Module:
    """A copy of a network with the weights of a file.

    Raises `ModelFileError` for one that cannot be read or would run code, `UsageError` for weights of another network.
    """
    found = _stripped(read(file, unpickle), set(net.state_dict()))
    wanted = net.state_dict()
    there = {tensor.data_ptr() for name, tensor in wanted.items() if name in found}
    tied = [name for name, tensor in wanted.items() if name not in found and tensor.data_ptr() in there]
    missing = [name for name in wanted if name not in found and name not in tied]
    unexpected = [name for name in found if name not in wanted]
    if missing or unexpected:
        said = []
        if missing:
            near = plugins.nearest(missing[0], found) if found else "it has none"
            said.append(f"it lacks {_several(missing)} ({near})")
        if unexpected:
            said.append(f"the network has no {_several(unexpected)}")
        raise UsageError(f"{file}: weights of another network: {'; '.join(said)}")
    shapes = [
        f"{name} {tuple(found[name].shape)} in the file and {tuple(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name not in tied and found[name].shape != tensor.shape
    ]
    if shapes:
        raise UsageError(f"{file}: weights of another network: {_several(shapes)}")
    own = copy.deepcopy(net)
    own.load_state_dict(found, strict=False)  # what it shares with another name need not be there twice
    return own


def read(file: str, unpickle: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or a checkpoint by name. Raises `ModelFileError`."""
    import torch

    path = Path(file)
    if not path.is_file():
        raise ModelFileError(f"{file}: no such file of weights")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelFileError(f"{file}: no readable safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=not unpickle)
    except pickle.UnpicklingError as error:
        raise ModelFileError(_refusal(file, error)) from error
    except Exception as error:  # PyTorch's unpickler takes damaged bytes for commands, which may raise anything
        said = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{file}: no readable checkpoint, truncated perhaps: {said}") from error
    return _tensors(content, file)


def _refusal(file: str, error: pickle.UnpicklingError) -> str:
    """torch says the same, at length, of a pickle that asks for more than tensors and of bytes that are no pickle."""
    if "Unsupported operand" in str(error):
        return f"{file}: no checkpoint that PyTorch wrote, or a truncated one"
    asks = re.search(r"GLOBAL ([\w.]+)", str(error))
    return (
        f"{file}: holds more than tensors{f' ({asks[1]})' if asks else ''}, so that reading it would run code of "
        "whoever made it; save its state_dict() alone, or set unpickle = true if you trust it"
    )


def _tensors(content: Any, file: str) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(content, torch.nn.Module):  # only with `unpickle`
        content = content.state_dict()
    while isinstance(content, Mapping):
        found = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        nested = next((content[key] for key in NESTS if isinstance(content.get(key), Mapping | torch.nn.Module)), None)
        if found and nested is None:
            return found
        if nested is None:
            break
        content = nested.state_dict() if isinstance(nested, torch.nn.Module) else nested
    keys = f" with the keys {_several([str(key) for key in content])}" if isinstance(content, Mapping) else ""
    raise ModelFileError(f"{file}: holds a {type(content).__name__}{keys}, and no state dict")


def _stripped(found: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Without what a wrapper put before all names, where the network's own have no such thing."""
    while found and (
        prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in found)), None)
    ):
        if all(name.startswith(prefix) for name in wanted):
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _several(names: list[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
