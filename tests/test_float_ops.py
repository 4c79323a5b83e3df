"""Operators that have no int8 form: what is said of them, and that those alone stay in float where that is allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import edgedl
from edgedl import ladder, measure, plugins
from edgedl.analysis import attribution
from edgedl.core import Model, ModelFileError, Target, TargetError, Task, UnsupportedOperator, UsageError
from edgedl.origin import line_in
from edgedl.quantize.operators import NEAREST, OPERATORS
from edgedl.quantize.qat import FakeQuantized
from edgedl.quantize.schemes import AFFINE, SYMMETRIC
from edgedl.quantize.simulate import Quantization, export_graph, simulate
from edgedl.report import lines, page, terminal
from edgedl.run import read_report
from edgedl.torch_session import TorchSession
from tests import toys
from tests.toys import Apply, Noise

QUICK: dict[str, Any] = {
    "steps": [{"use": "quantize", "method": "ptq", "calibrator": "min-max", "corrections": []}],
    "bench": {"min_seconds": 0, "rounds": 1},
    "progress": False,
}
LENIENT = {"score_drop": 1, "slower": "allow"}


class Scan(nn.Module):
    """Sums of all values so far, bounded by an error function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sums = x.cumsum(-1)
        return torch.erf(sums).unsqueeze(1).squeeze(1)


class Net(nn.Module):
    """Something odd between two dense layers, with a SiLU before it."""

    def __init__(self, odd: nn.Module, num_inputs: int = 24, num_outputs: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(num_inputs, 16), nn.Linear(16, num_outputs)
        self.body = nn.ModuleDict({"odd": odd})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body["odd"](functional.silu(self.first(x))))


def made(net: nn.Module) -> nn.Module:
    """With weights that are the same in every test."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return net.eval()


def line_of(text: str, file: str = __file__) -> int:
    """Where in this file a line is."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if line.strip() == text)
    return number


def target_of(use: str) -> Target:
    found = plugins.load("targets", use).model_validate({})
    assert isinstance(found, Target)
    return found


def test_the_refusal_names_all_operators_their_modules_and_lines_in_one_line():
    with pytest.raises(UnsupportedOperator) as caught:
        simulate(made(Net(Scan())), Noise(shape=(24,)), AFFINE)
    said = str(caught.value)
    assert "\n" not in said
    sums, erf = "sums = x.cumsum(-1)", "return torch.erf(sums).unsqueeze(1).squeeze(1)"
    assert f"operator aten.cumsum.default, made by layer body.odd (tests/{Path(__file__).name}:{line_of(sums)}: " in (
        said.replace(f"{Path(__file__).parent}", "tests")
    )
    assert f"{sums}); try {NEAREST['aten.cumsum.default']}; for operator aten.erf.default" in said
    assert f"{Path(__file__).name}:{line_of(erf)}: {erf})" in said
    assert said.endswith('keep them in float: limits = { float_ops = "allow" }')


def test_an_operator_in_a_loop_is_named_once_with_how_often():
    net = Apply(lambda x: torch.stack([torch.erf(part) for part in x.unbind(1)], 1))
    with pytest.raises(UnsupportedOperator, match=r"aten\.erf\.default, made by the network itself .*, 6 times"):
        simulate(net.eval(), Noise(shape=(6, 4)), AFFINE)


def test_a_line_is_that_of_code_which_is_neither_pytorchs_nor_edgedls():
    package = Path(edgedl.__file__).parent
    trace = f"""File "/home/me/net.py", line 7, in forward
    x = self.norm(x)
  File "/lib/site-packages/torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
  File "{package}/quantize/recurrent.py", line 9, in forward
    y = x
"""
    assert line_in(trace) == "/home/me/net.py:7: x = self.norm(x)"
    assert line_in('File "/home/me/net.py", line 7, in forward\n') == "/home/me/net.py:7"
    assert line_in('File "<eval_with_key>.1", line 7, in forward\n    x = y\n') == ""
    assert line_in("") == ""


def manual_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


