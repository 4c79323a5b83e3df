"""Latency on a target: a table of single layers, measured once and kept, and whole networks measured in turn.

The table says what is likely to help; only a network's own file says what it takes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from edgedl import converting, files, measure, plugins, progress, stats
from edgedl.core import (
    Batch,
    Bench,
    EdgedlError,
    Limits,
    Metric,
    Model,
    Session,
    Split,
    Step,
    Target,
    TargetError,
    Task,
    TensorSpec,
    UsageError,
)
from edgedl.pruning import structure
from edgedl.pruning.blocks import Block

if TYPE_CHECKING:
    import torch
    from torch import nn

    Inputs = tuple[torch.Tensor, ...]

Precision = Literal["fp32", "int8"]

WIDTHS = (1.0, 0.5, 0.25)
"""Of a layer's full width: where it is measured."""
LAYER_BENCH = Bench(min_seconds=0.1, rounds=5)
NETWORK_BENCH = Bench(min_seconds=1.0, rounds=20)
OPTIONS = ("kernel_size", "stride", "padding", "output_padding", "dilation", "padding_mode", "mode", "num_layers",
           "bidirectional", "batch_first", "head_dim")  # fmt: skip
WIDE = {
    # what a layer takes, and what it gives
    "Linear": ("in_features", "out_features"),
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
                    ("in_channels", "out_channels")),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ("input_size", "hidden_size")),
    "MultiheadAttention": ("embed_dim", "num_heads"),
}  # fmt: skip


class Shapes(Task):
    """Random numbers of a layer's shape, for nothing but its speed."""

    use: str = "shapes"
    shape: tuple[int, ...]

    outputs: ClassVar[tuple[str, ...]] = ("y",)
    metric: ClassVar[Metric] = Metric(name="nothing", unit="1", higher_is_better=True)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return {"x": TensorSpec(self.shape)}

    def arrays(self, split: Split) -> Batch:
        return {"x": np.random.default_rng(0).standard_normal((8, *self.shape)).astype(np.float32)}

    def score(self, outputs: Batch, batch: Batch) -> float:
        return 0.0


@dataclass(frozen=True)
class Layer:
    """A layer where it stands in a network: what it is, for which input (channels last, and 0), and how wide."""

    path: str
    module: nn.Module
    kind: str
    shape: tuple[int, ...]
    widths: tuple[int, int]

    @property
    def signature(self) -> str:
        """All that its latency depends on but its widths."""
        options = {name: getattr(self.module, name) for name in OPTIONS if hasattr(self.module, name)}
        groups = getattr(self.module, "groups", 1)
        biased = any("bias" in name for name, _ in self.module.named_parameters())
        return json.dumps([self.kind, "depthwise" if self.depthwise else groups, biased, options, self.shape])

    @property
    def depthwise(self) -> bool:
        return structure.axes(self.module) is structure.DEPTHWISE

    def at(self, widths: tuple[int, int]) -> tuple[nn.Module, tuple[int, ...]]:
        """The layer alone with these widths, and its input's shape; raises `UsageError` if it cannot have them."""
        import torch

        from edgedl.pruning.sequence_layers import Alone

        taken, given = WIDE[self.kind]
        net = copy.deepcopy(Alone(self.module))
        shapes = structure.describe(net)
        shapes["layer"] |= {taken: widths[0], given: widths[1]}
        if self.depthwise:
            shapes["layer"] |= {"groups": widths[0]}
        if "layer.out_proj" in shapes:
            inner = widths[1] * shapes["layer"]["head_dim"]
            shapes["layer.out_proj"] |= {"in_features": inner, "out_features": widths[0]}
        structure.reshape(net, shapes)
        dice = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weights in net.parameters():  # those of zeros have no int8 grid that every kernel takes
                weights.normal_(0, 0.1, generator=dice)
        return net, tuple(size or widths[0] for size in self.shape)


