"""What a finished run says on a terminal."""

from __future__ import annotations

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
