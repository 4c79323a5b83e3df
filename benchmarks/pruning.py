"""edgedl's `prune` step against torch-pruning with plain fine-tuning: equal work left, equal training.

    python -m benchmarks.pruning --networks cnn --seeds 0

Both prune the same trained network to the same share of its multiply-accumulates, in widths that are multiples of 8,
and train for the same epochs by the same rule. Files are float and are timed in turn. What is in the results already
is left as it is.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from benchmarks import networks
from benchmarks.networks import FLOAT_FILES, SUBJECTS
from benchmarks.quantization import BENCH, parser_of
from benchmarks.rows import Row, read, say, write
from edgedl import measure, plugins, stats
from edgedl.core import Model, Target, Task
from edgedl.steps.prune import Prune, macs, sample
from edgedl.torch_session import TorchSession
from edgedl.training import loop

NETWORKS = ("cnn", "resnet", "mobilenet")
SHARES = (0.5, 0.25)
RESULTS = Path(__file__).parent / "results" / "pruning.json"
ROUND_TO = 8
EPOCHS = 5
"""Of training in all, after or between pruning, at a learning rate of `LR`."""
LR = 1e-3
NUM_STRIDES = 100
"""In how many steps torch-pruning approaches its highest ratio; it stops at the first that reaches the goal."""

Prunes = Callable[[nn.Module, Task, float], nn.Module]


def ours(importance: Literal["taylor", "l2"], rounds: int, net: nn.Module, task: Task, share: float) -> nn.Module:
    """The step of a recipe: rounds of pruning and training."""
    step = Prune(
        macs=share, importance=importance, round_to=ROUND_TO, iterations=rounds, epochs=EPOCHS // rounds, lr=LR
    )
    return step.apply(Model(net=net), task).net


def torch_pruning(importance: str, net: nn.Module, task: Task, share: float) -> nn.Module:
    """As in its examples: a global ranking, pruned to the goal at once, then fine-tuned."""
    import torch_pruning as tp

    net, inputs = copy.deepcopy(net), sample(task)
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    scores = {
        "magnitude": partial(tp.importance.GroupMagnitudeImportance, p=2),
        "taylor": tp.importance.GroupTaylorImportance,
    }
    pruner = tp.pruner.BasePruner(
        net,
        inputs[0],
        importance=scores[importance](),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=NUM_STRIDES,
        ignored_layers=[last],
        round_to=ROUND_TO,
    )
    goal = macs(net, inputs) * share
    if importance == "taylor":
        _gradients(net, task)
    for _ in range(NUM_STRIDES):
        if macs(net, inputs) <= goal:
            break
        pruner.step()
    net.zero_grad()
    return _fine_tuned(net.requires_grad_(True), task)


METHODS: dict[str, Prunes] = {
    "edgedl taylor, 5 rounds": partial(ours, "taylor", 5),
    "edgedl taylor, at once": partial(ours, "taylor", 1),
    "edgedl l2, at once": partial(ours, "l2", 1),
    "torch-pruning magnitude": partial(torch_pruning, "magnitude"),
    "torch-pruning taylor": partial(torch_pruning, "taylor"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prunes, judges and measures what is missing; the results are written after every network and seed."""
    options = parser_of("pruning", __doc__, NETWORKS, RESULTS).parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in options.networks:
        for seed in options.seeds:
            rows = read(options.results)
            own = [row for row in rows if (row["network"], row["seed"]) == (name, seed)]
            if options.fresh or not own:
                others = [row for row in rows if row not in own]
                write(options.results, [*others, *compare(name, seed, options.cache.resolve())])


def compare(name: str, seed: int, cache: Path) -> list[Row]:
    """The rows of one trained network: itself, and every method at every share."""
    subject = SUBJECTS[name]
    task = subject.task
    source = networks.prepare(name, seed, cache / "networks" / f"{name}-{seed}")
    whole = networks.load(subject, source)
    inputs = sample(task)
    full = macs(whole, inputs)
    built: list[tuple[Row, nn.Module]] = [({"method": "float", "share": 1.0, "seconds": 0.0}, whole)]
    for share in SHARES:
        for method, prune in METHODS.items():
            say(f"{source.name}: {method}, {share:.0%} of MACs")
            loop.seed(seed)
            start = time.perf_counter()
            net = prune(whole, task, share)
            built.append(({"method": method, "share": share, "seconds": time.perf_counter() - start}, net.eval()))
    for row, net in built:
        row |= {
            "network": name,
            "seed": seed,
            "metric": task.metric.name,
            "score": measure.evaluate(TorchSession(net, task), task, "test").score,
            "macs": macs(net, inputs) / full,
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
        }
    for use in FLOAT_FILES:
        _time(use, built, task, cache / "files" / source.name / "pruned")
    return [row for row, _ in built]


def _time(use: str, built: Sequence[tuple[Row, nn.Module]], task: Task, folder: Path) -> None:
    """Adds bytes and speed-up over the whole network's file on one runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    target = plugins.load("targets", use).model_validate({"threads": 1})
    assert isinstance(target, Target)
    running = {}
    for index, (row, net) in enumerate(built):
        artifact = target.build(Model(net=net), task, folder, networks.BATCH_SIZE)
        row[f"{use}_bytes"] = artifact.file.stat().st_size
        session = target.open(artifact.file)
        running[str(index)] = session, measure.sample(task, session)
    blocks = measure.interleave(running, BENCH)
    for index, (row, _) in enumerate(built):
        row[f"{use}_speedup"] = stats.compare(blocks["0"], blocks[str(index)]).median


def _fine_tuned(net: nn.Module, task: Task) -> nn.Module:
    found, _ = loop.fit(
        net,
        task,
        task.loss,
        epochs=EPOCHS,
        batch_size=32,
        lr=LR,
        optimizer="adam",
        schedule="cosine",
        weight_decay=0.0,
        label="fine-tune",
    )
    return found


def _gradients(net: nn.Module, task: Task) -> None:
    """Of the loss over the calibration split: what its Taylor importance looks at."""
    arrays = {name: torch.from_numpy(values) for name, values in task.arrays("calibration").items()}
    outputs = net(*(arrays[name] for name in task.inputs))
    task.loss(dict(zip(task.outputs, [outputs], strict=True)), arrays).backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
