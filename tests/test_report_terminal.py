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
