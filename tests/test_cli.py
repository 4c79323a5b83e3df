"""The `edgedl` program: what it may be told, what it says when something is wrong, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import onnx
import pytest
import typer.main
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from edgedl import plugins, recipe
from edgedl import run as runs
from edgedl.cli import main
from edgedl.cli.main import app
from edgedl.core import UsageError
from edgedl.nvidia import building
from tests import sample_report

ALL_OPTIONS = {
    # Frozen: scripts of other people rest on these. Arguments are in capitals, as the help shows them.
    "": {"--help", "-h", "--version"},
    "compress": {
        *("--help", "-h", "--recipe", "--out", "--fresh", "--strict", "--json", "--model", "--weights", "--data"),
        *("--quiet", "--json-lines", "--track"),
        *("--label", "--metric", "--epochs", "--int8", "--fp16", "--prune", "--target", "--score-drop", "--float-ops"),
        *("--size", "--mean", "--std", "--uint8-input", "--channels-last", "--max-batch", "--dynamic"),
    },
    "init": {"--help", "-h", "FOLDER", "--data", "--label", "--precision", "--prune", "--target", "--yes"},
    "analyze": {"--help", "-h", "RECIPE_OR_RUN", "--out", "--ratio", "--fresh", "--json", "--quiet", "--json-lines"},
    "bench": {
        *("--help", "-h", "FILES", "--vs", "--recipe", "--target", "--threads", "--seconds", "--operators"),
        *("--quiet", "--json-lines"),
        *("--on", "--out", "--json", "--batches", "--cold", "--sustained", "--energy", "--end-to-end"),
    },
    "deploy": {"--help", "-h", "RUN", "--on", "--target", "--variant", "--to", "--out", "--json", "--quiet"},
    "compare": {
        "--help", "-h", "RUNS", "--out", "--json", "--pick", "--target", "--device", "--format", "--html",
    },
    "search": {
        *("--help", "-h", "RECIPE", "--trials", "--budget", "--objective", "--limit", "--target", "--workers"),
        *("--on", "--storage", "--artifacts", "--measure-all", "--out", "--json"),
    },
    "inspect": {"--help", "-h", "WHAT", "--out", "--json"},
    "report": {"--help", "-h", "RUN", "--out", "--json"},
    "recipes": {"--help", "-h"},
    "recipes list": {"--help", "-h", "--out", "--json"},
    "recipes show": {"--help", "-h", "NAME", "--json"},
    "recipes schema": {"--help", "-h", "--json"},
    "runs": {"--help", "-h"},
    "runs list": {"--help", "-h", "--out", "--json"},
    "runs clean": {"--help", "-h", "--interrupted", "--keep", "--older", "--dry-run", "--yes", "--out", "--json"},
    "devices": {"--help", "-h", "--json"},
    "devices list": {"--help", "-h", "--json"},
    "devices setup": {"--help", "-h", "KIND"},
    "targets": {"--help", "-h", "--json"},
    "doctor": {"--help", "-h", "--json"},
}  # fmt: skip
GROUPS = ("", "recipes", "runs")
"""Those that are nothing alone."""
HEAVY = (
    "torch", "numpy", "onnx", "onnxruntime", "litert_torch", "ai_edge_litert", "tflite_runtime", "tensorrt",
    "tensorrt_rtx", "cuda", "sklearn", "jinja2", "plotly", "edgedl.core", "edgedl.recipe", "edgedl.pipeline",
)  # fmt: skip
"""Not pydantic: typer itself imports it to show a command's options. `edgedl.core` tells whether edgedl does."""
RECIPE = """
task = { use = "digits" }
model = { use = "mlp", widths = [32] }
steps = [
  { use = "train", epochs = 2, lr = 3e-3 },
  { use = "quantize", method = "ptq", calibrator = "min-max", corrections = [] },
]
targets = [ { use = "onnxruntime" } ]
bench = { min_seconds = 0.05 }
"""
ALSO_TFLITE = RECIPE.replace("targets = [", 'targets = [ { use = "tflite" },')

