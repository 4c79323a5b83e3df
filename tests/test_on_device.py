"""Running a run's files elsewhere: the runner with numpy and a runtime alone, an emulated arm64, devices that fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgedl import benching, devices, plugins, stats
from edgedl.core import Batch, Session, TargetError, UsageError
from edgedl.devices import Device
from edgedl.devices.local import Local
from edgedl.links import arm64
from edgedl.probes.loads import Asked
from edgedl.remote import device_rows, on_device, recordings, runner, sending
from edgedl.remote.calls import Calls
from edgedl.remote.recordings import Played
from edgedl.report import page, terminal
from edgedl.run import read_devices, read_report
from edgedl.tasks.digits import Digits
from tests import quick, venvs

HERE = (sys.executable,)
PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick.finished_run(tmp_path_factory, "mlp").folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, which tests may change."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Local]:
    """Makes what `--on local` then is."""

    def made(python: Sequence[str] = HERE, kind: type[Local] = Local) -> Local:
        folder = tmp_path / "device"
        folder.mkdir()
        found = kind(folder, python)
        monkeypatch.setattr(devices, "connect", lambda where: nullcontext(found))
        return found

    return made


class Honest(Local):
    """Gives what an honest device gave, which was kept, and changes it."""

    kept: Path
    lie: Callable[[Path], None]

    def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
        shutil.copytree(self.kept, self.folder, dirs_exist_ok=True)
        self.lie(self.folder)
        return subprocess.CompletedProcess(arguments, 0, "", "")


@pytest.fixture(scope="module")
def kept(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runner leaves of the whole run, measured for as short as can be."""
    folder, copy = tmp_path_factory.mktemp("kept"), tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(finished, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda where: nullcontext(Local(folder)))
        on_device.bench(copy, "local", 0.01)
    return folder


@pytest.fixture
def lying(device: Callable[..., Local], kept: Path, run: Path) -> Callable[[Callable[[Path], None]], dict[str, Any]]:
    def benched(lie: Callable[[Path], None]) -> dict[str, Any]:
        found = device(kind=Honest)
        found.kept, found.lie = kept, lie
        return on_device.bench(run, "local", 0.01)

    return benched


def by_name(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["target"], row["variant"]): row for row in content["rows"]}


