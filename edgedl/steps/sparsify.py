"""Sets single weights to zero while the network trains on: any of them, or two of every four.

Files are as large as before, but compress further; a runtime is faster only if its kernels skip zeros.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from edgedl.core import Model, Task, UsageError
from edgedl.training.learning import TaughtStep
from edgedl.training.teachers import answers_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgedl.training.sparsity import AfterStep

Share = Annotated[float, Field(gt=0, lt=1)]

LAYERS = ("Linear", "_ConvNd", "RNNBase", "MultiheadAttention")
"""What is made sparse: layers that multiply by their weights, but no embedding, of which every row is looked up."""


class Sparsify(TaughtStep):
    """The smallest weights become zero and stay zero in every later step; its weights keep their shapes.

    "unstructured" takes the share `sparsity` of all of them ("global"), or of each layer ("local"): it rises to there
    by the cubic schedule over the share `ramp` of the epochs, fast at first and slower as fewer weights are left
    (M. Zhu and S. Gupta, To Prune, or Not to Prune, 2017).
    "2:4" keeps the two largest of every four weights in a row along a layer's inputs, from the beginning
    (A. Mishra et al., Accelerating Sparse Deep Neural Networks, 2021).
    With `weight`, the float network teaches meanwhile, as the last `train` step left it, or as it is given.
    """

    use: str = "sparsify"
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    """Which weights go: any, or two of every four."""
    sparsity: Share | None = None
    scope: Literal["global", "local"] = "global"
    """Whether layers compete for the share that goes, or each gives its own."""
    ramp: Share = 0.5
    epochs: PositiveInt = 10
    lr: PositiveFloat = 5e-4

    sparsifies: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_share(self) -> Sparsify:
        if self.pattern == "2:4" and self.sparsity is not None:
            raise ValueError('sparsify: pattern = "2:4" keeps two weights of four; leave sparsity out')
        if self.pattern == "unstructured" and self.sparsity is None:
            raise ValueError("sparsify needs sparsity, the share of weights to set to zero")
        return self

    def apply(self, model: Model, task: Task) -> Model:
        """Raises `UsageError` where nothing can be made sparse, and if the loss diverges."""
        from edgedl.training import sparsity

        layers = {name: value for name, (value, _) in sparsifiable(model.net).items()}
        if not layers:
            raise UsageError("sparsify: the network has no layer that multiplies by weights")
        whole: dict[str, str] = {}
        loss, samples = self.lesson(answers_of(model.teacher or model.net, task), task)
        if self.pattern == "2:4":
            net, whole = two_of_four(model.net)
            zero = {name: found for name, found in sparsity.zeros(net).items() if name in layers and name not in whole}
            net, history = self.fit(
                net, task, loss, sparse=model.sparse, after_step=sparsity.keep(zero), samples=samples
            )
        else:
            gone = sparsity.zeros(model.net) if model.sparse else {}
            after_step = self._rising({name: zero for name, zero in gone.items() if name in layers}, layers)
            # What validated better with more weights left is not what was asked for.
            settled = math.ceil(self.ramp * self.epochs)
            net, history = self.fit(
                model.net,
                task,
                loss,
                sparse=model.sparse,
                after_step=after_step,
                choose_from=settled,
                samples=samples,
            )
        metrics = {"epochs": history, "zeros": _shares(net), "left_whole": whole}
        return model.after(self, metrics, net=net)

    def _rising(self, gone: dict[str, torch.Tensor], layers: Mapping[str, torch.Tensor]) -> AfterStep:
        """Sets ever more weights to zero, until `sparsity` is reached; one that is gone does not come back."""
        assert self.sparsity is not None
        goal = self.sparsity
        start = sum(int(zero.sum()) for zero in gone.values()) / sum(value.numel() for value in layers.values())
        if start >= goal:
            raise UsageError(
                f"sparsify: sparsity = {goal} is asked for, but {start:.2f} of the weights are zero already"
            )

        def applied(net: nn.Module, epochs_done: float) -> None:
            found = {name: value for name, (value, _) in sparsifiable(net).items()}
            for name, zero in gone.items():
                found[name].masked_fill_(zero, 0)
            left = 1 - min(epochs_done / (self.ramp * self.epochs), 1)
            gone.update(smallest(found, goal + (start - goal) * left**3, self.scope))
            for name, zero in gone.items():
                found[name].masked_fill_(zero, 0)

        return applied


def sparsifiable(net: nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """Parameter name -> the weight, and the dimension of its inputs."""
    found = {}
    for path, module in net.named_modules():
        if any(base.__name__ in LAYERS for base in type(module).__mro__):
            for name, value in module.named_parameters(recurse=False):
                if value.ndim > 1 and "weight" in name:
                    inputs = 0 if getattr(module, "transposed", False) else 1
                    found[f"{path}.{name}" if path else name] = (value.detach(), inputs)
    return found


def smallest(values: Mapping[str, torch.Tensor], share: float, scope: str) -> dict[str, torch.Tensor]:
    """Which weights are the smallest share of all, or of their own layer: bool of each one's shape."""
    import torch

    if scope == "local":
        return {name: value.abs() <= _threshold(value.abs().flatten(), share) for name, value in values.items()}
    threshold = _threshold(torch.cat([value.abs().flatten() for value in values.values()]), share)
    return {name: value.abs() <= threshold for name, value in values.items()}


def _threshold(magnitudes: torch.Tensor, share: float) -> float:
    count = round(share * len(magnitudes))
    return float(magnitudes.kthvalue(count).values) if count else -1.0


def two_of_four(net: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """A copy with the two smallest of every four weights along the inputs at zero; and what stays whole, and why.

    Raises `UsageError` if everything does.
    """
    import torch

    net, whole = copy.deepcopy(net), {}
    layers = sparsifiable(net)
    for name, (value, inputs) in layers.items():
        if value.shape[inputs] % 4:
            whole[name] = f"its {value.shape[inputs]} inputs are no multiple of four"
            continue
        fours = value.movedim(inputs, -1)
        fours = fours.reshape(*fours.shape[:-1], -1, 4)
        order = fours.abs().argsort(dim=-1, stable=True)
        kept = torch.ones_like(fours).scatter(-1, order[..., :2], 0.0)
        value.mul_(kept.flatten(-2).movedim(-1, inputs))
    if len(whole) == len(layers):
        raise UsageError(f"sparsify: no layer has inputs in fours: {'; '.join(f'{k}: {v}' for k, v in whole.items())}")
    return net, whole


def _shares(net: nn.Module) -> dict[str, Any]:
    """The share of zeros in each weight."""
    return {name: round(float((value == 0).float().mean()), 6) for name, (value, _) in sparsifiable(net).items()}
