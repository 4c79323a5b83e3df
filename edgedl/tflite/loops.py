"""Turns steps that a .tflite file repeats into loops, so that its size doesn't grow with the length of a sequence.

Converters unroll recurrent layers: the file names every operator of every step, and the interpreter prepares a copy of
the weights for each. A WHILE operator whose body is a few steps computes the same, to the bit, in a fraction of the
bytes, and in a long sequence faster, since weights that are used again stay in the cache. Needs the schema of
`ai_edge_litert`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from edgedl.tflite.flatbuffer import NUMPY_TYPES, Builder, Flatbuffer

MIN_REPETITIONS = 40
"""Fewer steps are faster one after another: the interpreter plans a loop's body anew whenever the file is run. On an
LSTM with 64 units and int8 weights, 28 steps take 17.5 µs in a row and 24.7 in a loop, 64 steps 55.0 and 51.7."""
MAX_PERIOD = 64
STEPS_PER_PASS = (4, 5)
"""A pass costs about as much as a step of 64 units, so each does several; with more, weights outgrow the cache."""
PREFIX = "steps"
"""What the names of loops begin with."""


def with_loops(content: bytes) -> bytes:
    """The same model with repeated steps as loops and equal constants stored once; `content` where neither is found."""
    graph = Flatbuffer(content)
    if len(graph.model.subgraphs) != 1:
        return content
    changed = graph.share_constants()
    changed = _take_directly(graph) or changed
    while (run := _longest_run(graph)) is not None:
        _roll(graph, run)
        changed = True
    if not changed:
        return content
    graph.drop_unused()
    return graph.pack()


def without_loops(content: bytes) -> bytes:
    """The same model with the loops of `with_loops` unrolled again, so that every value in them can be seen.

    `content` itself where there are none, or where any loop is of another maker.
    """
    graph = Flatbuffer(content)
    subgraphs = graph.model.subgraphs
    loops = [operator for operator in graph.operators if graph.kind(operator) == "WHILE"]
    bodies = [subgraphs[loop.builtinOptions.bodySubgraphIndex].name or b"" for loop in loops]
    if not loops or not all(name.startswith(PREFIX.encode()) for name in bodies):
        return content
    for loop in loops:
        _unroll(graph, loop)
    del subgraphs[1:]
    graph.drop_unused()
    return graph.pack()


def _take_directly(graph: Flatbuffer) -> bool:
    """A SLICE that cuts one whole part out of a CONCATENATION takes that part itself.

    So a network that looks at the last step alone doesn't need a loop to collect them all.
    """
    makers = {int(index): operator for operator in graph.operators for index in operator.outputs}
    found = False
    for operator in graph.operators:
        if graph.kind(operator) != "SLICE":
            continue
        source = makers.get(int(operator.inputs[0]))
        if source is not None and graph.kind(source) == "RESHAPE":
            source = makers.get(int(source.inputs[0]))
        cut = _flat_range(graph, operator)
        if source is None or cut is None or graph.kind(source) != "CONCATENATION":
            continue
        axis = source.builtinOptions.axis % len(graph.shape(source.outputs[0]))
        if source.builtinOptions.fusedActivationFunction or np.prod(graph.shape(source.outputs[0])[:axis]) != 1:
            continue
        start = 0
        for part in source.inputs:
            size = int(np.prod(graph.shape(part)))
            if cut == (start, size) and graph.form(int(part))[1:] == graph.form(int(operator.outputs[0]))[1:]:
                _become_reshape(graph, operator, int(part))
                found = True
            start += size
    if found:
        graph.drop_dead()
    return found


def _flat_range(graph: Flatbuffer, operator: Any) -> tuple[int, int] | None:
    """First element and length of what a SLICE takes, if that lies in one piece."""
    shape = graph.shape(operator.inputs[0])
    begin, size = graph.integers(operator.inputs[1]), np.array(graph.shape(operator.outputs[0]))
    if len(begin) != len(shape):
        return None
    whole = [bool(length == full) for length, full in zip(size, shape, strict=True)]
    first = next((axis for axis, is_whole in enumerate(whole) if not is_whole), 0)
    later = next((axis for axis in range(first + 1, len(whole)) if not whole[axis]), None)
    if later is not None or np.prod(shape[:first]) != 1:
        return None
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    return int(np.dot(begin, strides)), int(np.prod(size))


def _become_reshape(graph: Flatbuffer, operator: Any, part: int) -> None:
    shape, options = graph.shape(operator.outputs[0]), graph.schema.ReshapeOptionsT()
    options.newShape = list(shape)
    operator.opcodeIndex = graph.code("RESHAPE")
    operator.inputs = [part, Builder(graph, "main", graph.main).integers(shape)]
    operator.builtinOptions, operator.builtinOptionsType = options, graph.schema.BuiltinOptions.ReshapeOptions


Place: TypeAlias = tuple[int, int]
"""An operator's position in its block, and which of its inputs or outputs is meant."""


