"""Where an operator of an exported graph comes from: the module that made it, and the line of a person's code."""

from __future__ import annotations

import operator
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

CALL = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n(?!  File )\s*(?P<code>[^\n]*))?')
"""A call of a stack trace as PyTorch keeps it; the code may be missing."""
IN_FLOAT = "-in-float"
"""What the path ends with that an operator has to itself, since it has no int8 form."""
NUM_NAMED = 5
"""Of operators in one message; whoever has more has a larger problem."""


@dataclass(frozen=True)
class Origin:
    """An operator, the path of the module that made it, and `file:line: code`; either is "" where it is not known."""

    operator: str
    layer: str
    line: str

    def __str__(self) -> str:
        said = f"operator {self.operator}, made by {f'layer {self.layer}' if self.layer else 'the network itself'}"
        return f"{said} ({self.line})" if self.line else said


def origin(node: Node) -> Origin:
    """Where a node comes from."""
    layer = layer_of(node)
    return Origin(str(node.target), layer.rpartition(".")[0] if layer.endswith(IN_FLOAT) else layer, line_of(node))


def makers(nodes: Iterable[Node]) -> list[Node]:
    """The operators that made values: of one that was taken out of several, what made them all."""
    found: dict[Node, None] = {}
    for node in nodes:
        while node.target is operator.getitem:
            (node,) = node.all_input_nodes
        found[node] = None
    return list(found)


def layer_of(node: Node) -> str:
    """The path of the module that made a node, such as `features.conv1`; "" for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path).removeprefix("L['self']").removeprefix(".")


def line_of(node: Node) -> str:
    """The innermost call that is neither PyTorch's nor edgedl's, "net.py:12: x.cumsum(1)"; "" if there is none."""
    return line_in(str(node.meta.get("stack_trace") or ""))


def line_in(trace: str) -> str:
    """See `line_of`."""
    foreign = (f"{Path(__file__).parent}{os.sep}", "<")
    calls = [
        call
        for call in CALL.finditer(trace)
        if not call["file"].startswith(foreign) and f"{os.sep}torch{os.sep}" not in call["file"]
    ]
    if not calls:
        return ""
    file, code = Path(calls[-1]["file"]), (calls[-1]["code"] or "").strip()
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}:{calls[-1]['line']}" + (f": {code}" if code else "")


def counted(nodes: Iterable[Node]) -> Counter[Origin]:
    """How often each origin is found, in order: a loop makes an operator anew at each step."""
    return Counter(map(origin, makers(nodes)))
