"""A Python for phones: that of the emulated arm64 with its runtimes, as it is, in a folder that adb's user can run.

It brings its own C library, so that it needs neither Termux nor root; its loader is named in every call, since a phone
has none at the place that programs name.
"""

from __future__ import annotations

import shlex
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgedl.links import arm64
from edgedl.links.android import ASK_SECONDS, Shell, last_line, passport
from edgedl.links.said import plain
from edgedl.sessions import TargetError, UsageError

FOLDER = f"/data/local/tmp/edgedl-python-{arm64.LAYOUT}"
LIBRARIES = ("system/lib/aarch64-linux-gnu", "system/usr/lib/aarch64-linux-gnu")
PARTS = (
    *LIBRARIES,
    "system/lib/ld-linux-aarch64.so.1",
    "system/usr/lib/python3*",
    "system/usr/bin/python3*",
    "packages",
)
"""Of what the emulator has: the rest is the emulator, and what a system has besides a Python."""
OTHERS = (["python3"], ["/data/data/com.termux/files/usr/bin/python3"])
"""The last only where adb's user may look into Termux' folder, as root may."""
UNPACK_SECONDS = 300.0
LOOK = (
    "import importlib.util as u, platform; print(platform.python_version(), *(name for name in "
    "('numpy', 'ai_edge_litert', 'tflite_runtime', 'onnxruntime') if u.find_spec(name)))"
)


def command(folder: str = FOLDER) -> list[str]:
    """What starts it."""
    return [
        *("env", f"PYTHONHOME={folder}/system/usr", f"PYTHONPATH={folder}/packages", "PYTHONNOUSERSITE=1"),
        *(f"{folder}/system/lib/ld-linux-aarch64.so.1", "--library-path"),
        ":".join(f"{folder}/{library}" for library in LIBRARIES),
        f"{folder}/system/usr/bin/python3",
    ]


def find(shell: Shell, python: str) -> tuple[list[str], list[str]]:
    """The command of the first Python there that has numpy and a runtime, and what it has, its version first.

    It is the given one, or one that lies where one may be. If there is none, no command, and what another has that
    runs, if any does. Raises `UsageError`.
    """
    try:
        candidates = [shlex.split(python)] if python else [command(), *OTHERS]
    except ValueError as error:
        raise UsageError(f"adb: python = {python!r} is no command: {error}") from error
    others = []
    for words in candidates:
        done = shell.run(*words, "-c", LOOK, seconds=3 * ASK_SECONDS)
        has = plain(done.stdout).split() if done.returncode == 0 else []
        if "numpy" in has and len(has) > 2:
            return words, has
        others += has
    return [], others


def setup(shell: Shell) -> str:
    """Puts it on the phone, where it stays, if it is not there; returns its folder.

    Raises `UsageError` for a phone that cannot run it, `TargetError` if it does not get there.
    """
    found = passport(shell)
    if found["machine"] != "arm64-v8a":
        raise UsageError(f"{found['name']}: it is no arm64 phone, but {found['machine'] or 'of an unknown kind'}")
    if shell.run("test", "-d", FOLDER).returncode == 0:
        return FOLDER
    root = arm64.setup()
    partial = f"{FOLDER}.partial"
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work) / "python.tar"
        with tarfile.open(archive, "w") as tar:
            for part in _parts(root):
                tar.add(part, str(part.relative_to(root)), filter=_without_caches)
        try:
            _do(shell, "rm", "-rf", partial)
            _do(shell, "mkdir", partial)
            pushed = shell.adb("push", str(archive), f"{partial}/python.tar")
            if pushed.returncode != 0:
                raise TargetError(f"adb: {plain(shell.serial)}: {last_line(pushed)}")
            _do(shell, "tar", "-xf", f"{partial}/python.tar", "-C", partial)
            _do(shell, "rm", f"{partial}/python.tar")
            _do(shell, "mv", partial, FOLDER)
        except TargetError:
            shell.run("rm", "-rf", partial, seconds=UNPACK_SECONDS)
            raise
    return FOLDER


def _parts(root: Path) -> Iterator[Path]:
    for pattern in PARTS:
        yield from sorted(root.glob(pattern))


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Whose files and folders are whoever's unpacks them."""
    if entry.name.endswith("__pycache__"):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _do(shell: Shell, *words: str) -> None:
    done = shell.run(*words, seconds=UNPACK_SECONDS)
    if done.returncode != 0:
        raise TargetError(f"adb: {plain(shell.serial)}: {words[0]}: {last_line(done)}")
