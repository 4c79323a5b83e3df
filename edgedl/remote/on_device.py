"""Running the files of a run on another device, and keeping what comes back: docs/devices.md describes it.

The device answers calls that were recorded here (`runner.py`); scores are made here, by the task, of what it answers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedl import __version__, devices, files, progress, recipe
from edgedl.core import Bench, EdgedlError, TargetError, Task, UsageError
from edgedl.devices import Device
from edgedl.links.said import plain
from edgedl.probes import end_to_end
from edgedl.probes.loads import NOTHING, Asked
from edgedl.remote import answers, benchmarked, device_rows, runner, sending
from edgedl.remote.answers import Found, Result
from edgedl.remote.sending import JOB, RUNNER, Sent, left_out
from edgedl.run import DEVICES_SCHEMA, looked_into, read_devices, read_report

RESULT = "result.json"


def bench_all(
    folder: Path, on: Sequence[str], seconds: float, asked: Asked = NOTHING
) -> tuple[list[dict[str, Any]], list[EdgedlError]]:
    """`bench` on one device after another; returns what each answered, and what has failed: no other waits for that.

    Raises `UsageError` where one of them is none.
    """
    for where in on:
        devices.check(where)
    found: list[dict[str, Any]] = []
    failed: list[EdgedlError] = []
    for where in on:
        try:
            found.append(bench(folder, where, seconds, asked))
        except EdgedlError as error:
            failed.append(error)
        else:
            for row in found[-1]["rows"]:
                progress.emit("row", row={key: value for key, value in row.items() if key != "operators"})
    return found, failed


def bench(folder: Path, where: str, seconds: float, asked: Asked = NOTHING) -> dict[str, Any]:
    """Runs a finished run's files on the device `where`, writes `devices/<where>.json`, and returns its content.

    A file that fails there is a row with its reason. Raises `UsageError` before anything expensive, and `TargetError`
    where the device itself fails.
    """
    report, task = read_report(folder), recipe.load(str(folder / "recipe.toml")).task
    with looked_into(folder):
        rows = [row for row in report["rows"] if left_out(row) is None]
    if not rows:
        reasons = dict.fromkeys(str(left_out(row)) for row in report["rows"])
        raise UsageError(f"{folder}: nothing to run on another device: {'; '.join(reasons)}")
    pace = Bench(min_seconds=seconds)
    with devices.connect(where) as device, tempfile.TemporaryDirectory() as work:
        if device.why_not:
            raise UsageError(device.why_not)
        if asked != NOTHING and (device.program or not device.timed):
            cannot = "benchmark_model times files, and" if device.program else "an emulator"
            raise UsageError(f"{device.name}: {cannot} answers nothing else: leave out --batches, --cold and the like")
        if asked.end_to_end and where != "local":
            raise UsageError("--end-to-end is of this machine, which has the task: leave it out, or --on local")
        rows = [row for row in rows if left_out(row, device) is None]
        if not rows:
            reasons = dict.fromkeys(str(left_out(row, device)) for row in report["rows"])
            raise UsageError(f"{folder}: nothing to run on {device.name}: {'; '.join(reasons)}")
        sent = sending.prepare(folder, rows, task, report, device.threads, Path(work))
        job = {
            "schema": runner.SCHEMA,
            "networks": [entry.job for entry in sent],
            "pace": {"min_seconds": pace.min_seconds, "rounds": pace.rounds} if device.timed else None,
            "asked": asked._asdict(),
        }
        files.write_json(Path(work) / JOB, job)
        sending.make_runner(Path(work) / RUNNER)
        with progress.stage(f"{device.name}: run", 1) as step:
            ask = _benchmarked if device.program else _done
            result = ask(device, sent, pace, Path(work))
            step(1)
        environment = result.device | device.describe()
        made = [
            device_rows.row_of(device, entry, result.networks[entry.job["name"]], task, report, Path(work))
            for entry in sent
        ]
        if device.timed:
            made = device_rows.timed(made, sent, result)
            if asked.end_to_end and where == "local":
                for row, entry in zip(made, sent, strict=True):
                    row["end_to_end"] = _end_to_end(entry, task, pace)
            earlier = [row for content in read_devices(folder) for row in content["rows"]]
            made = answers.with_earlier(made, earlier)
    content = {
        "schema": DEVICES_SCHEMA,
        "edgedl": __version__,
        "device": device.name,
        "timed": device.timed,
        "environment": environment,
        "rows": made,
        "left_out": [
            {"variant": row["variant"], "target": row["target"], "reason": reason}
            for row in report["rows"]
            if (reason := left_out(row, device))
        ],
        "warnings": device_rows.warnings(device, made),
    }
    (folder / "devices").mkdir(exist_ok=True)
    files.write_json(results_file(folder, where), content)
    return content


def results_file(folder: Path, where: str) -> Path:
    """Where a run keeps what `bench` found on a device."""
    return folder / "devices" / f"{re.sub(r'[^A-Za-z0-9.@-]+', '-', where)}.json"


def _done(device: Device, sent: Sequence[Sent], pace: Bench, work: Path) -> Result:
    """Has the job done on the device, and fetches what it made. Raises `TargetError` if the device fails as a whole."""
    calls = {graph["calls"] for entry in sent for graph in entry.job["graphs"].values()}
    models = {name: file for entry in sent for name, file in entry.files.items()}
    device.push({name: work / name for name in (RUNNER, JOB, *calls)} | models)
    done = device.run([RUNNER], max(entry.job["threads"] for entry in sent))
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise TargetError(
            f"{device.name}: the runner ended with {how}: {plain(said[-1]) if said else 'it said nothing'}"
        )
    device.pull([RESULT, *(entry.job["answers"] for entry in sent)], work)
    return answers.read(work / RESULT, device.name, [entry.job["name"] for entry in sent], pace.rounds)


def _benchmarked(device: Device, sent: Sequence[Sent], pace: Bench, work: Path) -> Result:
    """What `benchmark_model` makes of the files, which are given the first of all calls. Raises `TargetError`."""
    runs = []
    for entry in sent:
        ((name, file),) = entry.files.items()
        given = next(iter(entry.recording.given[""]))
        inputs = [given[key].astype(spec.dtype) for key, spec in entry.recording.session.inputs.items()]
        runs.append(benchmarked.Given(name, file, entry.job["threads"], inputs))
    found = benchmarked.benchmark(device, runs, pace.min_seconds, work)
    networks = {}
    for entry, run in zip(sent, runs, strict=True):
        one = found[run.name]
        networks[entry.job["name"]] = Found(error=one.error) if one.error else Found(
            error=None, runtime=device.program or "", init_ms=one.init_ms, peak_memory_bytes=one.memory_bytes,
            blocks_ms=one.blocks_ms, benchmarked=one,
        )  # fmt: skip
    return Result(device={}, networks=networks)


def _end_to_end(entry: Sent, task: Task, pace: Bench) -> dict[str, Any]:
    """Here, where the task is: what an application adds to a run of the file."""
    files = dict(zip(entry.job["graphs"], entry.files.values(), strict=True))
    session = sending.opened(entry.row, files, entry.job["threads"])
    found = end_to_end.measured(session, task, pace.min_seconds, pace.rounds)
    session.close()
    return found