def layers(net: nn.Module, inputs: Inputs) -> list[Layer]:
    """Every layer with weights that can be measured alone, each time that it runs for one sample."""
    import torch

    found: list[Layer] = []
    paths = {module: path for path, module in net.named_modules()}

    def note(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
        kind, shape = type(module).__name__, list(args[0].shape) if args else []
        taken, given = WIDE[kind]
        if shape:
            del shape[0 if getattr(module, "batch_first", True) else 1]
            del shape[0 if "channels" in taken else -1]
            found.append(
                Layer(paths[module], module, kind, (*shape, 0), (getattr(module, taken), getattr(module, given)))
            )

    hooks = [module.register_forward_hook(note) for module in net.modules() if type(module).__name__ in WIDE]
    try:
        with torch.no_grad():
            net.eval()(*(values[:1] for values in inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return found


class LayerTable:
    """Latencies of single layers on one target and machine, in ms, kept in a file."""

    def __init__(self, target: Target, precision: Precision, folder: Path | None = None) -> None:
        self.target, self.precision = target, precision
        self.key = {
            "host": [platform.node(), platform.machine(), _processor()],
            "target": target.model_dump(),
            "precision": precision,
            "versions": _versions(target),
        }
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        self.file = (folder or files.cache_folder("latency")) / f"{digest}.json"
        self.points: dict[str, list[list[float]]] = {}
        self.fits: dict[str, np.ndarray] = {}
        try:
            self.points = json.loads(self.file.read_text(encoding="utf-8"))["layers"]
        except (OSError, ValueError, KeyError):
            pass  # there is none yet, or another program is writing it: then it is measured again

    def measure(self, net: nn.Module, inputs: Inputs, blocks: Sequence[Block]) -> None:
        """Measures what is not known of a network's layers, from their widths down as far as the blocks are theirs."""
        shrinking = {(part.path, part.attribute.partition("_")[0]) for block in blocks for part in block.slices}
        wanted: dict[str, tuple[Layer, set[tuple[int, int]]]] = {}
        for layer in layers(net, inputs):
            known = {(point[0], point[1]) for point in self.points.get(layer.signature, [])}
            if missing := set(_grid(layer, shrinking)) - known:
                wanted.setdefault(layer.signature, (layer, set()))[1].update(missing)
        if not wanted:
            return
        total = sum(len(missing) for _, missing in wanted.values())
        with progress.stage(f"{self.target.label}: layers", total) as step:
            for signature, (layer, missing) in wanted.items():
                points = sorted(missing)
                times = self._time_apart(layer, points)
                self.points.setdefault(signature, []).extend(
                    [*widths, time] for widths, time in zip(points, times, strict=False)
                )
                step(len(points))
        self.fits.clear()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(self.file, {"key": self.key, "layers": self.points})

    def predict(self, net: nn.Module, inputs: Inputs) -> float:
        """The sum of a network's layers; what is no layer with weights, or cannot run alone, counts nothing."""
        return sum(self._lookup(layer) for layer in layers(net, inputs))

    def _lookup(self, layer: Layer) -> float:
        signature = layer.signature
        if not (points := self.points.get(signature)):
            return 0.0
        if signature not in self.fits:
            taken, given, times = np.array(points).T
            weights = 1 / np.maximum(times, 1e-3)  # small layers are to be as right as large ones
            terms = _terms(layer.kind, taken, given) * weights[:, None]
            self.fits[signature] = np.linalg.lstsq(terms, times * weights, rcond=None)[0]
        row = _terms(layer.kind, np.array([layer.widths[0]]), np.array([layer.widths[1]]))
        return max(float((row @ self.fits[signature])[0]), 0.0)

    def _time_apart(self, layer: Layer, missing: Sequence[tuple[int, int]]) -> list[float]:
        """As `_time`, in a copy of the process: a kernel that crashes with one layer is one that cannot run it.

        A GPU is of no use to a copy.
        """
        if self.target.needs_gpu:
            return self._time(layer, missing)
        try:
            found: list[float] = converting.apart(self.target, lambda: self._time(layer, missing), Limits())
        except TargetError:
            return []
        return found

    def _time(self, layer: Layer, missing: Sequence[tuple[int, int]]) -> list[float]:
        """The layer at each of the widths, in turn, less what it takes to call a file that does nothing; none if
        the target cannot run it."""
        import torch

        try:
            nets = [layer.at(widths) for widths in missing]
            with Deployment(self.target, self.precision) as deployed:
                runs = {
                    str(index): deployed.add(net, Shapes(shape=shape), apart=False)
                    for index, (net, shape) in enumerate(nets)
                }
                runs["nothing"] = deployed.add(torch.nn.ReLU(), Shapes(shape=(8,)), "fp32", apart=False)
                blocks = measure.interleave(runs, LAYER_BENCH)
        except EdgedlError:
            return []
        times = {name: stats.summarize(found).median for name, found in blocks.items()}
        return [max(times[str(index)] - times["nothing"], 1e-5) for index in range(len(missing))]


class Deployment:
    """Files of networks for one target, in a folder that is gone at the end."""

    def __init__(self, target: Target, precision: Precision) -> None:
        self.target, self.precision = target, precision
        self.stack = ExitStack()

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(
        self, net: nn.Module, task: Task, precision: Precision | None = None, apart: bool = True
    ) -> tuple[Session, Batch]:
        """The network's file, opened, with a batch of one for it. Raises what building it raises.

        It is built, and opened first, in processes of their own, unless this is one already.
        """
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        model = Model(net=net.eval())
        if (precision or self.precision) == "int8":
            quantize = plugins.load("steps", "quantize").model_validate({"calibrator": "min-max"})
            assert isinstance(quantize, Step)
            model = quantize.apply(model, task)

        def build() -> list[Any]:
            artifact = self.target.build(model, task, folder, 1)
            return [str(artifact.file), None if artifact.status == "ok" else artifact.reason or artifact.status]

        file, why = converting.apart(self.target, build, Limits()) if apart else build()
        if why is not None:
            raise UsageError(f"no latency on target {self.target.label} can be measured here: {why}")
        if apart and self.target.builds_apart:
            measure.cold_start(self.target, Path(file))  # which a file that crashes its runtime ends, and not this one
        session = self.target.open(Path(file))
        self.stack.callback(session.close)
        return session, measure.sample(task, session)


def _grid(layer: Layer, shrinking: Collection[tuple[str, str]]) -> list[tuple[int, int]]:
    """The widths to measure: full ones and, of those that can shrink, less, in multiples of what its groups need."""
    unit = 1 if layer.depthwise else getattr(layer.module, "groups", 1)
    steps = []
    for name, width in zip(WIDE[layer.kind], layer.widths, strict=True):
        names = {name.partition("_")[0], "heads" if name == "num_heads" else "", "groups" if layer.depthwise else ""}
        shares = WIDTHS if any((layer.path, name) in shrinking for name in names) else (1.0,)
        steps.append(sorted({max(round(width * share / unit), 1) * unit for share in shares}))
    if layer.depthwise:
        return [(width, width) for width in steps[0]]
    corners = product((steps[0][0], steps[0][-1]), (steps[1][0], steps[1][-1]))
    middle = steps[0][len(steps[0]) // 2], steps[1][len(steps[1]) // 2]
    return sorted({*corners, middle})


def _terms(kind: str, taken: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What a layer's time is a sum of: (points, terms)."""
    last = given * given if kind in ("LSTM", "GRU", "RNN") else taken
    return np.stack([np.ones_like(given, dtype=float), given, taken * given, last], axis=1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _versions(target: Target) -> dict[str, str]:
    modules = {name for purpose in target.requires.values() for entry in purpose for name in entry.split("|")}
    return dict(_installed(sorted(modules)))


def _installed(modules: Sequence[str]) -> Iterator[tuple[str, str]]:
    for module in modules:
        try:
            yield module, metadata.version(plugins.PACKAGES.get(module, module))
        except metadata.PackageNotFoundError:
            continue
