"""A Keras 3 model, which on its PyTorch backend is a PyTorch module."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgedl import plugins
from edgedl.core import MissingPackage, ModelFileError, Network, Task, UsageError
from edgedl.own import networks

if TYPE_CHECKING:
    from torch import nn


class KerasFile(Network):
    """`source` is a .keras file, whichever backend it was trained on; inputs stay as it takes them, channels last.

    Its convolutions and dense layers become those of PyTorch, batch norms go into their weights, and dropouts are gone.
    A model that is built in Python needs no file: `module` takes it, where Keras runs on PyTorch.
    Layers with code of their own in the file (lambdas) are refused.
    """

    use: str = "keras-file"
    source: str

    def build(self, task: Task) -> nn.Module:
        """Raises `ModelFileError` for a file that Keras cannot read, `UsageError` where it runs on another backend."""
        if not plugins.installed("keras"):
            raise MissingPackage(f"model keras-file needs keras: {plugins.pip_line('keras')}")
        file = Path(self.source)
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file")
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = "torch"  # read once, when Keras is imported
        import keras

        from edgedl.own.layers import layers

        if keras.backend.backend() != "torch":
            raise UsageError(
                f"{file}: Keras runs on {keras.backend.backend()} already; "
                "set KERAS_BACKEND=torch before it is imported"
            )
        try:
            net = keras.saving.load_model(file, compile=False, safe_mode=True)
        except Exception as error:  # readers of zip archives, JSON, HDF5 and of each layer
            said = " ".join(str(error).split())[:300]
            raise ModelFileError(f"{file}: Keras cannot read it: {type(error).__name__}: {said}") from error
        try:
            program = networks.exported(networks.adapted(net, task), task)
            return networks.adapted(layers(program.module(check_guards=False)), task)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error
