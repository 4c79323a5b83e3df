"""Fresh virtual environments: an interpreter, the packages that a test asks for, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

THIS_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def environment() -> dict[str, str]:
    """This process's variables without those that would let its own packages shine through."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {key: value for key, value in os.environ.items() if key not in hidden}


@functools.cache
def find_interpreter(version: str) -> Path | None:
    """An interpreter of a version such as "3.10", by its name on PATH or among pyenv's; None if there is none."""
    found = [Path(folder) / f"python{version}" for folder in os.environ.get("PATH", "").split(os.pathsep)]
    if version == THIS_VERSION:
        found.insert(0, Path(sys.executable))
    if shutil.which("pyenv"):
        installed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False)
        for name in installed.stdout.split():
            if name.startswith(f"{version}."):
                prefix = subprocess.run(["pyenv", "prefix", name], capture_output=True, text=True, check=False)
                found.append(Path(prefix.stdout.strip()) / "bin" / "python")
    return next((python for python in found if python.is_file() and _version(python) == version), None)


def make(factory: pytest.TempPathFactory, version: str, *requirements: str) -> Path:
    """The Python of a fresh environment with `requirements`; made once a test session. Skips without interpreter."""
    interpreter = find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"there is no Python {version} on PATH or in pyenv")
    name = hashlib.sha256("\n".join((version, *requirements)).encode()).hexdigest()[:12]
    folder = factory.getbasetemp() / "venvs" / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _run(str(interpreter), "-m", "venv", "--clear", "--without-pip", str(folder))
        _run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *requirements)
        (folder / "complete").touch()
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def _version(python: Path) -> str | None:
    """None for what does not run, as pyenv's stand-ins for versions that are not chosen."""
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([str(python), "-c", script], env=environment(), capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
