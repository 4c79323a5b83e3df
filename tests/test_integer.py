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
from torch.fx import Graph

from edgedl.quantize.integer import KERNELS, LOWEST, Operands
from edgedl.quantize.quantizer import Grid

PAIRS = np.stack([codes.reshape(-1) for codes in np.meshgrid(np.arange(256), np.arange(256))]).astype(np.uint8)
"""Every code beside every other."""


def answered(operator: str, grids: list[Grid]) -> np.ndarray:
    """What onnxruntime's kernel for bytes makes of all pairs of codes; the last grid is that of the result."""
    names, constants = [], []
    for place, (scale, zero_point) in enumerate(grids):
        names.append([f"scale{place}", f"zero{place}"])
        constants.append(helper.make_tensor(names[-1][0], TensorProto.FLOAT, [], [scale]))
        constants.append(helper.make_tensor(names[-1][1], TensorProto.UINT8, [], [zero_point - LOWEST]))
    inputs = ["left", *names[0], "right", *names[1], *names[2]]
    node = helper.make_node(operator, inputs, ["result"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [len(PAIRS[0])]) for name in ("left", "right")]
    result = helper.make_tensor_value_info("result", TensorProto.UINT8, [len(PAIRS[0])])
    graph = helper.make_graph([node], "graph", values, [result], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"left": PAIRS[0], "right": PAIRS[1]})
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
