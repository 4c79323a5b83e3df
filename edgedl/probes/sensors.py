"""What a machine says of itself while it works: temperature, clock, and the energy that it draws. Linux's files only.

Two kinds of rails are read here; on a Jetson that has it, `tegrastats` reads them instead (`probes/jetson.py`):

- RAPL, `/sys/class/powercap/intel-rapl:*`: counters of energy in Intel's and AMD's processors. Most kernels show them
  to root alone, since they tell what others compute (M. Lipp et al., PLATYPUS, 2021).
- INA3221, the sensor on Jetson boards: voltage and current of up to three rails a chip, as NVIDIA's kernels from
  JetPack 5 on show them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

SYS = Path("/sys")
WHOLE = (("VDD_IN",), ("POM_5V_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""The rails whose sum is what a Jetson's module draws: of Orin NX and Nano and Xavier NX, of Nano, and of AGX Orin."""
SAMPLE_SECONDS = 0.02
"""Between two readings of a power; the chip itself takes a millisecond or more for one."""


def temperature_c(system: Path = SYS) -> float | None:
    """Of the hottest zone; None where none can be read."""
    return max(temperatures_c(system).values(), default=None)


def temperatures_c(system: Path = SYS) -> dict[str, float]:
    """By what zones are called; of several with one name the hottest."""
    found: dict[str, float] = {}
    for file in sorted(system.glob("class/thermal/thermal_zone*/temp")):
        if (value := _number(file)) is not None:
            name = _text(file.with_name("type")) or file.parent.name
            found[name] = max(value / 1000, found.get(name, value / 1000))
    return found


def clock_mhz(system: Path = SYS) -> float | None:
    """Of the fastest core at this moment; None where the kernel does not say."""
    found = _numbers(system, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    return max((value / 1000 for value in found), default=None)


@dataclass
class Drawn:
    """What was drawn while a block ran: known when it has ended."""

    joules: float | None = None
    """None where nothing could be read."""
    rails_w: Mapping[str, float] = field(default_factory=dict)
    """Means, also of rails that are parts of what was drawn."""
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    """The highest, where the rail's reader tells."""
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    """Means, where it tells."""


class Rail(Protocol):
    """Something that the processor draws its power from, or several such things, added."""

    name: str
    """Of what is read, and of the rails that are added."""
    least_seconds: float
    """How long it has to be read to tell something."""

    def drawing(self) -> AbstractContextManager[Drawn]:
        """Measures while a block runs."""
        ...


class Counters:
    """Counters of microjoules, which start again from zero when they are full."""

    least_seconds = 0.1

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.names = files, [_text(file.with_name("name")) or file.parent.name for file in files]
        self.name = "RAPL " + " + ".join(self.names)
        self.ranges = [_number(file.with_name("max_energy_range_uj")) or 0 for file in files]

    @contextmanager
    def drawing(self) -> Iterator[Drawn]:
        found, start, before = Drawn(), time.perf_counter(), self._read()
        yield found
        seconds, steps = time.perf_counter() - start, zip(before, self._read(), self.ranges, strict=True)
        drawn = [(after - sooner + (full if after < sooner else 0)) / 1e6 for sooner, after, full in steps]
        found.joules = sum(drawn)
        found.rails_w = {name: part / seconds for name, part in zip(self.names, drawn, strict=True)}

    def _read(self) -> list[int]:
        return [int(file.read_text()) for file in self.files]


class Channel(NamedTuple):
    """The files of one rail's millivolts and milliamperes."""

    name: str
    voltage: Path
    current: Path


class Powers:
    """Rails that tell their power at this moment: read again and again beside the work, and summed by trapezoids."""

    least_seconds = 0.5

    def __init__(self, channels: Sequence[Channel], clock: Callable[[], float] = time.perf_counter) -> None:
        self.channels, self.clock = channels, clock
        self.added = whole([channel.name for channel in channels])
        self.name = f"INA3221 {' + '.join(self.added)}"

    @contextmanager
    def drawing(self) -> Iterator[Drawn]:
        found, ended, readings = Drawn(), threading.Event(), [self._read()]

        def read_on() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                readings.append(self._read())

        reader = threading.Thread(target=read_on, daemon=True)
        reader.start()
        try:
            yield found
        finally:
            ended.set()
            reader.join()
        readings.append(self._read())
        seconds = readings[-1][0] - readings[0][0]
        drawn = {
            channel.name: joules([(moment, watts[index]) for moment, watts in readings])
            for index, channel in enumerate(self.channels)
        }
        found.joules = sum(drawn[name] for name in self.added)
        found.rails_w = {name: part / seconds for name, part in drawn.items()}

    def _read(self) -> tuple[float, list[float]]:
        """The time, and the power of each channel in watts."""
        microwatts = [int(it.voltage.read_text()) * int(it.current.read_text()) for it in self.channels]
        return self.clock(), [power / 1e6 for power in microwatts]


def joules(readings: Sequence[tuple[float, float]]) -> float:
    """The energy of powers (seconds, watts) that change in straight lines from one reading to the next."""
    pairs = pairwise(readings)
    return sum((later - sooner) * (low + high) / 2 for (sooner, low), (later, high) in pairs)


def whole(rails: Collection[str]) -> Sequence[str]:
    """Of a Jetson's rails those whose sum is what the module draws; all, where no such sum is known."""
    return next((names for names in WHOLE if {*rails} >= {*names}), [*rails])


def rail(system: Path = SYS) -> Rail | str:
    """What the processor's energy can be read from here, or why it cannot be."""
    if channels := _channels(system):
        return Powers(channels)
    packages = [file for file in sorted(system.glob("class/powercap/intel-rapl:*/energy_uj")) if _is_package(file)]
    if not packages:
        return "no rail: neither RAPL in /sys/class/powercap nor an INA3221 in /sys/bus/i2c"
    if closed := [file for file in packages if _number(file) is None]:
        return f"{closed[0]} cannot be read, which most systems let root alone do"
    return Counters(packages)


def _is_package(file: Path) -> bool:
    """Those that hold all others; one named psys would count them once more."""
    return (_text(file.with_name("name")) or "").startswith("package")


def _channels(system: Path) -> list[Channel]:
    found = []
    for label in sorted(system.glob("bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in[123]_label")):
        number = label.name[2]
        channel = Channel(
            label.read_text().strip(), label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        )
        # What is not connected is named so, or says nothing.
        if channel.name != "NC" and None not in (_number(channel.voltage), _number(channel.current)):
            found.append(channel)
    return found


def _numbers(system: Path, pattern: str) -> list[int]:
    return [value for file in system.glob(pattern) if (value := _number(file)) is not None]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
