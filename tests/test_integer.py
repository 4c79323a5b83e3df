"""Kernels that round in a way of their own: what is computed here is what the runtime answers, code for code."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.fx import Graph, GraphModule

from edgedl.quantize.integer import DEQUANTIZE, KERNELS, LOWEST, QUANTIZE, IntegerInterpreter, Operands
from edgedl.quantize.quantizer import Grid

PAIRS = np.stack([codes.reshape(-1) for codes in np.meshgrid(np.arange(256), np.arange(256))]).astype(np.uint8)
"""Every code beside every other."""


def answered(operator: str, grids: list[Grid]) -> np.ndarray:
    """What onnxruntime's kernel for bytes makes of all pairs of codes; the last grid is that of the result."""
    names, constants = constants_of(grids)
    inputs = ["left", *names[0], "right", *names[1], *names[2]]
    node = helper.make_node(operator, inputs, ["result"], domain="com.microsoft")
    return first_of([node], constants, {"result": TensorProto.UINT8})


def constants_of(grids: list[Grid]) -> tuple[list[list[str]], list[TensorProto]]:
    """The names of each grid's scale and zero point, and their values for codes that are bytes."""
    names, constants = [], []
    for place, (scale, zero_point) in enumerate(grids):
        names.append([f"scale{place}", f"zero{place}"])
        constants.append(helper.make_tensor(names[-1][0], TensorProto.FLOAT, [], [scale]))
        constants.append(helper.make_tensor(names[-1][1], TensorProto.UINT8, [], [zero_point - LOWEST]))
    return names, constants


def first_of(nodes: list[onnx.NodeProto], constants: list[TensorProto], outputs: dict[str, int]) -> np.ndarray:
    """The first output of a graph that is given all pairs of codes."""
    count = [len(PAIRS[0])]
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, count) for name in ("left", "right")]
    results = [helper.make_tensor_value_info(name, kind, count) for name, kind in outputs.items()]
    graph = helper.make_graph(nodes, "graph", values, results, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found, *_ = session.run(None, {"left": PAIRS[0], "right": PAIRS[1]})
    return found.astype(np.int64)


ratios = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0]) | st.floats(0.2, 4)
zero_points = st.integers(-128, 127)


@pytest.mark.parametrize("kind", ["add", "mul"])
@given(st.floats(0.001, 0.1), ratios, ratios, st.tuples(zero_points, zero_points, zero_points))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sums_and_products_of_bytes_round_as_onnxruntime_does(kind, base, ratio, other, zeros):
    """Also where scales in simple ratios put results exactly between two codes, and zero points are odd."""
    first, second = np.float32(base), np.float32(base * ratio)
    result = np.float32(base * other) if kind == "add" else np.float32(first * second * 64 * other)
    assert_repeats(kind, list(zip((first, second, result), zeros, strict=True)))


def test_the_offset_of_a_sum_of_bytes_is_rounded_once():
    """On these grids, of a network's, a product and a sum that are rounded apart turn some results the other way."""
    scales = [np.float32(scale) for scale in (0.0370008685, 0.0375694074, 0.0557114594)]
    assert_repeats("add", list(zip(scales, (7, -7, -1), strict=True)))


def assert_repeats(kind: str, grids: list[Grid]) -> None:
    scales, zeros = zip(*grids, strict=True)
    values = [
        torch.from_numpy(codes.astype(np.float64)) + LOWEST - zero for codes, zero in zip(PAIRS, zeros[:2], strict=True)
    ]
    operands = Operands(Graph().placeholder("x"), values, list(scales[:2]), list(zeros[:2]), scales[2], zeros[2])
    codes = KERNELS["onnxruntime"][f"aten.{kind}.Tensor"](operands) + zeros[2] - LOWEST
    operator = {"add": "QLinearAdd", "mul": "QLinearMul"}[kind]
    np.testing.assert_array_equal(codes.clamp(0, 255).numpy(), answered(operator, grids))


@given(st.floats(0.001, 0.1), ratios, ratios, st.tuples(zero_points, zero_points, zero_points))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_sum_that_others_read_in_float_rounds_as_onnxruntime_does(base, ratio, other, zeros):
    """It is computed in float, and a division gives its codes; with no other reader it would be a sum of bytes."""
    grids = [(float(np.float32(base * factor)), zero) for factor, zero in zip((1, ratio, other), zeros, strict=True)]
    signed = [torch.from_numpy(codes.astype(np.int16) + LOWEST).to(torch.int8) for codes in PAIRS]
    codes, _ = IntegerInterpreter(sum_read_twice(grids), "onnxruntime").run(*signed)
    np.testing.assert_array_equal(codes.numpy().astype(np.int64) - LOWEST, sum_read_twice_there(grids))


def sum_read_twice(grids: list[Grid]) -> GraphModule:
    graph = Graph()
    whole = [(scale, zero_point, -128, 127, torch.int8) for scale, zero_point in grids]
    given_ = [graph.placeholder(name) for name in ("left", "right")]
    sides = [graph.call_function(DEQUANTIZE, (codes, *grid)) for codes, grid in zip(given_, whole, strict=False)]
    total = graph.call_function(torch.ops.aten.add.Tensor, tuple(sides))
    graph.output((graph.call_function(QUANTIZE, (total, *whole[2])), graph.call_function(torch.relu, (total,))))
    return GraphModule(torch.nn.Module(), graph)


def sum_read_twice_there(grids: list[Grid]) -> np.ndarray:
    names, constants = constants_of(grids)
    nodes = [
        helper.make_node("DequantizeLinear", ["left", *names[0]], ["a"]),
        helper.make_node("DequantizeLinear", ["right", *names[1]], ["b"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", *names[2]], ["result"]),
        helper.make_node("Relu", ["sum"], ["other"]),
    ]
    return first_of(nodes, constants, {"result": TensorProto.UINT8, "other": TensorProto.FLOAT})


@given(st.floats(0.001, 0.1), ratios, ratios, st.tuples(zero_points, zero_points, zero_points))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_sum_of_moved_values_is_the_kernel_of_litert(base, ratio, other, zeros):
    """Its converter takes a dequantization through what only moves values; other tests have the kernel itself."""
    grids = [(float(np.float32(base * factor)), zero) for factor, zero in zip((1, ratio, other), zeros, strict=True)]
    signed = [torch.from_numpy(codes.astype(np.int16) + LOWEST).to(torch.int8) for codes in PAIRS]
    found = [IntegerInterpreter(sum_of(grids, moved), "litert").run(*signed) for moved in (False, True)]
    assert torch.equal(*found)


def sum_of(grids: list[Grid], moved: bool) -> GraphModule:
    graph = Graph()
    whole = [(scale, zero_point, -128, 127, torch.int8) for scale, zero_point in grids]
    given_ = [graph.placeholder(name) for name in ("left", "right")]
    left, right = (graph.call_function(DEQUANTIZE, (codes, *grid)) for codes, grid in zip(given_, whole, strict=False))
    if moved:
        left = graph.call_function(torch.ops.aten.reshape.default, (left, [-1]))
    total = graph.call_function(torch.ops.aten.add.Tensor, (left, right))
    graph.output(graph.call_function(QUANTIZE, (total, *whole[2])))
    return GraphModule(torch.nn.Module(), graph)
