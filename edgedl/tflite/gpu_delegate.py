"""Which operators of a .tflite file LiteRT's GPU delegate leaves to the processor, and why; read from the file alone.

The model analyzer of ai-edge-litert 2.3 has this check left out, and calls every file compatible; so here are its rules
(`delegate_rules.py`). Phones differ in what their drivers make of what the delegate takes: this says what it refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgedl.tflite.delegate_rules import Operator, why_not
from edgedl.tflite.flatbuffer import Flatbuffer


@dataclass(frozen=True)
class Leaving:
    """Operators of one kind that the delegate does not take for one reason."""

    kind: str
    reason: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Delegated:
    """What of a file runs on the GPU."""

    num_operators: int
    """Without those that unpack constants when the file is loaded."""
    leaving: tuple[Leaving, ...]
    num_parts: int
    """Runs of operators that it takes; by default it takes the largest alone, and the rest goes to the processor."""
    num_on_gpu: int
    """Operators in the largest."""


def delegated(graph: Flatbuffer) -> Delegated:
    """What the delegate would take of the first subgraph of a file."""
    halves = {  # float16 constants, which the delegate takes as they are
        made for made, operator in graph.dequantized_constants().items()
        if graph.type_name(int(operator.inputs[0])) == "FLOAT16"
    }  # fmt: skip
    kept = [operator for operator in graph.operators if int(operator.outputs[0]) not in halves]
    reasons = [why_not(_seen(graph, operator, halves)) for operator in kept]
    found: dict[tuple[str, str], list[str]] = {}
    for operator, reason in zip(kept, reasons, strict=True):
        if reason is not None:
            found.setdefault((graph.kind(operator), reason), []).append(graph.name(operator).partition(";")[0])
    sizes = [size for taken, size in _parts(graph, kept, reasons) if taken]
    leaving = tuple(Leaving(kind, reason, tuple(names)) for (kind, reason), names in found.items())
    return Delegated(len(kept), leaving, len(sizes), max(sizes, default=0))


def _seen(graph: Flatbuffer, operator: Any, halves: set[int]) -> Operator:
    inputs, outputs = [int(index) for index in operator.inputs], [int(index) for index in operator.outputs]
    return Operator(
        graph.kind(operator),
        graph.name(operator),
        [graph.type_name(index) if index >= 0 else "" for index in inputs],
        [graph.shape(index) if index >= 0 else () for index in inputs],
        [index in halves or (index >= 0 and bool(graph.constant(graph.tensors[index]))) for index in inputs],
        [graph.type_name(index) for index in outputs],
        [graph.shape(index) for index in outputs],
        operator.builtinOptions,
    )


def _parts(graph: Flatbuffer, operators: Sequence[Any], reasons: Sequence[str | None]) -> Iterator[tuple[bool, int]]:
    """As LiteRT divides a graph: whatever can be run next of one sort, before it goes on to the other."""
    made = {int(index) for operator in operators for index in operator.outputs}
    waiting = list(zip(operators, (reason is None for reason in reasons), strict=True))
    missing = set(made)

    def ready(operator: Any) -> bool:
        return not missing & {int(index) for index in operator.inputs}

    while waiting:
        taken = next(sort for operator, sort in waiting if ready(operator))
        size = 0
        while found := [entry for entry in waiting if entry[1] is taken and ready(entry[0])]:
            size += len(found)
            missing -= {int(index) for operator, _ in found for index in operator.outputs}
            waiting = [entry for entry in waiting if not any(entry[0] is operator for operator, _ in found)]
        yield taken, size
