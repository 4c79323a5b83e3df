"""The training loop: one for every step that learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch

from edgedl import checkpoint, progress
from edgedl.core import Batch, Task, UsageError
from edgedl.measure import evaluate
from edgedl.torch_session import TorchSession, named_outputs
from edgedl.training import layout, parallel, sparsity
from edgedl.training.sparsity import AfterStep

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

    A run keeps where it has come to, and a later one goes on from there: to the same weights, on as many threads.
    Several processes that have `parallel.joined` train together; statistics of batch norms are those of the first one's
    parts of batches.

    Raises `UsageError` if the loss stops being a number.
    """
    settings = [epochs, batch_size, lr, optimizer, schedule, weight_decay, sparse, choose_from]
    course = checkpoint.Course(label, net.state_dict(), settings, _as_tensors(samples or {}))
    net = copy.deepcopy(net)
    hooks = [sparsity.keep(sparsity.zeros(net))] if sparse else []
    if after_step is not None:
        hooks.append(after_step)
    arrays = task.arrays("train") if samples is None else samples
    data = _as_tensors(arrays)
    num_samples = len(next(iter(data.values())))
    batch_size = min(batch_size, num_samples)  # PyTorch takes no number that is too long for it

    def answer(net: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        given = net(*(batch[name] for name in task.inputs))
        # A mapping may hold more than the task's outputs, for the loss to see.
        return given if isinstance(given, Mapping) else named_outputs(given, task)

    memory = layout.fastest(net, {name: values[:batch_size] for name, values in data.items()}, answer, loss)
    net.to(memory_format=memory)  # type: ignore[call-overload]
    steps_per_epoch = -(-num_samples // batch_size)
    if optimizer == "adam":
        rule: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    else:
        rule = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(rule, epochs * steps_per_epoch) if schedule == "cosine" else None
    sign = 1 if task.metric.higher_is_better else -1
    best, best_weights = (-np.inf, -np.inf), copy.deepcopy(net.state_dict())
    history: list[dict[str, float]] = []
    first, order, losses = 1, torch.empty(0), list[float]()
    if (reached := course.reached()) is not None:
        first, order, losses, history = (reached[name] for name in ("epoch", "order", "losses", "history"))
        best, best_weights = reached["best"], reached["best_weights"]
        net.load_state_dict(reached["net"])
        rule.load_state_dict(reached["rule"])
        layout.put_rule(rule)
        if decay is not None:
            decay.load_state_dict(reached["decay"])
        with torch.no_grad():
            for hook in hooks:  # what they found out last, they find in the weights
                hook(net, first - 1 + len(losses) / steps_per_epoch)

    def state() -> dict[str, Any]:
        return {
            **{"epoch": epoch, "order": order, "losses": losses, "history": history},
            **{"net": net.state_dict(), "rule": rule.state_dict(), "decay": decay and decay.state_dict()},
            **{"best": best, "best_weights": best_weights},
        }

    shared = parallel.module(net)
    with progress.stage(label, epochs, before=first - 1 + len(losses) / steps_per_epoch) as advance:
        for epoch in range(first, epochs + 1):
            net.train()
            if epoch > first or reached is None:
                order, losses = parallel.same(torch.randperm(num_samples)), []
            batches = torch.split(order, batch_size)
            for index in range(len(losses) + 1, len(batches) + 1):
                mine, share = parallel.part(batches[index - 1])
                batch = layout.laid({name: values[mine] for name, values in data.items()}, memory)
                rule.zero_grad()
                value = share * loss(answer(shared, batch), batch)
                value.backward()  # type: ignore[no-untyped-call]
                rule.step()
                with torch.no_grad():
                    for hook in hooks:
                        hook(net, epoch - 1 + index / steps_per_epoch)
                if decay is not None:
                    decay.step()
                losses.append(parallel.mean(value))
                advance(1 / steps_per_epoch)
                course.keep(state)
            for buffer in net.buffers():
                parallel.same(buffer)
            mean_loss = float(np.mean(losses))
            if not np.isfinite(mean_loss):
                raise UsageError(f"{label}: the loss became {mean_loss} in epoch {epoch}; try a smaller lr than {lr}")
            score = evaluate(TorchSession(net, task), task, "validation").score
            history.append({"epoch": epoch, "loss": mean_loss, "score": score})
            advance(0, f"loss {mean_loss:.4f}  {task.metric.name} {score:.4f}")
            # Of equal scores the one with the smaller loss: it is the surer.
            if epoch >= choose_from and (sign * score, -mean_loss) > best:
                best, best_weights = (sign * score, -mean_loss), copy.deepcopy(net.state_dict())
    torch.set_rng_state(parallel.same(torch.get_rng_state()))  # parts of other sizes have drawn other numbers
    if epochs >= first:
        course.finish(lambda: state() | {"epoch": epochs + 1, "net": best_weights})
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    net.load_state_dict(best_weights)
    return net.eval(), history


def _as_tensors(arrays: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
