"""A model of the transformers library, from a folder or from the Hugging Face hub."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import plugins
from edgedl.core import MissingPackage, ModelFileError, Network, Task, UsageError
from edgedl.own import networks

if TYPE_CHECKING:
    from torch import nn


class HuggingFace(Network):
    """`source` is a folder that `save_pretrained` made, or a name on the hub: org/name.

    `architecture` is a class of transformers, such as BertForSequenceClassification or AutoModelForMaskedLM; without
    it, the one that the folder's config names. Code that comes with a model is never run.
    """

    use: str = "hugging-face"
    source: str
    architecture: str | None = None

    def build(self, task: Task) -> nn.Module:
        """Raises `ModelFileError` for a model that cannot be read or fetched."""
        if not plugins.installed("transformers"):
            raise MissingPackage(f"model hugging-face needs transformers: {plugins.pip_line('transformers')}")
        import torch
        import transformers

        if Path(self.source).exists() and not (Path(self.source) / "config.json").is_file():
            raise ModelFileError(f"{self.source}: no folder with a config.json, as save_pretrained writes it")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        offline = self._is_offline()
        config = self._got(transformers.AutoConfig.from_pretrained, offline)
        config.use_cache = False  # what a decoder keeps between calls is no output of a network
        net = self._got(
            self._class(transformers, config).from_pretrained,
            offline,
            config=config,
            use_safetensors=True,  # other files of weights are pickles
            dtype=torch.float32,
            attn_implementation="eager",  # others are made for training on GPUs, and do not export as plainly
        )
        try:
            return networks.adapted(net, task)
        except UsageError as error:
            raise UsageError(f"{self.source}: {error}") from error

    def _class(self, transformers: Any, config: Any) -> Any:
        wanted = self.architecture or next(iter(config.architectures or ()), None)
        if wanted is None:
            raise UsageError(f"{self.source}: its config names no class; name one with architecture = ...")
        found = getattr(transformers, wanted, None)
        if not hasattr(found, "from_pretrained"):
            near = plugins.nearest(wanted, [name for name in dir(transformers) if "For" in name or "Model" in name])
            raise UsageError(f"{self.source}: transformers {transformers.__version__} has no class {wanted}; {near}")
        return found

    def _is_offline(self) -> bool:
        """Whether to look for files here alone: the hub's client asks for half a minute where nobody answers."""
        if Path(self.source).exists():
            return True
        from huggingface_hub.constants import ENDPOINT

        try:
            urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=5).close()
        except urllib.error.HTTPError:  # it answers, at least
            return False
        except OSError:
            return True
        return False

    def _got(self, load: Any, offline: bool, **given: Any) -> Any:
        """Raises `ModelFileError` in one line: transformers says at length what it tried."""
        try:
            return load(self.source, trust_remote_code=False, local_files_only=offline, **given)
        except Exception as error:  # transformers, the hub, safetensors and its reader of JSON each have their own
            said = " ".join(str(error).split())
            if not Path(self.source).exists():
                reason = "no connection" if offline else said[:200]
                raise ModelFileError(
                    f"{self.source}: no such folder, and the hub does not give it: {reason}"
                ) from error
            raise ModelFileError(f"{self.source}: cannot be read: {type(error).__name__}: {said[:300]}") from error