@pytest.mark.parametrize(
    ("python", "requirements"),
    [
        (venvs.THIS_VERSION, ("numpy", f"ai-edge-litert=={version('ai-edge-litert')}")),
        ("3.10", ("numpy==1.26.*", "tflite-runtime==2.14.0")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1].partition("=")[0],
)
def test_numpy_and_a_runtime_are_all_that_the_runner_needs(python, requirements, run, device, tmp_path_factory):
    """It gives the rows that `edgedl bench` gives here; what is told of a file that has no runtime there, is told."""
    device((str(venvs.make(tmp_path_factory, python, *requirements)), "-I"))
    content = on_device.bench(run, "local", 0.05)
    paths = [run / "targets" / variant / "tflite" / "model.tflite" for variant in ("compressed", "float")]
    expected = benching.bench(paths, paths[1], Digits(), None, 1, 0.05, False)
    rows = by_name(content)
    for row, variant in zip(expected, ("compressed", "float"), strict=True):
        found = rows["tflite", variant]
        same = ("target", "size_bytes", "sha256", "samples")
        assert {key: found[key] for key in same} == {key: row[key] for key in same}
        assert set(found["latency_ms"]) == set(row["latency_ms"])
        assert found["latency_ms"]["runs"] >= 100
        assert found["init_ms"] > 0
        assert found["score_here"] == row["score"]
        assert found["score_by"].startswith(("ai_edge_litert", "tflite_runtime 2.14"))
        if python == venvs.THIS_VERSION:
            assert (found["score_by"], found["score"]) == (row["runtime"], row["score"])
            assert found["agreement"]["sqnr_db"] == stats.EXACT_DB
        assert found["status"] == "ok"
        assert found["agreement"]["same_decision"] > 0.99
        assert set(found["speedup"] or ()) == set(row["speedup"] or ())
        without = rows["onnxruntime", variant]
        assert without["status"] == "failed"
        assert "No module named 'onnxruntime'" in without["reason"]
    assert content["environment"]["versions"]["numpy"].startswith(requirements[0].partition("==")[2].rstrip("*") or "2")
    assert json.loads((run / "devices" / "local.json").read_text()) == content


@pytest.mark.skipif(not arm64.home().is_dir(), reason=f"no emulated arm64 here: `{arm64.SETUP}` makes it")
def test_an_arm64_program_answers_as_the_one_here(run):
    content = on_device.bench(run, "qemu-aarch64", 1.0)
    assert content["environment"]["machine"] == "aarch64"
    rows = by_name(content)
    assert len(rows) == 4
    for row in rows.values():
        assert row["status"] == "ok", row["reason"]
        assert row["score"] == row["score_here"]
        assert row["latency_ms"] is row["init_ms"] is row["peak_memory_bytes"] is None
        # onnxruntime 1.20.1 was seen to put one int8 value of some thousands a step beside that of 1.31.1 on x86-64.
        may_be_a_step_off = row["target"] == "onnxruntime" and row["precision"] == "int8"
        assert row["agreement"]["sqnr_db"] > (60 if may_be_a_step_off else 100)
    assert "2.1.6" in content["warnings"][0]


def test_a_run_whose_names_are_hostile_is_measured_like_any_other(run, device, tmp_path):
    hostile = run.rename(tmp_path / "$(touch pwned); `touch pwned` 'a\" b\n|&")
    report = read_report(hostile)
    for row in report["rows"]:
        if row["target"] == "tflite":
            (hostile / row["file"]).rename(hostile / f"-rf {row['variant']}; touch pwned .tflite")
            row["file"] = f"-rf {row['variant']}; touch pwned .tflite"
    (hostile / "report.json").write_text(json.dumps(report))
    there = device()
    rows = by_name(on_device.bench(hostile, "local", 0.01))
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["tflite", "float"]["file"] == "-rf float; touch pwned .tflite"
    assert all(re.fullmatch(r"[a-z0-9.-]+", file.name) for file in there.folder.iterdir())
    assert not list(tmp_path.rglob("pwned"))


def test_inputs_may_have_any_name(tmp_path):
    """Also those that a function of numpy's, or a path in an archive, would take for something else."""
    given, answered = "file", "../../answer"
    node = helper.make_node("Neg", [given], [answered])
    specs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in (given, answered)]
    graph = helper.make_graph([node], "graph", specs[:1], specs[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "0.model")
    (tmp_path / "1.model").write_bytes((tmp_path / "0.model").read_bytes()[:-20])
    calls = Calls([given])
    for values in np.arange(6, dtype=np.float32).reshape(3, 2):
        calls.append({given: values})
    graph = {"inputs": [given], "outputs": [answered], "calls": calls.save(tmp_path), "builds": None}
    entries = [
        {"name": f"{index}", "opens": "onnxruntime", "threads": 1, "answers": f"answers-{index}.npz"}
        | {"graphs": {"": graph | {"file": f"{index}.model"}}}
        for index in range(2)
    ]
    job = {"schema": runner.SCHEMA, "networks": entries, "pace": None, "asked": {}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    sending.make_runner(tmp_path / "edgedl.pyz")
    done = Local(tmp_path).run(["edgedl.pyz"])
    assert done.returncode == 0, done.stderr
    sound, cut = json.loads((tmp_path / "result.json").read_text())["networks"].values()
    assert sound["error"] is None
    assert "cannot load it" in cut["error"]
    with np.load(tmp_path / "answers-0.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], -np.arange(6).reshape(3, 2))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import ctypes; print('going', flush=True); ctypes.string_at(0)", "ended by signal 11 (SIGSEGV): going"),
        ("import os; os.abort()", "ended by signal 6 (SIGABRT): it said nothing"),
        ("raise ImportError('no wheel')", "ended with status 1: "),
    ],
)
def test_a_process_that_dies_is_told_with_what_it_said(code, said, tmp_path):
    works = f"[lambda: exec({code!r}) or {{}}, lambda: {{'next': 1}}]"
    script = f"import json; from edgedl.remote import runner; print(json.dumps([*map(runner.in_child, {works})]))"
    done = Local(tmp_path).run(["-c", script])
    died, went_on = json.loads(done.stdout)
    assert died["error"].startswith(said)
    assert went_on == {"error": None, "next": 1}