@dataclass
class _Run:
    """Equal blocks of operators, one after the other, and how values flow through them."""

    start: int
    period: int
    count: int
    steps: int
    """Blocks in a pass through the loop; `count` is a multiple."""
    carried: dict[Place, Place] = field(default_factory=dict)
    """Input -> the output of the block before that it takes."""
    initial: dict[Place, int] = field(default_factory=dict)
    """That output -> the tensor that the first block takes instead."""
    invariant: list[int] = field(default_factory=list)
    """Computed tensors that all blocks take."""
    moving: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Position of a SLICE -> where the first block's begins, and how much further each next one's."""
    stacked: dict[Place, tuple[Any, bool]] = field(default_factory=dict)
    """Output that a CONCATENATION behind the blocks collects -> that operator, and if it goes backwards."""


def _longest_run(graph: Flatbuffer) -> _Run | None:
    """The run that spares most operators; None where nothing repeats often enough."""
    known: dict[Any, int] = {}
    names = np.array([known.setdefault(_signature(graph, operator), len(known)) for operator in graph.operators])
    candidates = []
    for period in range(1, min(MAX_PERIOD, len(names) // MIN_REPETITIONS) + 1):
        equal = np.concatenate([[False], names[:-period] == names[period:], [False]])
        edges = np.flatnonzero(equal[1:] != equal[:-1])
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            count = (int(last - first) + period) // period
            if count >= MIN_REPETITIONS:
                candidates.append((period * count, -period, int(first), int(last) + period))
    for _, negative_period, first, last in sorted(candidates, reverse=True):
        period = -negative_period
        # A run can be cut into blocks at any of its first operators: the best cut hands over least.
        runs = [
            run
            for start in range(first, min(first + period, last - MIN_REPETITIONS * period + 1))
            if (run := _flow(graph, start, period, (last - start) // period)) is not None
        ]
        if runs:
            return min(runs, key=lambda run: (len(run.initial) + len(run.stacked), -run.count, run.start))
    return None


def _signature(graph: Flatbuffer, operator: Any) -> tuple[Any, ...]:
    """What has to be equal for an operator to do a step's work for another step: all but where a SLICE begins."""
    moves = graph.kind(operator) == "SLICE" and graph.held(int(operator.inputs[0])) is None
    inputs = [
        (graph.form(index), -1 if moves and slot == 1 else graph.held(index))
        for slot, index in enumerate(int(index) for index in operator.inputs)
    ]
    options = operator.builtinOptions
    settings = () if options is None else tuple((key, str(value)) for key, value in sorted(vars(options).items()))
    return (operator.opcodeIndex, settings, tuple(inputs), tuple(graph.form(int(index)) for index in operator.outputs))


def _flow(graph: Flatbuffer, start: int, period: int, count: int) -> _Run | None:
    """How values flow through blocks of equal operators; None if not alike in all, or in a way no loop can."""
    steps = min(STEPS_PER_PASS, key=lambda steps: steps + count % steps)  # so that fewest stand in the file
    start += (count % steps) * period
    run = _Run(start, period, count - count % steps, steps)
    if run.count < MIN_REPETITIONS:
        return None
    blocks = [graph.operators[start + block * period :][:period] for block in range(run.count)]
    makers = {
        int(index): (block, (position, slot))
        for block, operators in enumerate(blocks)
        for position, operator in enumerate(operators)
        for slot, index in enumerate(operator.outputs)
    }
    for position in range(period):
        operators = [block[position] for block in blocks]
        for slot in range(len(operators[0].inputs)):
            if not _note_input(graph, run, makers, position, slot, [int(op.inputs[slot]) for op in operators]):
                return None
    inside = {id(operator) for block in blocks for operator in block}
    return run if _note_uses(graph, run, makers, inside) else None


def _note_input(
    graph: Flatbuffer, run: _Run, makers: dict[int, Any], position: int, slot: int, tensors: Sequence[int]
) -> bool:
    found = [makers.get(index) for index in tensors]
    places = {None if maker is None else maker[1] for maker in found[1:]}
    if len(places) != 1:
        return False
    (place,) = places
    if place is not None:
        distances = {block - maker[0] for block, maker in enumerate(found) if maker is not None}
        if distances == {0}:
            return True
        if distances != {1} or found[0] is not None or tensors[0] < 0:
            return False
        run.carried[position, slot] = place
        return run.initial.setdefault(place, tensors[0]) == tensors[0]
    if found[0] is not None:
        return False
    if graph.held(tensors[0]) is None:
        if len(set(tensors)) > 1:
            return False
        if tensors[0] not in run.invariant:
            run.invariant.append(tensors[0])
        return True
    if len({graph.held(index) for index in tensors}) == 1:
        return True
    begins = np.array([graph.integers(index) for index in tensors])  # only a SLICE's begin may differ
    moved = np.diff(begins, axis=0)
    if (moved != moved[0]).any() or np.count_nonzero(moved[0]) != 1:
        return False
    run.moving[position] = (begins[0], moved[0])
    return True


