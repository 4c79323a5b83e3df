"""A module that was given from Python: `edgedl.compress(module, ...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PrivateAttr

from edgedl.core import Network, Task, UsageError
from edgedl.own import networks

if TYPE_CHECKING:
    from torch import nn


class Given(Network):
    """Its weights are in the run folder, its code is the person's: from a file alone it cannot be built again.

    `digest` tells modules apart, so that a step's weights from an earlier run are those of this very module.
    """

    use: str = "given"
    kind: str
    """Of which class the module is that was given from Python."""
    digest: str

    _net: nn.Module | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, net: nn.Module) -> Given:
        """The network that is `net` itself; of which copies are made, so that it stays as it is."""
        given = cls(kind=f"{type(net).__module__}.{type(net).__qualname__}", digest=networks.digest(net))
        given._net = net
        return given

    def build(self, task: Task) -> nn.Module:
        """Raises `UsageError` where there is only what a file says of it."""
        if self._net is None:
            raise UsageError(
                f"the network, a {self.kind}, was given from Python and is not in the recipe: "
                "call edgedl.compress with it again"
            )
        return networks.adapted(self._net, task)
