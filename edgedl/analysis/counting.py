"""Parameters and multiply-accumulates: of a whole network, and of each of its layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Layer:
    """A module that has parameters or multiplies, without those inside it that are layers themselves.

    What another module's forward uses in its stead, as attention does with its output projection, is a part of that
    module. Together, the layers have all parameters and all multiply-accumulates of their network.
    """

    path: str
    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    """Of its parameters, by their names in the module."""
    parameters: int
    """Shared ones count where they stand first."""
    macs: int
    """Multiply-accumulates for one sample."""


def num_parameters(net: nn.Module) -> int:
    """How many numbers are learned; shared ones count once."""
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates for one sample, half of what PyTorch counts as operations."""
    with _counting() as counter:
        net.eval()(*(values[:1] for values in inputs))
    return int(counter.get_total_flops()) // 2


def macs_of_modules(net: nn.Module, inputs: Inputs) -> dict[str, int]:
    """For every module that runs, by path, its own multiply-accumulates: without those of the modules it calls."""
    paths = {module: path for path, module in net.named_modules()}
    own = dict.fromkeys(paths.values(), 0)
    ran: set[str] = set()
    calls: list[tuple[int, int]] = []
    """For each module at work what had been counted when it began, and what those that it called have counted."""
    hooks = []
    with _counting() as counter:

        def enter(module: nn.Module, given: object) -> None:
            calls.append((counter.get_total_flops(), 0))

        def leave(module: nn.Module, given: object, returned: object) -> None:
            before, within = calls.pop()
            spent = counter.get_total_flops() - before
            own[paths[module]] += (spent - within) // 2
            ran.add(paths[module])
            if calls:
                calls[-1] = calls[-1][0], calls[-1][1] + spent

        for module in paths:
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            net.eval()(*(values[:1] for values in inputs))
        finally:
            for hook in hooks:
                hook.remove()
    return {path: count for path, count in own.items() if path in ran}


def layers(net: nn.Module, inputs: Inputs) -> list[Layer]:
    """The layers of a network, in the order in which it declares them."""
    own_macs = macs_of_modules(net, inputs)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {path: {} for path in own_macs}
    parameters = dict.fromkeys(own_macs, 0)
    counted: set[int] = set()
    for path, module in net.named_modules():
        owner = inside(path, own_macs) or ""
        for name, parameter in module.named_parameters(path, recurse=False):
            shapes[owner][name.removeprefix(owner).removeprefix(".")] = tuple(parameter.shape)
            parameters[owner] += 0 if id(parameter) in counted else parameter.numel()
            counted.add(id(parameter))
    return [
        Layer(path, type(net.get_submodule(path)).__name__, shapes[path], parameters[path], count)
        for path, count in own_macs.items()
        if shapes[path] or count
    ]


def inside(path: str, known: Mapping[str, object]) -> str | None:
    """The innermost of the known modules that a path leads to or into; None if it is in none of them."""
    while path and path not in known:
        path = path.rpartition(".")[0]
    return path if path in known else None


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Counts operations inside, without gradients.

    Kernels that hold a whole recurrent layer, Transformer layer or attention are not counted, and kept away.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter, fast = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            warnings.simplefilter("ignore")  # without oneDNN PyTorch speaks of GPUs
            with torch.backends.mkldnn.flags(enabled=False), counter:
                yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
