"""What a machine says of itself while it works: temperature, clock, and the energy that it draws. Linux's files only.

Two kinds of rails are read:

- RAPL, `/sys/class/powercap/intel-rapl:*`: counters of energy in Intel's and AMD's processors. Most kernels show them
  to root alone, since they tell what others compute (M. Lipp et al., PLATYPUS, 2021).
- INA3221, the sensor on Jetson boards: voltage and current of up to three rails a chip, as NVIDIA's kernels from
  JetPack 5 on show them. `VDD_IN` feeds the whole module; where there is none, the rails are added.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

SYS = Path("/sys")
WHOLE = "VDD_IN"
SAMPLE_SECONDS = 0.02
"""Between two readings of a power; the chip itself takes a millisecond or more for one."""


def temperature_c(system: Path = SYS) -> float | None:
    """Of the hottest zone; None where none can be read."""
    return max((value / 1000 for value in _numbers(system, "class/thermal/thermal_zone*/temp")), default=None)


def clock_mhz(system: Path = SYS) -> float | None:
    """Of the fastest core at this moment; None where the kernel does not say."""
    found = _numbers(system, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    return max((value / 1000 for value in found), default=None)


class Drawn:
    """The energy that was drawn while a block ran: known when it has ended."""

    joules: float


class Rail(Protocol):
    """Something that the processor draws its power from."""

    name: str

    def drawing(self) -> AbstractContextManager[Drawn]:
        """Measures while a block runs."""
        ...


class Counters:
    """Counters of microjoules, which start again from zero when they are full."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name, self.files = name, files
        self.ranges = [_number(file.with_name("max_energy_range_uj")) or 0 for file in files]

    @contextmanager
    def drawing(self) -> Iterator[Drawn]:
        found, before = Drawn(), self._read()
        yield found
        steps = zip(before, self._read(), self.ranges, strict=True)
        found.joules = (
            sum(after - start if after >= start else after - start + full for start, after, full in steps) / 1e6
        )

    def _read(self) -> list[int]:
        return [int(file.read_text()) for file in self.files]


class Channel(NamedTuple):
    """The files of one rail's millivolts and milliamperes."""

    name: str
    voltage: Path
    current: Path


class Powers:
    """Rails that tell their power at this moment: read again and again beside the work, and summed by trapezoids."""

    def __init__(self, channels: Sequence[Channel], clock: Callable[[], float] = time.perf_counter) -> None:
        self.name, self.channels, self.clock = f"INA3221 {' + '.join(it.name for it in channels)}", channels, clock

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
        found.joules = joules(readings)

    def _read(self) -> tuple[float, float]:
        """The time, and the power in watts."""
        microwatts = sum(int(it.voltage.read_text()) * int(it.current.read_text()) for it in self.channels)
        return self.clock(), microwatts / 1e6


def joules(readings: Sequence[tuple[float, float]]) -> float:
    """The energy of powers (seconds, watts) that change in straight lines from one reading to the next."""
    pairs = pairwise(readings)
    return sum((later - sooner) * (low + high) / 2 for (sooner, low), (later, high) in pairs)


def rail(system: Path = SYS) -> Rail | str:
    """What the processor's energy can be read from here, or why it cannot be."""
    if channels := _channels(system):
        whole = [channel for channel in channels if channel.name == WHOLE]
        return Powers(whole or channels)
    packages = [file for file in sorted(system.glob("class/powercap/intel-rapl:*/energy_uj")) if _is_package(file)]
    if not packages:
        return "no rail: neither RAPL in /sys/class/powercap nor an INA3221 in /sys/bus/i2c"
    if closed := [file for file in packages if _number(file) is None]:
        return f"{closed[0]} cannot be read, which most systems let root alone do"
    return Counters("RAPL " + " + ".join(file.with_name("name").read_text().strip() for file in packages), packages)


def _is_package(file: Path) -> bool:
    """Those that hold all others; one named psys would count them once more."""
    try:
        return file.with_name("name").read_text().startswith("package")
    except OSError:
        return False


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
