"""A program that torch.export saved, as layers that can be trained, pruned and quantized again."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.core import ModelFileError, Network, Task, UsageError
from edgedl.own import networks

if TYPE_CHECKING:
    import torch
    from torch import nn

PLAIN = re.compile(r"(Symbol\('\w+'|\d\.\d|[\w\s+\-*/%(),<>=!&|~])*")
"""What expressions of sizes are made of: no strings but names of symbols, and no attributes of anything."""


class Exported(Network):
    """`source` is a .pt2 file.

    Its convolutions, dense layers, norms, embeddings and dropouts become layers again, under the names that they had;
    so batch norms and dropouts work in training as they did before the export. Any other operator stays as it is.
    """

    use: str = "exported"
    source: str

    def build(self, task: Task) -> nn.Module:
        """Raises `ModelFileError` for a file that cannot be read, or that would run code."""
        from edgedl.own.layers import layers

        program = _read(Path(self.source))
        net = layers(program.module(check_guards=False))  # guards are code, out of the file
        try:
            return networks.adapted(net, task)
        except UsageError as error:
            raise UsageError(f"{self.source}: {error}{_fixed(program)}") from error


def _read(file: Path) -> torch.export.ExportedProgram:
    import torch

    if not file.is_file():
        raise ModelFileError(f"{file}: no such file")
    try:
        _check_harmless(file)
        with _no_pickles(), _silent(logging.getLogger("torch.export")):
            return torch.export.load(file)
    except ModelFileError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{file}: holds more than tensors, so that reading it would run code of whoever made it; it is not read"
        ) from error
    # torch raises whatever its readers of archives, JSON, pickles and graphs do.
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ModelFileError(
            f"{file}: no .pt2 file of torch.export.save, or a truncated one: {type(error).__name__}: {said}"
        ) from error


def _check_harmless(file: Path) -> None:
    """Raises `ModelFileError` for an archive of which torch would unpickle or evaluate more than it has to."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            folder, _, stored = name.rpartition("/data/constants/")
            if folder and not stored.startswith("tensor_") and not stored.endswith("_config.json"):
                raise ModelFileError(
                    f"{file}: holds an object of a class of its own ({stored}), which only code can bring back; "
                    "export the network without it"
                )
            if name.endswith(".json"):
                for text in _expressions(json.loads(archive.read(name))):
                    if not PLAIN.fullmatch(text) or "__" in text:
                        raise ModelFileError(f"{file}: holds code where the size of a tensor should be: {text[:80]!r}")


def _expressions(value: Any) -> Iterator[str]:
    """What torch hands to sympy, which evaluates it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "expr_str":
                yield str(inner)
            else:
                yield from _expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _expressions(inner)


@contextmanager
def _no_pickles() -> Iterator[None]:
    """torch.export.load asks torch.load for whole objects where weights would do; torch's own variable forbids that."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Without the traceback that torch logs of a file that it cannot read, before it raises."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _fixed(program: torch.export.ExportedProgram) -> str:
    """What to do where it was exported for one number of samples."""
    import torch

    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder"
        and node.name in program.graph_signature.user_inputs
        and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    sizes = {shape[0] for shape in shapes if len(shape) and isinstance(shape[0], int)}
    if not sizes:
        return ""
    return (
        f"; it was exported for {' or '.join(map(str, sorted(sizes)))} samples at once: "
        "export it with dynamic_shapes that have torch.export.Dim.DYNAMIC for dimension 0"
    )