Program = Callable[..., CompletedProcess[str]]


def run_in(folder: Path, *arguments: str | Path) -> CompletedProcess[str]:
    return start(command(*arguments), folder)


def start(call: list[str], folder: Path) -> CompletedProcess[str]:
    return subprocess.run(call, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edgedl.cli.main", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Lines of a known width without colours, and one thread: small networks train no faster on several."""
    hidden = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    chosen = {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return {key: value for key, value in os.environ.items() if key not in hidden} | chosen


def the_line(done: CompletedProcess[str]) -> str:
    """What an error said: one line on stderr behind nothing but progress, and nothing on stdout."""
    assert done.stdout == ""
    *progress, line = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("edgedl: "), done.stderr
    assert all(re.search(r"\d+/\d+ +\d:\d\d:\d\d", line) for line in progress), done.stderr
    return line


@pytest.fixture
def edgedl(tmp_path: Path) -> Program:
    """The program, started in an empty folder."""
    return lambda *arguments: run_in(tmp_path, *arguments)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    """A folder in which a small recipe was compressed, and how the program ended."""
    folder = tmp_path_factory.mktemp("compressed")
    (folder / "small.toml").write_text(ALSO_TFLITE + 'limits = { score_drop = 1.0, slower = "allow" }\n')
    return folder, run_in(folder, "compress", "--recipe", "small.toml", "--json")


@pytest.fixture(scope="module")
def run_folder(compressed: tuple[Path, CompletedProcess[str]]) -> Path:
    (report,) = compressed[0].glob("runs/small/*/report.json")
    return report.parent


@pytest.fixture
def files(run_folder: Path, tmp_path: Path) -> Path:
    """The folder that `edgedl` starts in, with sound model files in it."""
    for suffix, target in (("onnx", "onnxruntime"), ("tflite", "tflite")):
        shutil.copy(run_folder / "targets" / "float" / target / f"model.{suffix}", tmp_path)
    return tmp_path


# What it may be told


def commands() -> Iterator[tuple[str, Any]]:
    def walk(path: str, found: Any) -> Iterator[tuple[str, Any]]:
        yield path, found
        for name, inner in getattr(found, "commands", {}).items():
            yield from walk(f"{path} {name}".strip(), inner)

    return walk("", typer.main.get_command(app))


def test_commands_and_their_options_are_those_that_were_promised():
    found = {}
    for path, declared in commands():
        context = declared.make_context("edgedl", [], resilient_parsing=True, help_option_names=["-h", "--help"])
        found[path] = {
            name
            for parameter in declared.get_params(context)
            for name in (
                [parameter.name.upper()]
                if parameter.param_type_name == "argument"
                else [*parameter.opts, *parameter.secondary_opts]
            )
        }
    assert found == ALL_OPTIONS


@pytest.mark.parametrize("path", ALL_OPTIONS)
def test_help_shows_every_option_and_imports_nothing_heavy(path, tmp_path):
    program = f"""
import sys
from edgedl.cli.main import main
try:
    main()
finally:
    print(*sorted({set(HEAVY)!r} & sys.modules.keys()), file=sys.stderr)
"""
    done = start([sys.executable, "-c", program, *path.split(), "--help"], tmp_path)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    for option in ALL_OPTIONS[path]:
        shown = option if option.startswith("-") else option.lower()
        assert re.search(rf"(?<![\w-]){shown}(?![\w-])", done.stdout), option


def test_help_lists_the_exit_statuses(edgedl):
    done = edgedl("-h")
    for status in ("0 done", "1 a target failed", "2 wrong usage or recipe", "3 with --strict", "130 interrupted"):
        assert status in done.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_shows_its_help(edgedl, group):
    assert "Commands" in edgedl(*group.split()).stdout


def test_version_is_that_of_the_package(edgedl):
    from edgedl import __version__

    assert edgedl("--version").stdout == f"edgedl {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["squash"],
        ["compress", "--recipe"],
        ["compress", "--recipe", "cnn-int8", "--epoch", "x"],
        ["analyze"],
        ["analyze", "cnn-int8", "--ratio", "1"],
        ["bench"],
        ["bench", "model.onnx", "--threads", "0"],
        ["bench", "model.onnx", "--threads", "1,"],
        ["bench", "model.onnx", "--batches", "-1"],
        ["bench", "model.onnx", "--batches", "99999999"],
        ["bench", "model.onnx", "--sustained", "nan"],
        ["bench", "model.onnx", "--seconds", "long"],
        ["bench", "model.onnx", "--seconds", "inf"],
        ["report"],
        ["compare"],
        ["recipes", "burn"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_what_is_wrong(edgedl, arguments):
    done = edgedl(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


# JSON


def test_compress_prints_the_report_as_json_alone(compressed, run_folder):
    _, done = compressed
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((run_folder / "report.json").read_text())
    assert "train" in done.stderr  # where progress is shown


def test_bench_prints_rows_as_json_alone(edgedl, files):
    done = edgedl("bench", "model.onnx", "model.tflite", "--vs", "model.onnx", "--seconds", "0.02", "--json")
    assert done.returncode == 0, done.stderr
    onnxruntime, tflite = json.loads(done.stdout)
    assert (onnxruntime["file"], onnxruntime["speedup"]) == ("model.onnx", None)
    assert (tflite["file"], tflite["vs"]) == ("model.tflite", "model.onnx")


def test_bench_with_a_recipe_gives_the_score_of_the_report(edgedl, files, run_folder):
    report = runs.read_report(run_folder)
    rows = json.loads(
        edgedl("bench", "model.onnx", "model.tflite", "--recipe", "mlp-int8", "--seconds", "0.02", "--json").stdout
    )
    stated = {row["target"]: row["score"] for row in report["rows"] if row["variant"] == "float"}
    assert {row["target"]: row["score"] for row in rows} == stated
    assert {(row["metric"], row["samples"]) for row in rows} == {("accuracy", 360)}


def test_report_and_compare_print_json_alone(run_folder, compressed):
    folder, _ = compressed
    report = runs.read_report(run_folder)
    for name in ("small", str(run_folder), str(run_folder / "report.json")):
        assert json.loads(run_in(folder, "report", name, "--json").stdout) == report
    rows = json.loads(run_in(folder, "compare", "small", "--json").stdout)
    assert [row["variant"] for row in rows] == [row["variant"] for row in report["rows"]]


@pytest.mark.parametrize(
    "arguments",
    [["recipes", "list"], ["recipes", "show", "cnn-int8"], ["recipes", "schema"], ["targets"], ["doctor"]],
    ids=" ".join,
)
def test_what_needs_no_run_prints_json_alone(edgedl, arguments):
    done = edgedl(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [["recipes", "list"], ["targets"], ["doctor"]],
    ids=" ".join,
)
def test_tables_are_for_people(edgedl, arguments):
    done = edgedl(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 3


def test_recipes_stand_beside_what_their_last_runs_measured(edgedl, tmp_path):
    content = recipe.load("mlp-int8").model_dump(mode="json")
    report = sample_report.sample_report() | {"recipe": content}
    other = report | {"recipe": content | {"seed": 7}}
    for folder, found in (("2026-01-01T00-00-00", report), ("2026-01-02T00-00-00", other), ("2026-01-03T00-00-00", {})):
        (tmp_path / "mlp-int8" / folder).mkdir(parents=True)
        (tmp_path / "mlp-int8" / folder / "report.json").write_text(json.dumps(found))
    listed = {
        found["name"]: found for found in json.loads(edgedl("recipes", "list", "--out", str(tmp_path), "--json").stdout)
    }
    assert {name for name, found in listed.items() if found["last"]} == {"mlp-int8"}
    assert listed["mlp-int8"]["last"] == {
        "run": str(tmp_path / "mlp-int8" / "2026-01-01T00-00-00"), "target": "tflite", "ship": "compressed",
        "float": 0.975, "compressed": 0.9722, "speedup": 2.827, "size_ratio": 3.91,
    }  # fmt: skip
    assert listed["lstm-int8"]["family"] == "recurrent-classifier"
    lines = edgedl("recipes", "list", "--out", str(tmp_path)).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("mlp-int8 "))
    assert re.search(r"mlp +digits +accuracy +0\.9750 → 0\.9722 +2\.83x +3\.91x +tflite: compressed +Multilayer", line)
    assert "No recipe has a finished run here" in edgedl("recipes", "list", "--out", str(tmp_path / "none")).stdout


def test_tables_of_a_run_name_every_row(run_folder, compressed):
    folder, _ = compressed
    for command_name, keys in (("report", ("variant", "target", "precision")), ("compare", ("target", "variant"))):
        done = run_in(folder, command_name, "small")
        assert (done.returncode, done.stderr) == (0, "")
        for row in runs.read_report(run_folder)["rows"]:
            assert re.search(" +".join(row[key] for key in keys), done.stdout)


# Exit status 2: nothing was done


def test_an_unknown_recipe_is_answered_with_the_nearest(edgedl, tmp_path):
    done = edgedl("compress", "--recipe", "cnn-int")
    assert done.returncode == 2
    assert the_line(done).startswith("edgedl: no recipe named 'cnn-int'; did you mean cnn-int8")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["compress", "--recipe"], ["recipes", "show"], ["bench", "x.onnx", "--recipe"]])
def test_a_recipe_file_that_is_not_there_is_named(edgedl, arguments):
    done = edgedl(*arguments, "gone.toml")
    assert done.returncode == 2
    assert the_line(done) == "edgedl: no recipe file gone.toml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("epochs", "epoch", r"wrong\.toml:5: steps\[0\]\.epoch: unknown key; did you mean epochs\?"),
        ("= 2", '= "two"', r"wrong\.toml:5: steps\[0\]\.epochs: .*not 'two'"),
        ("= 2", "= -2", r"wrong\.toml:5: steps\[0\]\.epochs: .*not -2"),
        ('"mlp"', '"mpl"', r"wrong\.toml:3: model\.use: no models named 'mpl'; did you mean mlp\?"),
        ("targets", "tragets", r"wrong\.toml:8: tragets: unknown key; did you mean targets\?"),
        ("model = {", "model = ", r"wrong\.toml: no valid TOML: .*line 3"),
    ],
)
def test_a_wrong_recipe_has_its_line_and_costs_nothing(edgedl, tmp_path, old, new, said):
    (tmp_path / "wrong.toml").write_text(RECIPE.replace(old, new, 1))
    done = edgedl("compress", "--recipe", "wrong.toml")
    assert done.returncode == 2
    assert re.search(said, the_line(done))
    assert [file.name for file in tmp_path.iterdir()] == ["wrong.toml"]


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_takes_no_run_is_named(edgedl, tmp_path, out):
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "file").write_text("in the way")
    done = edgedl("compress", "--recipe", "small.toml", "--out", out)
    assert done.returncode == 2
    assert re.fullmatch(
        rf"edgedl: {out}/small: cannot write a run there: .*; choose another with --out", the_line(done)
    )


