"""`edgedl devices`: what it lists, what each device says it is, and what is said of those that say nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from edgedl import devices
from edgedl.devices import local
from edgedl.remote import device_list
from edgedl.report import terminal
from edgedl.sessions import TargetError, UsageError
from tests.phone import SERIAL, Phone


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    return Phone(tmp_path / "phone", monkeypatch)


def configure(tmp_path: Path, text: str) -> None:
    (tmp_path / "edgedl").mkdir()
    (tmp_path / "edgedl" / "devices.toml").write_text(text)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_a_phone_this_machine_and_those_that_have_names(phone, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    phone.script("python3", "echo 3.12.1 numpy ai_edge_litert")
    phone.attach(f"{SERIAL}  device model:Pixel_7", "emulator-5554  offline", "R5CT  unauthorized usb:1-2")
    configure(tmp_path, '[lost]\naddress = "adb://lost"\n[mine]\naddress = "local"\n')
    rows = by_name(device_list.known())
    assert list(rows) == ["local", "lost", "mine", f"adb://{SERIAL}", "adb://emulator-5554", "adb://R5CT"]
    found = rows[f"adb://{SERIAL}"]["passport"]
    assert (found["name"], found["battery_percent"], found["temperature_c"]) == (
        "Google Pixel 7 (Google GS201)",
        85,
        41,
    )
    assert found["runs_with"] == "Python 3.12.1: numpy, ai_edge_litert"
    assert rows["local"]["passport"]["versions"]["numpy"] == np.__version__
    assert rows["mine"]["passport"]["name"] == local.name()
    why = {name: row["why"] for name, row in rows.items() if row["passport"] is None}
    assert why["lost"].startswith("adb sees no phone lost; it sees")
    assert why["adb://emulator-5554"].startswith("it is offline")
    assert why["adb://R5CT"].startswith("it does not trust this machine yet")
    terminal.print_device_list(list(rows.values()))
    shown = capsys.readouterr().out
    assert "4 × 1.80, 2 × 2.35, 2 × 2.85 GHz" in shown
    assert "41 °C, battery 85 %" in shown
    assert "not asked: it is offline" in shown
    assert list(phone.tmp.iterdir()) == []


def test_a_phone_with_a_name_is_listed_once_with_what_the_file_says_of_it(phone, tmp_path):
    program = phone.benchmark_model("", {}, where="mine")
    configure(
        tmp_path, f'[pixel]\naddress = "adb"\n[other]\naddress = "adb://{SERIAL}"\nbenchmark_model = "{program}"\n'
    )
    rows = by_name(device_list.known())
    assert list(rows) == ["local", "pixel", "other"]
    assert [rows[name]["passport"]["runs_with"] for name in ("pixel", "other")] == [
        None, "benchmark_model, of this machine",
    ]  # fmt: skip


def test_the_commands_print_the_same_list(phone, tmp_path):
    def edgedl(*arguments: str) -> CompletedProcess[str]:
        command = [sys.executable, "-m", "edgedl.cli.main", "devices", *arguments]
        return subprocess.run(command, env=os.environ | {"COLUMNS": "250"}, capture_output=True, text=True, check=True)

    listed = json.loads(edgedl("list", "--json").stdout)
    assert [row["name"] for row in listed] == ["local", f"adb://{SERIAL}"]
    assert "Google Pixel 7 (Google GS201)" in edgedl().stdout


def test_without_adb_the_rest_is_listed(phone, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = device_list.known()
    assert rows[1]["why"].startswith("there is no adb here")
    assert rows[0]["passport"]


def test_a_device_that_does_not_answer_keeps_nobody_waiting(phone):
    phone.script("getprop", "sleep 3")
    start = time.monotonic()
    rows = by_name(device_list.known(0.3))
    assert time.monotonic() - start < 3
    assert rows[f"adb://{SERIAL}"]["why"] == "no answer within 0.3 s"


def test_a_file_that_is_wrong_is_said(phone, tmp_path):
    configure(tmp_path, "[x]\n")
    with pytest.raises(UsageError, match="it has no address"):
        device_list.known()


def test_a_python_elsewhere_says_what_it_runs_on(monkeypatch):
    """As over ssh: the runner is sent, and asked."""
    with devices.connect("local") as device:
        found = device_list.describe(device)
    assert found["name"] == local.name()
    assert found["versions"]["numpy"] == np.__version__
    assert "onnxruntime" in found["runs_with"]


@pytest.mark.parametrize(
    ("status", "out", "err", "said"),
    [
        (0, "", "", "what it says of itself is none"),
        (0, "[" * 100_000, "", "what it says of itself is none"),
        (0, '{"name": NaN}', "", "what it says of itself is none"),
        (0, '{"name": ["x"]}', "", "what it says of itself is none"),
        (1, "", "ModuleNotFoundError: No module named 'numpy'\x1b[2J\n", "No module named 'numpy' [2J"),
        (9, "", "", "its Python ended with status 9"),
    ],
)
def test_one_that_answers_garbage_is_one_line(status, out, err, said, tmp_path):
    class Odd(local.Local):
        def run(self, arguments, threads=1):
            return CompletedProcess(arguments, status, out, err)

    with pytest.raises(TargetError, match=re.escape(said)):
        device_list.describe(Odd(tmp_path))


def test_what_it_says_steers_no_terminal(tmp_path):
    class Odd(local.Local):
        def run(self, arguments, threads=1):
            return CompletedProcess(arguments, 0, json.dumps({"name\x1b": "\x1b[2J", "versions": {"a\n": "b\r"}}), "")

    assert device_list.describe(Odd(tmp_path)) == {"name ": " [2J", "versions": {"a ": "b "}}
