"""NVIDIA engines, built from ONNX files."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from edgedl.nvidia import passport
from edgedl.nvidia.gpu import Gpu, find_gpu, power_mode
from edgedl.nvidia.library import NAMES, describe, message_log, one_line, without_garbage_collection
from edgedl.nvidia.passport import Passport
from edgedl.sessions import (
    TargetError,
)


class Range(NamedTuple):
    """Sizes of a dimension: from `least` to `most`, and the one for which kernels are chosen and which is measured."""

    least: int
    usual: int
    most: int


@without_garbage_collection()
def build_engine(
    trt: Any,
    onnx_file: Path,
    compute_capabilities: Sequence[str] = (),
    *,
    sparse: bool = False,
    sizes: Mapping[str, Range] = MappingProxyType({}),
    timing_cache: Path | None = None,
) -> bytes:
    """The serialized engine of an ONNX file, strongly typed: precision is what the file says.

    `sizes` are for dimensions that have a name in the file, of which it must have no other without a fixed size.
    With `sparse`, layers with two zeros in every four weights may run on the GPU's sparse tensor cores.
    `timing_cache` is a file with the times of kernels from earlier builds, to which those of this one are added.
    TensorRT builds for the GPU here. TensorRT-RTX needs none: its engine is for `compute_capabilities` ("8.6", "12.0"),
    or all from 8.0 on. Raises `TargetError` with the node and operator that is refused, or the builder's words.
    """
    if trt.__name__ == "tensorrt" and int(trt.__version__.split(".")[0]) < 10:
        raise TargetError(f"{describe(trt)} is too old for strongly typed networks; install TensorRT 10 or 11")
    log = message_log(trt)
    builder = trt.Builder(log)
    network, parser = _parsed(trt, builder, onnx_file, log)
    config = builder.create_builder_config()
    if sizes:
        _add_profile(builder, network, config, sizes, onnx_file)
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
    for index, version in enumerate(compute_capabilities):
        capability = getattr(trt.ComputeCapability, "SM" + version.replace(".", ""), None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise TargetError(f"{describe(trt)} cannot build for compute capability {version}")
    if timing_cache is not None:
        _take_timings(config, timing_cache)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise TargetError(f"{onnx_file}: {describe(trt)} cannot build an engine: {log.text()}")
    del parser
    if timing_cache is not None:
        _keep_timings(config, timing_cache)
    return bytes(serialized)


def _parsed(trt: Any, builder: Any, onnx_file: Path, log: Any) -> tuple[Any, Any]:
    """The network of an ONNX file, and the parser, which owns the weights: it has to live as long."""
    # TensorRT 10 has to be asked for strong typing; later ones know nothing else, and may drop the flag.
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_file.read_bytes(), str(onnx_file)):
        raise TargetError(f"{onnx_file}: {describe(trt)} {_refusal(parser, log)}")
    return network, parser


def write_engine(
    trt: Any,
    onnx_file: Path,
    file: Path,
    compute_capabilities: Sequence[str] = (),
    *,
    sparse: bool = False,
    sizes: Mapping[str, Range] = MappingProxyType({}),
    timing_cache: Path | None = None,
) -> Passport:
    """Writes what `build_engine` gives, and its passport beside it."""
    plan = build_engine(
        trt, onnx_file, compute_capabilities, sparse=sparse, sizes=sizes, timing_cache=timing_cache
    )  # fmt: skip
    file.write_bytes(plan)
    capabilities = compute_capabilities if trt.__name__ == "tensorrt_rtx" else None
    made = passport.make(
        NAMES[trt.__name__], trt.__version__, plan, onnx_file.read_bytes(), find_gpu(), capabilities
    )  # fmt: skip
    passport.write(file, made)
    return made


def build_apart(
    trt: Any,
    onnx_file: Path,
    file: Path | None,
    compute_capabilities: Sequence[str] = (),
    *,
    sparse: bool = False,
    sizes: Mapping[str, Range] = MappingProxyType({}),
    timing_cache: Path | None = None,
) -> Passport | None:
    """As `write_engine` or, without `file`, `build_engine` for what it refuses.

    Where there is a GPU, that is in a fresh process: CUDA, once it is in use, as asking for the GPU takes it, is of no
    use to a copy of this one.
    """
    asked = {
        "package": trt.__name__,
        "onnx_file": str(onnx_file),
        "file": file and str(file),
        "compute_capabilities": list(compute_capabilities),
        "sparse": sparse,
        "sizes": {name: list(found) for name, found in sizes.items()},
        "timing_cache": timing_cache and str(timing_cache),
    }
    if find_gpu() is None:
        made = build_as_asked(asked)
    else:
        from edgedl import child  # which devices that engines are opened on do not have

        made = child.fresh(f"the builder of {NAMES[trt.__name__]}", build_as_asked, asked, child.Bounds(math.inf))
    return None if made is None else passport.of(made)


def build_as_asked(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `build_apart` asks for, which is JSON; the passport."""
    trt, onnx_file = importlib.import_module(asked["package"]), Path(asked["onnx_file"])
    sizes = {name: Range(*found) for name, found in asked["sizes"].items()}
    cache = None if asked["timing_cache"] is None else Path(asked["timing_cache"])
    options: dict[str, Any] = {"sparse": asked["sparse"], "sizes": sizes, "timing_cache": cache}
    if asked["file"] is None:
        build_engine(trt, onnx_file, asked["compute_capabilities"], **options)
        return None
    return asdict(write_engine(trt, onnx_file, Path(asked["file"]), asked["compute_capabilities"], **options))