MASK = (torch.arange(8) % 3 > 0).float()
MASKED = torch.where(MASK > 0, 0.0, -16.0)
# What the message says -> what it is said of, what does the same, and the shape of the inputs.
REWRITTEN: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "aten.cumsum.default": (lambda x: x.cumsum(-1), lambda x: x @ torch.ones(8, 8).triu(), (4, 8)),
    "aten.erf.default": (manual_gelu, functional.gelu, (4, 8)),
    "aten.exp.default": (lambda x: x.exp() / x.exp().sum(-1, keepdim=True), lambda x: torch.softmax(x, -1), (4, 8)),
    "aten.log.default": (lambda x: torch.softmax(x, -1).log(), lambda x: torch.log_softmax(x, -1), (4, 8)),
    "aten.where.self": (
        lambda x: torch.where(MASK > 0, x, x.tanh()),
        lambda x: MASK * x + (1 - MASK) * x.tanh(),
        (4, 8),
    ),
    "aten.masked_fill.Scalar": (
        lambda x: torch.softmax(x.masked_fill(MASK == 0, -16.0), -1),
        lambda x: torch.softmax(x + MASKED, -1),
        (4, 8),
    ),
    "aten.var.correction": (
        lambda x: x.var(1, correction=0),
        lambda x: ((x - x.mean(1, keepdim=True)) ** 2).mean(1),
        (4, 8),
    ),
    "aten.max.dim": (lambda x: x.max(1).values, lambda x: x.amax(1), (4, 8)),
    "aten.min.dim": (lambda x: x.min(1).values, lambda x: x.amin(1), (4, 8)),
    "aten.adaptive_max_pool2d.default": (nn.AdaptiveMaxPool2d(1), lambda x: x.amax((2, 3), keepdim=True), (4, 8, 8)),
    "aten.upsample_bilinear2d.vec": (
        nn.Upsample(scale_factor=3, mode="bilinear"),
        nn.Upsample(scale_factor=3),
        (4, 8, 8),
    ),
    "aten.linear.default": (
        lambda x, weight: functional.linear(x, weight[0]),
        lambda x, weight: torch.matmul(x, weight[0].transpose(-2, -1)),
        (8, 8),
    ),
}
OTHER_ANSWERS = {"aten.masked_fill.Scalar", "aten.upsample_bilinear2d.vec"}
"""The nearest there is does nearly the same."""


@pytest.mark.parametrize("name", NEAREST)
def test_what_is_named_as_nearest_does_the_same_in_operators_of_the_table(name):
    before, after, shape = REWRITTEN[name]
    task = Noise(shape=shape, num_inputs=1 + (name == "aten.linear.default"))
    with pytest.raises(UnsupportedOperator, match="; try ") as caught:
        simulate(Apply(before).eval(), task, AFFINE)
    assert f"{name.removesuffix('.default')}" in str(caught.value)
    assert NEAREST[name] in str(caught.value)
    graph = export_graph(Apply(after).eval(), task)
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert targets - {"aten.sym_size.int"} <= set(OPERATORS)
    given = [torch.from_numpy(values) for values in task.arrays("test").values()]
    if name not in OTHER_ANSWERS:
        torch.testing.assert_close(after(*given), before(*given), rtol=1e-4, atol=1e-4)


def deployed(net: nn.Module, task: Task, target: Target, folder: Path) -> ladder.Climb:
    """The ladder of an int8 network whose foreign operators are in float; for TensorRT onnxruntime stands in."""
    model = Model(net=net, quantization=Quantization(net, task, "min-max", float_ops=True))
    artifact = target.build(model, task, folder, batch_size=1)
    stand_in = target if artifact.stand_in is None else target_of("onnxruntime")
    session = stand_in.open(artifact.stand_in or artifact.file)
    reference = measure.evaluate(TorchSession(net, task), task, "test")
    climb = ladder.climb(model, reference, (ladder.rung("float", reference.score, (), task),), target, session, task)
    session.close()
    return climb


