"""What a device gets: the wheel without extras and one runtime. It measures files, and needs no framework for it."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest

from tests import quick, venvs

REPOSITORY = Path(__file__).parents[1]
RECIPES = {file.stem for file in (REPOSITORY / "recipes").glob("*.toml")}
JETPACK_6 = "3.10"
"""Its Python; its other packages are built for NumPy 1."""


class Light(NamedTuple):
    """An environment with edgedl, one runtime, and what those need."""

    version: str
    runtime: str
    pins: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.runtime.partition('=')[0]}-{self.version}"


ONNX = [Light(venvs.THIS_VERSION, "onnxruntime"), Light(JETPACK_6, "onnxruntime", ("numpy==1.26.*",))]
TFLITE = [
    Light(venvs.THIS_VERSION, "ai-edge-litert"),
    Light(JETPACK_6, "tflite-runtime==2.14.0", ("numpy==1.26.*",)),
]


class Device:
    """The program of a light environment, as a person types it in a folder with exported files."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder

    def __call__(self, *arguments: str) -> CompletedProcess[str]:
        return self._run(str(self.python.with_name("edgedl")), *arguments)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def imports(self, module: str) -> bool:
        return self._run(str(self.python), "-I", "-c", f"import {module}").returncode == 0

    def refuses(self, *arguments: str) -> str:
        """The one line that is said with exit status 2."""
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "Traceback" not in done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("edgedl: "))
        return line

    def _run(self, *command: str) -> CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=venvs.environment(), capture_output=True, text=True, check=False
        )


