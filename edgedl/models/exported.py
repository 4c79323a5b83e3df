"""A program that torch.export saved, as layers that can be trained, pruned and quantized again."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import own
from edgedl.core import ModelFileError, Network, Task, UsageError

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

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
        program = _read(Path(self.source))
        net = _layers(program.module(check_guards=False))  # guards are code, out of the file
        try:
            return own.adapted(net, task)
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


def _layers(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph with layers in place of the functions that they are; it can be set to training."""
    from torch import fx

    graph, uses = module.graph, Counter[str]()
    for node in graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] += len(node.users)
    for node in list(graph.nodes):
        layer = _layer(module, node) if node.op == "call_function" else None
        if layer is None:
            continue
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr"]
        path = _path(tensors, node.name)
        if any(uses[str(tensor.target)] > 1 for tensor in tensors) or not _give(module, layer, tensors, path):
            continue
        given = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg not in tensors)
        with graph.inserting_before(node):
            called = graph.call_module(path, (given,))
        called.meta = node.meta
        node.replace_all_uses_with(called)
        graph.erase_node(node)
    for node in list(graph.nodes):
        # Counters of batch norms are read and never used.
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(module, graph)


def _path(tensors: list[fx.Node], name: str) -> str:
    """Where the layer was: its tensors say so, under which `_give` looks for them; one without any has no name."""
    return str(tensors[0].target).rpartition(".")[0] if tensors else name


def _give(module: nn.Module, layer: nn.Module, tensors: list[fx.Node], path: str) -> bool:
    """Puts a layer with the tensors of the graph at its path; False where they are not those of one layer."""
    wanted = {name: tensor for name, tensor in layer.state_dict().items() if name != "num_batches_tracked"}
    found = {}
    for node in tensors:
        folder, _, name = str(node.target).rpartition(".")
        if folder != path or name not in wanted:
            return False
        found[name] = _tensor(module, str(node.target))
    if not path or found.keys() != wanted.keys() or any(found[name].shape != wanted[name].shape for name in found):
        return False
    layer.load_state_dict(found, strict=False)
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
    return True


def _tensor(module: nn.Module, path: str) -> torch.Tensor:
    parent, _, name = path.rpartition(".")
    found: torch.Tensor = getattr(module.get_submodule(parent), name)
    return found.detach()


def _layer(module: nn.Module, node: fx.Node) -> Any:
    """The layer behind a call of one of ATen's functions, with weights of its own; None if it is none."""
    import torch
    from torch import fx, nn

    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    schema, given = node.target._schema, dict[str, Any]()
    for position, argument in enumerate(schema.arguments):
        value = node.args[position] if position < len(node.args) else argument.default_value
        given[argument.name] = node.kwargs.get(argument.name, value)
    name = schema.name.removeprefix("aten::")
    weight = given.get("weight")
    shape = None
    if isinstance(weight, fx.Node):
        if weight.op != "get_attr":
            return None
        shape = _tensor(module, str(weight.target)).shape
    bias = given.get("bias") is not None
    convolution = {key: given.get(key) for key in ("stride", "padding", "dilation", "groups")}
    if any(isinstance(value, fx.Node) for value in convolution.values()):
        return None
    if shape is not None and name in ("conv1d", "conv2d", "conv3d"):
        kind: Any = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[name]
        return kind(shape[1] * given["groups"], shape[0], tuple(shape[2:]), bias=bias, **_tuples(convolution))
    if shape is not None and name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        transposed: Any = {"1": nn.ConvTranspose1d, "2": nn.ConvTranspose2d, "3": nn.ConvTranspose3d}[name[14]]
        more = _tuples({**convolution, "output_padding": given["output_padding"]})
        return transposed(shape[0], shape[1] * given["groups"], tuple(shape[2:]), bias=bias, **more)
    if shape is not None and name == "linear":
        return nn.Linear(shape[1], shape[0], bias=bias)
    if shape is not None and name == "batch_norm" and given["running_mean"] is not None and not given["training"]:
        ndim = given["input"].meta["val"].ndim
        norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[ndim]
        return norm(shape[0], eps=given["eps"], momentum=given["momentum"])
    if shape is not None and name == "layer_norm":
        return nn.LayerNorm(tuple(shape), eps=given["eps"], bias=bias)
    if shape is not None and name == "group_norm":
        return nn.GroupNorm(given["num_groups"], shape[0], eps=given["eps"])
    if shape is not None and name == "embedding":
        return nn.Embedding(shape[0], shape[1])
    if name == "dropout":
        return nn.Dropout(given["p"])
    return None


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in given.items()}
