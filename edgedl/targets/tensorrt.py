"""TensorRT 10 or 11, for Jetson and data-centre GPUs: an ONNX file, and the engine built from it on the device."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveInt

from edgedl import dimensions, files
from edgedl.core import BATCH, Artifact, MissingPackage, Model, Target, TargetError, Task
from edgedl.nvidia.building import Range, build_apart, timing_cache
from edgedl.nvidia.engine import EngineSession
from edgedl.nvidia.gpu import find_gpu, why_no_gpu
from edgedl.nvidia.library import describe
from edgedl.quantize.schemes import TENSORRT, Form, Scheme


class TensorRT(Target):
    """Engines for TensorRT. One is good for one TensorRT version and GPU only, so it is built where it runs."""

    use: str = "tensorrt"
    max_batch: PositiveInt | None = None
    """With any, engines take batches of 1 to so many samples; kernels are chosen for that of the recipe's bench."""
    cuda_graph: bool = False
    """Whether a run's kernels and copies are launched at once, as recorded before, instead of one by one."""
    spin_wait: bool = True
    """Whether the host waits by asking without pause: the least latency, for a whole core of the host."""

    scheme: ClassVar[Scheme] = TENSORRT
    forms: ClassVar[tuple[Form, ...]] = ("int8", "int8 layers", "mixed", "int8 weights", "int4 weights", "fp16")
    suffixes: ClassVar[tuple[str, ...]] = (".engine", ".plan")
    requires: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "build": ("torch", "onnx", "onnxscript", "onnxruntime"),
        "open": ("tensorrt", "cuda.bindings|cuda.cudart"),
    }
    needs_gpu: ClassVar[bool] = True
    extra: ClassVar[str] = "onnx"  # the extra `tensorrt` cannot be had everywhere, and is not needed to build

    def prepare(self, model: Model, task: Task, batch_size: int) -> None:
        """Exports the graph, which targets of one scheme share, and asks for the GPU, which a copy cannot."""
        from edgedl.onnx.export import exported

        find_gpu()
        exported(self.graph(model), task, batch_size, self.max_batch is not None)

    def build(self, model: Model, task: Task, folder: Path, batch_size: int) -> Artifact:
        """Writes `model.onnx` and `build.sh`, and `model.engine` if TensorRT and a GPU are here.

        TensorRT-RTX, where it is installed, parses and builds the file too: what NVIDIA's parser refuses is then
        known before the device. Raises `TargetError` naming the node that TensorRT cannot take.
        """
        import onnx

        from edgedl.onnx import forms as onnx_forms
        from edgedl.onnx.export import export_onnx, naming_operators

        file, graph = folder / "model.onnx", self.graph(model)
        export_onnx(graph, task, file, batch_size, any_batch=self.max_batch is not None)
        sizes = {name: Range(*found) for name, found in dimensions.ranges(task, self.max_batch, batch_size).items()}
        if model.precision == "int4 weights":
            onnx_forms.pack_for_tensorrt(file)
        check_onnx(file)
        versions = {"onnx": onnx.__version__}
        if (rtx := _tensorrt_rtx()) is not None:
            with naming_operators(file, graph, task, batch_size):
                build_apart(rtx, file, None, sparse=model.sparse, sizes=sizes)
            versions["checked_by"] = describe(rtx)
        script = folder / "build.sh"
        script.write_text(build_script(model.sparse, profile(task, sizes, batch_size)))
        files.make_executable(script)
        tensorrt, gpu = _tensorrt(), find_gpu()
        if tensorrt is None or gpu is None:
            why = "tensorrt is not installed" if tensorrt is None else why_no_gpu()
            return Artifact(
                file=file,
                precision=model.precision,
                status="built",
                reason=f"it cannot run here: {why}; copy the folder to the device and run `sh build.sh` there",
                stand_in=file,
                versions=versions,
                built_for="any GPU of TensorRT 10 or 11, once build.sh has run on it",
            )
        engine = folder / "model.engine"  # what follows has not been run yet, for want of a GPU: tests/gpu
        with naming_operators(file, graph, task, batch_size):
            timings = timing_cache(tensorrt, gpu)
            made = build_apart(tensorrt, file, engine, sparse=model.sparse, sizes=sizes, timing_cache=timings)
            assert made is not None
        return Artifact(
            file=engine,
            precision=model.precision,
            stand_in=file,
            versions=versions | {"tensorrt": tensorrt.__version__, "cuda_driver": gpu.driver},
            built_for=f"{made.built_for}, {describe(tensorrt)}",
        )

    def open(self, file: Path) -> EngineSession:
        """Raises `ModelFileError` for what is no engine of this TensorRT and GPU, `TargetError` without a GPU."""
        try:
            import tensorrt
        except ImportError as error:  # its package is there, but not NVIDIA's libraries
            raise MissingPackage(f"tensorrt cannot be loaded: {error}; install TensorRT of the same release") from error
        return EngineSession(tensorrt, file, cuda_graph=self.cuda_graph, spin_wait=self.spin_wait)


