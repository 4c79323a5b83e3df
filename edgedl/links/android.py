"""Phones that adb reaches: which there are, commands on them, what they are, and how warm.

`adb shell` hands its words to a shell there as one line: every word that is not written here is quoted. Nothing that
a phone says reaches a terminal as it is.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from edgedl.links.said import MAX_SAID, plain
from edgedl.sessions import TargetError, UsageError

ASK_SECONDS = 10.0
"""How long a phone may take for an answer that needs no work."""
WAIT_SECONDS = 60.0
"""How long a phone whose connection broke may take to come back."""
BROKEN = 255
"""What `adb shell` ends with if the connection breaks; a command there may, too."""
CHUNK = 1 << 16
MAX_BYTES = 1 << 30
"""Of a file that a phone sends: a broken one may never end."""
PASSPORT = """
for name in ro.product.manufacturer ro.product.model ro.soc.manufacturer ro.soc.model ro.board.platform \
ro.product.cpu.abi ro.build.version.release ro.build.version.sdk ro.build.fingerprint; do
echo "prop $name=$(getprop $name)"; done
echo "memory $(grep MemTotal /proc/meminfo)"
echo "kernel $(uname -r)"
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
echo "clock ${cpu##*/cpu} $(cat $cpu/cpufreq/cpuinfo_max_freq 2>/dev/null)"; done
"""
STATE = """
dumpsys battery
dumpsys thermalservice
for zone in /sys/class/thermal/thermal_zone*; do
echo "zone $(cat $zone/type 2>/dev/null) $(cat $zone/temp 2>/dev/null)"; done
"""
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""What Android's thermal service calls its levels 0 to 6."""
PROCESSOR_ZONE = re.compile(r"cpu|soc|cluster|big|little|tsens", re.IGNORECASE)
STATES = {
    "unauthorized": "it does not trust this machine yet: unlock it, and allow USB debugging in the question it shows",
    "authorizing": "it is still asking whether to trust this machine: unlock it, and allow USB debugging",
    "offline": "it is offline: pull its cable and plug it in again, or `adb reconnect offline`",
    "no permissions": "this user may not open it: it needs a udev rule (Debian: android-sdk-platform-tools-common)",
}
_OF_ADB = re.compile(r"^(?:adb: (.*)|error: ((?:device|no devices|closed|protocol|insufficient|more than).*))", re.M)
_ATTACHED = re.compile(
    r"(\S.*?)\s+(device|offline|unauthorized|authorizing|connecting|no permissions|recovery|rescue|sideload|bootloader"
    r"|host|detached|unknown)\b(.*)"
)


@dataclass(frozen=True)
class Attached:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str

    @property
    def trouble(self) -> str | None:
        """Why it cannot be used, and what to do."""
        if self.state == "device":
            return None
        return STATES.get(self.state, f"its state is {self.state}: let it start Android")


