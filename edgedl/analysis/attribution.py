"""Whose time an operator of an exported file takes: from the names in files back to the layers of a network."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgedl.analysis.counting import Layer, inside

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's exporter tells in an ONNX node which modules made it."""
MARKS = re.compile(r"^fused |(_token_\d+|_nchwc)+$|/.*$")
"""What onnxruntime puts around the name of a node that it has changed."""
HEAVY = ("Conv", "Gemm", "MatMul")
FOLLOWERS = ("Relu", "Clip", "Add", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
"""What onnxruntime fuses to a heavy node, which then bears the name of the last of them."""
WEIGHTED = ("Conv", "FusedConv", "Gemm", "FusedGemm", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

Made: TypeAlias = Callable[[str, str], Sequence[str]]
"""An operator's name and kind -> the modules that are named there, those that count most last."""


@dataclass(frozen=True)
class Shares:
    """How the measured time of a file divides among layers; all shares add up to 1."""

    time_ms: float
    """Of all operators together."""
    layers: Mapping[str, float]
    """By path; a layer without an operator of its own is missing."""
    other: float
    """Of what no layer with parameters or products has made, such as pooling."""
    operators: Sequence[str]
    """Kinds of the operators in `other`."""


def shares(operators: Sequence[Mapping[str, Any]], layers: Sequence[Layer], made: Made) -> Shares | None:
    """Divides the time of operators, each with `name`, `kind` and `time_ms`; None if there is none to divide.

    An operator belongs to the last layer that multiplies among those it names: names begin with what was fused to it.
    One that must multiply and names none, such as one that bears the name of the network's output, belongs to the
    only such layer that no other operator names.
    """
    total = sum(float(operator["time_ms"]) for operator in operators)
    if total <= 0:
        return None
    owners = [_owner(made(operator["name"], operator["kind"]), layers) for operator in operators]
    nameless = [
        index for index, operator in enumerate(operators) if owners[index] is None and operator["kind"] in WEIGHTED
    ]
    unseen = [layer.path for layer in layers if layer.macs and layer.path not in owners]
    if len(nameless) == len(unseen):
        for index, path in zip(nameless, unseen, strict=True):
            owners[index] = path
    found: dict[str | None, float] = {}
    for operator, owner in zip(operators, owners, strict=True):
        found[owner] = found.get(owner, 0.0) + float(operator["time_ms"]) / total
    others = [operator["kind"] for operator, owner in zip(operators, owners, strict=True) if owner is None]
    other = found.pop(None, 0.0)
    return Shares(total, {path: share for path, share in found.items() if path is not None}, other, others)


def names_in(file: Path, ran: Mapping[str, object], layers: Sequence[Layer]) -> Made | None:
    """How operators of a TFLite file, ONNX file or engine tell what made them; None without the file that says it."""
    if file.suffix == ".tflite":
        return by_paths(ran)
    nodes = next(iter(sorted(file.parent.glob("*.onnx"))), None)
    return by_nodes(nodes, layers) if nodes else None


def shares_of(operators: Sequence[Mapping[str, Any]], file: Path, paths: Collection[str]) -> Mapping[str, float] | None:
    """What share of the time each operator takes that bears a path of its own; None where no times are known."""
    marked = [Layer(path, "operator", {}, 0, 0) for path in paths]
    made = names_in(file, dict.fromkeys(paths), marked)
    found = shares(operators, marked, made) if made else None
    return found.layers if found else None


def by_paths(ran: Mapping[str, object]) -> Made:
    """For TFLite files, whose operators bear the paths of the modules that made them, each with a semicolon behind.

    `ran` has the paths of all modules that run; inside a recurrent layer that is written out there are more.
    """

    def made(name: str, kind: str) -> list[str]:
        paths = (inside(path, ran) for path in name.rpartition(";")[0].split(";"))
        return [path for path in paths if path]

    return made


def by_nodes(file: Path, layers: Sequence[Layer]) -> Made:
    """For ONNX files, and engines built from them: each node says what made it."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    known = {layer.path: layer for layer in layers}
    nodes = {name: node for node in graph.node for name in (node.name, *node.output)}

    def layers_of(node: onnx.NodeProto) -> list[str]:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
        scope = (ast.literal_eval(scopes)[:-1] or [None])[-1]  # behind it stands the node's own name
        # A convolution that a batch norm was folded into bears the norm's name, but has its own weights.
        owners = [inside(name.rpartition(".")[0], known) for name in node.input[1:2]]
        return [path for path in (*filter(None, owners), scope) if path in known]

    def made(name: str, kind: str) -> list[str]:
        found: list[str] = []
        for part in name.split(" + "):
            node = nodes.get(MARKS.sub("", MARKS.sub("", part)))
            while node is not None and kind.removeprefix("Fused") in HEAVY and node.op_type in FOLLOWERS:
                sources = [nodes[source] for source in node.input if source in nodes]
                node = next((source for source in sources if source.op_type in HEAVY), (sources or [None])[0])
            found += layers_of(node) if node is not None else []
        return found

    return made


def _owner(paths: Sequence[str], layers: Sequence[Layer]) -> str | None:
    known = {layer.path: layer for layer in layers}
    named = [path for path in paths if path in known]
    return next((path for path in reversed(named) if known[path].macs), named[-1] if named else None)