def profile(task: Task, sizes: Mapping[str, Range], batch_size: int) -> Mapping[str, str]:
    """What trtexec calls the least, the usual and the largest shapes of inputs; nothing where they are fixed."""
    if not sizes:
        return {}
    batch = sizes.get(BATCH, Range(batch_size, batch_size, batch_size))
    return {
        kind: ",".join(
            f"{name}:{'x'.join(map(str, (getattr(batch, kind), *_shape(task, name, sizes, kind))))}"
            for name in task.inputs
        )
        for kind in Range._fields
    }


def _shape(task: Task, name: str, sizes: Mapping[str, Range], kind: str) -> tuple[int, ...]:
    wanted = {dimension: getattr(found, kind) for dimension, found in sizes.items()}
    return dimensions.shape(task.inputs[name], task.dynamic.get(name, {}), wanted)


def build_script(sparse: bool, shapes: Mapping[str, str] = MappingProxyType({})) -> str:
    """`build.sh`, which builds the engine on the device, of a network with zeros and for a `profile` of shapes."""
    script = BUILD_SCRIPT
    if sparse:
        script = script.replace("\nsparsity= #", "\nsparsity=--sparsity=enable #")
    for kind, told in shapes.items():
        script = script.replace(f"\n{kind}=\n", f"\n{kind}={shlex.quote(told)}\n")
    return script


def check_onnx(file: Path) -> None:
    """Raises `TargetError` naming the first node that quantizes in a way TensorRT does not compute in.

    Every zero point has to be a constant 0, and nothing may be dequantized from int32.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        where = f"{file}: node {node.name or node.output[0]} ({node.op_type})"
        source, zero_point = constants.get(node.input[0]), None
        if len(node.input) > 2 and node.input[2]:
            zero_point = constants.get(node.input[2])
            if zero_point is None:
                raise TargetError(f"{where} has a zero point that is no constant; TensorRT wants a constant 0")
            if numpy_helper.to_array(zero_point).astype(np.float32).any():
                raise TargetError(f"{where} has a zero point other than 0; TensorRT wants symmetric activations")
        types = {tensor.data_type for tensor in (source, zero_point) if tensor is not None}
        if node.op_type == "DequantizeLinear" and onnx.TensorProto.INT32 in types:
            raise TargetError(f"{where} dequantizes int32, which TensorRT refuses; keep biases in float32")


def _tensorrt_rtx() -> Any | None:
    try:
        import tensorrt_rtx
    except ImportError:
        return None
    return tensorrt_rtx


def _tensorrt() -> Any | None:
    try:
        import tensorrt
    except ImportError:
        return None
    return tensorrt


# What trtexec measures changed its defaults from TensorRT 10 to 11, and the two spell the other choice differently:
# in 10 data transfers are on and CUDA graphs off, and spinning is asked for; in 11 spinning is on, and transfers and
# no graphs are asked for. Both ways measure as `EngineSession.run` does: host to host, one launch a kernel.
BUILD_SCRIPT = """\
#!/bin/sh
# Builds model.engine from model.onnx beside it, on the device that will run it, with TensorRT 10 or 11.
#   sh build.sh          builds the engine
#   sh build.sh --time   builds it and lets trtexec time it, host to host, without CUDA graphs
# Set TRTEXEC to choose a trtexec other than the one in PATH or /usr/src/tensorrt/bin.
set -eu

fail() {
    echo "build.sh: $1" >&2
    exit 1
}

