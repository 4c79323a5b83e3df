"""Work in a copy of the process: what it gives, and how it can end without taking the process with it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from edgedl import child, plugins
from edgedl.core import MissingPackage, Model, TargetError, UnsupportedOperator
from tests.fresh import light
from tests.toys import Noise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux are processes copied")
MINUTE = child.Bounds(60)


def test_it_gives_what_the_function_returns_and_what_it_says_goes_to_stderr(capfd):
    def work() -> dict[str, object]:
        print("by Python")
        os.write(1, b"by native code\n")
        return {"pid": os.getpid(), "text": "ü" * 100_000}

    found = child.call("the work", work, MINUTE)
    assert found["pid"] != os.getpid()
    assert found["text"] == "ü" * 100_000  # more than a pipe holds
    assert set(capfd.readouterr().err.split("\n")) >= {"by Python", "by native code"}


def test_native_code_that_crashes_is_told_with_its_last_words():
    def work() -> None:
        print("reading the graph\nlast words", flush=True)
        ctypes.string_at(0)

    with pytest.raises(TargetError) as caught:
        child.call("the converter", work, MINUTE)
    said = "the converter crashed: it was ended by SIGSEGV; it said last: reading the graph | last words"
    assert str(caught.value) == said


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path):
    def work() -> None:
        started = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(started.pid))
        time.sleep(60)

    with pytest.raises(TargetError, match=r"the converter had not ended after 1 s and was ended; it said nothing"):
        child.call("the converter", work, child.Bounds(1))
    stat = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    for _ in range(200):  # it may take a moment to be gone
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.02)
    raise AssertionError("what it started is still there")


def test_what_eats_memory_is_ended():
    def work() -> None:
        held = []
        while True:
            held.append(b"x" * 10_000_000)
            time.sleep(0.01)

    with pytest.raises(TargetError, match=r"took more than 0\.2 GB of memory and was ended"):
        child.call("the converter", work, child.Bounds(60, 200_000_000))


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (MissingPackage("pip install it"), MissingPackage, "pip install it"),
        (UnsupportedOperator(["aten.foo"]), UnsupportedOperator, str(UnsupportedOperator(["aten.foo"]))),
        (OSError(errno.ENOSPC, "No space left", "file"), OSError, "[Errno 28] No space left: 'file'"),
        (ValueError("two\nlines"), TargetError, "the work raised ValueError: two lines"),
        (MemoryError("9 TB"), TargetError, "the work ran out of memory: 9 TB"),
        (SystemExit(3), TargetError, "the work raised SystemExit: 3"),
    ],
)
def test_errors_are_those_of_the_function(raised, kind, said):
    def work() -> None:
        raise raised

    with pytest.raises(kind) as caught:
        child.call("the work", work, MINUTE)
    assert str(caught.value) == said


def test_a_copy_computes_where_the_process_had_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        matrix = torch.ones(500, 500)
        (matrix @ matrix).sum()  # the threads are there
        assert child.call("the work", lambda: float((matrix @ matrix)[0, 0]), MINUTE) == 500.0
    finally:
        torch.set_num_threads(before)


def test_a_converter_works_where_the_process_has_converted_before(tmp_path):
    """Its pools of threads are not there in the copy."""
    target = plugins.load("targets", "tflite")()
    nets = [nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Tanh()).eval() for width in (2, 3)]
    for net in nets:
        net(torch.zeros(1, 8, 10, 10))
    target.build(Model(net=nets[0]), Noise(), tmp_path, batch_size=1)

    def build() -> int:
        return target.build(Model(net=nets[1]), Noise(), tmp_path, batch_size=1).file.stat().st_size

    assert child.call("the converter", build, MINUTE) > 1000


def test_a_fresh_process_has_nothing_of_this_one_and_ends_as_a_copy_does():
    found = child.fresh("the builder", light, {"do": "answer"}, MINUTE)
    assert (found["pid"] != os.getpid(), found["torch"], len(found["text"])) == (True, False, 100_000)
    with pytest.raises(TargetError, match=r"the builder crashed: it was ended by SIGSEGV; it said last: last words"):
        child.fresh("the builder", light, {"do": "crash"}, MINUTE)
    with pytest.raises(TargetError, match=r"the builder had not ended after 0\.5 s and was ended"):
        child.fresh("the builder", light, {"do": "hang"}, child.Bounds(0.5))
    with pytest.raises(UnsupportedOperator, match=r"no int8 form for aten\.foo"):
        child.fresh("the builder", light, {"do": "refuse"}, MINUTE)


def test_a_copy_can_ask_for_a_fresh_process():
    found = child.call("the converter", lambda: child.fresh("the builder", light, {"do": "answer"}, MINUTE), MINUTE)
    assert found["pid"] != os.getpid()
