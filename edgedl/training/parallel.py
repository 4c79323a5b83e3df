"""Training on several processes, as `torchrun` starts them: each computes the gradients of its part of every batch.

Weights are the same in all after every step, by PyTorch's DistributedDataParallel. All but training is for the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one may be quantizing meanwhile."""


def rank() -> int:
    """Which of the processes this is: 0 is the first, or alone."""
    return int(os.environ.get("RANK", 0)) if num_started() > 1 else 0


def num_started() -> int:
    """How many processes `torchrun` has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined() -> Iterator[None]:
    """While the block runs, `loop.fit` trains in all processes together; each has to come here."""
    if num_started() == 1:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def num() -> int:
    """How many processes train together now."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def module(net: torch.nn.Module) -> torch.nn.Module:
    """What to call in place of a network, so that gradients become the mean over all processes."""
    if num() == 1 or not any(parameter.requires_grad for parameter in net.parameters()):
        return net
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(net, find_unused_parameters=True)


def part(indices: torch.Tensor) -> tuple[torch.Tensor, float]:
    """This process's part of a batch, and what the mean of its losses counts: the mean over processes is the batch's.

    A batch with fewer samples than there are processes is computed by each.
    """
    from torch import distributed

    together = num()
    if together == 1 or len(indices) < together:
        return indices, 1.0
    mine = indices.tensor_split(together)[distributed.get_rank()]
    return mine, len(mine) * together / len(indices)


def mean(value: torch.Tensor) -> float:
    """The mean of a number over all processes."""
    if num() == 1:
        return float(value.item())
    from torch import distributed

    total = value.detach().clone()
    distributed.all_reduce(total)
    return float(total.item()) / num()


def same(values: torch.Tensor) -> torch.Tensor:
    """What the first process has."""
    if num() > 1:
        from torch import distributed

        distributed.broadcast(values, 0)
    return values