DAMAGED: dict[str, Callable[[bytes, bytes], bytes]] = {
    # A file's name, and its content made of a whole ONNX and a whole TFLite file.
    "cut.onnx": lambda whole, other: whole[: len(whole) // 2],
    "cut.tflite": lambda other, whole: whole[: len(whole) // 2],
    "last-bytes-cut.tflite": lambda other, whole: whole[:-100],
    "tflite-really.onnx": lambda other, whole: whole,
    "onnx-really.tflite": lambda whole, other: whole,
    "empty.onnx": lambda *_: b"",
    "empty.tflite": lambda *_: b"",
    "noise.onnx": lambda *_: bytes(range(256)) * 9,
    "noise.tflite": lambda *_: bytes(range(4)) + b"TFL3" + bytes(range(256)) * 9,
    "of-an-unknown.ending": lambda whole, other: whole,
    "without-ending": lambda whole, other: whole,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_not_what_its_name_says_is_refused(edgedl, files, name):
    (files / name).write_bytes(
        DAMAGED[name]((files / "model.onnx").read_bytes(), (files / "model.tflite").read_bytes())
    )
    done = edgedl("bench", name, "--vs", "model.onnx", "--seconds", "0.01")
    assert done.returncode == 2
    assert the_line(done).startswith(f"edgedl: {name}: ")


def test_a_damaged_engine_is_refused(edgedl, files):
    trt = pytest.importorskip("tensorrt_rtx", reason="engines are built by tensorrt-rtx")
    whole = building.build_engine(trt, files / "model.onnx")
    missing = None if plugins.installed("cuda.bindings|cuda.cudart") else "target tensorrt-rtx needs cuda-python: pip"
    for content, said in ((whole[:5000], "is damaged"), (b"", "is no TensorRT-RTX engine"), (b"x" * 99, "is no Tens")):
        (files / "model.rtx").write_bytes(content)
        done = edgedl("bench", "model.rtx")
        assert done.returncode == 2
        assert (missing or f"model.rtx {said}") in the_line(done)


@pytest.mark.parametrize("ending", ["onnx", "tflite", "rtx", "engine"])
def test_a_file_that_is_missing_or_a_folder_is_named(edgedl, tmp_path, ending):
    done = edgedl("bench", f"gone.{ending}")
    assert (done.returncode, the_line(done)) == (2, f"edgedl: no file gone.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    done = edgedl("bench", f"folder.{ending}")
    assert (done.returncode, the_line(done)) == (2, f"edgedl: folder.{ending} is a folder: name the file in it")


def test_the_file_to_compare_with_is_looked_for_before_anything_is_measured(edgedl, files):
    done = edgedl("bench", "model.onnx", "--vs", "gone.onnx")
    assert (done.returncode, the_line(done)) == (2, "edgedl: no file gone.onnx")


def test_an_unknown_target_is_answered_with_the_nearest(edgedl, files):
    done = edgedl("bench", "model.onnx", "--target", "onnx-runtime")
    assert (done.returncode, the_line(done)) == (
        2,
        "edgedl: no targets named 'onnx-runtime'; did you mean onnxruntime?",
    )


def test_a_target_that_cannot_open_the_file_says_so(edgedl, files):
    done = edgedl("bench", "model.onnx", "--target", "tflite")
    assert done.returncode == 2
    assert "model.onnx: no TFLite file" in the_line(done)


@pytest.mark.parametrize(
    ("inputs", "output", "said"),
    [
        ({"picture": ([1, 1, 28, 28], TensorProto.FLOAT)}, "logits", "no input named image, as task digits has"),
        (
            {"image": ([1, 3, 32, 32], TensorProto.FLOAT)},
            "logits",
            r"float32 \(1, 3, 32, 32\), but .* \(N, 1, 28, 28\)",
        ),
        ({"image": ([1, 1, 28, 28], TensorProto.DOUBLE)}, "logits", "image is float64 .* feeds float32"),
        ({"image": ([1, 1, 28, 28], TensorProto.FLOAT)}, "scores", "no output named logits, as task digits has"),
        (
            {"image": ([1, 1, 28, 28], TensorProto.FLOAT), "mask": ([1], TensorProto.FLOAT)},
            "logits",
            "input mask is nothing that task digits feeds",
        ),
    ],
    ids=["other name", "other shape", "other type", "other output", "one more input"],
)
def test_a_file_that_does_not_fit_the_task_is_refused(edgedl, tmp_path, inputs, output, said):
    first, *others = inputs
    nodes = [helper.make_node("Flatten", [first], ["flat" if others else output])]
    nodes += [helper.make_node("Add", ["flat", name], [output]) for name in others]
    taken = [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in inputs.items()]
    given = [helper.make_tensor_value_info(output, inputs[first][1], None)]
    graph = helper.make_graph(nodes, "foreign", taken, given)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "foreign.onnx"
    )
    done = edgedl("bench", "foreign.onnx", "--recipe", "mlp-int8", "--seconds", "0.01")
    assert done.returncode == 2
    assert re.search(f"foreign.onnx: .*{said}", the_line(done))


@pytest.mark.parametrize("shape", [[], [0], ["n", "m"]], ids=["a number", "nothing", "of any size"])
def test_an_onnx_file_without_a_batch_dimension_is_measured(edgedl, tmp_path, shape):
    node = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "same", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "same.onnx")
    done = edgedl("bench", "same.onnx", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["latency_ms"]["median"] > 0


def onnx_file(path: Path, node: onnx.NodeProto, inputs: list, outputs: list) -> None:
    graph = helper.make_graph([node], "odd", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def test_an_onnx_file_that_takes_nothing_is_measured(edgedl, tmp_path):
    value = helper.make_tensor("value", TensorProto.FLOAT, [2], [1.0, 2.0])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    onnx_file(tmp_path / "constant.onnx", helper.make_node("Constant", [], ["y"], value=value), [], [given])
    done = edgedl("bench", "constant.onnx", "--seconds", "0.01", "--json")
    assert done.returncode == 0, done.stderr
    done = edgedl("bench", "constant.onnx", "--recipe", "mlp-int8", "--seconds", "0.01")
    assert "no input named image, as task digits has; it has none" in the_line(done)


def test_numbers_that_numpy_does_not_know_are_named(edgedl, tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 2]) for name in "xy"]
    onnx_file(tmp_path / "brief.onnx", helper.make_node("Identity", ["x"], ["y"]), values[:1], values[1:])
    done = edgedl("bench", "brief.onnx", "--seconds", "0.01")
    assert done.returncode == 1
    assert "input or output x is a tensor(bfloat16)" in the_line(done)


def test_an_output_that_is_one_number_cannot_be_scored(edgedl, tmp_path):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 28, 28])
    mean = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [])
    onnx_file(
        tmp_path / "mean.onnx", helper.make_node("ReduceMean", ["image"], ["logits"], keepdims=0), [image], [mean]
    )
    done = edgedl("bench", "mean.onnx", "--recipe", "mlp-int8", "--seconds", "0.01")
    assert done.returncode == 2
    assert "output logits is one number" in the_line(done)


