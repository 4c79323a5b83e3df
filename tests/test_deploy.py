"""Files that are left on a device: which one, what lies beside it, and an example that runs and checks it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorrt_rtx
from ai_edge_litert import schema_py_generated as schema

from edgedl import devices, files
from edgedl.core import TargetError, UsageError
from edgedl.devices import Device
from edgedl.devices.local import Local
from edgedl.nvidia import engine_there, gpu
from edgedl.remote import deploying, on_device
from tests import made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.make(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy, which tests may change."""
    return shutil.copytree(made, tmp_path / "run")


def changed(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    report = json.loads((run / "report.json").read_text())
    change(report)
    (run / "report.json").write_text(json.dumps(report))


def sums_agree(folder: Path) -> bool:
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    return done.returncode == 0


def test_the_command_leaves_a_folder_whose_example_runs(run, tmp_path):
    to = tmp_path / "it's here; $(touch pwned)"
    command = [sys.executable, "-m", "edgedl.cli.main", "deploy", str(run), "--on", "local", "--to", str(to)]
    done = subprocess.run([*command, "--target", "onnxruntime"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, shown = done.stdout.splitlines()
    assert re.fullmatch(rf"compressed for onnxruntime lies on .* in {re.escape(str(to))}", where)
    names = {file.name for file in to.iterdir()}
    assert names == {"SHA256SUMS", "artifact.json", "example.npz", "example.py", "model.onnx"}
    assert sums_agree(to)
    source = run / "targets" / "compressed" / "onnxruntime" / "model.onnx"
    assert (to / "model.onnx").read_bytes() == source.read_bytes()
    ran = subprocess.run(
        ["sh", "-c", shown.removeprefix("run it: ")], capture_output=True, text=True, cwd="/", check=False
    )
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "right"), ran.stderr
    assert not list(tmp_path.rglob("pwned"))
    with np.load(to / "example.npz") as arrays:
        kept = dict(arrays)
    np.savez(to / "example.npz", kept["arr_0"], -kept["arr_1"])
    ran = subprocess.run([sys.executable, str(to / "example.py")], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "wrong answers in logits: do not ship this file with this runtime\n")
    assert not sums_agree(to)


@pytest.mark.parametrize("signed", [True, False])
def test_a_tflite_file_has_an_example_too_and_on_phones_lines_of_kotlin(signed, run, tmp_path, monkeypatch):
    folder = run / "targets" / "compressed" / "onnxruntime"
    write_tflite(folder / "model.tflite", signed)
    passport = json.loads((folder / "artifact.json").read_text())
    files.write_json(folder / "artifact.json", passport | {"file": "model.tflite"})
    known = {"target": "tflite", "file": "targets/compressed/onnxruntime/model.tflite"}
    known["sha256"] = files.sha256(folder / "model.tflite")
    changed(run, lambda report: report["rows"][1].update(known))

    @contextmanager
    def connect(where: str) -> Iterator[Device]:
        (tmp_path / "device").mkdir()
        device = Local(tmp_path / "device")
        device.is_phone = True
        yield device

    monkeypatch.setattr(devices, "connect", connect)
    found = deploying.deploy(run, "phone", "tflite", "compressed", str(tmp_path / "left"))
    assert found["example"].splitlines()[-1] == "right"
    assert {"LoadModel.kt", "model.tflite"} < set(found["files"])
    assert sums_agree(tmp_path / "left")


def write_tflite(file: Path, signed: bool) -> None:
    """A dense layer on digits, with or without a signature that names its input and output."""
    weights = np.random.default_rng(0).standard_normal((10, 784)).astype(np.float32)
    subgraph, model, code, dense = schema.SubGraphT(), schema.ModelT(), schema.OperatorCodeT(), schema.OperatorT()
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(weights.tobytes(), np.uint8)
    subgraph.tensors = [schema.TensorT() for _ in range(3)]
    shapes = {"image": (1, 1, 28, 28), "weights": (10, 784), "logits": (1, 10)}
    for index, (tensor, (name, shape)) in enumerate(zip(subgraph.tensors, shapes.items(), strict=True)):
        tensor.name, tensor.shape, tensor.buffer = name.encode(), list(shape), int(index == 1)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    dense.inputs, dense.outputs, dense.builtinOptions = [0, 1, -1], [2], schema.FullyConnectedOptionsT()
    dense.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    subgraph.operators, subgraph.inputs, subgraph.outputs = [dense], [0], [2]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [subgraph]
    if signed:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.inputs, signature.outputs = b"serving_default", [], []
        for named, name, index in ((signature.inputs, b"image", 0), (signature.outputs, b"logits", 2)):
            named.append(schema.TensorMapT())
            named[0].name, named[0].tensorIndex = name, index
        model.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(bytes(builder.Output()))


def test_a_newer_file_takes_the_place_of_an_older_and_nothing_elses(run, tmp_path):
    to, other = tmp_path / "left", tmp_path / "other"
    deploying.deploy(run, "local", "onnxruntime", "float", str(to))
    (to / "old").touch()
    deploying.deploy(run, "local", "onnxruntime", "compressed", str(to))
    assert not (to / "old").exists()
    assert sums_agree(to)
    other.mkdir()
    (other / "precious").touch()
    with pytest.raises(UsageError, match="is there already, and no folder of deployed files"):
        deploying.deploy(run, "local", "onnxruntime", None, str(other))
    assert [file.name for file in other.iterdir()] == ["precious"]
    with pytest.raises(UsageError, match=r"/proc/deployed: cannot be written: .*; name another folder with --to"):
        deploying.deploy(run, "local", "onnxruntime", None, "/proc/deployed")
    with pytest.raises(UsageError, match="name it with --to"):
        deploying.deploy(run, "local", "onnxruntime", None, None)
    assert {file.name for file in tmp_path.iterdir()} == {"run", "left", "other"}


def ships(target: str, variant: str) -> Callable[[dict[str, Any]], None]:
    def change(report: dict[str, Any]) -> None:
        next(found for found in report["verdicts"] if found["target"] == target)["ship"] = variant

    return change


@pytest.mark.parametrize(
    ("asked", "change", "found"),
    [
        (("onnxruntime", None), lambda report: None, ("onnxruntime", "compressed")),
        (("onnxruntime", None), ships("onnxruntime", "float"), ("onnxruntime", "float")),
        (("onnxruntime", "float"), lambda report: None, ("onnxruntime", "float")),
        (("tensorrt", None), lambda report: None, ("tensorrt", "compressed")),
        ((None, None), ships("onnxruntime", "none"), ("tensorrt", "compressed")),
        ((None, None), lambda report: None, r"which of onnxruntime, tensorrt\? name it with --target, or let"),
        (("onnxruntime", None), ships("onnxruntime", "none"), "nothing ships: it is faster"),
        (("tflite", None), lambda report: None, "no file on tflite; there are: compressed on onnxruntime, "),
        ((None, "int4"), lambda report: None, "no int4 on any target; there are: "),
        (("tensorrt", "float"), lambda report: report["rows"][2].update(file=None), "float on tensorrt: there is no f"),
    ],
)
def test_what_is_deployed_is_what_may_ship(asked, change, found, run):
    changed(run, change)
    report = json.loads((run / "report.json").read_text())
    if isinstance(found, str):
        with pytest.raises(UsageError, match=found):
            deploying.chosen(run, report, "jetson", *asked)
    else:
        row = deploying.chosen(run, report, "jetson", *asked)
        assert (row["target"], row["variant"]) == found


def test_the_fastest_there_is_deployed_if_it_is_known(run):
    report = json.loads((run / "report.json").read_text())
    times = {("onnxruntime", "float"): 0.1, ("onnxruntime", "compressed"): 2.0, ("tensorrt", "compressed"): 1.0}
    rows = [
        {"target": target, "variant": variant, "status": "ok", "latency_ms": {"median": median}}
        for (target, variant), median in times.items()
    ]
    (run / "devices").mkdir()
    on_device.results_file(run, "jetson").write_text(json.dumps({"rows": rows}))
    assert deploying.chosen(run, report, "jetson", None, None)["target"] == "tensorrt"  # float does not ship


def test_a_file_that_answers_wrongly_there_is_not_left(run, tmp_path, monkeypatch):
    class Contrary(Local):
        def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
            with np.load(self.folder / "example.npz") as arrays:
                kept = dict(arrays)
            np.savez(self.folder / "example.npz", kept["arr_0"], kept["arr_1"] * np.nan)
            return super().run(arguments)

    @contextmanager
    def connect(where: str) -> Iterator[Device]:
        (tmp_path / "device").mkdir()
        yield Contrary(tmp_path / "device")

    monkeypatch.setattr(devices, "connect", connect)
    with pytest.raises(TargetError, match="does not do there what it does here: wrong answers in logits"):
        deploying.deploy(run, "x", "onnxruntime", None, str(tmp_path / "left"))
    assert not (tmp_path / "left").exists()


# Engines, which are built on the device: with TensorRT-RTX in TensorRT's place, whose API is nearly the same


STANDS_IN = f"import sys; sys.path.append({os.path.dirname(os.path.dirname(tensorrt_rtx.__file__))!r}); "  # noqa: PTH120
STANDS_IN += "import tensorrt_rtx; sys.modules['tensorrt'] = tensorrt_rtx"


@pytest.fixture
def with_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a device on which `import tensorrt` gives TensorRT-RTX."""
    folder = tmp_path / "device"
    folder.mkdir()
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "tensorrt.py").write_text(STANDS_IN)

    @contextmanager
    def connect(where: str) -> Iterator[Device]:
        device = Local(folder, PYTHONPATH=str(tmp_path / "packages"))
        device.builds_engines = True
        yield device

    monkeypatch.setattr(devices, "connect", connect)
    return folder


@pytest.mark.skipif(gpu.find_gpu() is not None, reason="what is said on a machine without a GPU")
def test_engines_are_built_there_and_are_rows_even_where_none_can_run(made, tmp_path, with_tensorrt):
    run = made_run.make(tmp_path / "run", max_batch=4)
    content = on_device.bench(run, "jetson", 0.01)
    rows = {(row["target"], row["variant"]): row for row in content["rows"]}
    assert content["left_out"] == []
    for variant in ("float", "compressed"):
        assert rows["onnxruntime", variant]["status"] == "ok"
        row = rows["tensorrt", variant]
        assert row["built"]["by"].startswith("TensorRT-RTX")
        assert row["built"]["seconds"] > 0
        assert row["built"]["size_bytes"] > 1000
        assert (row["status"], row["score_here_by"][:11]) == ("failed", "onnxruntime")
        assert "cannot run here" in row["reason"]
    assert len(list(with_tensorrt.glob("*.engine"))) == 2


def test_an_engine_that_is_refused_there_is_told_in_its_row(made, tmp_path, with_tensorrt):
    (tmp_path / "packages" / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: no such file')")
    content = on_device.bench(shutil.copytree(made, tmp_path / "run"), "jetson", 0.01)
    reasons = {row["reason"] for row in content["rows"] if row["target"] == "tensorrt"}
    assert reasons == {
        "there is no TensorRT for this Python: libnvinfer.so.10: no such file; on a Jetson it comes with JetPack"
    }


def test_an_engine_is_deployed_as_it_was_built_there(run, tmp_path, with_tensorrt, monkeypatch):
    monkeypatch.setattr(deploying, "_tried", lambda device, found: "not tried: it needs a GPU")
    found = deploying.deploy(run, "jetson", "tensorrt", None, str(tmp_path / "left"))
    assert set(found["files"]) == {
        "SHA256SUMS", "artifact.json", "build.sh", "edgedl.pyz", "example.npz", "example.py", "model.engine",
        "model.engine.json", "model.onnx",
    } | ({"timing.cache"} & set(found["files"]))  # fmt: skip
    passport = json.loads((tmp_path / "left" / "artifact.json").read_text())
    assert (passport["file"], passport["status"]) == ("model.engine", "ok")
    assert passport["sha256"] == files.sha256(tmp_path / "left" / "model.engine")
    assert passport["versions"]["built_by"].startswith("TensorRT-RTX")
    assert sums_agree(tmp_path / "left")
    example = [sys.executable, str(tmp_path / "left" / "example.py")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "packages")}
    done = subprocess.run(example, env=environment, capture_output=True, text=True, check=False)
    assert "model.engine" in done.stderr.splitlines()[-1]  # it was found, and waits for a GPU or is of another kind


def test_what_a_device_says_of_an_engine_is_not_trusted(run, tmp_path, with_tensorrt, monkeypatch):
    script = "import json; open('built.json', 'w').write(json.dumps({'by': 5}))"
    monkeypatch.setattr(deploying, "BUILD", script)
    with pytest.raises(TargetError, match="does not say what it built"):
        deploying.deploy(run, "jetson", "tensorrt", None, str(tmp_path / "left"))


def test_without_tensorrt_an_engine_is_not_deployed(run, tmp_path):
    with pytest.raises(UsageError, match="there is no TensorRT for the Python there"):
        deploying.deploy(run, "local", "tensorrt", None, str(tmp_path / "left"))


def test_files_of_graphs_have_plain_names():
    assert deploying._plain_names([""]) == {"": "model"}
    assert deploying._plain_names(["encoder", "decoder-2"]) == {"encoder": "encoder", "decoder-2": "decoder-2"}
    assert deploying._plain_names(["a b", "graph-0"]) == {"a b": "graph-0", "graph-0": "graph-1"}


def test_an_engine_lies_beside_its_file():
    assert engine_there.engine_of(Path("0.model")) == Path("0.engine")
