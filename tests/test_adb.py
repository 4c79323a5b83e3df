"""Phones: a folder stands in for one, behind a program `adb` that does in it what adb does; the rest is what ships."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedl import devices
from edgedl.core import TargetError, UsageError
from edgedl.devices import adb
from edgedl.links import android, arm64, phone_python
from edgedl.remote import benchmarked, deploying, on_device
from edgedl.report import page, terminal
from edgedl.run import read_report
from edgedl.tasks.digits import Digits
from tests import made_run
from tests.dense_run import dense_run
from tests.phone import BATTERY, PROPERTIES, SERIAL, Phone

PRINTED = Path(__file__).parent / "printed"
HERE = f"adb://{SERIAL}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_run(tmp_path_factory.mktemp("dense"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setattr(benchmarked, "ROUNDS", 2)
    return Phone(tmp_path / "phone", monkeypatch)


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    file = tmp_path / "configuration" / "edgedl" / "devices.toml"
    file.parent.mkdir(parents=True)
    return file


def outputs(run: Path) -> dict[str, bytes]:
    """The logits of the first test sample, of the files in the order in which they are sent."""
    image = Digits().arrays("test")["image"][:1].reshape(1, -1)
    found = {}
    for index, variant in enumerate(("float", "compressed")):
        content = (run / "targets" / variant / "tflite" / "model.tflite").read_bytes()
        weights = np.frombuffer(content[content.index(weights_of(run, variant)) :][: 784 * 10 * 4], np.float32)
        found[f"{index}-0.model"] = (image @ weights.reshape(10, 784).T).tobytes()
    return found


def weights_of(run: Path, variant: str) -> bytes:
    """The bytes with which they begin, which the ONNX file has in the same order if it is read the other way round."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(run / "targets" / variant / "onnxruntime" / "model.onnx")
    return numpy_helper.to_array(model.graph.initializer[0]).T.copy().tobytes()


def rows(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["target"], row["variant"]): row for row in content["rows"]}


def test_a_python_on_the_phone_gives_scores_times_and_a_passport(run, phone, capsys):
    phone.python()
    only(run, "tflite", "float", "compressed")
    content = on_device.bench(run, HERE, 0.05)
    assert content["device"] == "Google Pixel 7 (Google GS201)"
    assert json.loads((run / "devices" / f"adb-{SERIAL}.json").read_text()) == content
    for row in content["rows"]:
        assert (row["status"], row["score"]) == ("ok", row["score_here"])
        assert row["latency_ms"]["runs"] >= 100
        assert row["agreement"]["sqnr_db"] == 240
    found = content["environment"]
    assert (found["model"], found["soc"], found["machine"]) == ("Google Pixel 7", "Google GS201", "arm64-v8a")
    assert found["system"].startswith("Android 14 (API 34), Linux ")
    assert (found["cores"], found["memory_bytes"], found["pinned_to"]) == (8, 7807028 * 1024, [6, 7])
    assert found["versions"]["numpy"] == np.__version__
    assert found["before"] == found["after"] == {
        "temperature_c": 41.0, "thermal_status": "none", "battery_percent": 85, "battery_temperature_c": 27.5,
        "powered_by": "usb",
    }  # fmt: skip
    assert phone.said("bin/taskset.called").split() == ["taskset", "c0"]
    terminal.print_devices([content])
    told = "n cores 6, 7; 41 → 41 °C; 28 → 28 °C in the battery; 85 → 85 %; powered by usb"
    assert f"o{told}" in capsys.readouterr().out
    assert f"O{told}." in page.write_page(read_report(run), run).read_text(encoding="utf-8")
    assert list(phone.tmp.iterdir()) == []


