"""What a Jetson says of itself: power mode and clocks, and by NVIDIA's `tegrastats` what it draws and how warm it is.

Written from NVIDIA's documentation of these programs' output, of JetPack 4 to 6; on other machines there is nothing.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl.nvidia import gpu
from edgedl.probes import sensors
from edgedl.probes.sensors import Drawn, Rail

TEGRASTATS = shutil.which("tegrastats")
INTERVAL_MS = 100
RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")
"""`VDD_IN 4900mW/4850mW`, now and on average; without the unit before JetPack 5. Memory has a unit of its own."""
TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][A-Za-z0-9_]*)@(-?\d+(?:\.\d+)?)C(?!\S)")
CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\]")
CLOCK = re.compile(r"(?<!\S)(EMC|GR3D)_FREQ \d+%@\[?(\d+)")
"""Of memory and GPU in MHz; GPUs of several clusters have several, as in `GR3D_FREQ 99%@[1300,1300]`."""
GPU = re.compile(r"gpu|ga10b|gv11b|gp10b")
"""What the GPU is called among the things whose clock changes."""
OFF_C = -200.0
"""A sensor of what is switched off says -256."""


@dataclass(frozen=True)
class Sample:
    """A line of `tegrastats`."""

    rails_mw: Mapping[str, float]
    temperatures_c: Mapping[str, float]
    clocks_mhz: Mapping[str, float]
    """`cpu` is that of the fastest core."""


def parse(line: str) -> Sample | None:
    """A line of `tegrastats`, of any module; None for what is none."""
    if not re.search(r"(?<!\S)RAM \d+/\d+MB", line):
        return None
    cores = re.findall(r"\d+%@(\d+)", cpu[1]) if (cpu := CPU.search(line)) else []
    clocks = {name.lower().replace("gr3d", "gpu"): float(mhz) for name, mhz in CLOCK.findall(line)}
    clocks |= {"cpu": max(map(float, cores))} if cores else {}
    return Sample(
        {name: float(mw) for name, mw in RAIL.findall(line) if name != "NC" and math.isfinite(float(mw))},
        {name.lower(): float(value) for name, value in TEMPERATURE.findall(line) if OFF_C < float(value) < math.inf},
        {name: mhz for name, mhz in clocks.items() if math.isfinite(mhz)},
    )


class Tegrastats:
    """What `tegrastats` says of power, as a rail that knows heat and clocks as well."""

    least_seconds = 2.0
    """It has a line every tenth of a second, and sensors are slow."""

    def __init__(self) -> None:
        self.name = "tegrastats"

    @contextmanager
    def drawing(self) -> Iterator[Drawn]:
        found, start = Drawn(), time.perf_counter()
        with watched() as samples:
            yield found
            seconds = time.perf_counter() - start
        if not (rails_mw := _means([sample.rails_mw for sample in samples])):
            return
        added = sensors.whole(rails_mw)
        self.name = f"tegrastats {' + '.join(added)}"
        found.joules = sum(rails_mw[name] for name in added) / 1000 * seconds
        found.rails_w = {name: power / 1000 for name, power in rails_mw.items()}
        heat = [sample.temperatures_c for sample in samples]
        found.temperature_c = {name: max(each.get(name, OFF_C) for each in heat) for name in heat[0]}
        found.clocks_mhz = _means([sample.clocks_mhz for sample in samples])


def rail() -> Rail | None:
    """What a Jetson's energy is read from; None on what is none."""
    return Tegrastats() if TEGRASTATS else None


@contextmanager
def watched() -> Iterator[list[Sample]]:
    """Lets `tegrastats` watch while the block runs; the list is filled when it ends, and empty on other machines."""
    samples: list[Sample] = []
    if TEGRASTATS is None:
        yield samples
        return
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        command = [TEGRASTATS, "--interval", str(INTERVAL_MS)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield samples
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        said.seek(0)
        whole = [line for line in said if line.endswith("\n")]
    samples += [sample for line in whole if (sample := parse(line))]


def clocks() -> dict[str, str]:
    """CPU and GPU clocks now, and the most that they may have; equal where `jetson_clocks` has set them."""
    places = [("cpu", Path("/sys/devices/system/cpu/cpu0/cpufreq"), "scaling_{}_freq", 1000)]
    gpus = (folder for folder in Path("/sys/class/devfreq").glob("*") if GPU.search(folder.name))
    places += [("gpu", folder, "{}_freq", 1_000_000) for folder in gpus]
    found = {}
    for name, folder, file, unit in places:
        now, most = (_read(folder / file.format(which)) for which in ("cur", "max"))
        if now is not None and most is not None:
            found[name] = f"{now // unit} of {most // unit} MHz"
    return found


def describe() -> dict[str, Any]:
    """Power mode and clocks, for the description of a machine; nothing on what is no Jetson."""
    return {"power_mode": gpu.power_mode(), "clocks": clocks()} if TEGRASTATS else {}


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each name in as many as have it."""
    names = dict.fromkeys(name for values in found for name in values)
    columns = {name: [values[name] for values in found if name in values] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
