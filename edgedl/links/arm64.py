"""A Python for arm64 without an arm64 machine: Debian's, and the runtimes' aarch64 wheels, with qemu to emulate it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgedl import files
from edgedl.sessions import TargetError, UsageError

SETUP = "edgedl devices setup qemu-aarch64"
LAYOUT = 1
"""Rises whenever other packages or releases are to be in the folder."""
PACKAGES = ("python3:arm64", "libstdc++6:arm64")
RELEASES = ("numpy==2.2.6", "ai-edge-litert==2.0.3", "onnxruntime==1.20.1")
"""Of the runtimes those that answer right there."""
PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("2014", "_2_17", "_2_26", "_2_27", "_2_28"))


def home() -> Path:
    """Where emulator, Python and runtimes are kept; if it is there, all is."""
    return files.cache_folder(f"qemu-aarch64-{LAYOUT}")


def setup() -> Path:
    """Fetches all that is missing, with apt and pip, as whoever calls it: nothing is installed on this machine.

    Raises `UsageError` where there is no apt, `TargetError` with what apt or pip said.
    """
    root = home()
    if root.is_dir():
        return root
    lacking = [program for program in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(program) is None]
    if lacking:
        raise UsageError(f"{SETUP} needs a Debian system, with its packages' programs: {', '.join(lacking)} not found")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".unfinished-") as work:
        whole, system = Path(work) / "whole", Path(work) / "whole" / "system"
        system.mkdir(parents=True)
        host = Path(work) / "host"
        here = _said("dpkg", "--print-architecture").strip()
        for package in _downloaded(Path(work) / "apt", here):
            _said("dpkg-deb", "-x", str(package), str(system if package.name.endswith("_arm64.deb") else host))
        qemu = next(host.glob("usr/bin/qemu-aarch64-static"), host / "usr" / "bin" / "qemu-aarch64")
        qemu.replace(whole / "qemu")
        python = next((system / "usr" / "bin").glob("python3.[0-9]*")).name.removeprefix("python")
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        wheels = ("--only-binary=:all:", "--no-deps", f"--python-version={python}", *platforms, *RELEASES)
        _said(sys.executable, "-m", "pip", "install", "--quiet", f"--target={whole / 'packages'}", *wheels)
        try:
            whole.replace(root)
        except OSError:
            if not root.is_dir():  # else another did the same meanwhile
                raise
    return root


def _downloaded(folder: Path, here: str) -> list[Path]:
    """Debian's packages with all that they need, by an apt whose books are in `folder` and empty."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    options = [
        *("-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::State::status={folder / 'status'}"),
        *("-o", f"Dir::Cache={folder / 'cache'}", "-o", "APT::Sandbox::User="),
        *("-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64", "-o", f"APT::Architectures::={here}"),
    ]
    _said("apt-get", *options, "update", check=False)  # a source that has no arm64 fails, and need not matter
    wanted = (*PACKAGES, f"qemu-user-static:{here}")
    _said("apt-get", *options, "install", "--download-only", "--yes", "--no-install-recommends", *wanted)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _said(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if check and done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        first: Sequence[str] = [line for line in said if line.startswith(("E:", "ERROR"))] or said[-1:]
        raise TargetError(f"{SETUP}: {command[0]} failed: {' '.join(first)[:500]}")
    return done.stdout