@pytest.mark.parametrize("command_name", ["report", "compare"])
def test_a_run_that_is_not_there_is_answered_with_those_that_are(edgedl, compressed, tmp_path, command_name):
    done = edgedl(command_name, "smal")
    assert (done.returncode, the_line(done)) == (
        2,
        'edgedl: no run "smal": give its folder, or a recipe that has finished under runs (none)',
    )
    done = run_in(compressed[0], command_name, "smal")
    assert the_line(done).endswith("finished under runs (small)")


@pytest.mark.parametrize("command_name", ["report", "compare"])
def test_an_unfinished_run_and_a_folder_that_is_none_are_told(edgedl, run_folder, tmp_path, command_name):
    shutil.copytree(run_folder, tmp_path / "unfinished", ignore=shutil.ignore_patterns("report.*"))
    (tmp_path / "other").mkdir()
    for folder in ("unfinished", "other"):
        done = edgedl(command_name, folder)
        assert done.returncode == 2
        assert the_line(done).startswith(f"edgedl: {folder}: no report.json there: the run did not finish, or")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read: "),
        (lambda text: "", "cannot be read: "),
        (lambda text: "\udcff" + text, "cannot be read: "),
        (lambda text: json.dumps(json.loads(text) | {"schema": 99}), "schema 99, but this edgedl reads schema 1"),
        (lambda text: "[]", "schema None, but this edgedl reads schema 1"),
        (lambda text: '{"schema": 1}', "damaged: it lacks "),
    ],
    ids=["cut off", "empty", "no text", "of another schema", "another thing", "without its keys"],
)
@pytest.mark.parametrize("how", [["report"], ["report", "--json"], ["compare"]], ids=" ".join)
def test_a_damaged_report_is_named(edgedl, run_folder, tmp_path, how, damage, said):
    (tmp_path / "run").mkdir()
    content = damage((run_folder / "report.json").read_text())
    (tmp_path / "run" / "report.json").write_bytes(content.encode(errors="surrogateescape"))
    done = edgedl(*how, "run")
    assert done.returncode == 2
    assert the_line(done).startswith(f"edgedl: run/report.json: {said}")