@pytest.mark.skipif(not arm64.home().is_dir(), reason=f"no emulated arm64 here: `{arm64.SETUP}` makes it")
def test_an_arm64_python_on_the_phone_answers_as_the_one_here(run, phone):
    """Started as on a phone, by its own loader; only the processor is an emulator."""
    (phone.folder / "qemu").symlink_to(arm64.home() / "qemu")
    (phone.folder / phone_python.FOLDER[1:]).symlink_to(arm64.home())
    only(run, "tflite", "compressed")
    content = on_device.bench(run, HERE, 0.01)
    assert {row["score_by"] for row in content["rows"]} == {"ai_edge_litert 2.0.3"}
    for row in content["rows"]:
        assert row["score"] == row["score_here"]
        assert row["agreement"]["sqnr_db"] > 100
    assert len(list(phone.tmp.iterdir())) == 1


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the emulator has, in small."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = arm64.home()
    for name in ("qemu", "system/usr/lib/aarch64-linux-gnu/a.so", "system/usr/lib/python3.11/os.py", "packages/b/c.py",
                 "packages/b/__pycache__/c.pyc", "system/usr/share/doc/x", "system/lib/aarch64-linux-gnu/ld",
                 "system/usr/bin/python3.11"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
        (root / name).chmod(0o755)
    (root / "system/lib/ld-linux-aarch64.so.1").symlink_to("aarch64-linux-gnu/ld")
    (root / "system/usr/bin/python3").symlink_to("python3.11")
    return root


def test_a_python_is_put_onto_the_phone_once(phone, kit):
    assert phone_python.setup(android.Shell(SERIAL)) == phone_python.FOLDER
    there = phone.folder / phone_python.FOLDER[1:]
    assert {str(file.relative_to(there)) for file in there.rglob("*") if not file.is_dir()} == {
        "packages/b/c.py", "system/lib/aarch64-linux-gnu/ld", "system/lib/ld-linux-aarch64.so.1",
        "system/usr/bin/python3", "system/usr/bin/python3.11", "system/usr/lib/aarch64-linux-gnu/a.so",
        "system/usr/lib/python3.11/os.py",
    }  # fmt: skip
    assert (there / "system/lib/ld-linux-aarch64.so.1").read_text() == "system/lib/aarch64-linux-gnu/ld"
    assert os.access(there / "system/usr/bin/python3", os.X_OK)
    pushed = phone.said("called").count("push")
    assert phone_python.setup(android.Shell(SERIAL)) == phone_python.FOLDER
    assert phone.said("called").count("push") == pushed == 1


@pytest.mark.parametrize("fails", ["full", "tar"])
def test_of_a_python_that_does_not_get_there_nothing_stays(fails, phone, kit):
    if fails == "full":
        phone.write("full", "")
    else:
        phone.script("tar", "echo 'tar: No space left on device' >&2; exit 1")
    with pytest.raises(TargetError, match="No space left on device"):
        phone_python.setup(android.Shell(SERIAL))
    assert list(phone.tmp.iterdir()) == []


def test_a_phone_of_another_kind_gets_no_python(phone, kit):
    phone.set_properties(PROPERTIES | {"ro.product.cpu.abi": "x86_64"})
    with pytest.raises(UsageError, match="it is no arm64 phone, but x86_64"):
        phone_python.setup(android.Shell(SERIAL))


def test_benchmark_model_gives_times_memory_and_operators_but_no_score(run, phone, monkeypatch):
    monkeypatch.setattr(benchmarked, "ROUNDS", 10)
    phone.benchmark_model((PRINTED / "processor.txt").read_text(), outputs(run))
    content = on_device.bench(run, "adb", 1.0)
    found = rows(content)
    row = found["tflite", "compressed"]
    assert (row["status"], row["score"]) == ("ok", None)
    assert row["reason"] == "no score: benchmark_model answers no test set; the agreement is that of one call"
    assert re.fullmatch(r"benchmark_model [0-9a-f]{12}", row["score_by"])
    assert row["latency_ms"] == {
        "median": pytest.approx(1.309), "p90": None, "p99": None, "ci95": [pytest.approx(1.309)] * 2,
        "runs": 2280, "batch_size": 1, "threads": 1,
    }  # fmt: skip
    assert row["init_ms"] == pytest.approx(4.217 + 3.391)
    assert row["peak_memory_bytes"] == 5.25 * 2**20
    assert row["speedup"]["verdict"] == "no difference"
    assert row["agreement"]["sqnr_db"] > 100
    told = row["benchmark_model"]
    assert len(told["rounds"]) == 10
    assert told["rounds"][0]["warm_up"]["runs"] == 372
    assert told["rounds"][0]["steady"]["p95"] == pytest.approx(1.347)
    assert told["profiled"]["operators"][1]["kind"] == "SOFTMAX"
    assert set(found) == {("tflite", "float"), ("tflite", "compressed")}
    assert {"benchmark_model runs TFLite files alone"} == {
        row["reason"] for row in content["left_out"] if row["target"] == "onnxruntime"
    }
    calls = phone.said("benchmarked").splitlines()
    assert [call.split()[0] for call in calls[:4]] == [f"--graph={index}-0.model" for index in (0, 1, 1, 0)]
    assert len(calls) == 2 * 10 + 2
    assert "--num_threads=1 --input_layer=i0 --input_layer_shape=1,1,28,28" in calls[0]
    assert "enable_op_profiling" not in calls[0]
    assert "enable_op_profiling" in calls[-1]
    assert [file.name for file in phone.tmp.iterdir()] == ["benchmark_model"]


def test_a_delegate_is_asked_for_and_has_to_take_part(run, phone, configured, tmp_path):
    program = phone.benchmark_model((PRINTED / "gpu.txt").read_text(), outputs(run), where="mine")
    only(run, "tflite", "float")
    text = f'address = "{HERE}"\nbenchmark_model = "{program}"\nthreads = "4"\n'
    configured.write_text(f'[gpu]\n{text}delegate = "gpu"\n[npu]\n{text}delegate = "nnapi"\ncores = "all"\n')
    content = on_device.bench(run, "gpu", 1.0)
    row = rows(content)["tflite", "float"]
    assert content["device"] == row["device"] == "Google Pixel 7 (Google GS201), GPU delegate"
    assert row["latency_ms"]["median"] == pytest.approx(1201.455)
    assert row["latency_ms"]["threads"] is None
    assert row["benchmark_model"]["delegate"] == "gpu"
    assert row["benchmark_model"]["rounds"][0]["replaced"][0]["out_of"] == 58
    assert "--use_gpu=true" in phone.said("benchmarked")
    assert "--num_threads=4" in phone.said("benchmarked")
    assert phone.said("bin/taskset.called").splitlines()[0] == "taskset f0"  # two big cores are not enough for four
    row = rows(on_device.bench(run, "npu", 1.0))["tflite", "float"]
    assert (row["status"], row["latency_ms"]) == ("failed", None)
    assert "the NNAPI delegate took no part of the network" in row["reason"]
    assert len(list((run / "devices").iterdir())) == 2
    assert list(phone.tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "status"), [(lambda values: -values, "refused"), (lambda values: values[:3], "ok")]
)
def test_wrong_answers_are_refused_and_none_are_told(changed, status, run, phone):
    right = {name: np.frombuffer(content, np.float32) for name, content in outputs(run).items()}
    only(run, "tflite", "float")
    phone.benchmark_model(
        (PRINTED / "of-2019.txt").read_text(), {name: changed(values).tobytes() for name, values in right.items()}
    )
    content = on_device.bench(run, HERE, 1.0)
    row = rows(content)["tflite", "float"]
    assert row["status"] == status
    if status == "refused":
        assert "dB where 60.0 dB are needed" in row["reason"]
        assert "answers wrongly on Google Pixel 7" in content["warnings"][0]
    else:
        assert row["agreement"] is None
        assert "this release not even one call" in row["reason"]