@functools.cache
def build_wheel(folder: Path) -> Path:
    """The wheel of a copy: the repository itself stays as it is."""
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("edgedl", "recipes"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    done = subprocess.run(command, env=venvs.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that were made elsewhere, and a whole run."""
    run = quick.finished_run(tmp_path_factory, "cnn")
    folder = tmp_path_factory.mktemp("exported")
    for suffix, target in (("onnx", "onnxruntime"), ("tflite", "tflite")):
        for variant, name in (("float", "model"), ("compressed", "model.int8")):
            shutil.copy(run.folder / "targets" / variant / target / f"model.{suffix}", folder / f"{name}.{suffix}")
    shutil.copytree(run.folder, folder / "run")
    shutil.copytree(run.folder, folder / "again")
    return folder


@pytest.fixture(scope="module")
def device(
    request: pytest.FixtureRequest, wheel: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> Device:
    light: Light = request.param
    python = venvs.make(tmp_path_factory, light.version, str(wheel), light.runtime, *light.pins)
    return Device(python, exported)


everywhere = pytest.mark.parametrize("device", [*ONNX, *TFLITE], ids=str, indirect=True)
with_onnxruntime = pytest.mark.parametrize("device", ONNX, ids=str, indirect=True)
with_litert = pytest.mark.parametrize("device", TFLITE, ids=str, indirect=True)


def test_wheel_holds_recipes_and_the_page_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {Path(name).stem for name in names if name.startswith("edgedl/_recipes/")} == RECIPES
    shipped = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "edgedl").rglob("*") if file.is_file()}
    assert {name for name in shipped if "__pycache__" not in name} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"edgedl"}


@everywhere
def test_no_framework_is_there(device):
    for module in ("torch", "onnx", "litert_torch", "sklearn", "jinja2"):
        assert not device.imports(module), module


@everywhere
def test_help_targets_doctor_and_recipes(device):
    assert "compress" in device("--help").stdout
    found = {row["target"]: row for row in device.json("targets")}
    assert {"onnxruntime", "tflite", "tensorrt", "tensorrt-rtx"} <= set(found)
    assert all("torch" in row["build_lacks"] for row in found.values())
    doctor = device.json("doctor")
    assert doctor["targets"] == list(found.values())
    assert "torch" not in doctor["device"]["versions"]
    assert device("doctor").returncode == 0
    assert {recipe["name"] for recipe in device.json("recipes", "list")} == RECIPES
    assert device("recipes", "show", "cnn-int8").stdout == (REPOSITORY / "recipes" / "cnn-int8.toml").read_text()
    assert device.json("recipes", "schema")["required"]


@everywhere
def test_reports_of_runs_made_elsewhere_are_shown(device):
    shown = device("report", "run")
    assert shown.returncode == 0, shown.stderr
    assert "pip install 'edgedl[report]'" in shown.stdout  # the page needs more
    report = json.loads((device.folder / "run" / "report.json").read_text())
    assert device.json("report", "run") == report
    assert [row["run"] for row in device.json("compare", "run", "again")] == [
        name for name in ("run", "again") for _ in report["rows"]
    ]


@everywhere
def test_compress_names_what_is_missing_and_how_to_get_it(device):
    line = device.refuses("compress", "--recipe", "cnn-int8", "--out", "nowhere")
    for package in ("torch", "onnx", "onnxscript", "litert-torch", "tensorrt-rtx"):
        assert package in line
    assert line.count("pip install") == 1
    assert "pip install 'edgedl[" in line
    assert not (device.folder / "nowhere").exists()


@everywhere
def test_analyze_names_what_is_missing(device):
    line = device.refuses("analyze", "run")
    assert line == ("edgedl: analyze needs torch, torchao, torch_pruning, safetensors: pip install 'edgedl[train]'")


@with_onnxruntime
def test_onnx_files_are_measured(device):
    (row,) = device.json("bench", "model.onnx", "--seconds", "0.05")
    assert row["runtime"].startswith("onnxruntime ")
    check_measured(row, "onnxruntime", device.folder / "model.onnx")
    rows = device.json("bench", "model.int8.onnx", "--vs", "model.onnx", "--seconds", "0.05", "--operators")
    check_compared(rows)
    assert all(row["operators"] for row in rows)


@with_litert
def test_tflite_files_are_measured(device):
    (row,) = device.json("bench", "model.tflite", "--seconds", "0.05")
    assert row["runtime"].startswith(("ai_edge_litert 2.", "tflite_runtime 2.14.0"))
    check_measured(row, "tflite", device.folder / "model.tflite")
    check_compared(device.json("bench", "model.int8.tflite", "--vs", "model.tflite", "--seconds", "0.05"))
    table = device("bench", "model.int8.tflite", "--vs", "model.tflite", "--seconds", "0.05")
    assert "model.int8.tflite against model.tflite: " in table.stdout


@with_litert
def test_a_file_is_opened_from_python(device):
    program = (
        "import edgedl, numpy; session = edgedl.open('model.int8.tflite')\n"
        "answers = session.run({'image': numpy.zeros((1, 1, 28, 28), numpy.float32)})\n"
        "print(numpy.__version__, *answers['logits'].shape)"
    )
    done = device._run(str(device.python), "-I", "-c", program)
    assert done.returncode == 0, done.stderr
    version, *shape = done.stdout.split()
    assert shape == ["1", "10"]
    assert version.startswith("1.26." if device.imports("tflite_runtime") else "2.")


@with_litert
def test_tflite_files_are_inspected_where_their_schema_is(device):
    if device.imports("ai_edge_litert"):
        (row,) = device.json("inspect", "model.int8.tflite")
        (found,) = row["accelerators"]
        assert found["operators"] == found["stay"] > 5
        assert [(spec["name"], spec["layout"]) for spec in row["inputs"]] == [("image", "NCHW")]
    else:
        line = device.refuses("inspect", "model.tflite")
        assert line.endswith("needs ai-edge-litert: pip install ai-edge-litert")


@with_onnxruntime
def test_bench_names_the_missing_litert(device):
    line = device.refuses("bench", "model.tflite")
    assert line == "edgedl: target tflite needs ai-edge-litert: pip install ai-edge-litert"


@with_litert
def test_bench_names_the_missing_onnxruntime(device):
    line = device.refuses("bench", "model.onnx")
    assert line == "edgedl: target onnxruntime needs onnxruntime: pip install onnxruntime"


@with_litert
def test_tflite_file_that_was_cut_off_is_refused(device):
    """The old runtime does not check a file: it crashes, in a process of its own, and cannot say why."""
    (device.folder / "cut.tflite").write_bytes((device.folder / "model.tflite").read_bytes()[:-2000])
    done = device("bench", "cut.tflite", "model.tflite", "--seconds", "0.05")
    assert (done.returncode, done.stdout) in ((1, ""), (2, "")), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("edgedl: cut.tflite")


def test_scoring_without_the_data_set_names_what_it_needs(exported, wheel, tmp_path_factory):
    python = venvs.make(tmp_path_factory, venvs.THIS_VERSION, str(wheel), "onnxruntime")
    line = Device(python, exported).refuses("bench", "model.onnx", "--recipe", "cnn-int8")
    assert "scikit-learn" in line
    assert "pip install" in line


def test_old_tflite_runtime_beside_a_new_numpy_says_which_numpy_it_needs(exported, wheel, tmp_path_factory):
    python = venvs.make(tmp_path_factory, JETPACK_6, str(wheel), "tflite-runtime==2.14.0", "numpy>=2")
    line = Device(python, exported).refuses("bench", "model.tflite")
    assert line.startswith("edgedl: tflite_runtime does not work with NumPy 2.")
    assert line.endswith("pip install 'numpy<2'")


def check_measured(row: Mapping[str, Any], target: str, file: Path) -> None:
    assert (row["target"], row["file"], row["size_bytes"]) == (target, file.name, file.stat().st_size)
    assert row["latency_ms"]["runs"] >= 100
    low, high = row["latency_ms"]["ci95"]
    assert 0 < low <= row["latency_ms"]["median"] <= high
    assert row["init_ms"] > 0


def check_compared(rows: list[dict[str, Any]]) -> None:
    compressed, reference = rows
    assert reference["speedup"] is None
    assert compressed["speedup"]["verdict"] in ("faster", "slower", "no difference")
    assert compressed["size_bytes"] < reference["size_bytes"]
