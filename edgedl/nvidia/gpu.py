"""The NVIDIA GPU here: what it is, its driver and power mode, and calls of the CUDA runtime by cuda-python."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from edgedl.sessions import TargetError

DRIVER_FILE = Path("/proc/driver/nvidia/version")
SECONDS = 10
"""How long a program of NVIDIA's may take to answer."""


class Gpu(NamedTuple):
    """The first GPU that CUDA shows; `driver` is the newest CUDA version that its driver serves, such as "12.6"."""

    name: str
    compute_capability: str
    driver: str
    multiprocessors: int | None = None
    """What tells boards apart that have one name: every Jetson Orin calls its GPU "Orin"."""

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.compute_capability}"


def find_gpu() -> Gpu | None:
    """The GPU that engines run on here; None without a GPU, its driver, or cuda-python. Raises nothing."""
    return found if isinstance(found := _probe(), Gpu) else None


def why_no_gpu() -> str | None:
    """Why no engine can run here, as a clause; None if one can. Raises nothing."""
    return found if isinstance(found := _probe(), str) else None


def driver_version() -> str | None:
    """That of the kernel's driver, such as "540.4.0"; None where there is none."""
    try:
        said = DRIVER_FILE.read_text(errors="replace")
    except OSError:
        return None
    return found[1] if (found := re.search(r"^NVRM version:.*?\s(\d+\.[\d.]+)\s", said, re.MULTILINE)) else None


def power_mode() -> str | None:
    """How much the GPU may draw: a Jetson's power mode, such as "MAXN" or "15W", or a card's limit; None if unknown."""
    said = _said("nvpmodel", "-q")
    if found := re.search(r"^NV Power Mode:\s*(\S.*?)\s*$", said, re.MULTILINE):
        return found[1]
    limit = _said("nvidia-smi", "--id=0", "--query-gpu=power.limit", "--format=csv,noheader,nounits").strip()
    return f"at most {float(limit):g} W" if re.fullmatch(r"\d+(\.\d+)?", limit) else None


def cuda_runtime() -> Any:
    """cuda-python's module of the CUDA runtime. Raises `ImportError`."""
    try:
        from cuda.bindings import runtime
    except ImportError:  # cuda-python before 12.6.1, such as JetPack 6's own
        from cuda import cudart as runtime
    return runtime


def call(cuda: Any, function: str, *arguments: Any) -> Any:
    """What a function of the CUDA runtime returns beside its status. Raises `TargetError` for a bad status."""
    status, *values = getattr(cuda, function)(*arguments)
    if int(status) != 0:
        _, text = cuda.cudaGetErrorString(status)
        raise TargetError(f"{function} failed: {text.decode()} ({status.name})")
    return values[0] if values else None


@cache
def _probe() -> Gpu | str:
    """The first GPU, or why none can be used; asked once, since a copy of the process cannot ask again."""
    try:
        cuda = cuda_runtime()
        driver = call(cuda, "cudaDriverGetVersion")
        if driver == 0:
            return "there is no NVIDIA driver"
        gpu = call(cuda, "cudaGetDeviceProperties", 0)
    except ImportError:
        return "cuda-python is not installed"
    except RuntimeError:  # what cuda-python before 12.8 raises where there is no driver
        return "there is no NVIDIA driver"
    except TargetError as error:
        return f"no NVIDIA GPU can be used: {error}"
    cuda_version = f"{driver // 1000}.{driver % 1000 // 10}"
    return Gpu(gpu.name.decode(), f"{gpu.major}.{gpu.minor}", cuda_version, int(gpu.multiProcessorCount))


def _said(*command: str) -> str:
    """What a program answers; empty where it is not there, refuses or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
