"""A PyTorch module behind the interface of an exported file, so that one code path scores both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgedl.core import Activation, Batch, Graph, OperatorTime, Session, Task, TensorSpec, graphs_of

BATCH_SIZE = 64


class TorchSession:
    """Runs a module in evaluation mode, or any function of tensors, on the CPU and without gradients.

    Of a network that is several graphs, `run` is the whole, as it is trained, and `graphs` are those.
    """

    runtime = f"torch {torch.__version__}"

    def __init__(self, net: Callable[..., Any], task: Task | Graph, batch_size: int = BATCH_SIZE) -> None:
        self.net, self.task = net, task
        self.inputs: Mapping[str, TensorSpec] = task.input_specs(batch_size)
        self.outputs: Mapping[str, TensorSpec] = {}
        if isinstance(net, torch.nn.Module):
            net.eval()
        self.graphs: Mapping[str, Session] = {
            name: TorchSession(graph.module, graph, batch_size) for name, graph in graphs_of(net).items()
        }

    def run(self, batch: Batch) -> Batch:
        """Named outputs, each (N, ...); any N."""
        with torch.no_grad():
            outputs = self.net(*(torch.from_numpy(np.ascontiguousarray(batch[name])) for name in self.inputs))
        return {name: value.numpy() for name, value in named_outputs(outputs, self.task).items()}

    def profile(self, batch: Batch) -> Sequence[OperatorTime]:
        """Nothing: a module's times say nothing about a deployed file."""
        return ()

    def activations(self, batch: Batch) -> Sequence[Activation]:
        """Nothing: `edgedl.quantize.simulate` shows those of a graph."""
        return ()

    def close(self) -> None:
        """Nothing is held."""


def named_outputs(outputs: Any, task: Task | Graph) -> dict[str, torch.Tensor]:
    """What a module returned, a tensor or several, under the task's names."""
    if isinstance(outputs, Mapping):
        return {name: outputs[name] for name in task.outputs}
    values = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return dict(zip(task.outputs, values, strict=True))