@pytest.mark.parametrize("error", [MemoryError("no room for 1 TiB"), RuntimeError("[cpu] can't allocate memory: 9 B")])
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def starve(**_: Any) -> None:
        raise error

    monkeypatch.setattr(main, "app", starve)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == f"edgedl: not enough memory: {error}; take smaller batches or widths\n"


@pytest.mark.parametrize("name", ["", "[a-", "**"])
def test_a_name_of_a_run_is_no_pattern(name, tmp_path, monkeypatch):
    (tmp_path / "runs" / "small" / "now").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "now" / "report.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no run|no report.json there"):
        runs.find_finished(name, Path("runs"))


# Quiet, and for machines


def test_bench_tells_a_machine_every_event_and_a_person_nothing_if_asked(edgedl, files):
    done = edgedl("bench", "model.onnx", "--seconds", "0.02", "--json-lines")
    assert (done.returncode, done.stderr) == (0, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    done_stages = [event["stage"] for event in events if event["event"] == "stage done" and not event["inner"]]
    assert done_stages == ["open", "measure"]
    (row,) = (event["row"] for event in events if event["event"] == "row")
    assert row["latency_ms"]["median"] > 0
    assert (events[-1]["event"], events[-1]["exit_status"]) == ("finished", 0)
    done = edgedl("bench", "model.onnx", "--seconds", "0.02", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.onnx" in done.stdout


def test_an_error_is_an_event_too(edgedl):
    done = edgedl("bench", "gone.onnx", "--json-lines")
    assert (done.returncode, done.stderr) == (2, "edgedl: no file gone.onnx\n")
    (event,) = map(json.loads, done.stdout.splitlines())
    del event["time"]
    assert event == {"event": "error", "exit_status": 2, "message": "no file gone.onnx", "log": None}


# Closed streams, Ctrl-C and a full disk


def with_closed(streams: str, folder: Path, *arguments: str) -> CompletedProcess[str]:
    """The program, started by a shell that closes streams first, as daemons do."""
    return start(["sh", "-c", f'exec "$@" {streams}', "sh", *command(*arguments)], folder)


@pytest.mark.parametrize("streams", ["2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_change_no_answer(tmp_path, streams):
    done = with_closed(streams, tmp_path, "recipes", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ("1>" in streams and not done.stdout) or json.loads(done.stdout)
    done = with_closed(streams, tmp_path, "recipes", "show", "nope")
    assert done.returncode == 2
    assert ("2>" in streams and not done.stderr) or the_line(done).startswith("edgedl: no recipe named 'nope'; ")


def test_a_run_without_streams_is_whole(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    done = with_closed("0<&- 1>&- 2>&-", tmp_path, "compress", "--recipe", "small.toml")
    assert done.returncode == 0
    (run,) = tmp_path.glob("runs/small/*")
    assert {row["status"] for row in json.loads((run / "report.json").read_text())["rows"]} <= {"ok", "refused"}
    for model in run.rglob("model.onnx"):
        onnx.load(model)  # nothing was written into it that was meant for a terminal


def assert_nothing_is_half_written(root: Path) -> None:
    """No hidden partial files, no report, and whatever has its final name is whole."""
    assert [file for file in root.rglob("*") if file.name.startswith(".") or file.suffix == ".partial"] == []
    assert [*root.rglob("report.*")] == []
    for step in root.glob("*/*/steps/*"):
        assert {"step.json", "metrics.json"} <= {file.name for file in step.iterdir()}
        if step.name.endswith("train"):
            assert load_file(step / "weights.safetensors")
    for target in root.glob("*/*/targets/*/*"):
        (model,) = target.glob("model.*")
        assert model.stat().st_size > 0
    for file in root.rglob("*.json"):
        json.loads(file.read_text())


@pytest.mark.parametrize(
    ("epochs", "once"),
    [(15, "run.json"), (2, "steps/00-train"), (2, "targets/float/.tflite.partial")],
    ids=["while it trains", "after training", "while it converts"],
)
def test_ctrl_c_leaves_nothing_half_written_and_the_same_command_finishes(edgedl, tmp_path, epochs, once):
    recipe = ALSO_TFLITE if "tflite" in once else RECIPE
    (tmp_path / "small.toml").write_text(recipe.replace("epochs = 2", f"epochs = {epochs}"))
    arguments = ("compress", "--recipe", "small.toml", "--json")
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any(tmp_path.glob(f"runs/small/*/{once}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and to what it started
    stdout, stderr = process.communicate()
    line = the_line(CompletedProcess(arguments, process.returncode, stdout, stderr))
    assert line == "edgedl: interrupted; finished steps are kept: run the same command to go on"
    assert process.returncode == 130
    assert_nothing_is_half_written(tmp_path / "runs")

    kept = list(tmp_path.glob("runs/small/*/steps/00-train"))
    done = edgedl(*arguments)
    assert done.returncode in (0, 3), done.stderr
    (trained, *_) = json.loads(done.stdout)["steps"]
    assert ("reused" in trained["metrics"]) == bool(kept)
    assert len(list(tmp_path.glob("runs/small/*/report.json"))) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a disk of a size; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        call = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(call, capture_output=True, check=False).returncode != 0:
            pytest.skip("only root may mount a small disk, where it may be done at all")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["4k", "32k", "192k"], ids=["for the recipe", "for weights", "for the first file"])
def test_a_full_disk_is_one_line_and_no_report(edgedl, tmp_path, small_disk, size):
    disk = small_disk(size)
    (tmp_path / "small.toml").write_text(ALSO_TFLITE)
    done = edgedl("compress", "--recipe", "small.toml", "--out", disk)
    assert done.returncode == (2 if size == "4k" else 1), done.stderr
    line = the_line(done)
    assert str(disk) in line
    assert "No space left on device" in line
    assert_nothing_is_half_written(disk)


@pytest.mark.parametrize("size", [20_000, 102_400], ids=["weights", "the first file"])
def test_a_file_that_may_not_grow_is_one_line_and_no_report(edgedl, tmp_path, size):
    (tmp_path / "small.toml").write_text(RECIPE)
    limited = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
    call = [sys.executable, "-c", limited + "os.execv(sys.executable, sys.argv[1:])"]
    call += command("compress", "--recipe", "small.toml")
    done = start(call, tmp_path)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"edgedl: runs: File too large \(log: runs/small/[^/]+/log\.txt\)", the_line(done))
    assert_nothing_is_half_written(tmp_path / "runs")
