"""What a finished run says on a terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from edgedl.report import terminal
from tests.sample_report import climb, row, sample_report


def test_a_line_of_the_ladder_says_which_of_several_forms_it_is_about(capsys):
    report = sample_report()
    report["rows"].append(row("mixed-1", "tflite", 0.0195, 436_500))
    report["ladder"].append(climb("mixed-1", "tflite", 126.4))
    for entry in report["rows"]:
        entry["speedup"] = None
    terminal.print_report(report)
    lines = capsys.readouterr().out.splitlines()
    said = [line.partition(": float ")[0] for line in lines if " → simulated " in line]
    assert said == ["tflite, compressed", "onnxruntime", "tensorrt", "tflite, mixed-1"]


def test_further_figures_stand_in_a_line_of_each_target_and_nowhere_without_any(capsys):
    report = sample_report()
    terminal.print_report(report)
    assert "0.45" not in capsys.readouterr().out
    report["rows"][0]["figures"] = {"R²": 0.45123, "tokens/s": 12345.6, "F1": None}
    report["rows"][1]["figures"] = {"R²": 0.4, "tokens/s": 99999.9, "F1": None}
    report["rows"][4]["figures"] = {"R²": 0.5}
    terminal.print_report(report)
    said = capsys.readouterr().out
    assert "tflite, float → compressed: R² 0.4512 → 0.4, tokens/s 12,346 → 100,000, F1 – → –\n" in said
    assert "tensorrt, float → compressed: R² 0.5 → –\n" in said
    assert "onnxruntime, float → compressed" not in said


def test_further_figures_of_a_float_run_have_no_arrow(capsys):
    report = sample_report()
    report["rows"], report["ladder"], report["verdicts"] = report["rows"][:1], report["ladder"][:1], []
    report["rows"][0]["figures"] = {"R²": 0.45}
    terminal.print_report(report)
    assert "tflite, float: R² 0.45\n" in capsys.readouterr().out


def bench_row(file: str) -> dict[str, Any]:
    latency = {"median": 0.36, "ci95": [0.358, 0.36], "p90": 0.569, "p99": 0.614}
    told = {"runtime": "ai_edge_litert 2.3.0", "size_bytes": 316800, "score": None, "init_ms": 32.2}
    return {
        "file": file,
        "latency_ms": latency,
        "peak_memory_bytes": 17400000,
        "speedup": None,
        "operators": None,
    } | told


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (
            ["runs/cnn/float/model.tflite", "runs/cnn/int8/model.tflite"],
            "in runs/cnn\nfile float/model.tflite int8/mod",
        ),
        (["/runs/a.onnx", "runs/a.onnx"], "file /runs/a.onnx runs/a.onnx"),
        (["a.onnx", "b.onnx"], "file a.onnx b.onnx"),
        (["runs/cnn/model.tflite"], "file runs/cnn/model.tflite"),
        (["runs/a.onnx", "runs/a.onnx"], "in runs\nfile a.onnx a.onnx"),
    ],
)
def test_files_are_told_apart_on_a_narrow_terminal(files, shown, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(terminal, "open_console", lambda: Console(markup=False, width=80, force_terminal=True))
    terminal.print_bench([bench_row(file) for file in files])
    text = re.sub(" +", " ", capsys.readouterr().out)
    assert text.startswith(shown)
    assert text.count("95 % interval 0.358-0.360 ms") == 1


def test_a_table_that_goes_into_a_file_is_as_wide_as_it_has_to_be(capsys):
    names = [f"{'long/' * 40}{name}.onnx" for name in ("a", "b")]
    terminal.print_bench([bench_row(name) for name in (*names, "c.onnx")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["file", *names, "c.onnx"]
    assert all("0.358-0.360 ms" in line for line in lines[1:])