def _note_uses(graph: Flatbuffer, run: _Run, makers: dict[int, Any], inside: set[int]) -> bool:
    """Who takes the blocks' values behind them: the last block's by what is carried, all by a CONCATENATION."""
    for operator in graph.operators:
        if id(operator) in inside:
            continue
        taken = [makers.get(int(index)) for index in operator.inputs]
        places = {maker[1] for maker in taken if maker is not None}
        for place in places:
            blocks = [maker[0] for maker in taken if maker is not None and maker[1] == place]
            if blocks == [run.count - 1] and place in run.initial:
                continue
            first = next(slot for slot, maker in enumerate(taken) if maker is not None and maker[1] == place)
            together = [None if maker is None else maker[1] for maker in taken[first : first + run.count]]
            in_order = blocks in (list(range(run.count)), list(range(run.count))[::-1])
            if graph.kind(operator) != "CONCATENATION" or not in_order or together != [place] * run.count:
                return False
            if (
                place in run.stacked
                or graph.type_name(int(operator.inputs[first])) not in NUMPY_TYPES
                or operator.builtinOptions.fusedActivationFunction
            ):
                return False
            run.stacked[place] = (operator, blocks[0] != 0)
    last_values = [makers[int(index)] for index in graph.main.outputs if int(index) in makers]
    return all(block == run.count - 1 and place in run.initial for block, place in last_values)


