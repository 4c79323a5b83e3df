"""Progress: what stages tell, who hears it, and that the last line reaches the terminal, wherever a Ctrl-C falls."""

import io
import json
import subprocess
import sys
import time

import pytest

from edgedl import display, progress

PROGRAM = """
import os, signal, sys
from pathlib import Path
from edgedl import progress
from edgedl.cli import main

seen = 0

def trace(frame, event, argument):
    global seen
    if frame.f_code.co_filename != progress.__file__:
        return None
    if event == "line":
        seen += 1
        if seen == int(sys.argv[1]):
            signal.raise_signal(signal.SIGINT)
    return trace

def app(standalone_mode):
    with progress.display():
        sys.settrace(trace)
        with progress.diverted(Path("log")):
            os.write(2, b"noise")
        sys.settrace(None)

main.app = app
main.main()
sys.exit("not interrupted")
"""


@pytest.mark.parametrize("line", range(1, 26))
def test_an_interrupt_before_any_line_of_the_diversion_is_told(tmp_path, line):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(line)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "edgedl: interrupted; finished steps are kept: run the same command to go on"


@pytest.fixture
def heard():
    events = []
    with progress.heard_by(events.append):
        yield events


def test_a_stage_tells_how_far_it_is_and_how_long_the_rest_will_take(heard):
    with progress.stage("train", 4) as step:
        time.sleep(0.02)
        step(0.5, "loss 2")
        step(0.5)  # too soon to be worth telling
        step(1, "loss 1")
        step(2)
    kinds = [event["event"] for event in heard]
    assert kinds == ["stage", "progress", "progress", "progress", "stage done"]
    assert [event["done"] for event in heard[1:4]] == [0.5, 2, 4]
    assert [event["figures"] for event in heard[1:]] == ["loss 2", "loss 1", "", "loss 1"]
    first, second, last = (event["left_seconds"] for event in heard[1:4])
    assert first == pytest.approx(7 * heard[1]["seconds"], abs=0.001)
    assert second == pytest.approx(heard[2]["seconds"], abs=0.001)
    assert last == 0
    assert len({event["number"] for event in heard}) == 1


def test_what_an_earlier_run_has_done_tells_nothing_about_the_rest(heard):
    with progress.stage("train", 10, before=6) as step:
        time.sleep(0.02)
        step(1, "loss 1")
    assert heard[1]["done"] == 7
    assert heard[1]["left_seconds"] == pytest.approx(3 * heard[1]["seconds"], abs=0.001)


def test_a_copy_of_the_process_can_fall_silent(heard):
    progress.hide()
    with progress.stage("train", 1) as step:
        step(1)
    assert heard == []
    progress.listen(heard.append)  # as the fixture finds it


def test_short_inner_stages_are_not_told_of(heard):
    with progress.stage("score", 2, after=60) as step:
        step(2)
    assert heard == []
    with progress.stage("score", 2, after=0.01) as step:
        step(1)
        time.sleep(0.02)
        step(1)
    assert [event["event"] for event in heard] == ["stage", "progress", "stage done"]
    assert all(event["inner"] for event in heard)


def test_the_log_has_stages_noise_and_what_failed_in_the_end(tmp_path):
    log = tmp_path / "log.txt"

    def convert():
        with progress.diverted(log), progress.stage("convert", 2) as step:
            step(1, "half")
            print("noise")
            raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        convert()
    lines = [line.partition(" ")[2][9:] if line.startswith("--- ") else line for line in log.read_text().splitlines()]
    assert lines[:3] == ["convert", "convert: 1/2  half", "noise"]
    assert lines[3].startswith("convert: failed after 0.0 s: no such kernel")
    assert lines[4:] == ["failed: no such kernel"]
    assert progress.failed_log() == log


def test_the_terminal_shows_what_is_left_and_no_inner_stage_that_is_done(monkeypatch):
    console = display.Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(display, "_console", lambda stream: console)
    with progress.display():
        with progress.stage("train", 3) as step:
            time.sleep(0.02)
            step(1, "loss 2")
            with progress.stage("score", 1, after=1e-9) as inner:
                time.sleep(0.001)
                inner(1)
            time.sleep(0.15)
        with progress.stage("convert", 1) as step:
            step(1)
    said = console.file.getvalue()
    assert " left" in said
    *_, train, convert, _ = said.splitlines()
    assert "train" in train
    assert "1/3" in train
    assert "loss 2" in train
    assert "left" not in train + convert
    assert "1/1" in convert


def test_lines_of_json_are_whole_and_a_reader_that_leaves_stops_nothing(tmp_path):
    program = (
        "import os, sys; from edgedl import display, progress\n"
        "progress.listen(display.json_lines())\n"
        "with progress.stage('train', 2) as step: step(1, 'loss 2'); step(1)\n"
        "sys.stdin.read()\n"  # by now nobody reads
        "for index in range(3): progress.emit('row', row={'target': 'tflite'})\n"
        "print('went on', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    events = [json.loads(process.stdout.readline()) for _ in range(4)]
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read().strip() == "went on"
    assert process.wait() == 0
    assert [event["event"] for event in events] == ["stage", "progress", "progress", "stage done"]
    assert all({"event", "time", "stage", "number", "total", "inner"} <= set(event) for event in events)
