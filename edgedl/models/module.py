"""A PyTorch network of one's own, by the name of what builds it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from edgedl import plugins
from edgedl.core import Network, Task, UsageError
from edgedl.own import networks, weights

if TYPE_CHECKING:
    from torch import nn


class Module(Network):
    """`source` is package.module:name: a factory or class that needs no arguments, or a module that is built already.

    `weights` are a .safetensors file or a checkpoint of tensors alone; one that holds more would run code when it is
    read, and is refused without `unpickle`. It is copied, so that one that other code uses stays as it is.
    """

    use: str = "module"
    source: str
    weights: str | None = None
    unpickle: bool = False

    def build(self, task: Task) -> nn.Module:
        """Imports the module and runs its code. Raises `UsageError`, for what it raises with its own traceback."""
        net = _built(self.source, plugins.named(self.source))
        if self.weights is not None:
            net = weights.loaded(net, self.weights, self.unpickle)
        return networks.adapted(net, task)


def _built(source: str, found: Any) -> nn.Module:
    from torch import nn

    if not isinstance(found, nn.Module) and callable(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise UsageError(
                f"{source}: it has to do without arguments: {error}; name a factory that gives them"
            ) from error
        except ValueError:  # a class in C has no signature
            pass
        found = plugins.called(source, found)
    if not isinstance(found, nn.Module):
        raise UsageError(f"{source} gives a {type(found).__name__}, and no torch.nn.Module")
    return found
