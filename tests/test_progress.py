"""Progress: the last line reaches the terminal, wherever a Ctrl-C falls."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("line", range(1, 18))
def test_an_interrupt_before_any_line_of_the_diversion_is_told(tmp_path, line):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(line)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "edgedl: interrupted; finished steps are kept: run the same command to go on"