class Shell:
    """Commands on one phone."""

    def __init__(self, serial: str) -> None:
        self.serial = serial

    def script(self, text: str, seconds: float | None = ASK_SECONDS) -> CompletedProcess[str]:
        """Runs a script, whose variable parts are quoted. Raises `TargetError` if adb does not reach the phone."""
        return self.adb("shell", text, seconds=seconds)

    def run(self, *words: str, seconds: float | None = ASK_SECONDS) -> CompletedProcess[str]:
        """Runs a command. Raises `TargetError` if adb does not reach the phone."""
        return self.script(shlex.join(words), seconds)

    def adb(self, *arguments: str, seconds: float | None = None) -> CompletedProcess[str]:
        """Raises `TargetError` with what adb itself said, if it did not reach the phone in time."""
        try:
            done = _adb("-s", self.serial, *arguments, seconds=seconds)
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"adb: {plain(self.serial)} gives no answer within {seconds:g} s") from error
        if done.returncode != 0 and (said := _OF_ADB.search(done.stderr)):
            raise TargetError(f"adb: {plain(self.serial)}: {plain(said[1] or said[2]).removeprefix('error: ')}")
        return done

    def fetch(self, path: str, to: Path) -> str | None:
        """Copies a file of the phone's; returns why it could not be had."""
        command = ["adb", "-s", self.serial, "shell", shlex.join(("cat", path))]
        with (
            to.open("wb") as file,
            tempfile.TemporaryFile() as said,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as process,
        ):
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK):
                if file.write(chunk) and file.tell() > MAX_BYTES:
                    process.kill()
                    return f"it is larger than {MAX_BYTES >> 20} MB"
            said.seek(0)
            if process.wait() != 0:
                return plain(said.read(MAX_SAID).decode("utf-8", "replace")) or f"status {process.returncode}"
        return None

    def is_there(self) -> bool:
        """Whether adb reaches the phone."""
        try:
            return _adb("-s", self.serial, "get-state", seconds=ASK_SECONDS).stdout.strip() == "device"
        except subprocess.TimeoutExpired:
            return False

    def wait(self) -> None:
        """Until the phone is there again. Raises `TargetError` if it stays away."""
        try:
            _adb("-s", self.serial, "wait-for-device", seconds=WAIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            said = f"the connection broke, and it did not come back within {WAIT_SECONDS:g} s"
            raise TargetError(f"adb: {plain(self.serial)}: {said}") from error


def attached() -> list[Attached]:
    """What `adb devices` sees. Raises `UsageError` where there is no adb, `TargetError` if it fails."""
    try:
        done = _adb("devices", "-l", seconds=3 * ASK_SECONDS)  # it may have to start its server
    except subprocess.TimeoutExpired as error:
        raise TargetError("adb: `adb devices` does not end; `adb kill-server` may help") from error
    if done.returncode != 0:
        raise TargetError(f"adb: {last_line(done)}")
    found = [line for line in map(_ATTACHED.fullmatch, done.stdout.splitlines()) if line]
    models = [re.search(r"\bmodel:(\S+)", line[3]) for line in found]
    return [Attached(line[1], line[2], model[1] if model else "") for line, model in zip(found, models, strict=True)]


def find(which: str | None) -> str:
    """The serial number of the phone that is meant. Raises `UsageError`."""
    phones = attached()
    seen = ", ".join(plain(f"{phone.serial} ({phone.model or phone.state})") for phone in phones)
    if not phones:
        raise UsageError("adb sees no phone: switch on USB debugging in its developer options, and plug it in")
    if which is None and len(phones) > 1:
        raise UsageError(f"adb sees several phones: {seen}; say which: --on {plain(f'adb://{phones[0].serial}')}")
    phone = next((phone for phone in phones if which in (None, phone.serial)), None)
    if phone is None:
        raise UsageError(f"adb sees no phone {plain(str(which))}; it sees {seen}")
    if phone.trouble:
        raise UsageError(f"adb: {plain(phone.serial)}: {phone.trouble}")
    return phone.serial


def passport(shell: Shell) -> dict[str, Any]:
    """What a phone is: names, Android, memory in bytes, and every core's highest clock. Raises `TargetError`."""
    lines = [plain(line) for line in shell.script(PASSPORT).stdout.splitlines()]
    properties = dict(line[5:].split("=", 1) for line in lines if line.startswith("prop ") and "=" in line)
    known = {name: value.strip() for name, value in properties.items() if value.strip()}
    model = " ".join(known[name] for name in ("ro.product.manufacturer", "ro.product.model") if name in known)
    chip = [known[name] for name in ("ro.soc.manufacturer", "ro.soc.model") if name in known]
    clocks = [found for line in lines if (found := re.fullmatch(r"clock (\d{1,3})(?: (\d{1,9}))?\s*", line))]
    memory = next((int(found[1]) for line in lines if (found := re.search(r"MemTotal:\s*(\d{1,12}) kB", line))), None)
    kernel = next((line.removeprefix("kernel ") for line in lines if line.startswith("kernel ")), "")
    release, level = known.get("ro.build.version.release", "?"), known.get("ro.build.version.sdk", "?")
    soc = " ".join(chip) or known.get("ro.board.platform", "unknown processor")
    return {
        "name": f"{model or 'unknown phone'} ({soc})",
        "model": model or None,
        "soc": soc,
        "machine": known.get("ro.product.cpu.abi"),
        "system": f"Android {release} (API {level}), Linux {kernel}",
        "api": _number(level),
        "build": known.get("ro.build.fingerprint"),
        "cores": len(clocks) or None,
        "clocks_khz": {clock[1]: int(clock[2]) for clock in clocks if clock[2]},
        "memory_bytes": memory and memory * 1024,
    }


def state(shell: Shell) -> dict[str, Any]:
    """How warm a phone is, in degrees Celsius, and how its battery is; None for what it does not tell."""
    text = shell.script(STATE).stdout
    lines = [line.partition(":") for line in reversed(text.splitlines())]  # of two that are alike, the first counts
    said = {key.strip().lower(): value.strip() for key, _, value in lines}
    zones = re.findall(r"^zone (.*) (-?\d{1,9})$", text, re.MULTILINE)
    degrees = [
        float(value) / (1000 if abs(int(value)) > 1000 else 1) for kind, value in zones if PROCESSOR_ZONE.search(kind)
    ]
    level, tenths = _number(said.get("thermal status")), _number(said.get("temperature"))
    powered = [kind for kind in ("ac", "usb", "wireless", "dock") if said.get(f"{kind} powered") == "true"]
    return {
        "temperature_c": max((value for value in degrees if 0 < value < 150), default=None),
        "thermal_status": THERMAL[level] if level is not None and 0 <= level < len(THERMAL) else None,
        "battery_percent": _number(said.get("level")),
        "battery_temperature_c": None if tenths is None else tenths / 10,
        "powered_by": powered[0] if powered else "battery" if "level" in said else None,
    }


def _adb(*arguments: str, seconds: float | None) -> CompletedProcess[str]:
    try:
        return subprocess.run(
            ["adb", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            timeout=seconds,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise UsageError("there is no adb here: it is in Android's platform tools (Debian: apt install adb)") from error


def last_line(done: CompletedProcess[str]) -> str:
    """What a command said last."""
    said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return plain(said[-1]) if said else f"status {done.returncode}"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,9}", text) else None