def timing_cache(trt: Any, gpu: Gpu) -> Path:
    """Where times of kernels are kept from one build to the next, for this version, this GPU and its power mode."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    told = f"{trt.__name__} {trt.__version__} {gpu.name} {gpu.multiprocessors} {power_mode() or ''}"
    return cache / "edgedl" / "timing" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', told).strip('-')}.cache"


def _take_timings(config: Any, file: Path) -> None:
    """A cache that is damaged, or of another version or GPU, is not taken: the builder starts one anew."""
    for content in (file.read_bytes() if file.is_file() else b"", b""):
        found = config.create_timing_cache(content)
        if found is not None and config.set_timing_cache(found, False):
            return


def _keep_timings(config: Any, file: Path) -> None:
    found = config.get_timing_cache()
    if found is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")  # two may build at the same time
    partial.write_bytes(bytes(found.serialize()))
    partial.replace(file)


def _add_profile(builder: Any, network: Any, config: Any, sizes: Mapping[str, Range], onnx_file: Path) -> None:
    """Tells the builder which sizes an engine has to take, and for which to choose kernels."""
    profile = builder.create_optimization_profile()
    for value in (network.get_input(index) for index in range(network.num_inputs)):
        ranges = [
            Range(size, size, size) if size >= 0 else sizes[value.get_dimension_name(axis)]
            for axis, size in enumerate(value.shape)
        ]
        profile.set_shape(value.name, *zip(*ranges, strict=True))
    if config.add_optimization_profile(profile) < 0:
        raise TargetError(f"{onnx_file}: NVIDIA's builder does not take the sizes {dict(sizes)}")


@without_garbage_collection()
def not_on_dla(trt: Any, onnx_file: Path) -> list[tuple[str, str]] | None:
    """Kind and name of each layer that TensorRT says a DLA cannot run; None where no DLA is. Not run on one yet."""
    if find_gpu() is None:
        return None
    log = message_log(trt)
    builder = trt.Builder(log)
    if builder.num_DLA_cores == 0:
        return None
    network, parser = _parsed(trt, builder, onnx_file, log)
    config = builder.create_builder_config()
    config.default_device_type, config.DLA_core = trt.DeviceType.DLA, 0
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    found = [(layer.type.name, layer.name) for layer in layers if not config.can_run_on_DLA(layer)]
    del parser
    return found


def _refusal(parser: Any, log: Any) -> str:
    """What the parser refuses, in one line: node, operator, NVIDIA's own words."""
    error = parser.get_error(0) if parser.num_errors else None
    if error is None or not error.node_operator():
        return f"cannot parse it: {log.text()}"
    node = f"{error.node_name() or error.node()} ({error.node_operator()})"
    return f"refuses node {node}: {error.code().name}: {one_line(error.desc())} (in {error.func()})"
