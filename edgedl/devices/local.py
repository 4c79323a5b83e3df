"""This machine: what is in it, what it is doing that could disturb a measurement, and its Python as a device."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from edgedl.devices import Device, Left
from edgedl.links import far_end
from edgedl.nvidia.gpu import find_gpu
from edgedl.probes import sensors
from edgedl.sessions import UsageError

PACKAGES = (
    "edgedl", "numpy", "torch", "torchao", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "tflite-runtime",
    "tensorrt", "tensorrt-rtx",
)  # fmt: skip

RUNTIMES = ("ai-edge-litert", "tflite-runtime", "onnxruntime", "tensorrt", "tensorrt-rtx")


class Local(Device):
    """A Python of this machine, its own or one that is given as a command, in a folder of its own."""

    def __init__(self, folder: Path, python: Sequence[str] = (sys.executable,), **environment: str) -> None:
        self.name = name()
        self.folder, self.python, self.environment = folder, python, environment

    def push(self, files: Mapping[str, Path]) -> None:
        """Copies, since what runs there must not change what is here."""
        for known_as, file in files.items():
            shutil.copyfile(file, self.folder / known_as)

    def run(self, arguments: Sequence[str], threads: int = 1) -> CompletedProcess[str]:
        """As `Device.run`; what it says is text, whatever bytes it writes."""
        return subprocess.run(
            [*self.python, *arguments],
            cwd=self.folder, env=os.environ | self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip

    def pull(self, names: Sequence[str], folder: Path) -> None:
        """Links are not followed: what a device leaves must not name a file of the host's."""
        for known_as in names:
            if (file := self.folder / known_as).is_file() and not file.is_symlink():
                shutil.copyfile(file, folder / known_as)

    def leave(self, files: Mapping[str, Path], name: str, to: str | None) -> Left:
        """As `Device.leave`; where is for the person to say."""
        if to is None:
            raise UsageError("which folder? name it with --to")
        folder = Path(to).expanduser().absolute()
        try:
            far_end.put(files, folder)
        except far_end.Refused as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written: {error.strerror}; name another folder with --to") from error
        settings = ["env", *(f"{key}={value}" for key, value in self.environment.items())] if self.environment else []
        return Left(str(folder), shlex.join([*settings, *self.python, str(folder / "example.py")]))


@contextmanager
def connect(which: str | None) -> Iterator[Device]:
    """This machine, in a folder that goes when the block ends."""
    if which is not None:
        raise UsageError(f"--on local takes no {which!r}: there is only one")
    with tempfile.TemporaryDirectory() as folder:
        device = Local(Path(folder))
        device.builds_engines = find_spec("tensorrt") is not None
        yield device


def look(which: str | None) -> dict[str, Any]:
    """What `edgedl devices` says of a machine."""
    runs_with = [package for package in RUNTIMES if _version(package)]
    return describe() | {"clocks_khz": _clocks_khz(), "runs_with": ", ".join(runs_with) or None}


def describe() -> dict[str, Any]:
    """Processor, memory, GPU, clock governor, temperature and versions; None for what cannot be read."""
    return {
        "name": name(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpu": str(gpu) if (gpu := find_gpu()) else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": sensors.temperature_c(),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
    }


def name() -> str:
    """What a report calls this machine: the board if it says so (a Jetson does), else the processor; and its kind."""
    board = _read("/proc/device-tree/model")
    cpuinfo = _read("/proc/cpuinfo") or ""
    model = next((line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    known = board.strip("\0 ") if board else model or platform.processor()
    return f"{known or 'unknown processor'} ({platform.machine()})"


def _clocks_khz() -> dict[str, int]:
    """The highest clock of each core, by its number; empty where the system does not tell, as in a virtual machine."""
    found = {}
    for core in range(os.cpu_count() or 1):
        clock = _read(f"/sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")
        if clock and clock.isdigit():
            found[str(core)] = int(clock)
    return found


def _memory_bytes() -> int | None:
    lines = (_read("/proc/meminfo") or "").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal")), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
