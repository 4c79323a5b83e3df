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

NUM_CODES = 4096


def answered(operator: str, left: np.ndarray, right: np.ndarray, grids: list[Grid]) -> np.ndarray:
    """What onnxruntime's kernel for bytes makes of codes; the last grid is that of the result."""
    names, constants = [], []
    for place, (scale, zero_point) in enumerate(grids):
        names.append([f"scale{place}", f"zero{place}"])
        constants.append(helper.make_tensor(names[-1][0], TensorProto.FLOAT, [], [scale]))
        constants.append(helper.make_tensor(names[-1][1], TensorProto.UINT8, [], [zero_point - LOWEST]))
    inputs = ["left", *names[0], "right", *names[1], *names[2]]
    node = helper.make_node(operator, inputs, ["result"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [NUM_CODES]) for name in ("left", "right")]
    result = helper.make_tensor_value_info("result", TensorProto.UINT8, [NUM_CODES])
    graph = helper.make_graph([node], "graph", values, [result], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"left": left, "right": right})
    return found.astype(np.int64)


ratios = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0]) | st.floats(0.2, 4)
zero_points = st.integers(-128, 127)


@pytest.mark.parametrize("kind", ["add", "mul"])
@given(st.floats(0.001, 0.1), ratios, ratios, st.tuples(zero_points, zero_points, zero_points), st.integers(0, 999))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sums_and_products_of_bytes_round_as_onnxruntime_does(kind, base, ratio, other, zeros, seed):
    """Also where scales in simple ratios put results exactly between two codes, and zero points are odd."""
    left, right = np.random.default_rng(seed).integers(0, 256, (2, NUM_CODES)).astype(np.uint8)
    first, second = np.float32(base), np.float32(base * ratio)
    result = np.float32(base * other) if kind == "add" else np.float32(first * second * 64 * other)
    grids = list(zip((first, second, result), zeros, strict=True))
    values = [
        torch.from_numpy(codes.astype(np.float64)) + LOWEST - zero
        for codes, zero in zip((left, right), zeros, strict=False)
    ]
    node = Graph().placeholder("x")
    given_ = Operands(node, values, [first, second], list(zeros[:2]), result, zeros[2])
    codes = KERNELS["onnxruntime"][f"aten.{kind}.Tensor"](given_) + zeros[2] - LOWEST
    operator = {"add": "QLinearAdd", "mul": "QLinearMul"}[kind]
    np.testing.assert_array_equal(codes.clamp(0, 255).numpy(), answered(operator, left, right, grids))