def test_a_program_that_fails_is_a_row_with_its_last_words(run, phone):
    phone.benchmark_model((PRINTED / "failed.txt").read_text(), outputs(run))
    row = rows(on_device.bench(run, HERE, 1.0))["tflite", "float"]
    assert row["status"] == "failed"
    assert "Node number 57 (BATCH_MATMUL) failed to prepare." in row["reason"]
    assert len(phone.said("benchmarked").splitlines()) == 2


LINE = f"{SERIAL}  device usb:1-1 model:Pixel_7"


@pytest.mark.parametrize(
    ("attached", "where", "said"),
    [
        ((), "adb", "adb sees no phone: switch on USB debugging"),
        (
            (LINE, "emulator-5554  device model:sdk"),
            "adb",
            f"several phones: {SERIAL} (Pixel_7), emulator-5554 (sdk); say",
        ),
        ((LINE,), "adb://other", f"adb sees no phone other; it sees {SERIAL} (Pixel_7)"),
        ((f"{SERIAL}  unauthorized usb:1-1",), "adb", "does not trust this machine yet"),
        ((f"{SERIAL}  offline usb:1-1",), HERE, "it is offline"),
        ((f"{SERIAL}  recovery usb:1-1",), HERE, "its state is recovery"),
        (
            (f"{SERIAL}  no permissions (user in plugdev group; are your udev rules wrong?); see [x] usb:1-1",),
            "adb",
            "udev",
        ),
        ((LINE,), "adb://$(touch pwned)", "adb sees no phone $(touch pwned)"),
        ((LINE,), "adb://\x1b[2J", "adb sees no phone  [2J"),
        (("\x1b[31mred\x1b[0m  offline",), "adb", "[31mred"),
    ],
)
def test_phones_that_cannot_be_used_are_one_line(attached, where, said, phone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phone.attach(*attached)
    with pytest.raises(UsageError, match=re.escape(said)) as caught, devices.connect(where):
        pass
    assert re.fullmatch(r"[^\x00-\x1f\x7f]*", str(caught.value))
    assert not list(tmp_path.rglob("pwned"))


def test_without_adb_it_is_said_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no adb here: .* apt install adb"), devices.connect("adb"):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"benchmark_model": "/none/$(touch pwned)"}, "/none/$(touch pwned) is a file neither here nor"),
        ({"delegate": "gpu"}, "benchmark_model, which delegates need, is a file neither here nor"),
        ({"python": "/data/data/com.termux/files/usr/bin/python3"}, "it does not run for adb's user"),
        ({"python": "python3; touch pwned"}, "it does not run for adb's user"),
        ({"python": "python3", "delegate": "gpu"}, "delegates need the latter"),
        ({"python": "'"}, 'python = "\'" is no command'),
        ({"delegate": "npu"}, "no delegate 'npu'; there are: gpu, nnapi"),
        ({"threads": "0"}, "no number from 1 to 99"),
        ({"cores": "f0; touch pwned"}, "neither"),
    ],
)
def test_settings_that_are_of_no_use_are_one_line(settings, said, phone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(said)), adb.connect(SERIAL, **settings):
        pass
    assert not list(tmp_path.rglob("pwned"))
    assert list(phone.tmp.iterdir()) == []


