"""NVIDIA engines without a GPU: building, what the parser refuses, damaged files, and the script for the device."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgedl.core import Model, ModelFileError, TargetError
from edgedl.nvidia import building, gpu, library, passport
from edgedl.nvidia.gpu import Gpu
from edgedl.quantize.simulate import Quantization
from edgedl.targets.tensorrt import BUILD_SCRIPT, TensorRT, build_script, check_onnx
from edgedl.targets.tensorrt_rtx import TensorRTRTX
from tests.toys import Noise

without_gpu = pytest.mark.skipif(gpu.find_gpu() is not None, reason="what is said on a machine without a GPU")


TASK = Noise(shape=(3, 8, 8))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 8, 2)
    ).eval()


def write_onnx(
    file: Path, *, int8: bool = True, zero_point: int = 0, int32_bias: bool = False, last: str = "Relu"
) -> Path:
    """A convolution of (1, 3, 8, 8) and an operator `last`; Q/DQ nodes are q_input, dq_input, dq_weight, dq_bias."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(8, 3, 3, 3)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    constants: dict[str, np.ndarray] = {"weight": weight, "bias": bias}
    nodes, names = [], ["image", "weight", "bias"]
    if int8:
        scale = np.abs(weight).max((1, 2, 3)) / 127
        constants["weight"] = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        constants |= {"scale": np.float32(0.03), "zero": np.int8(zero_point), "weight_scale": scale}
        nodes = [
            helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["image_q"], "q_input"),
            helper.make_node("DequantizeLinear", ["image_q", "scale", "zero"], ["image_dq"], "dq_input"),
            helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["weight_dq"], "dq_weight", axis=0),
        ]
        names = ["image_dq", "weight_dq", "bias"]
    if int32_bias:
        constants["bias"] = np.arange(8, dtype=np.int32)
        constants["bias_scale"] = np.float32(0.001)
        nodes.append(helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["bias_dq"], "dq_bias"))
        names[2] = "bias_dq"
    nodes.append(helper.make_node("Conv", names, ["features"], "conv", pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node(last, ["features"], ["output"], "last"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(file))
    return file


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return building.build_engine(tensorrt_rtx, write_onnx(tmp_path_factory.mktemp("plan") / "model.onnx"))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("compute_capabilities", [(), ("8.0", "8.6", "8.9", "12.0"), ("7.5",)])
def test_engine_is_built_without_a_gpu(tmp_path: Path, int8: bool, compute_capabilities: tuple[str, ...]) -> None:
    file = write_onnx(tmp_path / "m.onnx", int8=int8)
    check_onnx(file)
    built = building.build_engine(tensorrt_rtx, file, compute_capabilities)
    assert built.startswith(library.MAGIC["tensorrt_rtx"])
    assert ".".join(map(str, built[24:28])) == tensorrt_rtx.__version__
    assert int.from_bytes(built[16:24], "little") == len(built)


@pytest.mark.parametrize("operator", ["Unique", "NoSuchOperator"])
def test_refused_operator_is_named(tmp_path: Path, operator: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TargetError) as caught:
        building.build_engine(tensorrt_rtx, write_onnx(tmp_path / "m.onnx", int8=False, last=operator))
    assert f"TensorRT-RTX {tensorrt_rtx.__version__} refuses node last ({operator}): " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.timeout(60)
def test_dead_builders_are_not_collected_while_nvidias_library_holds_its_lock(tmp_path: Path) -> None:
    """Without care this hangs: its log call runs Python, which collects, which destroys a builder, which locks."""
    file = write_onnx(tmp_path / "m.onnx", zero_point=3)
    thresholds = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for _ in range(20):
            with pytest.raises(TargetError) as caught:
                building.build_engine(tensorrt_rtx, file)
            cycle: list[object] = [caught.value]  # whose traceback holds the builder
            cycle.append(cycle)
    finally:
        gc.set_threshold(*thresholds)


def test_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no ONNX" * 100)
    with pytest.raises(TargetError, match=r"m\.onnx: TensorRT-RTX .* cannot parse it: .*\w") as caught:
        building.build_engine(tensorrt_rtx, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_unknown_compute_capability(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot build for compute capability 3\.5"):
        building.build_engine(tensorrt_rtx, write_onnx(tmp_path / "m.onnx"), ("3.5",))


def test_check_names_the_node_with_a_zero_point(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "m.onnx", zero_point=3)
    with pytest.raises(TargetError, match=r"m\.onnx: node q_input \(QuantizeLinear\) has a zero point other than 0"):
        check_onnx(file)
    with pytest.raises(TargetError, match=r"refuses node q_input \(QuantizeLinear\)"):  # NVIDIA's parser agrees
        building.build_engine(tensorrt_rtx, file)


def test_check_names_the_node_with_an_int32_bias(tmp_path: Path) -> None:
    file = write_onnx(tmp_path / "m.onnx", int32_bias=True)
    with pytest.raises(TargetError, match=r"node dq_bias \(DequantizeLinear\) dequantizes int32"):
        check_onnx(file)
    with pytest.raises(TargetError, match=r"refuses node dq_bias \(DequantizeLinear\): .* Int32 ") as caught:
        building.build_engine(tensorrt_rtx, file)
    assert "cudaError" not in str(caught.value)


def damaged(plan: bytes) -> dict[str, bytes]:
    other_version = bytearray(plan)
    other_version[24:28] = bytes((1, 0, 0, 1))
    return {
        "half of it": plan[: len(plan) // 2],
        "only a header": plan[:64],
        "only the first bytes": plan[:6],
        "empty": b"",
        "too long": plan + b"\0",
        "zeros": bytes(5000),
        "an engine of TensorRT": b"ftrt" + plan[4:],
        "of another version": bytes(other_version),
    }


@pytest.mark.parametrize("case", list(damaged(b"")))
def test_damaged_or_foreign_engine(tmp_path: Path, plan: bytes, case: str) -> None:
    file = tmp_path / "model.rtx"
    file.write_bytes(damaged(plan)[case])
    with pytest.raises(ModelFileError, match=r"model\.rtx") as caught:
        TensorRTRTX().open(file)
    assert "\n" not in str(caught.value)


def test_missing_engine_and_one_of_another_version(tmp_path: Path, plan: bytes) -> None:
    file = tmp_path / "model.rtx"
    with pytest.raises(ModelFileError, match=r"no file .*model\.rtx"):
        TensorRTRTX().open(file)
    file.write_bytes(damaged(plan)["of another version"])
    with pytest.raises(ModelFileError, match=r"built by TensorRT-RTX 1\.0\.0\.1, .*; build it again on this device"):
        TensorRTRTX().open(file)


@without_gpu
def test_whole_engine_without_a_gpu_says_why(tmp_path: Path, plan: bytes) -> None:
    (tmp_path / "model.rtx").write_bytes(plan)
    with pytest.raises(TargetError, match=r"model\.rtx cannot run here: .+"):
        TensorRTRTX().open(tmp_path / "model.rtx")


@pytest.fixture(scope="module", params=["fp32", "int8"])
def model(request: pytest.FixtureRequest) -> Model:
    quantization = Quantization(network(), TASK, "min-max") if request.param == "int8" else None
    return Model(net=network(), quantization=quantization)


def test_rtx_target_builds_an_engine(tmp_path: Path, model: Model) -> None:
    artifact = TensorRTRTX().build(model, TASK, tmp_path, batch_size=2)
    assert artifact.file == tmp_path / "model.rtx"
    assert artifact.file.read_bytes().startswith(b"vtrt")
    assert artifact.stand_in == tmp_path / "model.onnx"
    assert artifact.precision == model.precision
    assert artifact.versions["tensorrt-rtx"] == tensorrt_rtx.__version__
    assert (artifact.status == "ok") == (artifact.reason is None) == (gpu.find_gpu() is not None)


def test_where_a_gpu_is_engines_are_built_in_a_fresh_process(tmp_path: Path, monkeypatch) -> None:
    """One is made believe here; the fresh process finds out for itself, and builds as it can."""
    monkeypatch.setattr(building, "find_gpu", lambda: gpu.Gpu("some GPU", "8.6", "13.0"))
    monkeypatch.setattr(building, "build_engine", None)  # which is not to be called in this process
    file, made = write_onnx(tmp_path / "model.onnx"), tmp_path / "model.rtx"
    sizes = {"unused": building.Range(1, 2, 3)}
    known = building.build_apart(tensorrt_rtx, file, made, ["8.6", "8.9"], sizes={})
    assert known == passport.read(made)
    assert known.compute_capabilities == ("8.6", "8.9")
    file.write_bytes(b"odd")
    with pytest.raises(TargetError, match=r"model\.onnx: TensorRT-RTX .* cannot parse it"):
        building.build_apart(tensorrt_rtx, file, None, sizes=sizes)


@without_gpu
def test_tensorrt_target_checks_the_file_that_the_device_builds(tmp_path: Path, model: Model) -> None:
    artifact = TensorRT().build(model, TASK, tmp_path, batch_size=2)
    assert artifact.file == artifact.stand_in == tmp_path / "model.onnx"
    assert artifact.status == "built"
    assert artifact.reason
    assert "sh build.sh" in artifact.reason
    assert artifact.versions["checked_by"] == f"TensorRT-RTX {tensorrt_rtx.__version__}"
    assert (tmp_path / "build.sh").read_text() == BUILD_SCRIPT
    assert os.access(tmp_path / "build.sh", os.X_OK)
    quantizers = [node for node in onnx.load(str(artifact.file)).graph.node if node.op_type == "QuantizeLinear"]
    assert bool(quantizers) == (model.precision == "int8")


FAKE_TRTEXEC = """\
#!/bin/sh
if [ "$1" = --help ]; then
    echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{version}] # trtexec --help"
    exit 0
fi
echo "$@" >>"$(dirname "$0")/calls"
echo '[11/21/2026-10:00:00] [I] Selected Device: A "board" of \\ mine'
echo "[11/21/2026-10:00:00] [I] Selected Device ID: 0"
echo "[11/21/2026-10:00:00] [I] Compute Capability: 8.7"
echo "[11/21/2026-10:00:00] [I] SMs: 16"
for argument; do
    case $argument in --saveEngine=*) echo engine >"${{argument#--saveEngine=}}" ;; esac
done
exit {status}
"""

RunScript = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run_script(tmp_path: Path) -> RunScript:
    """Runs build.sh from a folder whose name has a space, with a trtexec of some version that writes down its calls."""
    folder, tools = tmp_path / "a run", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    (folder / "build.sh").write_text(BUILD_SCRIPT)
    write_onnx(folder / "model.onnx")

    def run(*arguments: str, version: str = "100300", status: int = 0, **variables: str) -> CompletedProcess[str]:
        (tools / "trtexec").write_text(FAKE_TRTEXEC.format(version=version, status=status))
        (tools / "trtexec").chmod(0o755)
        environment = {"PATH": f"{tools}:{os.environ['PATH']}", **variables}
        command = ["sh", "a run/build.sh", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_script_is_valid_shell_and_misses_its_model(tmp_path: Path, run_script: RunScript) -> None:
    subprocess.run(["sh", "-n", str(tmp_path / "a run/build.sh")], check=True)
    (tmp_path / "a run/model.onnx").unlink()
    done = run_script()
    assert done.returncode == 1
    assert done.stderr == "build.sh: no a run/model.onnx; build.sh belongs beside it\n"


@pytest.mark.parametrize(
    ("version", "typed", "timed"),
    [
        ("100300", ["--stronglyTyped"], ["--useSpinWait"]),
        ("110401", [], ["--includeDataTransfers", "--noCudaGraph"]),
    ],
)
def test_script_passes_the_options_of_each_major(
    tmp_path: Path, run_script: RunScript, version: str, typed: list[str], timed: list[str]
) -> None:
    done = run_script("--time", version=version)
    assert done.returncode == 0, done.stderr
    build, timing = (call.replace("a run/", "").split() for call in (tmp_path / "tools/calls").read_text().splitlines())
    expected = ["--onnx=model.onnx", "--saveEngine=model.engine.partial", *typed]
    assert build == [*expected, "--timingCacheFile=timing.cache", "--skipInference"]
    assert timing == ["--loadEngine=model.engine", *timed]
    assert (tmp_path / "a run/model.engine").read_text() == "engine\n"


@pytest.mark.parametrize(("version", "release"), [("100300", "10.3.0"), ("110401", "11.4.1")])
def test_script_writes_a_passport_that_edgedl_reads(
    tmp_path: Path, run_script: RunScript, version: str, release: str
) -> None:
    nvpmodel = tmp_path / "tools" / "nvpmodel"
    nvpmodel.write_text("#!/bin/sh\necho NV Power Mode: MODE_30W\necho 2\n")
    nvpmodel.chmod(0o755)
    assert run_script(version=version).returncode == 0
    built = tmp_path / "a run" / "model.engine"
    found = passport.read(built)
    assert found is not None
    assert (found.library, found.version, found.compute_capability) == ("TensorRT", release, "8.7")
    assert (found.gpu, found.multiprocessors, found.power_mode) == ('A "board" of \\ mine', 16, "MODE_30W")
    assert found.source_sha256 == hashlib.sha256((tmp_path / "a run" / "model.onnx").read_bytes()).hexdigest()
    here = Gpu('A "board" of \\ mine', "8.7", "12.6", 16)
    passport.check(built, found, built.read_bytes(), "TensorRT", f"{release}.30", here)
    with pytest.raises(ModelFileError, match=r"build it again on this device: `sh '.*a run/build\.sh'`"):
        passport.check(built, found, built.read_bytes(), "TensorRT", "10.9.0", here)


def test_script_that_cannot_know_the_device_still_builds(tmp_path: Path, run_script: RunScript) -> None:
    other = tmp_path / "silent"
    other.write_text(
        "".join(line for line in FAKE_TRTEXEC.format(version="100300", status=0).splitlines(True) if "[I]" not in line)
    )
    other.chmod(0o755)
    assert run_script(TRTEXEC=str(other)).returncode == 0
    built = tmp_path / "a run" / "model.engine"
    found = passport.read(built)
    assert found is not None
    assert (found.gpu, found.compute_capability, found.multiprocessors, found.power_mode) == (None,) * 4
    passport.check(built, found, built.read_bytes(), "TensorRT", "10.3.0.30", Gpu("Orin", "8.7", "12.6", 16))


def test_script_of_a_sparse_network_asks_for_sparse_kernels(tmp_path: Path, run_script: RunScript) -> None:
    (tmp_path / "a run/build.sh").write_text(build_script(sparse=True))
    assert run_script().returncode == 0
    (call,) = (tmp_path / "tools/calls").read_text().splitlines()
    assert call.split().count("--sparsity=enable") == 1


def test_a_sparse_network_is_built(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.view(-1, 4)[:, 2:] = 0
    task = Noise(shape=(64,))
    artifact = TensorRTRTX().build(Model(net=layer.eval(), sparse=True), task, tmp_path, batch_size=2)
    assert artifact.file.stat().st_size > 1000


@pytest.mark.parametrize("status", [0, 3])
def test_script_without_timing(tmp_path: Path, run_script: RunScript, status: int) -> None:
    assert run_script(version="110000", status=status).returncode == status
    assert len((tmp_path / "tools/calls").read_text().splitlines()) == 1
    built = {file.name for file in (tmp_path / "a run").glob("model.engine*")}
    assert built == ({"model.engine", "model.engine.json"} if status == 0 else set())


@pytest.mark.parametrize("version", ["8601", "80601", "120000", "x"])
def test_script_refuses_other_versions(tmp_path: Path, run_script: RunScript, version: str) -> None:
    done = run_script(version=version)
    assert done.returncode == 1
    assert "TensorRT 10 or 11 is needed" in done.stderr
    assert not (tmp_path / "tools/calls").exists()


def test_script_takes_the_trtexec_that_it_is_told(tmp_path: Path, run_script: RunScript) -> None:
    other = tmp_path / "trtexec of my own"
    other.write_text(FAKE_TRTEXEC.format(version="110100", status=0))
    other.chmod(0o755)
    assert run_script(version="8601", TRTEXEC=str(other)).returncode == 0
    assert (tmp_path / "a run/model.engine").is_file()