def test_a_runner_that_dies_is_one_line(run, device):
    device((sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"))
    with pytest.raises(TargetError, match="the runner ended with signal 9: it said nothing"):
        on_device.bench(run, "local", 0.01)
    assert not (run / "devices").exists()


def test_a_python_without_numpy_is_one_line(run, device):
    device((sys.executable, "-I", "-S"))
    with pytest.raises(TargetError, match=r"the runner ended with status 1: .*No module named 'numpy'"):
        on_device.bench(run, "local", 0.01)


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda result: result | changes


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda result: None, "left no result.json"),
        (lambda result: json.dumps(result)[:-100], "no JSON"),
        (lambda result: "[" * 100_000, "no JSON"),
        (lambda result: b"\xff\xfe\x00", "no JSON"),
        (lambda result: [1], "valid dictionary"),
        (changed(networks={}), "lacks 0"),
        (changed(device={"name\x1b[2J": float("nan")}), "NaN is no number"),
        (changed(networks={"0": {"error": 5}}), "networks.0.error: Input should be a valid string"),
        (changed(networks={"0\x1b[2J\n": {"error": 5}}), "Input should be a valid string"),
        (lambda result: made_slower(result, [[]]), "at least 1 item"),
        (lambda result: made_slower(result, [[-1.0]]), "greater than 0"),
        (lambda result: made_slower(result, [[1.0]]), "other blocks of latencies"),
        (lambda result: json.dumps(made_slower(result, [[1.0]])).replace("[1.0]", "[1e999]"), "finite number"),
    ],
)
def test_a_device_that_answers_garbage_is_one_line(lie, said, lying, run):
    def told(folder: Path) -> None:
        file = folder / "result.json"
        content = lie(json.loads(file.read_text()))
        file.unlink()
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content))

    with pytest.raises(TargetError, match=re.escape(said)) as caught:
        lying(told)
    assert PRINTABLE.fullmatch(str(caught.value))
    assert not (run / "devices").exists()


def made_slower(result: dict[str, Any], blocks: list[list[float]]) -> dict[str, Any]:
    result["networks"]["0"]["blocks_ms"] = blocks
    return result


def with_first_answers(change: Callable[[Path, np.ndarray], None]) -> Callable[[Path], None]:
    """Changes what was answered for the float TFLite file, which is sent first."""

    def lie(folder: Path) -> None:
        file = folder / "answers-0.npz"
        with np.load(file) as arrays:
            answers = arrays["arr_0"]
        change(file, answers)

    return lie


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file, answers: file.unlink(), "cannot be read"),
        (lambda file, answers: file.write_bytes(file.read_bytes()[:100]), "cannot be read"),
        (lambda file, answers: file.write_text("no archive"), "cannot be read"),
        (lambda file, answers: np.savez(file, np.array([{"a": 1}], object)), "cannot be read"),
        (lambda file, answers: np.savez(file, answers, answers), "cannot be read"),
        (lambda file, answers: np.savez(file, answers[1:]), "it answered float32"),
        (lambda file, answers: np.savez(file, answers.astype(np.float64)), "it answered float64"),
        (lambda file, answers: (file.unlink(), file.symlink_to("/etc/passwd")), "cannot be read"),
    ],
)
def test_answers_that_are_none_fail_their_file_alone(change, said, lying):
    rows = by_name(lying(with_first_answers(change)))
    bad = rows.pop(("tflite", "float"))
    assert (bad["status"], bad["score"], bad["agreement"]) == ("failed", None, None)
    assert said in bad["reason"]
    assert {row["status"] for row in rows.values()} == {"ok"}


