"""The ladder: from the float network down to the deployed file, rung by rung, and the first layer where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import other_sizes, stats
from edgedl.core import Activation, Batch, Model, Session, Target, Task, num_samples
from edgedl.measure import Scored, batch_size, evaluate
from edgedl.other_sizes import FLOAT_AGREEMENT_DB, OtherSize

if TYPE_CHECKING:
    from edgedl.graphs import Part

QUANTIZED_MARGIN_DB = 10.0
"""An int8 file may stray from its simulation by a tenth of the noise power that quantization itself made."""
HALF_AGREEMENT_DB = 40.0
"""A file that computes in half precision rounds where its kernels end, which is the builder's choice: that noise is as
large as the form's own, so none can be nearer to a simulation. Sound files reach 50 dB and more."""
ROUNDING_DB = 100.0
"""Float arithmetic in another order agrees to 120 dB and more; what is below has a code in it that tipped over."""
RECOGNIZED_DB = 20.0
"""Values that agree less than that are hardly those of one tensor in one order."""
MIN_SAME_DECISIONS = 0.99


@dataclass(frozen=True)
class Rung:
    """A score over the whole test set; `drop` is how much worse than the float network's, in the metric's unit."""

    name: str
    score: float
    drop: float


@dataclass(frozen=True)
class Agreement:
    """How closely a deployed file repeats what it was exported from, over the whole test set."""

    sqnr_db: float
    same_decision: float | None
    """Share of equal decisions; None where the task decides nothing."""
    max_steps: int | None
    """The largest difference in int8 steps of an output; 0 is bit for bit. None for float files."""


@dataclass(frozen=True)
class Divergence:
    """The first layer whose deployed values differ from the simulated ones."""

    layer: str
    sqnr_db: float
    max_steps: int | None
    deployed_tensor: str


@dataclass(frozen=True)
class Climb:
    """What the ladder found for one variant on one target."""

    rungs: tuple[Rung, ...]
    quantization_db: float | None
    """Outputs of the simulation against the float network; None where nothing is quantized."""
    agreement: Agreement
    first_divergence: Divergence | None
    breach: str | None
    """Why the file is not what it was exported from; None if it is."""
    deployed: Scored
    other_sizes: tuple[OtherSize, ...] = ()
    """What it does at other sizes of its inputs than those of the data, where it takes them."""
    graphs: Mapping[str, Climb] = field(default_factory=dict)
    """Of a network that is several graphs, what was found for each on the inputs that it has in decoding. The rungs
    are the whole's, and so are equal decisions; the rest is that of the worst graph."""


def climb(model: Model, source: Scored, above: Sequence[Rung], target: Target, session: Session, task: Task) -> Climb:
    """Scores the lower rungs for one deployed file, over the whole test set.

    `source` is the model's own float network; `above` are the rungs down to it, the float reference first.
    """
    deployed = evaluate(session, task, "test")
    rungs = list(above)
    if of_graphs := _parts(model, task):
        return _climb_graphs(of_graphs, model, source, above, deployed, target, session, task)
    simulated, quantization_db, scales, in_half = source, None, dict[str, float](), False
    if model.quantization is not None:
        simulation = model.quantization.simulated(target.scheme)
        simulated, scales, in_half = simulation.evaluated("test"), simulation.output_scales(), simulation.in_half
        quantization_db = _sqnr(source, simulated, task)
        rungs.append(rung("simulated", simulated.score, above, task))
    rungs.append(rung("deployed", deployed.score, above, task))
    agreement = Agreement(
        sqnr_db=_sqnr(simulated, deployed, task),
        same_decision=_same(simulated.decisions, deployed.decisions),
        max_steps=_max_steps(simulated.outputs, deployed.outputs, scales),
    )
    needed = FLOAT_AGREEMENT_DB if quantization_db is None else quantization_db + QUANTIZED_MARGIN_DB
    needed = min(needed, HALF_AGREEMENT_DB) if in_half else needed
    same = agreement.same_decision
    breached = agreement.sqnr_db < needed or (same is not None and same < MIN_SAME_DECISIONS)
    divergence = None
    # Float outputs have no steps, but the values that they are made of may have.
    tipped = quantization_db is not None and agreement.max_steps is None and agreement.sqnr_db < ROUNDING_DB
    if breached or agreement.max_steps or tipped:
        batch = _worst_batch(simulated, deployed, task, batch_size(session))
        inside = _inside(model, target, task, batch)
        divergence = first_divergence(inside, session.activations(batch), needed, outputs_agree=not breached)
    others = other_sizes.tried(model, target, session, task)
    strays = next(filter(None, (other_sizes.why_not(one, quantization_db) for one in others)), None)
    return Climb(
        rungs=tuple(rungs),
        quantization_db=quantization_db,
        agreement=agreement,
        first_divergence=divergence,
        breach=_breach(agreement, needed, divergence) if breached else strays,
        deployed=deployed,
        other_sizes=others,
    )


