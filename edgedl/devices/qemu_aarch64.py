"""An arm64 program on this machine: Debian's Python and the runtimes' aarch64 wheels, emulated by qemu.

What files answer there is what an arm64 processor with the same releases answers; how long they take says nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgedl.devices import Device
from edgedl.devices.local import Local
from edgedl.links import arm64
from edgedl.sessions import UsageError

NOTES = (
    "LiteRT was emulated in release 2.0.3; under qemu, 2.1.6 answers wrongly and 2.3.0 crashes, and whether release or "
    "emulator is at fault is not known: before an app ships with one of them on arm64, check it on its device",
)


@contextmanager
def connect(which: str | None) -> Iterator[Device]:
    """The emulated machine, in a folder that goes when the block ends. Raises `UsageError` if it is not set up."""
    if which is not None:
        raise UsageError(f"--on qemu-aarch64 takes no {which!r}: there is only one")
    root = arm64.home()
    if not root.is_dir():
        raise UsageError(f"there is no arm64 Python to emulate in {root}: `{arm64.SETUP}` makes it")
    python = [str(root / "qemu"), "-L", str(root / "system"), str(root / "system" / "usr" / "bin" / "python3")]
    with tempfile.TemporaryDirectory() as folder:
        device = Local(Path(folder), python, PYTHONPATH=str(root / "packages"), PYTHONHOME="", PYTHONNOUSERSITE="1")
        device.name, device.timed, device.notes = "qemu-aarch64 (emulated arm64)", False, NOTES
        yield device