class Steered(nn.Module):
    """A dense layer whose weight is made of its input, beside one that has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.own(x), x[0, :16, None] * torch.ones(16))


FOREIGN = {
    "in a row, with a move between": Scan(),
    "two values of which one is taken": Apply(lambda x: x - x.max(-1, keepdim=True).values),
    "a choice by a computed condition": Apply(lambda x: torch.where(x > 0.1, x, 0.3 * x.tanh())),
    "with an int8 kernel that the converter knows": Apply(lambda x: functional.elu(x) + x),
}


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
def test_between_convolutions_too(use, tmp_path):
    odd = Apply(lambda x: functional.elu(x).cumsum(3))
    net = made(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), odd, nn.MaxPool2d(2), nn.Conv2d(8, 4, 1)))
    climb = deployed(net, Noise(shape=(4, 8, 8)), target_of(use), tmp_path)
    assert climb.breach is None
    assert climb.agreement.max_steps == 0


@pytest.mark.parametrize("use", ["tflite", "onnxruntime"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_stays_in_float_is_deployed_as_it_is_simulated(name, use, tmp_path):
    climb = deployed(made(Net(FOREIGN[name])), Noise(shape=(24,)), target_of(use), tmp_path)
    assert climb.breach is None
    assert climb.agreement.max_steps in (0, None)
    assert climb.agreement.sqnr_db > 120
    assert climb.quantization_db > 20


def test_nvidias_builder_takes_it_too(tmp_path):
    climb = deployed(made(Net(Scan())), Noise(shape=(24,)), target_of("tensorrt"), tmp_path)
    assert climb.breach is None
    assert climb.agreement.sqnr_db > 120


def test_only_those_operators_are_in_float():
    net = made(Net(Scan()))
    simulation = Quantization(net, Noise(shape=(24,)), "min-max", float_ops=True).simulated(AFFINE)
    found = simulation.float_operators()
    assert {path: (origin.operator, origin.layer) for path, origin in found.items()} == {
        "body.odd.cumsum-in-float": ("aten.cumsum.default", "body.odd"),
        "body.odd.erf-in-float": ("aten.erf.default", "body.odd"),
    }
    assert (
        len(simulation.grids()) == 8
    )  # input, first layer, sigmoid, product, what is behind erf, two moves, last layer
    assert not Quantization(made(Net(nn.ReLU())), Noise(shape=(24,)), "min-max").simulated(AFFINE).float_operators()


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC], ids=lambda scheme: scheme.name)
def test_a_weight_that_is_given_stays_in_float(scheme):
    net, task = made(Net(Steered())), Noise(shape=(24,))
    simulation = simulate(net, task, scheme, "min-max", "auto", float_ops=True)
    assert [origin.operator for origin in simulation.float_operators().values()] == ["aten.linear.default"]


def test_a_value_that_no_grid_spans_is_named():
    net = made(Net(Apply(lambda x: torch.softmax(x.masked_fill(torch.arange(16) > 8, -torch.inf), -1))))
    with pytest.raises(UsageError, match=r"aten\.masked_fill\.Scalar, made by layer body\.odd .*not finite.*-16"):
        simulate(net, Noise(shape=(24,)), AFFINE, float_ops=True)


def test_training_for_int8_leaves_them_in_float():
    net, task = made(Net(Scan())), Noise(shape=(24,))
    grids = simulate(net, task, AFFINE, "min-max", float_ops=True).chosen
    trained = FakeQuantized(net, task, AFFINE, grids, "learned", 0, float_ops=True)
    x = torch.from_numpy(task.arrays("train")["x0"])
    loss = (trained(x) - net(x)).square().mean()
    loss.backward()
    assert 0 < loss.item() < 0.1
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("use", "function", "operator"),
    [
        ("tflite", torch.lgamma, "convert operator aten.lgamma.default, made by layer body.odd"),
        ("onnxruntime", torch.lgamma, "translate operator aten.lgamma.default, made by layer body.odd"),
        ("tensorrt-rtx", lambda x: torch.fft.rfft(x).real[:, :1] + x, "it is operator aten._fft_r2c.default, made by"),
    ],
    ids=["litert-torch", "PyTorch", "NVIDIA"],
)
def test_what_a_converter_or_builder_refuses_is_named_with_its_line(use, function, operator, tmp_path):
    with pytest.raises(TargetError) as caught:
        target_of(use).build(Model(net=made(Net(Apply(function)))), Noise(shape=(24,)), tmp_path, 1)
    assert operator in str(caught.value)
    assert f"toys.py:{line_of('return self.function(*inputs)', toys.__file__)}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def signals() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 300)
    return (generator.normal(size=(300, 24)) + 3 * np.eye(24)[label]).astype(np.float32), label


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> edgedl.Run:
    net = made(Net(Scan(), num_outputs=3))
    limits = LENIENT | {"float_ops": "allow", "unlearned": "allow"}
    return edgedl.compress(net, signals(), limits=limits, out=tmp_path_factory.mktemp("runs"), **QUICK)


def test_the_report_lists_them_with_module_line_and_share_of_time(finished):
    report = read_report(finished.folder)
    rows = {(row["variant"], row["target"]): row for row in report["rows"]}
    for target in ("tflite", "onnxruntime"):
        row = rows["compressed", target]
        assert row["status"] == "ok"
        assert not rows["float", target]["float_ops"]
        sums, erf = row["float_ops"]
        assert (sums["operator"], sums["layer"], sums["times"]) == ("aten.cumsum.default", "body.odd", 1)
        assert sums["line"].endswith(f"{Path(__file__).name}:{line_of('sums = x.cumsum(-1)')}: sums = x.cumsum(-1)")
        assert erf["operator"] == "aten.erf.default"
        assert 0 <= sums["time_share"] + erf["time_share"] <= 1
        marked = ["body.odd.cumsum-in-float", "body.odd.erf-in-float"]
        counted = attribution.shares_of(
            [operator | {"time_ms": 1.0} for operator in row["operators"]], finished.folder / row["file"], marked
        )
        assert counted is not None
        assert all(counted[path] > 0 for path in marked)
        (entry,) = (e for e in report["ladder"] if (e["target"], e["variant"]) == (target, "compressed"))
        assert entry["agreement"]["max_steps"] in (0, None)
        assert entry["agreement"]["sqnr_db"] > 120
        assert row["rewrites"] == {"SiLU opened into sigmoid and product": 1}
    assert report["recipe"]["limits"]["float_ops"] == "allow"


def test_terminal_and_page_tell_the_same(finished):
    report = read_report(finished.folder)
    (row,) = (row for row in report["rows"] if (row["variant"], row["target"]) == ("compressed", "tflite"))
    said = lines.float_ops(row)
    assert said is not None
    assert "aten.cumsum.default of body.odd (" in said
    assert said.count(" % of the time") == 2
    html = page.write_page(report, finished.folder).read_text(encoding="utf-8")
    shown = terminal.as_html(report)
    for text in (html, shown):
        assert "aten.cumsum.default of body.odd" in " ".join(re.sub("<[^>]*>", "", text).split())
        assert "SiLU opened into sigmoid and product (1 place)" in " ".join(re.sub("<[^>]*>", "", text).split())
    others = [found | {"float_ops": [], "rewrites": {}} for found in report["rows"]]
    beside = terminal.as_html(report | {"rows": [*report["rows"], *others]})  # of several forms one may have none
    assert " ".join(re.sub("<[^>]*>", "", beside).split()).count("aten.cumsum.default of body.odd") == 2
    older = {key: value for key, value in row.items() if key not in ("float_ops", "rewrites")}
    assert lines.float_ops(older) is lines.rewrites(older) is None


def test_refused_is_the_default_and_the_row_says_why(tmp_path):
    net = made(Net(Scan(), num_outputs=3))
    run = edgedl.compress(
        net, signals(), targets=["tflite"], limits=LENIENT | {"unlearned": "allow"}, out=tmp_path, **QUICK
    )
    row = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))["rows"][-1]
    assert row["status"] == "failed"
    assert "aten.cumsum.default, made by layer body.odd" in row["reason"]
    assert (row["float_ops"], row["rewrites"]) == ([], {})


def test_what_the_interpreter_does_not_know_is_named(tmp_path):
    net, target = made(Net(Apply(lambda x: x.sort(-1).values))), target_of("tflite")
    artifact = target.build(Model(net=net), Noise(shape=(24,)), tmp_path, 1)
    with pytest.raises(ModelFileError, match=r"STABLEHLO_SORT.*; STABLEHLO_SORT is made by body\.odd$"):
        target.open(artifact.file)