[ $# -eq 0 ] || [ "$*" = --time ] || fail "unknown argument: $*; there is only --time"
here=$(dirname "$0")
[ -f "$here/model.onnx" ] || fail "no $here/model.onnx; build.sh belongs beside it"

trtexec=${TRTEXEC:-}
for candidate in trtexec /usr/src/tensorrt/bin/trtexec; do
    if [ -z "$trtexec" ] && command -v "$candidate" >/dev/null; then trtexec=$candidate; fi
done
sparsity= # set to --sparsity=enable where weights are zero in a pattern that sparse tensor cores take
# Shapes of inputs, where the engine is to take several: the smallest, the one kernels are chosen for, and the largest.
least=
usual=
most=
[ -n "$trtexec" ] || fail "no trtexec in PATH or /usr/src/tensorrt/bin; install TensorRT or set TRTEXEC"

# The first line says, for TensorRT 10.3.0: &&&& RUNNING TensorRT.trtexec [TensorRT v100300] # ...
version=$("$trtexec" --help 2>&1 | sed -n 's/.*\\[TensorRT v\\([0-9][0-9]*\\).*/\\1/p' | sed -n 1p)
case $version in
10????)
    typed=--stronglyTyped # precision is what the ONNX file says
    set -- "$@" --useSpinWait
    ;;
11????)
    typed= # always so; the option is gone
    set -- "$@" --includeDataTransfers --noCudaGraph
    ;;
*) fail "TensorRT 10 or 11 is needed, $trtexec is of version ${version:-unknown}" ;;
esac

engine=$here/model.engine
log=$here/build.log
trap 'rm -f "$engine.partial" "$engine.status"' EXIT
{
    "$trtexec" --onnx="$here/model.onnx" --saveEngine="$engine.partial" ${typed:+"$typed"} \\
        ${least:+"--minShapes=$least"} ${usual:+"--optShapes=$usual"} ${most:+"--maxShapes=$most"} \\
        ${sparsity:+"$sparsity"} --timingCacheFile="$here/timing.cache" --skipInference 2>&1 ||
        echo $? >"$engine.status"
} | tee "$log"
[ ! -f "$engine.status" ] || exit "$(cat "$engine.status")"

# The passport: what the engine was built by and for, which edgedl looks at before it opens it. Not known is null.
told() {
    sed -n "s/.*\\[I\\] $1: *//p" "$log" | sed -n 1p
}
text() {
    if [ -n "$1" ]; then
        printf '"%s"' "$(printf %s "$1" | tr -d '[:cntrl:]' | sed 's/[\\"]/\\\\&/g')"
    else
        printf null
    fi
}
# 10.3.0 of 100300
release=$(echo "$version" | sed 's/^\\(..\\)\\(..\\)\\(..\\)$/\\1.\\2.\\3/; s/\\.0\\([0-9]\\)/.\\1/g')
processors=$(told SMs | sed -n 's/^\\([0-9][0-9]*\\).*/\\1/p')
driver=$(cat /proc/driver/nvidia/version 2>/dev/null |
    sed -n 's/^NVRM version:.* \\([0-9][0-9]*\\.[0-9.]*\\) .*/\\1/p')
mode=$(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p')
rm -f "$engine.json" # that of an older engine
mv "$engine.partial" "$engine"
cat >"$engine.json.partial" <<END
{
  "schema": 1,
  "library": "TensorRT",
  "version": $(text "$release"),
  "gpu": $(text "$(told "Selected Device")"),
  "compute_capability": $(text "$(told "Compute Capability")"),
  "multiprocessors": ${processors:-null},
  "driver": $(text "$driver"),
  "power_mode": $(text "$mode"),
  "built": $(text "$(date +%Y-%m-%dT%H:%M:%S%z)"),
  "engine_sha256": $(text "$(sha256sum <"$engine" | cut -d ' ' -f 1)"),
  "source_sha256": $(text "$(sha256sum <"$here/model.onnx" | cut -d ' ' -f 1)")
}
END
mv "$engine.json.partial" "$engine.json"
echo "build.sh: wrote $engine"

if [ "$1" = --time ]; then
    shift
    "$trtexec" --loadEngine="$engine" ${usual:+"--shapes=$usual"} "$@"
fi
"""