def _roll(graph: Flatbuffer, run: _Run) -> None:
    """Puts a WHILE in the place of a run."""
    loop = f"{PREFIX}{len(graph.model.subgraphs) // 2}"
    first = graph.operators[run.start : run.start + run.period]
    stop = run.start + run.count * run.period
    last = graph.operators[stop - run.period : stop]
    main, body = Builder(graph, loop, graph.main), Builder(graph, f"{loop}_body")

    # What goes around: its tensor before the loop, at the start and at the end of the body, and behind the loop.
    around: list[tuple[int, int, int, int]] = []

    def advances(begin: np.ndarray, further: np.ndarray) -> int:
        """Whole numbers that grow by `further` with every pass; the tensor in the body."""
        now = body.counter(len(begin))
        following = body.add("ADD", [now, body.integers(further)], body.counter(len(begin)), "AddOptions")
        around.append((main.integers(begin), now, following, main.counter(len(begin))))
        return now

    advances(np.array([0]), np.array([1]))
    inside = {index: body.like(index) for index in run.invariant}
    around += [(index, tensor, tensor, main.like(index)) for index, tensor in inside.items()]
    entry = {place: body.like(initial) for place, initial in run.initial.items()}
    cuts = {}
    for position, (begin, further) in run.moving.items():
        source, size = int(first[position].inputs[0]), np.array(graph.shape(first[position].outputs[0]))
        axis = int(np.flatnonzero(further)[0])
        lowest = min(0, (run.steps - 1) * int(further[axis]))
        length = size[axis] + (run.steps - 1) * abs(int(further[axis]))
        where = advances(begin[axis] + lowest + np.arange(length), np.full(length, run.steps * further[axis]))
        whole = np.array(graph.shape(source))
        whole[axis] = length
        # Not a SLICE: from a place that is computed, its shape would count as unknown, which takes time.
        cut = body.add("GATHER", [inside[source], where], body.like(source, whole), "GatherOptions", axis=axis)
        starts = [begin + step * further for step in range(run.steps)]
        for start in starts:
            start[axis] -= begin[axis] + lowest
        cuts[position] = [(cut, start, size) for start in starts]

    state = dict(entry)
    collected: dict[Place, list[int]] = {place: [] for place in run.stacked}
    for step in range(run.steps):
        made: dict[int, int] = {-1: -1}  # tensors of the first block -> this step's
        for position, operator in enumerate(first):
            inputs = []
            for slot, index in enumerate(int(index) for index in operator.inputs):
                if (position, slot) in run.carried:
                    inputs.append(state[run.carried[position, slot]])
                elif index in made:
                    inputs.append(made[index])
                else:
                    if index not in inside:
                        inside[index] = body.same(index)
                    inputs.append(inside[index])
            if position in cuts:
                cut, begin, size = cuts[position][step]
                inputs = [cut, body.integers(begin), body.integers(size)]
            outputs = [body.like(int(index)) for index in operator.outputs]
            body.add_copy(operator, inputs, outputs)
            made |= zip((int(index) for index in operator.outputs), outputs, strict=True)
        state = {place: made[_output(first, place)] for place in state}
        for place, values in collected.items():
            values.append(made[_output(first, place)])
    around += [(run.initial[place], entry[place], state[place], _output(last, place)) for place in state]

    replacement = []
    for place, (collector, backwards) in run.stacked.items():
        part = _output(first, place)
        shape = np.array(graph.shape(part))
        axis = collector.builtinOptions.axis % len(shape)
        whole, pace = np.where(np.arange(len(shape)) == axis, shape * run.count, shape), np.zeros_like(shape)
        pace[axis] = run.steps * shape[axis] * (-1 if backwards else 1)
        where = advances(np.maximum(0, -pace * (run.count // run.steps - 1)), pace)
        values = collected[place][::-1] if backwards else collected[place]
        joined = body.like(part, np.where(np.arange(len(shape)) == axis, shape * run.steps, shape))
        body.add("CONCATENATION", values, joined, "ConcatenationOptions", axis=axis)
        before, stack, behind = main.like(part, whole), body.like(part, whole), main.like(part, whole)
        written = body.add("DYNAMIC_UPDATE_SLICE", [stack, joined, where], body.like(part, whole))
        around.append((before, stack, written, behind))
        replacement.append(graph.operator("FILL", [main.integers(whole), main.zero(part)], [before], "FillOptions"))
        start = min(list(map(int, collector.inputs)).index(_output(block, place)) for block in (first, last))
        collector.inputs = [*collector.inputs[:start], behind, *collector.inputs[start + run.count :]]

    condition = Builder(graph, f"{loop}_condition")
    condition.subgraph.inputs = [condition.like(tensor, other=body) for _, tensor, _, _ in around]
    goes_on = condition.tensor(condition.types.BOOL, (1,))
    limit = condition.integers([run.count // run.steps])
    condition.add("LESS", [condition.subgraph.inputs[0], limit], goes_on, "LessOptions")
    condition.subgraph.outputs = [goes_on]
    body.subgraph.inputs, body.subgraph.outputs = [start for _, start, _, _ in around], [end for _, _, end, _ in around]
    taken, given = [tensor for tensor, _, _, _ in around], [tensor for _, _, _, tensor in around]
    subgraphs = {"condSubgraphIndex": condition, "bodySubgraphIndex": body}
    indices = {key: graph.model.subgraphs.index(builder.subgraph) for key, builder in subgraphs.items()}
    replacement.append(graph.operator("WHILE", taken, given, "WhileOptions", **indices))
    graph.operators[run.start : stop] = replacement


def _unroll(graph: Flatbuffer, loop: Any) -> None:
    """Puts the passes of a WHILE in its place."""
    body = graph.model.subgraphs[loop.builtinOptions.bodySubgraphIndex]
    (limit,) = graph.model.subgraphs[loop.builtinOptions.condSubgraphIndex].operators[0].inputs[1:]
    held = graph.model.subgraphs[loop.builtinOptions.condSubgraphIndex].tensors[limit].buffer
    (passes,) = np.frombuffer(bytes(graph.model.buffers[held].data), np.int32)
    constants: dict[int, int] = {}

    def copied(index: int, number: int) -> int:
        tensor = copy.copy(body.tensors[index])
        tensor.name += f"/{number}".encode()
        if (groups := graph.groups(tensor)) is not None:
            graph.group(tensor, groups.blockSize, copied(groups.scales, number))
        return graph.add(tensor)

    state, unrolled = [int(index) for index in loop.inputs], []
    for number in range(passes):
        place = dict(zip((int(index) for index in body.inputs), state, strict=True)) | {-1: -1} | constants
        for operator in body.operators:
            for index in (int(index) for index in (*operator.inputs, *operator.outputs)):
                if index not in place:
                    place[index] = copied(index, number)
                    if graph.held(place[index]) is not None:
                        constants[index] = place[index]
            made = copy.copy(operator)
            made.inputs = [place[int(index)] for index in operator.inputs]
            made.outputs = [place[int(index)] for index in operator.outputs]
            unrolled.append(made)
        state = [place[int(index)] for index in body.outputs]
    behind = dict(zip((int(index) for index in loop.outputs), state, strict=True))
    start = next(index for index, operator in enumerate(graph.operators) if operator is loop)
    graph.operators[start : start + 1] = unrolled
    for operator in graph.operators:
        operator.inputs = [behind.get(int(index), int(index)) for index in operator.inputs]
    graph.main.outputs = [behind.get(int(index), int(index)) for index in graph.main.outputs]
    for signature in graph.model.signatureDefs or []:
        for entry in signature.outputs:
            entry.tensorIndex = behind.get(entry.tensorIndex, entry.tensorIndex)


def _output(block: Sequence[Any], place: Place) -> int:
    position, slot = place
    return int(block[position].outputs[slot])