@pytest.mark.parametrize("change", [lambda answers: -answers, lambda answers: answers * np.nan], ids=["wrong", "nan"])
def test_wrong_answers_are_refused_and_told_as_a_warning(change, lying, run, capsys):
    content = lying(with_first_answers(lambda file, answers: np.savez(file, change(answers))))
    rows = by_name(content)
    bad = rows.pop(("tflite", "float"))
    assert bad["status"] == "refused"
    assert bad["agreement"]["sqnr_db"] < 0
    assert bad["score"] < bad["score_here"]
    assert {row["status"] for row in rows.values()} == {"ok"}
    (warning,) = content["warnings"]
    assert f"ai_edge_litert {version('ai-edge-litert')} answers wrongly" in warning
    assert read_devices(run) == [content]
    terminal.print_devices(read_devices(run))
    shown = capsys.readouterr().out
    html = page.write_page(read_report(run), run).read_text(encoding="utf-8")
    for said in (shown, html):
        assert warning in " ".join(said.split())
        assert "bit for bit" in said
        assert content["device"] in said


class Leading(Digits):
    """Asks a second question, which depends on the first answer."""

    def predict(self, session: Session, batch: Batch) -> Batch:
        first = session.run({"image": batch["image"]})
        return session.run({"image": batch["image"] * np.float32(first["logits"].argmax())})


def test_a_task_that_goes_on_otherwise_gives_no_score(run):
    task, target = Leading(), plugins.target_for(Path("x.tflite"), 1)
    recording = recordings.record(target.open(run / "targets" / "float" / "tflite" / "model.tflite"), task)
    answers = np.stack([batch["logits"] for batch in recording.answered[""]])
    same = Played(recording, {"": {"logits": answers}}).evaluate(task, 60.0)
    assert (same.score, same.samples) == (recording.scored.score, recording.scored.samples)
    with pytest.raises(TargetError, match="goes on otherwise"):
        Played(recording, {"": {"logits": -answers}}).evaluate(task, 60.0)


class Contrary(Local):
    """Answers the opposite for the file that is sent first."""

    def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
        done = super().run(arguments)
        with_first_answers(lambda file, answers: np.savez(file, -answers))(self.folder)
        return done


def test_a_file_without_a_score_still_has_its_agreement(run, device, monkeypatch):
    monkeypatch.setattr(Digits, "predict", Leading.predict)
    device(kind=Contrary)
    rows = by_name(on_device.bench(run, "local", 0.01))
    bad = rows.pop(("tflite", "float"))
    assert (bad["status"], bad["score"]) == ("refused", None)
    assert "dB are needed; no score" in bad["reason"]
    assert bad["agreement"]["sqnr_db"] < 0
    assert bad["latency_ms"]["median"] > 0
    assert {(row["status"], row["score"] == row["score_here"]) for row in rows.values()} == {("ok", True)}


def test_steps_are_those_of_the_grid_that_outputs_lie_on():
    here = np.float32(0.157) * np.arange(-128, 128, dtype=np.float32)
    there = here.copy()
    assert device_rows.max_steps(here, there) == 0
    there[3] += np.float32(3 * 0.157)
    assert device_rows.max_steps(here, there) == 3
    assert device_rows.max_steps(here, there * np.nan) is None
    floats = np.random.default_rng(0).standard_normal(1000)
    assert device_rows.max_steps(floats, floats) is None
    assert device_rows.max_steps(np.zeros(9), np.ones(9)) is None


def test_files_that_are_no_longer_those_of_the_report_are_refused(run, device):
    device()
    (run / "targets" / "float" / "tflite" / "model.tflite").write_bytes(b"another")
    with pytest.raises(UsageError, match=r"model\.tflite: not the file that .* tells of"):
        on_device.bench(run, "local", 0.01)


def test_damaged_results_in_the_folder_are_passed_over(run):
    (run / "devices").mkdir()
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"schema": 1}'), ("d", '{"schema": 99}')):
        (run / "devices" / f"{name}.json").write_text(text)
    assert read_devices(run) == []


