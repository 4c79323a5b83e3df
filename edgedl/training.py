"""The training loop: one for every step that learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch

from edgedl import progress, sparsity
from edgedl.core import Batch, Task, UsageError
from edgedl.measure import evaluate
from edgedl.sparsity import AfterStep
from edgedl.torch_session import TorchSession, named_outputs

Loss = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor]
"""`(outputs, batch) -> scalar`, both named tensors with the batch dimension first."""


def seed(value: int) -> None:
    """Seeds what training draws from, so that a stage gives the same result wherever it starts."""
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # the largest seed of a recipe is not yet that of its last step


def fit(
    net: torch.nn.Module,
    task: Task,
    loss: Loss,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    optimizer: Literal["adam", "sgd"],
    schedule: Literal["cosine", "constant"],
    weight_decay: float,
    label: str,
    sparse: bool = False,
    after_step: AfterStep | None = None,
    choose_from: int = 1,
    samples: Batch | None = None,
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """Trains a copy of `net` on the train split; returns it with its best weights, and each epoch's figures.

    `samples`, where they are given, take the place of that split.
    The best weights are those that validated best, of the epochs from `choose_from` on. Of a `sparse` network, weights
    that are zero stay zero; `after_step` can change weights after every step, too.

    Raises `UsageError` if the loss stops being a number.
    """
    net = copy.deepcopy(net)
    hooks = [sparsity.keep(sparsity.zeros(net))] if sparse else []
    if after_step is not None:
        hooks.append(after_step)
    arrays = task.arrays("train") if samples is None else samples
    data = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
    num_samples = len(next(iter(data.values())))
    batch_size = min(batch_size, num_samples)  # PyTorch takes no number that is too long for it
    steps_per_epoch = -(-num_samples // batch_size)
    if optimizer == "adam":
        rule: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    else:
        rule = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(rule, epochs * steps_per_epoch) if schedule == "cosine" else None
    sign = 1 if task.metric.higher_is_better else -1
    best, best_weights = (-np.inf, -np.inf), copy.deepcopy(net.state_dict())
    history: list[dict[str, float]] = []
    with progress.stage(label, epochs) as advance:
        for epoch in range(1, epochs + 1):
            net.train()
            losses = []
            for index, chosen in enumerate(torch.split(torch.randperm(num_samples), batch_size), start=1):
                batch = {name: values[chosen] for name, values in data.items()}
                rule.zero_grad()
                given = net(*(batch[name] for name in task.inputs))
                # A mapping may hold more than the task's outputs, for the loss to see.
                value = loss(given if isinstance(given, Mapping) else named_outputs(given, task), batch)
                value.backward()  # type: ignore[no-untyped-call]
                rule.step()
                with torch.no_grad():
                    for hook in hooks:
                        hook(net, epoch - 1 + index / steps_per_epoch)
                if decay is not None:
                    decay.step()
                losses.append(value.item())
                advance(1 / steps_per_epoch)
            mean_loss = float(np.mean(losses))
            if not np.isfinite(mean_loss):
                raise UsageError(f"{label}: the loss became {mean_loss} in epoch {epoch}; try a smaller lr than {lr}")
            score = evaluate(TorchSession(net, task), task, "validation").score
            history.append({"epoch": epoch, "loss": mean_loss, "score": score})
            advance(0, f"loss {mean_loss:.4f}  {task.metric.name} {score:.4f}")
            # Of equal scores the one with the smaller loss: it is the surer.
            if epoch >= choose_from and (sign * score, -mean_loss) > best:
                best, best_weights = (sign * score, -mean_loss), copy.deepcopy(net.state_dict())
    net.load_state_dict(best_weights)
    return net.eval(), history
