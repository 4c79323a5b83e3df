"""What NVIDIA's programs print on Jetsons, as they document it and users show it: no Jetson has been at hand."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from edgedl import devices
from edgedl.devices.local import Local
from edgedl.probes import jetson, sensors
from edgedl.remote import on_device
from edgedl.report import answered
from tests import made_run

NANO = (
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [2%@102,1%@204,0%@102,off] "
    "EMC_FREQ 0% GR3D_FREQ 0%@76 PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@40.75C "
    "POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123\n"
)
ORIN_NANO = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) "
    "CPU [38%@1497,2%@729,1%@729,0%@729,off,off] EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off NVJPG off VIC off "
    "OFA off APE 200 cpu@57.125C soc2@55.093C gpu@58.5C cv0@-256C tj@58.5C "
    "VDD_IN 9012mW/8535mW VDD_CPU_GPU_CV 3512mW/1944mW VDD_SOC 2720mW/2659mW\n"
)
AGX_ORIN = (
    "04-11-2026 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@2201] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[1300,1298] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW\n"
)


@pytest.mark.parametrize(
    ("line", "added", "rails", "temperatures", "clocks"),
    [
        (
            NANO, ["POM_5V_IN"], {"POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"},
            {"pll": 39, "cpu": 40.5, "pmic": 100, "gpu": 41, "ao": 46, "thermal": 40.75}, {"cpu": 204, "gpu": 76},
        ),
        (
            ORIN_NANO, ["VDD_IN"], {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"},
            {"cpu": 57.125, "soc2": 55.093, "gpu": 58.5, "tj": 58.5}, {"cpu": 1497, "gpu": 612, "emc": 2133},
        ),
        (
            AGX_ORIN, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"],
            {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"},
            {"cpu": 44.562, "tboard": 32, "tj": 44.343}, {"cpu": 2201, "gpu": 1300, "emc": 2133},
        ),
    ],
    ids=["Nano, JetPack 4", "Orin Nano, JetPack 6", "AGX Orin, JetPack 5"],
)  # fmt: skip
def test_a_line_of_any_module_is_read(line, added, rails, temperatures, clocks):
    sample = jetson.parse(line)
    assert sample is not None
    assert set(sample.rails_mw) == rails
    assert dict(sample.temperatures_c) == temperatures
    assert dict(sample.clocks_mhz) == clocks
    assert list(sensors.whole(sample.rails_mw)) == added


def test_numbers_that_none_can_be_are_left_out():
    huge = "9" * 400
    sample = jetson.parse(f"RAM 1/2MB VDD_IN {huge}mW/5mW EMC_FREQ 1%@{huge} CPU [1%@{huge}] CPU@{huge}C GPU@40C")
    assert sample == jetson.Sample({}, {"gpu": 40.0}, {})


@pytest.mark.parametrize("line", ["", "tegrastats: not permitted\n", "VDD_IN 5mW/5mW\n", "\x00\xff" * 99])
def test_what_is_no_line_of_it_is_none(line):
    assert jetson.parse(line) is None


@pytest.mark.parametrize(
    ("lines", "rail", "watts"),
    [
        ([ORIN_NANO, ORIN_NANO.replace("VDD_IN 9012mW", "VDD_IN 7012mW").replace("@58.5C", "@48.5C")], "VDD_IN", 8.012),
        (["RAM 1/2MB VDD_CPU 5mW/5mW SOC 7mW/7mW\n"], "VDD_CPU + SOC", 0.012),
        (["RAM 1/2MB GPU@40C\n"], None, None),
        ([], None, None),
    ],
)
def test_power_is_a_mean_and_heat_the_most(lines, rail, watts, monkeypatch):
    @contextmanager
    def watched():
        yield [sample for line in lines if (sample := jetson.parse(line))]

    monkeypatch.setattr(jetson, "watched", watched)
    found = jetson.Tegrastats()
    with found.drawing() as drawn:
        start = time.perf_counter()
        time.sleep(0.05)
        seconds = time.perf_counter() - start
    if watts is None:
        assert (drawn.joules, found.name) == (None, "tegrastats")
        return
    assert found.name == f"tegrastats {rail}"
    assert watts * seconds <= drawn.joules < 2 * watts * seconds
    if rail == "VDD_IN":
        assert drawn.rails_w["VDD_SOC"] == 2.72
        assert (drawn.temperature_c["tj"], drawn.clocks_mhz["gpu"]) == (58.5, 612)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in PATH for programs that print what NVIDIA's do."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def program(file: Path, script: str) -> None:
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_the_last_line_may_be_half_a_line(programs, monkeypatch):
    (programs / "lines").write_text(ORIN_NANO * 2 + ORIN_NANO[:100])
    program(
        programs / "tegrastats",
        f'[ "$*" = "--interval 100" ] && cat {programs}/lines; touch {programs}/said; exec sleep 60',
    )
    monkeypatch.setattr(jetson, "TEGRASTATS", str(programs / "tegrastats"))
    with jetson.watched() as samples:
        while not (programs / "said").exists():
            time.sleep(0.01)
    assert len(samples) == 2


@pytest.mark.parametrize("says", ["power", "nothing"])
def test_what_a_file_draws_is_in_its_row_unasked(says, tmp_path, monkeypatch):
    """A stand-in says what `tegrastats` would; the runner starts it on the device while the file runs."""
    run, folder = made_run.make(tmp_path / "run"), tmp_path / "device"
    folder.mkdir()
    (tmp_path / "lines").write_text(ORIN_NANO if says == "power" else "")
    program(tmp_path / "tegrastats", f"while cat {tmp_path}/lines; do sleep 0.1; done")
    program(tmp_path / "nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")
    report = json.loads((run / "report.json").read_text())
    report["rows"] = report["rows"][:1]
    (run / "report.json").write_text(json.dumps(report))
    device = Local(folder, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(devices, "connect", lambda where: nullcontext(device))
    content = on_device.bench(run, "jetson", 0.01)
    (row,) = content["rows"]
    assert content["environment"]["power_mode"] == "15W"
    assert row["sustained"] is None
    drawn = row["energy"]
    if says == "nothing":
        assert (drawn["reason"], row["energy_mj"]) == ("tegrastats said nothing of power", None)
        return
    assert (drawn["rail"], drawn["temperature_c"]["tj"]) == ("tegrastats VDD_IN", 58.5)
    assert drawn["watts"] == pytest.approx(9.012, rel=0.01)
    assert drawn["idle_watts"] == pytest.approx(9.012, rel=0.1)  # nothing else is there to be said
    assert drawn["runs"] > 10
    assert drawn["seconds"] >= jetson.Tegrastats.least_seconds
    assert row["energy_mj"] == pytest.approx(9012 * drawn["seconds"] / drawn["runs"], rel=0.01)
    (line,) = answered.lines(row)
    assert "mJ above the idle machine's" in line
    meanwhile = f"{drawn['watts']:.3g} W, 58 °C, emc 2133 MHz, gpu 612 MHz, cpu 1497 MHz"
    assert f"from tegrastats VDD_IN; meanwhile {meanwhile}" in line


def test_elsewhere_nothing_is_watched(monkeypatch):
    monkeypatch.setattr(jetson, "TEGRASTATS", None)
    with jetson.watched() as samples:
        pass
    assert samples == []


def test_elsewhere_there_is_nothing_to_describe(monkeypatch):
    monkeypatch.setattr(jetson, "TEGRASTATS", None)
    assert jetson.describe() == {}