def _parts(model: Model, task: Task) -> Mapping[str, Part]:
    from edgedl import graphs

    return graphs.parts(model, task)


def _climb_graphs(
    of_graphs: Mapping[str, Part],
    model: Model,
    source: Scored,
    above: Sequence[Rung],
    deployed: Scored,
    target: Target,
    session: Session,
    task: Task,
) -> Climb:
    """The ladder of a network that is several graphs: the whole's scores, and a ladder for each graph."""
    from edgedl.torch_session import TorchSession

    simulated, rungs = source, list(above)
    if model.quantization is not None:
        simulated = model.quantization.evaluated(target.scheme, "test")
        rungs.append(rung("simulated", simulated.score, above, task))
    rungs.append(rung("deployed", deployed.score, above, task))
    climbs = {}
    for name, part in of_graphs.items():
        answered = evaluate(TorchSession(part.model.net, part.task), part.task, "test")
        climbs[name] = climb(part.model, answered, (), target, session.graphs[name], part.task)
    worst_name = min(climbs, key=lambda name: climbs[name].agreement.sqnr_db)
    agreement, divergence = climbs[worst_name].agreement, climbs[worst_name].first_divergence
    steps = [found.agreement.max_steps for found in climbs.values() if found.agreement.max_steps is not None]
    noise = [found.quantization_db for found in climbs.values() if found.quantization_db is not None]
    breaches = [f"graph {name}: {found.breach}" for name, found in climbs.items() if found.breach]
    same = _same(simulated.decisions, deployed.decisions)
    if not breaches and same is not None and same < MIN_SAME_DECISIONS:
        breaches = [f"the files decide otherwise than what was exported: {same:.1%} equal decisions"]
    return Climb(
        rungs=tuple(rungs),
        quantization_db=min(noise, default=None),
        agreement=Agreement(agreement.sqnr_db, same, max(steps, default=None)),
        first_divergence=divergence and replace(divergence, layer=f"{worst_name}/{divergence.layer}"),
        breach="; ".join(breaches) or None,
        deployed=deployed,
        graphs=climbs,
    )


def rung(name: str, score: float, above: Sequence[Rung], task: Task) -> Rung:
    """A rung under others, of which the first is the float reference."""
    reference = above[0].score if above else score
    return Rung(name, score, task.metric.drop(reference, score))


def first_divergence(
    simulated: Sequence[Activation], deployed: Sequence[Activation], needed_db: float, *, outputs_agree: bool = False
) -> Divergence | None:
    """The first simulated value that no deployed tensor repeats: to the step if int8, to `needed_db` if float.

    A value is looked for among the tensors of its size in either layout, since exporters rename tensors and move
    channels last; one that is like none of them is looked for in any order. Where the outputs agree but for roundings,
    one that is still like none has no tensor of its own in the file (a join that the converter left in float, say), and
    a later one that is found and differs is named before it. None if all are found, or if the runtime shows none.
    """
    if not deployed:
        return None
    unseen: Divergence | None = None
    for wanted in simulated:
        best = _nearest(wanted, deployed, _layouts)
        if best is not None and best.sqnr_db < RECOGNIZED_DB:
            best = _nearest(wanted, deployed, _sorted)
        if best is None:
            best = Divergence(wanted.layer, -stats.EXACT_DB, None, "no tensor of that size")
        if best.max_steps or (best.max_steps is None and best.sqnr_db < needed_db):
            if best.sqnr_db >= RECOGNIZED_DB or not outputs_agree:
                return best
            unseen = unseen or best
    return unseen


