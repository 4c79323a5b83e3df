"""LSTM and GRU written out in plain operators: one projection of all inputs, then a cell for each step.

Exporters keep `nn.LSTM` whole or open it as they like; quantization needs to see its gates. What is written here
computes the same with the fewest operators a step, all of them with int8 kernels: linear, add, mul, sub, sigmoid,
tanh, slice and, once a layer, transpose, cat and flip.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

State: TypeAlias = tuple[Tensor, ...]
"""What a cell hands to its next step, each (1, N, H): an LSTM's output and memory, a GRU's output."""


def open_recurrent(net: nn.Module, projected_only: bool = False) -> nn.Module:
    """`net` with every LSTM and GRU written out; itself if it has none, else a copy that computes the same.

    With `projected_only` just LSTMs with a projection, which ONNX's operator lacks.
    """

    def opens(module: nn.Module) -> bool:
        return type(module) in LAYERS and (not projected_only or cast("nn.RNNBase", module).proj_size > 0)

    if not any(opens(module) for module in net.modules()):
        return net
    if opens(net):
        return OpenRecurrent(cast("nn.RNNBase", net))
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if opens(child):
                setattr(module, name, OpenRecurrent(cast("nn.RNNBase", child)))
    return net


class OpenRecurrent(nn.Module):
    """Stands for an `nn.LSTM` or `nn.GRU`: same arguments, same results, all layers and directions."""

    batch_first: bool

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        for name in DESCRIPTION:  # a network may ask its layers for them
            setattr(self, name, getattr(layer, name))
        self.between = nn.Dropout(layer.dropout) if layer.dropout else None
        endings = ("", "_reverse") if layer.bidirectional else ("",)
        self.layers = nn.ModuleList(
            nn.ModuleList(Direction(layer, f"_l{index}{ending}", bool(ending)) for ending in endings)
            for index in range(layer.num_layers)
        )
        self.is_lstm = isinstance(layer, nn.LSTM)
        self.train(layer.training)

    def forward(self, x: Tensor, initial: Tensor | State | None = None) -> tuple[Tensor, Tensor | State]:
        """x (N, T, C) if `batch_first`, else (T, N, C); initial states (layers x directions, N, H) or none."""
        assert x.dim() == 3, "a written-out LSTM or GRU takes batches of sequences: (N, T, C) or (T, N, C)"
        values = x.transpose(0, 1) if self.batch_first else x
        given = (initial,) if isinstance(initial, Tensor) else initial
        ends: list[State] = []
        for index, directions in enumerate(self.layers):
            if index and self.between is not None:
                values = self.between(values)
            found = []
            for direction in cast("nn.ModuleList", directions):
                row = len(ends)
                state = None if given is None else tuple(part[row : row + 1] for part in given)
                outputs, end = direction(values, state)
                found.append(outputs)
                ends.append(end)
            values = found[0] if len(found) == 1 else torch.cat(found, 2)
        final = tuple(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*ends, strict=True))
        return values.transpose(0, 1) if self.batch_first else values, final if self.is_lstm else final[0]


class Direction(nn.Module):
    """One layer in one direction: projects the inputs of all steps at once, then goes step by step."""

    def __init__(self, layer: nn.RNNBase, ending: str, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        self.cell = LAYERS[type(layer)](layer, ending)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """x (T, N, C) -> outputs of all steps (T, N, H) and the last state."""
        projected = self.cell.project(x)
        outputs = []
        steps = range(x.shape[0])
        for step in reversed(steps) if self.reverse else steps:
            inputs = [part[step : step + 1] for part in projected]
            state = self.cell(state, *inputs) if state is not None else self.cell.first(*inputs)
            outputs.append(state[0])
        assert state is not None
        return torch.cat(outputs[::-1] if self.reverse else outputs), state


class LSTMCell(nn.Module):
    """Gates in the order input, forget, output, candidate: the first three take one sigmoid together."""

    def __init__(self, layer: nn.RNNBase, ending: str) -> None:
        super().__init__()
        self.size = layer.hidden_size
        weight_x, weight_h, *biases = _parameters(layer, ending, (0, 1, 3, 2))
        self.inputs = _linear(weight_x, sum(biases[1:], start=biases[0]) if biases else None)
        self.hidden = _linear(weight_h, None)
        self.shrink = _linear(getattr(layer, f"weight_hr{ending}"), None) if layer.proj_size else None

    def project(self, x: Tensor) -> tuple[Tensor]:
        return (self.inputs(x),)

    def first(self, x: Tensor) -> State:
        """A step from a state of zeros."""
        i, _, o, candidate = self._gates(x)
        return self._state(o, i * candidate)

    def forward(self, state: State, x: Tensor) -> State:
        """state (1, N, H) twice, x (1, N, 4 H): the projected input of this step."""
        h, c = state
        i, f, o, candidate = self._gates(self.hidden(h) + x)
        return self._state(o, f * c + i * candidate)

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = self.size
        gates, candidate = torch.sigmoid(x[..., : 3 * size]), torch.tanh(x[..., 3 * size :])
        return gates[..., :size], gates[..., size : 2 * size], gates[..., 2 * size :], candidate

    def _state(self, o: Tensor, c: Tensor) -> State:
        h = o * torch.tanh(c)
        return h if self.shrink is None else self.shrink(h), c


class GRUCell(nn.Module):
    """Reset and update gate come from one linear layer, the candidate from another: nothing has to be cut apart."""

    def __init__(self, layer: nn.RNNBase, ending: str) -> None:
        super().__init__()
        self.size = size = layer.hidden_size
        weight_x, weight_h, *biases = _parameters(layer, ending, (0, 1, 2))
        bias_x, bias_h = biases or (None, None)
        # Only the candidate's hidden bias lies behind the reset gate; the others join those of the inputs.
        gate_bias = None if bias_x is None or bias_h is None else (bias_x + bias_h)[: 2 * size]
        self.input_gates = _linear(weight_x[: 2 * size], gate_bias)
        self.input_candidate = _linear(weight_x[2 * size :], None if bias_x is None else bias_x[2 * size :])
        self.hidden_gates = _linear(weight_h[: 2 * size], None)
        self.hidden_candidate = _linear(weight_h[2 * size :], None if bias_h is None else bias_h[2 * size :])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.input_gates(x), self.input_candidate(x)

    def first(self, x_gates: Tensor, x_candidate: Tensor) -> State:
        """A step from a state of zeros."""
        gates = torch.sigmoid(x_gates)
        if self.hidden_candidate.bias is not None:
            x_candidate = x_candidate + gates[..., : self.size] * self.hidden_candidate.bias
        candidate = torch.tanh(x_candidate)
        return (candidate - gates[..., self.size :] * candidate,)

    def forward(self, state: State, x_gates: Tensor, x_candidate: Tensor) -> State:
        """state (1, N, H); x_gates (1, N, 2 H) and x_candidate (1, N, H): the projected inputs of this step."""
        (h,) = state
        gates = torch.sigmoid(self.hidden_gates(h) + x_gates)
        r, z = gates[..., : self.size], gates[..., self.size :]
        candidate = torch.tanh(r * self.hidden_candidate(h) + x_candidate)
        return (z * (h - candidate) + candidate,)


DESCRIPTION = (
    *("mode", "input_size", "hidden_size", "num_layers", "bias"),
    *("batch_first", "dropout", "bidirectional", "proj_size"),
)
LAYERS: dict[type[nn.Module], type[LSTMCell] | type[GRUCell]] = {nn.LSTM: LSTMCell, nn.GRU: GRUCell}


def _parameters(layer: nn.RNNBase, ending: str, order: tuple[int, ...]) -> list[Tensor]:
    """weight_ih, weight_hh and, where there are any, bias_ih and bias_hh, with their gates in `order`."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    found = []
    for name in names:
        gates = getattr(layer, name + ending).detach().split(layer.hidden_size)
        found.append(torch.cat([gates[gate] for gate in order]))
    return found


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def cell_call(stack: Mapping[str, tuple[str, Any]] | None) -> tuple[str, str] | None:
    """A cell's path and which of its calls made a node, by its `nn_module_stack`; None for nodes outside of cells."""
    for call, (path, kind) in (stack or {}).items():
        if str(getattr(kind, "__qualname__", kind)).rpartition(".")[2] in (LSTMCell.__name__, GRUCell.__name__):
            return path, call
    return None