def edgedl(*arguments: str, **environment: str) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "edgedl.cli.main", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("toaster", "no kind of device 'toaster' in --on 'toaster'; there are: adb, local, qemu-aarch64, ssh"),
        ("ssh://a b", "--on ssh://a b: no address of a machine"),
        ("../local", "no kind of device '../local'"),
        ("local://x", "--on local takes no 'x'"),
        ("qemu-aarch64", "`edgedl devices setup qemu-aarch64` makes it"),
    ],
)
def test_devices_that_are_none_are_one_line(where, said, run, tmp_path):
    done = edgedl("bench", str(run), "--on", where, XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = filter(None, done.stderr.splitlines())
    assert said in line


def test_a_device_that_fails_keeps_the_others_from_nothing(run, tmp_path):
    on = ("--on", "qemu-aarch64", "--on", "local", "--seconds", "0.02")
    done = edgedl("bench", str(run), *on, XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert done.returncode == 2
    assert "edgedl devices setup qemu-aarch64" in done.stderr.splitlines()[-1]
    assert "bit for bit" in done.stdout
    assert (run / "devices" / "local.json").is_file()


@pytest.mark.parametrize("given", [("--threads", "2"), ("--vs", "x.onnx"), ("--operators",)])
def test_options_that_a_run_has_itself_are_refused(given, run):
    done = edgedl("bench", str(run), "--on", "local", *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


EVERYTHING = ("--batches", "1,3", "--cold", "1", "--sustained", "0.1", "--energy", "--end-to-end")


@pytest.mark.parametrize(
    ("asked", "program", "said"),
    [
        (Asked(end_to_end=True), None, "--end-to-end is of this machine"),
        (Asked(cold=1), "benchmark_model 1", "benchmark_model times files, and answers nothing else"),
    ],
)
def test_what_a_device_cannot_answer_is_said_before_anything_runs(asked, program, said, run, tmp_path, monkeypatch):
    (tmp_path / "edgedl").mkdir()
    (tmp_path / "edgedl" / "devices.toml").write_text('[bench]\naddress = "local"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(Device, "program", program)
    with pytest.raises(UsageError, match=said):
        on_device.bench(run, "bench", 0.01, asked)
    assert not on_device.results_file(run, "bench").exists()


def test_all_that_can_be_asked_of_a_run_is_answered_and_kept(run):
    """A run alone is measured here; what is answered is checked like all that a device says."""
    done = edgedl("bench", str(run), "--seconds", "0.02", *EVERYTHING)
    assert done.returncode == 0, done.stderr
    (content,) = read_devices(run)
    for row in content["rows"]:
        assert row["unanswered"] is None
        assert [entry["batch_size"] for entry in row["throughput"]["rows"]] == [1]
        assert "batches of 1 alone, so not 3" in row["throughput"]["refused"]
        start = row["cold_start"]
        assert start["first_answer_ms"]["median"] > start["init_ms"]["median"] + start["import_ms"]["median"] > 0
        assert len(row["sustained"]["course"]) == 60
        assert set(row["end_to_end"]["parts_ms"]) == {"prepare", "run", "decide"}
        energy = row["energy"]
        assert (energy["energy_mj"] is None) == (energy["reason"] is not None)
        assert row["energy_mj"] == energy["energy_mj"]
    for said in ("samples/s", "cold start", "sustained for", "end to end", "energy: "):
        assert said in done.stdout
    again = on_device.bench(run, "local", 0.01)
    assert [row["sustained"] for row in again["rows"]] == [row["sustained"] for row in content["rows"]]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"error": None, "throughput": []}, "valid dictionary"),
        ({"error": None, "sustained": {"seconds": -1}}, "greater than 0"),
        ({"error": None, "energy_mj": 0}, "Extra inputs are not permitted"),
        ({"error": 1}, "valid string"),
    ],
)
def test_answers_to_questions_are_checked_as_well(answers, said, lying):
    def lie(folder: Path) -> None:
        file = folder / "result.json"
        result = json.loads(file.read_text())
        result["networks"]["0"]["answers"] = answers
        file.write_text(json.dumps(result))

    with pytest.raises(TargetError, match=said):
        lying(lie)


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({}, "needs a Debian system, with its packages' programs: apt-get, dpkg, dpkg-deb not found"),
        ({"apt-get": "echo 'W: old' >&2; echo 'E: no such package' >&2; exit 100", "dpkg": "echo amd64"}, "E: no such"),
        ({"apt-get": "kill -9 $$", "dpkg": "echo amd64"}, "apt-get failed"),
    ],
)
def test_a_set_up_that_fails_leaves_nothing(programs, said, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name, script in ({"dpkg-deb": "exit 1"} | programs if programs else {}).items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises((UsageError, TargetError), match=re.escape(said)):
        arm64.setup()
    assert not arm64.home().exists()
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache" / "edgedl").iterdir()) == []
