"""From a PyTorch graph to an ONNX file: shared by every target that starts from one."""

from __future__ import annotations

from pathlib import Path

import torch

from edgedl.core import Task

OPSET = 18


def example_inputs(task: Task, batch_size: int) -> tuple[torch.Tensor, ...]:
    """Zeros in the shapes and dtypes of the task's inputs, in order, each (batch_size, ...)."""
    return tuple(
        torch.zeros((batch_size, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in task.inputs.values()
    )


def export_onnx(graph: torch.nn.Module, task: Task, file: Path, batch_size: int) -> None:
    """Writes `file` with fixed shapes; an int8 graph becomes Q/DQ nodes around int8 weights.

    Weights are folded to int8 before the export, so that the file holds a quarter of the bytes;
    biases stay float32, which onnxruntime and TensorRT both fuse (TensorRT refuses int32 ones).
    """
    if isinstance(graph, torch.fx.GraphModule):
        graph = fold_weights(graph)
    program = torch.onnx.export(
        graph,
        example_inputs(task, batch_size),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(task.inputs),
        output_names=list(task.outputs),
        verbose=False,
    )
    assert program is not None
    program.save(str(file), external_data=False)


def fold_weights(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a simulated graph whose quantized weights are int8 constants."""
    import copy

    from torchao.quantization.pt2e.constant_fold import constant_fold
    from torchao.quantization.pt2e.quantize_pt2e import _quant_node_constraint

    folded = copy.deepcopy(graph)
    constant_fold(folded, _quant_node_constraint)
    return folded
