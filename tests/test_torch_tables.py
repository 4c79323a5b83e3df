"""Exports that keep torch's tables write the same as those that make them anew, and see what was registered since."""

from __future__ import annotations

import subprocess
import sys

import torch
from onnxscript import opset18
from onnxscript._framework_apis import torch_2_5
from torch import nn
from torch._export import utils

from edgedl.torch_tables import keep_tables

IMAGE = (torch.zeros(1, 8, 10, 10),)

ANEW = """
import sys, torch
torch.manual_seed(0)
net = torch.nn.Conv2d(8, 4, 3).eval()
torch.onnx.export(net, (torch.zeros(1, 8, 10, 10),), dynamo=True, verbose=False).save(sys.argv[1])
"""


def test_files_are_the_same_and_functions_are_read_once(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-W", "ignore", "-c", ANEW, tmp_path / "anew.onnx"], check=True)
    keep_tables()
    torch.manual_seed(0)
    net = nn.Conv2d(8, 4, 3).eval()
    torch.onnx.export(net, IMAGE, dynamo=True, verbose=False).save(tmp_path / "first.onnx")
    monkeypatch.setattr(torch_2_5, "get_torchlib_ops", None)  # which torch.onnx calls at each export
    torch.onnx.export(net, IMAGE, dynamo=True, verbose=False).save(tmp_path / "second.onnx")
    first, second = ((tmp_path / name).read_bytes() for name in ("first.onnx", "second.onnx"))
    assert first == second == (tmp_path / "anew.onnx").read_bytes()


def test_what_is_translated_for_one_export_is_not_for_the_next():
    keep_tables()
    other = {torch.ops.aten.relu.default: lambda x: opset18.Abs(x)}
    net = nn.ReLU().eval()
    made = [
        torch.onnx.export(net, IMAGE, dynamo=True, verbose=False, custom_translation_table=table)
        for table in (None, other, None)
    ]
    assert [[node.op_type for node in program.model.graph] for program in made] == [["Relu"], ["Abs"], ["Relu"]]


def test_only_programs_with_operators_to_decompose_are_traced_again(monkeypatch):
    """Which `add_` is, as it writes into its input, and `adaptive_avg_pool2d`, which torch.onnx does not translate."""
    keep_tables()

    class Sum(nn.Module):
        def forward(self, x):
            return torch.relu(x).add_(1)

    traced, trace = [], torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda program, *given, **options: traced.append(program) or trace(program, *given, **options),
    )
    nets = {"conv": nn.Conv2d(8, 4, 3), "in place": Sum(), "pool": nn.AdaptiveAvgPool2d(1)}
    for name, net in nets.items():
        traced.clear()
        file = torch.onnx.export(net.eval(), IMAGE, dynamo=True, verbose=False)
        assert bool(traced) == (name != "conv"), name
        x = torch.randn(1, 8, 10, 10)
        torch.testing.assert_close(file(x)[0], net(x), msg=name)


def test_an_operator_registered_since_is_seen():
    keep_tables()
    utils._collect_all_valid_cia_ops()
    library = torch.library.Library("edgedl_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
    assert "edgedl_test::twice" in {operator.name() for operator in utils._collect_all_valid_cia_ops()}


OPENED = """
import torch
from edgedl.torch_tables import keep_tables

class Attention(torch.nn.Module):
    def forward(self, x):
        weights = x.softmax(-1) @ torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.linear(weights, torch.ones(4, 10)), 1)

program = torch.export.export(Attention().eval(), (torch.zeros(1, 8, 10, 10),))
kinds, register = set(), torch._ops.OpOverload.py_impl
torch._ops.OpOverload.py_impl = lambda operator, key: kinds.add(key.name) or register(operator, key)
some = {torch.ops.aten.linear.default: lambda x, weight, bias=None: x @ weight.t()}
for step in (lambda: None, keep_tables):
    step()
    kinds.clear()
    print(*(repr(str(program.run_decompositions(table).graph)) for table in (some, None)), *kinds, sep="\\t")
"""


def test_graphs_are_opened_alike_without_functions_for_devices_that_are_not_here():
    """In a process of its own, in which nothing has kept the tables."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", OPENED], capture_output=True, text=True, check=True)
    (*made, all_kinds), (*kept, kinds) = (line.split("\t", 2) for line in done.stdout.splitlines())
    assert made == kept
    assert "aten.linear" not in made[0]
    devices, here = ({kind.replace("Autograd", "") for kind in kinds.split("\t")} for kinds in (all_kinds, kinds))
    assert {"CPU", "Meta", "XLA"} < devices
    if torch.accelerator.current_accelerator() is None:
        assert here == {"CPU", "Meta", "CompositeImplicit"}


def test_operators_of_quantized_graphs_are_in_the_table_whatever_was_exported_first():
    """In a process of its own, in which nothing has loaded them."""
    read = (
        "from edgedl.torch_tables import keep_tables; keep_tables()\n"
        "from torch.onnx._internal.exporter._registration import ONNXRegistry\n"
        "print('quantized_decomposed::dequantize_per_channel' in ONNXRegistry.from_torchlib().functions)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", read], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


COPIED = """
import sys, torch
from edgedl import converting, plugins
from edgedl.core import Limits

def export() -> int:
    before = set(sys.modules)
    torch.export.export(torch.nn.Conv2d(8, 4, 3), (torch.zeros(1, 8, 10, 10),)).run_decompositions()
    return len(set(sys.modules) - before)

target = plugins.load("targets", "onnxruntime").model_validate({})
print(converting.apart(target, export, Limits()))
"""


def test_a_copy_that_converts_finds_the_exporter_loaded():
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", COPIED], check=True, capture_output=True, text=True)
    assert int(said.stdout) < 10  # of some 800
