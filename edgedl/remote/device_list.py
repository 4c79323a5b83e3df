"""The devices that this machine knows, and what each says it is: itself, phones, the emulator, and `devices.toml`'s."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, FiniteFloat, TypeAdapter, ValidationError

from edgedl import devices
from edgedl.devices import Device
from edgedl.links import android, arm64
from edgedl.links.said import plain
from edgedl.remote import sending
from edgedl.sessions import EdgedlError, TargetError

SECONDS = 15.0
"""How long a device may take to say what it is."""
_Said = Annotated[str, AfterValidator(plain)]
_Passport = TypeAdapter(dict[_Said, _Said | int | FiniteFloat | dict[_Said, _Said | int] | None])


def known(seconds: float = SECONDS) -> list[dict[str, Any]]:
    """A row a device: its `name` for `--on`, its `address`, and its `passport`, or `why` it could not be asked.

    All are asked at once. Raises `UsageError` for a configuration file that is wrong.
    """
    addresses = {name: table["address"] for name, table in devices.configured().items()}
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "address": address, "passport": None, "why": None}
        for name, address in ({"local": "local"} | _emulated() | addresses).items()
    }
    rows |= {row["name"]: row for row in _phones({*addresses.values()})}
    asked = [row for row in rows.values() if row["why"] is None]
    threads = [threading.Thread(target=_ask, args=[row], daemon=True) for row in asked]
    for row, thread in zip(asked, threads, strict=True):
        row["why"] = f"no answer within {seconds:g} s"
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return [dict(row) for row in rows.values()]


def describe(device: Device) -> dict[str, Any]:
    """What the Python on a device says the device is. Raises `TargetError`."""
    with tempfile.TemporaryDirectory() as folder:
        runner = Path(folder) / sending.RUNNER
        sending.make_runner(runner)
        device.push({sending.RUNNER: runner})
    done = device.run([sending.RUNNER, "--describe"])
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise TargetError(plain(said[-1]) if said else f"its Python ended with status {done.returncode}")
    try:
        return _Passport.validate_python(json.loads(done.stdout))
    except (ValueError, RecursionError, ValidationError) as error:
        raise TargetError("what it says of itself is none") from error


def _emulated() -> dict[str, str]:
    return {"qemu-aarch64": "qemu-aarch64"} if arm64.home().is_dir() else {}


def _phones(named: set[str]) -> list[dict[str, Any]]:
    """Those that adb sees and that have no name, or why it sees none."""
    try:
        phones = android.attached()
    except EdgedlError as error:
        return [{"name": "adb", "address": "adb", "passport": None, "why": str(error)}]
    rows = []
    for phone in phones:
        address = plain(f"adb://{phone.serial}")
        if address not in named and not (len(phones) == 1 and "adb" in named):
            rows.append({"name": address, "address": address, "passport": None, "why": phone.trouble})
    return rows


def _ask(row: dict[str, Any]) -> None:
    try:
        passport = devices.look(row["name"])
        if passport is None:
            with devices.connect(row["name"]) as device:
                passport = describe(device) | {"name": plain(device.name)}
    except EdgedlError as error:
        row["why"] = str(error)
        return
    row |= {"passport": passport, "why": None}
