"""Readers of temperature, clock and energy, on folders such as Linux makes them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgedl.probes import sensors
from edgedl.probes.sensors import Channel, Counters, Powers

JETSON = {
    # an Orin NX, by the names that NVIDIA's kernel gives
    "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200",
    "in2_label": "VDD_CPU_GPU_CV", "in2_input": "5000", "curr2_input": "400",
    "in3_label": "VDD_SOC", "in3_input": "5000", "curr3_input": "300",
    "in7_label": "sum of shunt voltages", "in7_input": "9",
}  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return folder


def ina3221(system: Path, files: dict[str, str], address: str = "1-0040") -> Path:
    return write(system / "bus" / "i2c" / "drivers" / "ina3221" / address / "hwmon" / "hwmon3", files)


def rapl(system: Path, number: str, name: str, microjoules: int, full: int = 2**32) -> Path:
    folder = system / "class" / "powercap" / f"intel-rapl:{number}"
    return write(folder, {"name": name, "energy_uj": str(microjoules), "max_energy_range_uj": str(full)})


def test_a_machine_that_says_nothing_has_nothing(tmp_path):
    assert sensors.temperature_c(tmp_path) is sensors.clock_mhz(tmp_path) is None
    assert "no rail" in str(sensors.rail(tmp_path))


def test_the_hottest_zone_and_the_fastest_core(tmp_path):
    for zone, text in enumerate(("41000", "66500", "no number", "-273000")):
        name = {"type": f"cpu{zone % 2}-thermal"} if zone < 3 else {}
        write(tmp_path / "class" / "thermal" / f"thermal_zone{zone}", {"temp": text} | name)
    write(tmp_path / "class" / "thermal" / "thermal_zone9", {"temp": "40000", "type": "cpu1-thermal"})
    for core, text in enumerate(("1510400", "729600")):
        write(tmp_path / "devices" / "system" / "cpu" / f"cpu{core}" / "cpufreq", {"scaling_cur_freq": text})
    zones = {"cpu0-thermal": 41.0, "cpu1-thermal": 66.5, "thermal_zone3": -273.0}
    assert sensors.temperatures_c(tmp_path) == zones
    assert sensors.temperature_c(tmp_path) == 66.5
    assert sensors.clock_mhz(tmp_path) == 1510.4


def test_counters_of_all_packages_are_added_and_what_holds_them_is_not(tmp_path):
    first, second = rapl(tmp_path, "0", "package-0", 1_000_000), rapl(tmp_path, "1", "package-1", 500_000)
    rapl(tmp_path, "0:0", "core", 900_000)
    rapl(tmp_path, "2", "psys", 9_000_000)
    rail = sensors.rail(tmp_path)
    assert isinstance(rail, Counters)
    assert rail.name == "RAPL package-0 + package-1"
    with rail.drawing() as drawn:
        write(first, {"energy_uj": "1750000"})
        write(second, {"energy_uj": "750000"})
    assert drawn.joules == pytest.approx(1.0)
    assert drawn.rails_w["package-0"] == pytest.approx(3 * drawn.rails_w["package-1"])


def test_a_counter_that_starts_again_goes_on_counting(tmp_path):
    folder = rapl(tmp_path, "0", "package-0", 262_143_000_000, full=262_143_328_850)
    with sensors.rail(tmp_path).drawing() as drawn:
        write(folder, {"energy_uj": "671150"})
    assert drawn.joules == pytest.approx(1.0)


def test_counters_for_root_alone_are_told(tmp_path):
    folder = rapl(tmp_path, "0", "package-0", 0)
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").mkdir()  # nobody can read it, root neither
    assert "cannot be read" in str(sensors.rail(tmp_path))


def test_the_rail_that_feeds_a_module_is_taken_alone(tmp_path):
    ina3221(tmp_path, JETSON)
    rail = sensors.rail(tmp_path)
    assert isinstance(rail, Powers)
    assert rail.name == "INA3221 VDD_IN"
    with rail.drawing() as drawn:
        start = time.perf_counter()
        time.sleep(0.01)
        seconds = time.perf_counter() - start
    assert drawn.rails_w == pytest.approx({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5})
    assert drawn.joules >= 6.0 * seconds


def test_rails_of_several_chips_are_added_where_none_feeds_all(tmp_path):
    ina3221(tmp_path, {name: text for name, text in JETSON.items() if "1_" not in name})
    ina3221(tmp_path, {"in1_label": "VIN_SYS_5V0", "in1_input": "5000", "curr1_input": "100"}, "1-0041")
    ina3221(tmp_path, {"in2_label": "NC", "in2_input": "5000", "curr2_input": "7"}, "1-0041")
    ina3221(tmp_path, {"in3_label": "OFF"}, "1-0041")
    rail = sensors.rail(tmp_path)
    assert rail.name == "INA3221 VDD_CPU_GPU_CV + VDD_SOC + VIN_SYS_5V0"
    assert sum(rail._read()[1]) == pytest.approx(4.0)


def test_powers_are_summed_by_trapezoids(tmp_path):
    assert sensors.joules([(0.0, 2.0), (1.0, 4.0), (3.0, 4.0)]) == pytest.approx(11.0)
    assert sensors.joules([(5.0, 2.0)]) == 0.0
    files = write(tmp_path, {"in1_input": "10000", "curr1_input": "100"})
    times = iter(range(100))
    rail = Powers([Channel("X", files / "in1_input", files / "curr1_input")], clock=lambda: float(next(times)))
    with rail.drawing() as drawn:
        pass
    assert drawn.joules == pytest.approx(1.0 * (next(times) - 1))  # a watt, from the first reading to the last
