"""A deployed file at other sizes of its inputs than those of the data, held against what it was exported from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgedl import dimensions, stats
from edgedl.core import Batch, Model, Session, Target, Task, UsageError, in_batches
from edgedl.graph_session import Checked
from edgedl.measure import answers, batch_size

NUM_SAMPLES = 16
"""Of the test split, cut off or continued from their beginning."""

FLOAT_AGREEMENT_DB = 60.0
"""A float file must repeat the float network to this signal-to-noise ratio; sound exports reach 100 dB and more."""
LEAST_DB = 10.0
"""What quantization must leave of the float network at other sizes, unless it does not at the data's."""
HELP = "; say another range in dynamic"


@dataclass(frozen=True)
class OtherSize:
    """What a file does at these sizes of its dimensions, by name."""

    sizes: Mapping[str, int]
    quantization_db: float | None
    """The simulation against the float network; None where nothing is quantized."""
    agreement_db: float | None
    """The file against what it was exported from; None where it does not run."""
    failure: str | None = None
    """Why it does not."""


def tried(model: Model, target: Target, session: Session, task: Task) -> tuple[OtherSize, ...]:
    """The least sizes, the largest and some between, of the dimensions that a file has without a fixed size."""
    fixed = {
        one.name: one.size
        for name, axes in task.dynamic.items()
        for axis, one in axes.items()
        if axis not in session.inputs[name].free
    }
    own = {name: one.size for name, one in dimensions.by_name(task.dynamic).items()}
    wanted = [sizes | fixed for sizes in dimensions.to_try(task.dynamic)]
    return tuple(
        _tried(model, target, session, task, sizes)
        for index, sizes in enumerate(wanted)
        if sizes != own and sizes not in wanted[:index]
    )


def why_not(found: OtherSize, own_db: float | None) -> str | None:
    """Why a file is not for these sizes of its inputs; None if it is.

    It must not stray further from a simulation than that does from the float network: how kernels round is seen at the
    data's size, over the whole test set. `own_db` is what quantization leaves of the float network there.
    """
    at = f"at {dimensions.in_words(found.sizes)}"
    if found.agreement_db is None:
        return f"{at} the file does not run{HELP}: {found.failure}"
    needed_db = FLOAT_AGREEMENT_DB if found.quantization_db is None else min(found.quantization_db, FLOAT_AGREEMENT_DB)
    if found.agreement_db < needed_db:
        return (
            f"{at} the file strays from what was exported: {found.agreement_db:.1f} dB where {needed_db:.1f} dB are "
            f"needed{HELP}"
        )
    noise = found.quantization_db
    if noise is not None and own_db is not None and noise < min(LEAST_DB, own_db):
        return (
            f"{at} quantization leaves {noise:.1f} dB of the float network, and {own_db:.1f} dB at the size of the data"
            f"{HELP}, or take a form that keeps activations in float"
        )
    return None


def _tried(model: Model, target: Target, session: Session, task: Task, sizes: Mapping[str, int]) -> OtherSize:
    from edgedl.torch_session import TorchSession

    arrays = task.arrays("test")
    batch = dimensions.resized({name: arrays[name][:NUM_SAMPLES] for name in task.inputs}, task, sizes)
    wanted, noise = TorchSession(model.net, task).run(batch), None
    if model.quantization is not None:
        simulated = model.quantization.simulated(target.scheme).session().run(batch)
        wanted, noise = simulated, _db(wanted, simulated, task)
    try:
        found = answers(Checked(session), task, in_batches(batch, batch_size(session)))
    except UsageError as error:
        return OtherSize(sizes, noise, None, " ".join(str(error).split())[:400])
    return OtherSize(sizes, noise, _db(wanted, found, task))


def _db(reference: Batch, other: Batch, task: Task) -> float:
    """Of the worst output; the least there is where one has another shape."""
    pairs = [(reference[name], other[name]) for name in task.outputs]
    return min(stats.sqnr_db(*pair) if pair[0].shape == pair[1].shape else -stats.EXACT_DB for pair in pairs)
