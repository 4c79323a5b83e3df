"""A graph of PyTorch that is built from an ONNX file's nodes.

What depends on constants alone is computed at once; sizes that depend on the number of samples stay open: everything
is run with two numbers of samples meanwhile, and what differs is open.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from edgedl.core import ModelFileError

NUM_FIRST, NUM_SECOND = 2, 3
"""Samples of the two examples."""


@dataclass(frozen=True)
class Value:
    """What is known when the network runs: a tensor or a size, and what it is for the two examples."""

    node: fx.Node
    examples: tuple[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """For the first example."""
        return tuple(self.examples[0].shape)

    @property
    def is_open(self) -> tuple[bool, ...]:
        """For each dimension whether it depends on the number of samples."""
        return tuple(one != other for one, other in zip(*(example.shape for example in self.examples), strict=True))


class Sizes(list[Any]):
    """A vector of integers, some of which are `Value`s; `is_scalar` if it is one number."""

    is_scalar = False


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A constant: float32 where it was another float."""
    array = np.array(array)
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)


class Builder:
    """What is made so far: the graph, its layers, and the value behind every name of the file."""

    def __init__(self, model: onnx.ModelProto, name: str, fixed: int | None) -> None:
        self.file, self.graph, self.root = name, fx.Graph(), nn.Module()
        self.fixed = fixed
        """The number of samples that the file was exported for, if it takes no other."""
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self.values: dict[str, Any] = {"": None}
        self.labels: Counter[str] = Counter()
        self.parameters: dict[int, fx.Node] = {}
        self.kept: list[torch.Tensor] = []
        self.users = Counter(name for node in model.graph.node for name in node.input)
        self.users.update(output.name for output in model.graph.output)
        self.unbiased: dict[str, nn.Linear] = {}
        self.names: dict[int, str] = {}
        """Of constants."""

    def refusal(self, node: onnx.NodeProto, reason: str) -> ModelFileError:
        """An error that names a node."""
        domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
        fixed = (
            f" (the file is for {self.fixed} samples at once: export it with that dimension open)" if self.fixed else ""
        )
        return ModelFileError(f"{self.file}: operator {domain}{node.op_type} of node {_called(node)} {reason}{fixed}")

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A function of values and constants: computed now where all are constants, else a node of the graph."""
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value)]
        if not leaves:
            return function(*args, **kwargs)
        lifted_args, lifted_kwargs = pytree.tree_map(self.node, (args, kwargs))
        node = self.graph.call_function(function, lifted_args, lifted_kwargs)
        with torch.no_grad():
            examples = []
            for index in (0, 1):
                own_args, own_kwargs = pytree.tree_map(
                    lambda leaf, index=index: leaf.examples[index] if isinstance(leaf, Value) else leaf, (args, kwargs)
                )
                examples.append(function(*own_args, **own_kwargs))
        return Value(node, (examples[0], examples[1]))

    def layer(self, node: onnx.NodeProto, module: nn.Module, *given: Any, name: str | None = None) -> Any:
        """A layer of its own; a constant that goes through one is computed now."""
        module = module.eval()
        if not any(isinstance(value, Value) for value in given):
            with torch.no_grad():
                return module(*given)
        label = self.label(name or node.name or f"{node.op_type}_{node.output[0]}")
        self.root.add_module(label, module)
        called = self.graph.call_module(label, tuple(map(self.node, given)))
        with torch.no_grad():
            one, other = (
                module(*(value.examples[index] if isinstance(value, Value) else value for value in given))
                for index in (0, 1)
            )
        return Value(called, (one, other))

    def parts(self, value: Any, count: int) -> tuple[Any, ...]:
        """Each of what a function or layer returns as a tuple."""
        return tuple(self.call(operator.getitem, value, index) for index in range(count))

    def size(self, value: Any, dim: int) -> Any:
        """An int, or where it depends on the number of samples a `Value`."""
        if not isinstance(value, Value):
            return value.shape[dim]
        return self.call(torch.Tensor.size, value, dim) if value.is_open[dim] else value.shape[dim]

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        self.values[name] = tensor
        self.names[id(tensor)] = name
        self.kept.append(tensor)  # so that no other gets its id

    def label(self, name: str) -> str:
        label = re.sub(r"\W+", "_", name).strip("_") or "value"
        label = f"n{label}" if label[0].isdigit() else label
        self.labels[label] += 1
        return label if self.labels[label] == 1 else f"{label}_{self.labels[label]}"

    def node(self, value: Any) -> Any:
        """A value as an argument of a node; constants become parameters, or buffers where they are whole numbers."""
        if isinstance(value, Value):
            return value.node
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self.parameters:
            label = self.label(self.names.get(id(value), "constant"))
            if value.is_floating_point() and value.numel() > 1:
                self.root.register_parameter(label, nn.Parameter(value.clone()))
            else:
                self.root.register_buffer(label, value.clone())
            self.parameters[id(value)] = self.graph.get_attr(label)
            self.kept.append(value)
        return self.parameters[id(value)]

    def weight_name(self, tensor: torch.Tensor) -> str | None:
        """The layer's name, where that of its weight says it."""
        name = self.names.get(id(tensor), "")
        return name.removesuffix(".weight") if name.endswith(".weight") else None


def _called(node: onnx.NodeProto) -> str:
    return node.name or f"of {node.output[0]}"