def test_a_phone_with_nothing_to_run_files_is_one_line(run, phone):
    with pytest.raises(UsageError, match=r"there is neither a Python .* nor .*: `edgedl devices setup adb` puts"):
        on_device.bench(run, HERE, 0.01)
    assert list(phone.tmp.iterdir()) == []


def test_files_are_left_in_one_go_and_replace_those_that_were_left_before(phone, tmp_path):
    name = "it's $(touch pwned)"
    for content in (b"first", b"second"):
        (tmp_path / "model.tflite").write_bytes(content)
        (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  model.tflite\n")
        with devices.connect("adb") as device:
            assert (device.is_phone, device.runs_python) == (True, False)
            left = device.leave({file: tmp_path / file for file in ("model.tflite", "SHA256SUMS")}, name, None)
        assert (phone.tmp / name / "model.tflite").read_bytes() == content
        assert [file.name for file in phone.tmp.iterdir()] == [name]
    assert left.folder == f"/data/local/tmp/{name}"
    done = subprocess.run(left.command, shell=True, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["SHA256SUMS", "model.tflite"]
    assert not list(tmp_path.rglob("pwned"))


def test_what_is_deployed_has_run_there_and_runs_again(phone, tmp_path):
    phone.python()
    run = made_run.make(tmp_path / "made")
    found = deploying.deploy(run, "adb", "onnxruntime", "compressed", None)
    (folder,) = phone.tmp.iterdir()
    assert found["folder"] == f"/data/local/tmp/{folder.name}"
    assert {file.name for file in folder.iterdir()} == {*found["files"]} >= {"model.onnx", "example.py", "SHA256SUMS"}
    done = subprocess.run(found["command"], shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found["example"]


@pytest.mark.parametrize(
    ("to", "said"),
    [("/data/local/tmp/mine", "holds no files that were left"), ("relative", "has to begin with a /"), ("/", "begin"),
     ("/data/../x", "begin"), (None, "not what was sent")],
)  # fmt: skip
def test_nothing_else_is_replaced_and_nothing_half_is_left(to, said, phone, tmp_path):
    (phone.tmp / "mine").mkdir()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  SHA256SUMS\n")
    with pytest.raises((UsageError, TargetError), match=said), devices.connect("adb") as device:
        device.leave({"SHA256SUMS": tmp_path / "SHA256SUMS"}, "model", to)
    assert [file.name for file in phone.tmp.iterdir()] == ["mine"]


def test_a_python_that_lacks_a_runtime_is_told(phone):
    phone.script("python3", "echo 3.12.1 numpy")
    with pytest.raises(UsageError, match="it needs numpy and a runtime"), adb.connect(SERIAL, python="python3"):
        pass


def test_an_android_before_7_is_refused(phone):
    """Its adb tells no exit status."""
    phone.set_properties(PROPERTIES | {"ro.build.version.sdk": "23"})
    with pytest.raises(UsageError, match="Android 7"), devices.connect("adb"):
        pass


HOSTILE = "$(touch pwned)`touch pwned`'; touch pwned; \" && touch pwned #\x1b[2J"


def test_nothing_that_is_hostile_reaches_a_shell_or_a_terminal(run, phone, configured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phone.write("serial", HOSTILE[:-4])
    phone.attach(f"{HOSTILE[:-4]}  device model:x")
    phone.set_properties(dict.fromkeys(PROPERTIES, HOSTILE) | {"ro.build.version.sdk": "34"})
    phone.write("battery", BATTERY.replace("85", HOSTILE).replace("275", "9" * 400))
    phone.write("thermalservice", f"Thermal Status: {HOSTILE}\nThermal Status: 99")
    phone.write("sys/class/thermal/thermal_zone0/type", HOSTILE)
    hostile = run.rename(tmp_path / HOSTILE.replace("/", "_"))
    report = read_report(hostile)
    for row in report["rows"]:
        file = f"-rf $(touch pwned) {row['variant']} {row['target']}"
        (hostile / row["file"]).rename(hostile / file)
        row["file"] = file
    (hostile / "report.json").write_text(json.dumps(report))
    there = phone.tmp / "it's; touch pwned"
    phone.benchmark_model((PRINTED / "processor.txt").read_text(), {}).rename(there)
    configured.write_text(f"[mine]\naddress = 'adb'\nbenchmark_model = \"/data/local/tmp/{there.name}\"\n")
    content = on_device.bench(hostile, "mine", 0.5)
    assert rows(content)["tflite", "float"]["latency_ms"]["median"] > 0
    assert not list(tmp_path.rglob("pwned"))
    assert re.search(r"[\x00-\x1f\x7f]", " ".join([content["device"], *texts(content["environment"])])) is None
    assert content["environment"]["after"]["battery_temperature_c"] is None


def texts(content: Any) -> list[str]:
    if isinstance(content, dict):
        return [text for key, value in content.items() for text in (*texts(key), *texts(value))]
    return [content] if isinstance(content, str) else []


def test_a_folder_that_a_phone_gives_for_a_file_is_not_taken(run, phone, tmp_path):
    """A name of its own choosing could lead out of the folder here."""
    phone.script(
        "python3", "case $1 in -c) echo 3.12 numpy onnxruntime;; *) mkdir result.json; touch result.json/a;; esac"
    )
    with pytest.raises(TargetError, match=r"the runner left no result\.json"):
        on_device.bench(run, HERE, 0.01)
    assert list(phone.tmp.iterdir()) == []


def test_a_file_that_never_ends_is_not_taken(run, phone, monkeypatch):
    monkeypatch.setattr(android, "MAX_BYTES", 1000)
    sends = "head -c 2000 /dev/zero > result.json"
    phone.script("python3", f"case $1 in -c) echo 3.12 numpy onnxruntime;; *) {sends};; esac")
    with pytest.raises(TargetError, match=r"cannot read result\.json: it is larger than 0 MB"):
        on_device.bench(run, HERE, 0.01)
    assert list(phone.tmp.iterdir()) == []


def test_work_goes_on_when_the_phone_comes_back(run, phone):
    phone.python()
    only(run, "onnxruntime", "float")
    phone.write("breaks", "")
    content = on_device.bench(run, HERE, 0.01)
    assert {row["status"] for row in content["rows"]} == {"ok"}
    assert "wait-for-device" in phone.said("called")


def test_a_phone_that_stays_away_is_one_line_and_says_what_is_left(run, phone, monkeypatch):
    monkeypatch.setattr(android, "WAIT_SECONDS", 0.2)
    phone.python()
    phone.write("breaks", "")
    phone.write("away", "5")
    with pytest.raises(TargetError, match=r"the connection broke, and it did not come back within 0\.2 s"):
        on_device.bench(run, HERE, 0.01)
    assert not (run / "devices").exists()


def test_a_full_phone_is_one_line(run, phone):
    phone.python()
    phone.write("full", "")
    with pytest.raises(TargetError, match="No space left on device"):
        on_device.bench(run, HERE, 0.01)
    assert list(phone.tmp.iterdir()) == []


def test_a_phone_that_does_not_answer_is_one_line(phone, monkeypatch):
    monkeypatch.setattr(android.Shell.script, "__defaults__", (0.2,))
    monkeypatch.setattr(android.Shell.run, "__defaults__", (0.2,))
    phone.script("getprop", "sleep 5")
    with pytest.raises(TargetError, match=r"gives no answer within 0\.2 s"), devices.connect("adb"):
        pass


def test_a_hot_phone_is_told(run, phone):
    only(run, "tflite", "float")
    phone.benchmark_model((PRINTED / "processor.txt").read_text(), outputs(run))
    phone.write("thermalservice", "Thermal Status: 2\n")
    assert "it was hot (thermal status moderate)" in on_device.bench(run, HERE, 0.5)["warnings"][0]


def test_a_phone_without_taskset_runs_files_on_any_core(run, phone, monkeypatch):
    (phone.folder / "bin" / "taskset").unlink()
    monkeypatch.setenv("PATH", without_taskset(phone))
    only(run, "tflite", "float")
    phone.benchmark_model((PRINTED / "processor.txt").read_text(), outputs(run))
    content = on_device.bench(run, HERE, 0.5)
    assert content["environment"]["pinned_to"] is None
    assert content["warnings"] == ["there is no taskset on it: files ran on any of its cores"]


def without_taskset(phone: Phone) -> str:
    """A PATH with what the stand-in and the runner need of this machine, and no taskset."""
    tools = phone.folder / "tools"
    tools.mkdir()
    for name in ("cat", "cp", "env", "expr", "grep", "mkdir", "printf", "rm", "sed", "sh", "sha256sum", "uname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    return f"{phone.folder / 'host'}:{tools}"


def test_what_could_not_be_removed_is_told(run, phone):
    only(run, "tflite", "float")
    phone.benchmark_model((PRINTED / "processor.txt").read_text(), outputs(run))
    phone.script("rm", "echo 'rm: Read-only file system' >&2; exit 1")
    warning = on_device.bench(run, HERE, 0.5)["warnings"][-1]
    assert re.fullmatch(r"/data/local/tmp/edgedl-[0-9a-f]{16} is left on it: rm: Read-only file system", warning)


def only(run: Path, target: str, *variants: str) -> None:
    report = read_report(run)
    report["rows"] = [row for row in report["rows"] if row["target"] == target and row["variant"] in variants]
    (run / "report.json").write_text(json.dumps(report))
