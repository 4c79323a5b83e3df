"""A phone that is a folder: a program `adb` that does in it what adb does on a phone, and what Android answers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SERIAL = "0A041FDD4003J5"
# The shell joins its words as adb does, and gives them to a shell; what is the phone's is in the folder.
ADB = """#!/bin/sh
phone={phone}
echo "$@" >> "$phone/called"
case $1 in devices) cat "$phone/attached"; exit;; esac
serial=$2; command=$3; shift 3
if [ "$serial" != "$(cat "$phone/serial")" ]; then echo "error: device '$serial' not found" >&2; exit 1; fi
case $command in
get-state) cat "$phone/state";;
wait-for-device) sleep "$(cat "$phone/away")"; echo device > "$phone/state";;
push) if [ -e "$phone/full" ]; then echo "adb: error: failed to copy: remote write failed: No space left on device" >&2
  exit 1; fi
  cp "$1" "$phone$2" && echo "$1: 1 file pushed.";;
shell)
  here=$(printf '%s' "$*" | sed "s#/data/local/tmp#$phone&#g; s#/sys/#$phone&#g; s#/proc/#$phone&#g")
  here=$(printf '%s' "$here" | sed "s#[^ ]*/ld-linux-aarch64#$phone/qemu &#")  # a processor that runs arm64 programs
  if [ -e "$phone/breaks" ] && expr "$here" : ".*edgedl.pyz" > /dev/null; then
    rm "$phone/breaks"; echo offline > "$phone/state"; exit 255; fi
  PATH="$phone/bin:$PATH" exec sh -c "$here";;
*) echo "adb: unknown command $command" >&2; exit 1;;
esac
"""
PROPERTIES = {
    "ro.product.manufacturer": "Google",
    "ro.product.model": "Pixel 7",
    "ro.soc.manufacturer": "Google",
    "ro.soc.model": "GS201",
    "ro.board.platform": "gs201",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.build.fingerprint": "google/panther/panther:14/AP2A/1:user/release-keys",
}
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Charge counter: 2468000
  status: 2
  present: true
  level: 85
  scale: 100
  voltage: 4213
  temperature: 275
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
	Temperature{mValue=34.2, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
"""
CLOCKS = (1803000, 1803000, 1803000, 1803000, 2348000, 2348000, 2850000, 2850000)
"""In kHz: four small cores, two middling ones, two big ones."""


class Phone:
    """What is in the folder, to be changed by tests."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.tmp = folder / "data" / "local" / "tmp"
        for path in (self.tmp, folder / "bin", folder / "host", folder / "proc"):
            path.mkdir(parents=True)
        self._program(folder / "host" / "adb", ADB.format(phone=shlex.quote(str(folder))))
        monkeypatch.setenv("PATH", str(folder / "host"), prepend=":")
        self.write("serial", SERIAL)
        self.write("state", "device")
        self.write("away", "0")
        self.attach(f"{SERIAL}         device usb:1-1 product:panther model:Pixel_7 device:panther transport_id:1")
        self.write("proc/meminfo", "MemTotal:        7807028 kB\nMemFree: 123 kB\n")
        for core, clock in enumerate(CLOCKS):
            self.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", str(clock))
        for zone, (kind, value) in enumerate([("BIG", "41000"), ("LITTLE", "38500"), ("battery", "99000")]):
            self.write(f"sys/class/thermal/thermal_zone{zone}/type", kind)
            self.write(f"sys/class/thermal/thermal_zone{zone}/temp", value)
        self.set_properties(PROPERTIES)
        self.write("battery", BATTERY)
        self.write("thermalservice", THERMAL)
        self.script("dumpsys", f'cat {shlex.quote(str(folder))}/"$1"')
        self.script("taskset", 'echo "taskset $1" >> "$0.called"; shift; exec "$@"')
        self.script("python3", "exit 127")

    def write(self, name: str, text: str) -> None:
        """A file of the phone's, or of the stand-in's."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def attach(self, *lines: str) -> None:
        """What `adb devices -l` says."""
        daemon = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
        self.write("attached", daemon + "List of devices attached\n" + "".join(f"{line}\n" for line in lines) + "\n")

    def set_properties(self, properties: dict[str, str]) -> None:
        cases = "".join(f"{name}) printf '%s\\n' {shlex.quote(value)};;\n" for name, value in properties.items())
        self.script("getprop", f"case $1 in\n{cases}esac")

    def script(self, name: str, text: str, where: str = "bin") -> Path:
        """A program on the phone."""
        return self._program(self.folder / where / name, f"#!/bin/sh\n{text}\n")

    def python(self, command: Sequence[str] = (sys.executable,), **environment: str) -> None:
        """The phone's `python3` is this command."""
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self.script("python3", f'exec env {given} {shlex.join(command)} "$@"')

    def benchmark_model(self, printed: str, answers: dict[str, bytes], where: str = "data/local/tmp") -> Path:
        """A program that takes the real one's options, prints a text, and writes these outputs of each file."""
        for name, content in answers.items():
            (self.folder / f"answer-{name}").write_bytes(content)
        self.write("printed", printed)
        folder = shlex.quote(str(self.folder))
        return self.script(
            "benchmark_model",
            f"""echo "$@" >> {folder}/benchmarked
for option in "$@"; do case $option in
--graph=*) graph=${{option#*=}}; [ -f "$graph" ] || exit 3;;
--input_layer_value_files=*) file=${{option##*:}}; [ -s "$file" ] || exit 4;;
--output_filepath=*) cp {folder}/answer-$graph "${{option#*=}}";;
esac; done
cat {folder}/printed""",
            where,
        )

    def said(self, name: str) -> str:
        return (self.folder / name).read_text() if (self.folder / name).exists() else ""

    def _program(self, file: Path, text: str) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return file
