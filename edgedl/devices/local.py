"""This machine: what is in it, what it is doing that could disturb a measurement, and its Python as a device."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from edgedl import engine, sensors
from edgedl.devices import Device
from edgedl.sessions import UsageError

PACKAGES = (
    "edgedl", "numpy", "torch", "torchao", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "tflite-runtime",
    "tensorrt", "tensorrt-rtx",
)  # fmt: skip


class Local(Device):
    """A Python of this machine, its own or one that is given as a command, in a folder of its own."""

    def __init__(self, folder: Path, python: Sequence[str] = (sys.executable,), **environment: str) -> None:
        self.name = name()
        self.folder, self.python, self.environment = folder, python, environment

    def push(self, files: Mapping[str, Path]) -> None:
        """Copies, since what runs there must not change what is here."""
        for known_as, file in files.items():
            shutil.copyfile(file, self.folder / known_as)

    def run(self, arguments: Sequence[str]) -> CompletedProcess[str]:
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


@contextmanager
def connect(which: str | None) -> Iterator[Device]:
    """This machine, in a folder that goes when the block ends."""
    if which is not None:
        raise UsageError(f"--on local takes no {which!r}: there is only one")
    with tempfile.TemporaryDirectory() as folder:
        yield Local(Path(folder))


def describe() -> dict[str, Any]:
    """Processor, memory, GPU, clock governor, temperature and versions; None for what cannot be read."""
    return {
        "name": name(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpu": str(gpu) if (gpu := engine.find_gpu()) else None,
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