def _nearest(
    wanted: Activation,
    deployed: Sequence[Activation],
    orders: Callable[[np.ndarray, np.ndarray], list[tuple[np.ndarray, np.ndarray]]],
) -> Divergence | None:
    """How far the tensor that is most like a simulated value is from it; None if none has its size."""
    best: Divergence | None = None
    for candidate in deployed:
        if candidate.values.size != wanted.values.size:
            continue
        for values, found in orders(wanted.values, candidate.values):
            steps = None
            if wanted.scale is not None:
                steps = int(np.rint(np.abs(found - values).max() / wanted.scale))
            ratio = stats.sqnr_db(values, found)
            if best is None or ratio > best.sqnr_db:
                best = Divergence(wanted.layer, ratio, steps, candidate.layer)
    return best


def as_json(climb: Climb, variant: str, target: Target) -> dict[str, Any]:
    """The entry of a report's `ladder`."""
    return {
        "variant": variant,
        "target": target.label,
        "rungs": [vars(rung) for rung in climb.rungs],
        **_found(climb),
        "other_sizes": [vars(found) for found in climb.other_sizes],
        "graphs": {name: _found(found) for name, found in climb.graphs.items()},
    }


def _found(climb: Climb) -> dict[str, Any]:
    divergence = climb.first_divergence
    return {
        "quantization": None if climb.quantization_db is None else {"sqnr_db": climb.quantization_db},
        "agreement": vars(climb.agreement),
        "first_divergence": None if divergence is None else vars(divergence),
    }


def _inside(model: Model, target: Target, task: Task, batch: Batch) -> list[Activation]:
    from edgedl.quantize.simulate import activations, export_graph

    inputs = [batch[name] for name in task.inputs]
    if model.quantization is None:
        whole_recurrent = bool(target.scheme.whole_recurrent)  # as the float file has them
        return activations(export_graph(model.net, task, whole_recurrent), inputs)
    return model.quantization.simulated(target.scheme).activations(inputs)


def _layouts(values: np.ndarray, found: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both flattened as they lie and, from three dimensions on, the first with channels last."""
    pairs = [(values.reshape(-1), found.reshape(-1))]
    if values.ndim > 2:
        pairs.append((np.moveaxis(values, 1, -1).reshape(-1), found.reshape(-1)))
    return pairs


def _sorted(values: np.ndarray, found: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both in order of size: what is left where a converter has merged transpositions in some way of its own."""
    return [(np.sort(values, axis=None), np.sort(found, axis=None))]


def _sqnr(reference: Scored, other: Scored, task: Task) -> float:
    """The worst output's ratio; what decoding or playing made of outputs is scored, not compared."""
    return min(stats.sqnr_db(reference.outputs[name], other.outputs[name]) for name in task.outputs)


def _same(simulated: np.ndarray | None, deployed: np.ndarray | None) -> float | None:
    if simulated is None or deployed is None:
        return None
    return float((simulated == deployed).mean())


def _max_steps(simulated: Batch, deployed: Batch, scales: dict[str, float]) -> int | None:
    steps = [np.rint(np.abs(simulated[name] - deployed[name]).max() / scale) for name, scale in scales.items()]
    return int(max(steps)) if steps else None


def _worst_batch(simulated: Scored, deployed: Scored, task: Task, size: int) -> Batch:
    """The test batch with the sample whose outputs differ most."""
    pairs = [(simulated.outputs[name], deployed.outputs[name]) for name in task.outputs]
    errors = sum(np.abs(one - other).reshape(len(one), -1).max(axis=1) for one, other in pairs)
    start = int(np.argmax(errors)) // size * size
    arrays = task.arrays("test")
    rows = np.minimum(np.arange(start, start + size), num_samples(arrays) - 1)
    return {name: np.ascontiguousarray(arrays[name][rows]) for name in task.inputs}


def _breach(agreement: Agreement, needed: float, divergence: Divergence | None) -> str:
    said = f"the file strays from what was exported: {agreement.sqnr_db:.1f} dB where {needed:.1f} dB are needed"
    if agreement.same_decision is not None:
        said += f", {agreement.same_decision:.1%} equal decisions"
    if divergence is None:
        return said
    steps = "" if divergence.max_steps is None else f" by up to {divergence.max_steps} steps"
    return f"{said}; they part at layer {divergence.layer}{steps} (tensor {divergence.deployed_tensor})"
