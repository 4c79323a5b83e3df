"""How far a student is from its teacher: in outputs, in features, in where they look, in how samples relate.

Values from inside a network are (N, positions..., channels) here: those of convolutions, which have their channels
second, are turned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgedl import plugins
from edgedl.core import Graph, Task, UsageError, graphs_of
from edgedl.torch_session import named_outputs

INNER, PROJECTED = "inner.", "projected."
"""What stands in front of a pair's number where a watched student's outputs also hold its inner values."""


def divergence(
    student: torch.Tensor, taught: torch.Tensor, temperature: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Kullback-Leibler divergence of softened probabilities, from logits (..., classes), times the squared temperature.

    So scaled, its gradients are as large as the labels' (G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge
    in a Neural Network, 2015). The mean over samples and, in sequences, positions: those where `mask` (...) is true.
    """
    own, wanted = (functional.log_softmax(logits / temperature, dim=-1) for logits in (student, taught))
    each = functional.kl_div(own, wanted, reduction="none", log_target=True).sum(dim=-1)
    return (each.mean() if mask is None else each[mask].mean()) * temperature**2


def feature_distance(student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Mean squared difference, as a share of the teacher's mean square: layers differ in scale.

    After A. Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015.
    """
    student, taught = _alike(student, taught)
    return (student - taught).square().mean() / taught.square().mean().clamp_min(1e-12)


def attention_distance(student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Squared distance of normalised maps of where values are large: mean over channels of the squares.

    After S. Zagoruyko and N. Komodakis, Paying More Attention to Attention, ICLR 2017.
    """
    student, taught = _alike(student, taught)
    own, wanted = (functional.normalize(value.square().mean(dim=-1).flatten(1)) for value in (student, taught))
    return (own - wanted).square().sum(dim=1).mean()


def probability_distance(student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Divergence of attention probabilities (N, heads..., T, T), averaged over heads, whose number may differ."""
    own, wanted = (value.flatten(1, -3).mean(dim=1) if value.ndim > 3 else value for value in (student, taught))
    return divergence(own.clamp_min(1e-12).log(), wanted.clamp_min(1e-12).log(), temperature=1.0)


def relational_distance(student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Differences in the distances between samples, in units of their mean, plus twice those in the angles.

    From (N, ...) of any widths. Source: W. Park et al., Relational Knowledge Distillation, CVPR 2019.
    """
    student, taught = student.flatten(1), taught.flatten(1)
    distances = functional.smooth_l1_loss(_distances(student), _distances(taught))
    return distances + 2 * functional.smooth_l1_loss(_angles(student), _angles(taught))


def _distances(values: torch.Tensor) -> torch.Tensor:
    """Between all samples, (N, N), in units of the mean."""
    squares = (values[:, None] - values[None]).square().sum(dim=-1)
    # The root's gradient at zero, a sample's distance to itself, is infinite.
    distances = squares.clamp_min(1e-12).sqrt() * (squares > 0)
    return distances / distances.sum().clamp_min(1e-12) * (squares > 0).sum()


def _angles(values: torch.Tensor) -> torch.Tensor:
    """Cosines at every sample between the ways to any two others, (N, N, N)."""
    ways = values[:, None] - values[None]
    squares = ways.square().sum(dim=-1, keepdim=True)
    # Between samples that are all but alike a way has no direction, and the gradient of one would drown all others.
    ways = ways / (squares + 1e-6 * squares.detach().mean() + 1e-24).sqrt()
    return ways @ ways.transpose(1, 2)


def _alike(student: torch.Tensor, taught: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both at the lower of the two resolutions, by averaging."""
    sizes = tuple(map(min, zip(student.shape[1:-1], taught.shape[1:-1], strict=True)))
    return _pooled(student, sizes), _pooled(taught, sizes)


def _pooled(values: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    if values.shape[1:-1] == sizes:
        return values
    pools: Any = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)
    pooled: torch.Tensor = pools[len(sizes) - 1](values.movedim(-1, 1), sizes)
    return pooled.movedim(1, -1)


# Inside a network


@contextmanager
def watching(net: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What the modules at `paths` return while the network runs, channels last."""
    values: dict[str, torch.Tensor] = {}
    one_dimensional = any(type(module).__name__.endswith("1d") for module in net.modules())

    def hook(path: str) -> Any:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output  # a recurrent layer also returns its state
            if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim < 2:
                return
            second = value.ndim > 3 or (value.ndim == 3 and one_dimensional)
            values.pop(path, None)  # in the order of the last call
            values[path] = value.movedim(1, -1) if second and not gives_probabilities(module) else value

        return keep

    handles = [net.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def gives_probabilities(module: nn.Module) -> bool:
    """Whether it returns attention probabilities: softmax as a module of its own."""
    return isinstance(module, nn.Softmax)


def stages(net: nn.Module, inputs: tuple[torch.Tensor, ...], task: Task) -> dict[tuple[int, ...], str]:
    """Shape of positions -> the last module with values of that shape; () for features without positions.

    The network's outputs are not among them.
    """
    paths = [path for path, module in net.named_modules() if path and not gives_probabilities(module)]
    with torch.no_grad(), watching(net.eval(), paths) as values:
        outputs = named_outputs(net(*inputs), task).values()
    found: dict[tuple[int, ...], str] = {}
    for path, value in values.items():
        positions = tuple(value.shape[1:-1])
        given = any(value.data_ptr() == output.data_ptr() and value.numel() == output.numel() for output in outputs)
        if not given and (not positions or prod(positions) > 1):
            found.pop(positions, None)  # in the order of execution
            found[positions] = path
    return found


def match(
    student: nn.Module, teacher: nn.Module, inputs: tuple[torch.Tensor, ...], task: Task
) -> list[tuple[str, str]]:
    """Pairs of modules, the student's and the teacher's: the last of each stage that both have, in its order.

    Raises `UsageError` if they have none in common.
    """
    own, others = stages(student, inputs, task), stages(teacher, inputs, task)
    pairs = [(path, others[positions]) for positions, path in own.items() if positions in others]
    if not pairs:
        raise UsageError(
            f"distill: no stage of the network ({_shapes(own)}) is like one of its teacher's ({_shapes(others)}); "
            'name pairs of modules: layers = [["its own", "the teacher\'s"]]'
        )
    return pairs


def _shapes(found: Mapping[tuple[int, ...], str]) -> str:
    return ", ".join(f"{path} {'x'.join(map(str, shape)) or 'flat'}" for shape, path in found.items()) or "none"


@dataclass(frozen=True)
class Pair:
    """A module of the student and one of its teacher, whose values can be compared."""

    own: str
    taught: str
    widths: tuple[int, int]
    """Channels on either side."""
    has_positions: bool
    is_probabilities: bool
    """Attention probabilities, not features."""


def compared(
    student: nn.Module, teacher: nn.Module, inputs: tuple[torch.Tensor, ...], paths: Sequence[tuple[str, str]]
) -> list[Pair]:
    """The modules at pairs of paths, the student's and the teacher's. Raises `UsageError` for what is no pair."""
    found = []
    sides = (student, [own for own, _ in paths], "the network"), (teacher, [other for _, other in paths], "its teacher")
    for net, wanted, whose in sides:
        known = [path for path, _ in net.named_modules() if path]
        for path in wanted:
            if path not in known:
                raise UsageError(f"distill: {whose} has no module {path!r}; {plugins.nearest(path, known)}")
        with torch.no_grad(), watching(net.eval(), wanted) as values:
            net(*inputs)
        if silent := next((path for path in wanted if path not in values), None):
            raise UsageError(f"distill: module {silent!r} of {whose} returns no tensor of numbers; name another")
        found.append([(values[path].shape, gives_probabilities(net.get_submodule(path))) for path in wanted])
    pairs = []
    for (own, other), (shape, probabilities), (taught, theirs) in zip(paths, *found, strict=True):
        if len(shape) != len(taught) or probabilities != theirs:
            shapes = (
                f"{tuple(shape)} and {tuple(taught)}{', and one of them probabilities' * (probabilities != theirs)}"
            )
            raise UsageError(f"distill: {own} and {other} cannot be compared: their values are {shapes}")
        pairs.append(Pair(own, other, (shape[-1], taught[-1]), len(shape) > 2, probabilities))
    return pairs


class Watched(nn.Module):
    """A student that, while it trains, also returns inner values, as they are and projected to its teacher's widths.

    Projections are 1x1 convolutions, written as dense layers; they learn along, and go when training ends.
    """

    def __init__(self, net: nn.Module, task: Task, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.net, self.task, self.paths = net, task, [pair.own for pair in pairs]
        self.projections = nn.ModuleList(
            nn.Identity()
            if len(set(pair.widths)) == 1 or pair.is_probabilities
            else nn.Linear(*pair.widths, bias=False)
            for pair in pairs
        )

    def graphs(self) -> Mapping[str, Graph]:
        """Those of the network, which decode while it trains."""
        return graphs_of(self.net)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The network's own outputs; in training, a mapping of them and of the inner values."""
        if not self.training:
            return self.net(*inputs)
        with watching(self.net, self.paths) as values:
            outputs = named_outputs(self.net(*inputs), self.task)
        for index, (path, project) in enumerate(zip(self.paths, self.projections, strict=True)):
            outputs[f"{INNER}{index}"] = values[path]
            outputs[f"{PROJECTED}{index}"] = project(values[path])
        return outputs
