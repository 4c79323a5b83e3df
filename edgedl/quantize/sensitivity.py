"""How much each part of a network suffers from int8, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgedl import progress
from edgedl.core import Task
from edgedl.measure import evaluate
from edgedl.quantize import mixed
from edgedl.quantize.choose import Trial, judged
from edgedl.torch_session import TorchSession

if TYPE_CHECKING:
    from edgedl.quantize.simulate import Simulation

NUM_SAMPLES = 256
"""Of the validation split: differences in noise between parts show on few."""


def of_parts(
    simulation: Simulation,
    net: torch.nn.Module,
    task: Task,
    part_of: mixed.PartOf = mixed.block_of,
    num_samples: int = NUM_SAMPLES,
) -> dict[str, Trial]:
    """For every part of a static simulation: score and noise on validation data when it alone is in int8."""
    assert simulation.draft is not None
    names = mixed.parts(simulation.draft, part_of)
    reference = evaluate(TorchSession(net, task), task, "validation", num_samples)
    found = {}
    with progress.stage("sensitivity", len(names)) as step:
        for name in names:
            others = frozenset(names) - {name}
            alone = simulation.leaving(lambda graph, others=others: mixed.kept(graph, others, part_of))  # type: ignore[misc]
            found[name] = judged(alone.graph, reference, task, num_samples)
            step(1, f"{name}: {found[name].sqnr_db:.1f} dB")
    return found
