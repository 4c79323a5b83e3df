"""How much each part of a network suffers from int8, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgedl import progress, stats
from edgedl.core import Task
from edgedl.measure import evaluate
from edgedl.quantize import mixed
from edgedl.quantize.choose import Trial
from edgedl.torch_session import TorchSession

if TYPE_CHECKING:
    from edgedl.quantize.simulate import Simulation

NUM_SAMPLES = 256
"""Of the validation split: differences in noise between parts show on few."""


def of_blocks(simulation: Simulation, net: torch.nn.Module, task: Task) -> dict[str, Trial]:
    """For every block of a static simulation: score and noise on validation data when it alone is in int8."""
    assert simulation.draft is not None
    names = mixed.blocks(simulation.draft)
    reference = evaluate(TorchSession(net, task), task, "validation", NUM_SAMPLES)
    found = {}
    with progress.stage("sensitivity", len(names)) as step:
        for name in names:
            others = frozenset(names) - {name}
            alone = simulation.leaving(lambda graph, others=others: mixed.kept(graph, others))  # type: ignore[misc]
            # In float: integers tell the same to a hair, and take several times as long.
            scored = evaluate(TorchSession(alone.graph, task), task, "validation", NUM_SAMPLES)
            noise = min(stats.sqnr_db(reference.outputs[key], scored.outputs[key]) for key in task.outputs)
            found[name] = Trial(scored.score, noise, NUM_SAMPLES)
            step(1, f"{name}: {noise:.1f} dB")
    return found
