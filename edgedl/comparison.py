"""The files of several runs side by side: which can be compared, and which of those no other beats in everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgedl import gate
from edgedl.core import UsageError
from edgedl.run import find_finished, looked_into, read_devices, read_report
from edgedl.stats import Speedup

OBJECTIVES = ("score", "latency", "size", "energy")
"""What makes a file better than another, in the order in which `picking` asks for it."""
TEXTS = ("variant", "target", "precision", "status")
"""What every row says in words."""
SOURCES = ("source", "folder", "file", "csv", "graph", "edges")
"""Settings of a task that say which data it takes. What else tasks differ in, `Group.settings` tells."""


@dataclass(frozen=True, eq=False)
class File:
    """A row of a run's report, and what of the report it takes to compare it with rows of other runs."""

    folder: Path
    label: str
    """The run's name among those compared: its recipe, and its time where that leaves two."""
    recipe: str
    task: Mapping[str, Any]
    metric: Mapping[str, Any]
    drop: float | None
    row: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.label} {self.row['target']} {self.row['variant']}"

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the file, or of each graph's."""
        graphs = (self.row.get("graphs") or {}).values()
        return [row["sha256"] for row in graphs or [self.row]]

    @property
    def path(self) -> str | None:
        return str(self.folder / self.row["file"]) if self.row["file"] else None

    @property
    def may_ship(self) -> bool:
        """It ran, and its run's gate let it pass."""
        return self.row["status"] == "ok" and None not in (self.value("score"), self.value("latency"))

    def value(self, name: str) -> float | None:
        """Score, drop, latency (ms), size (bytes), speedup or energy (mJ); None where that is not known."""
        row = self.row
        if name == "speedup":
            # That of the float file, which others are held against, is 1 by definition; reports leave it out.
            alone = 1.0 if row["variant"] == "float" and row["latency_ms"] else None
            return row["speedup"]["median"] if row["speedup"] else alone
        found: float | None = {
            "score": row["score"],
            "drop": self.drop,
            "latency": row["latency_ms"] and row["latency_ms"]["median"],
            "size": row["size_bytes"],
            "energy": row.get("energy_mj"),  # only of devices that measure it
        }[name]
        return found

    def cost(self, name: str) -> float:
        """An objective, the less the better; what is not known is infinite."""
        value = self.value(name)
        if value is None:
            return float("inf")
        return -value if name == "score" and self.metric["higher_is_better"] else value


@dataclass(frozen=True, eq=False)
class Group:
    """Files that can be compared: of one task and metric and, if they ran, on one device in one way."""

    device: str | None
    """None where nothing ran."""
    threads: int | None
    batch_size: int | None
    files: Sequence[File]
    settings: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What the tasks of these files differ in; their scores may then be of different difficulty."""

    @property
    def task(self) -> str:
        """Its name, and where the data is that it takes."""
        task = self.files[0].task
        return " ".join(str(task[key]) for key in ("use", *SOURCES) if task.get(key) is not None)

    @property
    def metric(self) -> Mapping[str, Any]:
        return self.files[0].metric

    @property
    def where(self) -> str:
        """In words, where and how the files ran."""
        if self.device is None:
            return "not run"
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.device}{threads}, batch size {self.batch_size}"

    @property
    def judged(self) -> str:
        """In words, what the scores are."""
        better = "higher" if self.metric["higher_is_better"] else "lower"
        unit = "" if self.metric["unit"] in ("", "fraction") else f" in {self.metric['unit']}"
        return f"{self.task}, {self.metric['name']}{unit} ({better} is better)"

    @cached_property
    def front(self) -> Sequence[File]:
        """Of the files that may ship those that no other beats: the Pareto front."""
        able = [file for file in self.files if file.may_ship]
        costs = [tuple(file.cost(name) for name in OBJECTIVES) for file in able]
        return [file for file, alone in zip(able, undominated(costs), strict=True) if alone]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Nowhere worse and somewhere better, where less is better."""
    return tuple(one) != tuple(other) and all(a <= b for a, b in zip(one, other, strict=True))


def undominated(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Which of them no other dominates; equal ones stand or fall together."""
    return [not any(dominates(other, cost) for other in costs) for cost in costs]


def read(names: Iterable[str], root: Path) -> list[File]:
    """All rows of finished runs, each a folder or a recipe's name for its latest, and those of other devices.

    Devices that cannot time files have none. Raises `UsageError`.
    """
    folders = list({folder.resolve(): folder for folder in (find_finished(name, root) for name in names)}.values())
    reports = {folder: read_report(folder) for folder in folders}
    files: list[File] = []
    for folder in folders:
        with looked_into(folder):
            files += _files(folder, reports)
    return files


def only(files: Sequence[File], targets: Sequence[str], devices: Sequence[str]) -> list[File]:
    """The files of some targets and devices; of all, where none is named. Raises `UsageError` where none is left."""
    left = [
        file
        for file in files
        if (not targets or file.row["target"] in targets)
        and (not devices or any(device in (file.row["device"] or "") for device in devices))
    ]
    if not left:
        found = {key: sorted({str(file.row[key]) for file in files if file.row[key]}) for key in ("target", "device")}
        asked = " ".join([*(f"--target {name}" for name in targets), *(f"--device {name}" for name in devices)])
        raise UsageError(
            f"no file {f'with {asked}' if asked else 'in these runs'}; there are targets "
            f"{', '.join(found['target']) or 'none'}; devices {', '.join(found['device']) or 'none'}"
        )
    return left


def groups(files: Sequence[File]) -> list[Group]:
    """The files that can be compared with each other, in the order in which they come."""
    found: dict[str, list[File]] = {}
    for file in files:
        found.setdefault(repr((_exam(file), _place(file, files))), []).append(file)
    # What did not run stands behind what did.
    ordered = sorted(found.values(), key=lambda members: _place(members[0], files)[0] is None)
    return [Group(*_place(members[0], files), members, _differences(members)) for members in ordered]


def as_rows(grouped: Sequence[Group], files: Sequence[File]) -> list[dict[str, Any]]:
    """Each file's row of its report with its run, and what comparing it has found."""
    front = {id(file) for group in grouped for file in group.front}
    return [
        {
            "run": str(file.folder),
            **file.row,
            "recipe": file.recipe,
            "task": file.task["use"],
            "metric": file.metric["name"],
            "drop": file.drop,
            "path": file.path,
            "front": id(file) in front,
        }
        for file in files
    ]


def _files(folder: Path, reports: Mapping[Path, Mapping[str, Any]]) -> list[File]:
    report = reports[folder]
    recipe, metric = report["recipe"], report["metric"]
    same = [other for other, found in reports.items() if found["recipe"]["name"] == recipe["name"]]
    label = str(recipe["name"])
    if len(same) > 1:
        label += f"/{folder.name}" if len({other.name for other in same}) == len(same) else f" {folder}"
    reference = next((entry["rungs"][0]["score"] for entry in report["ladder"]), None)
    sign = 1 if metric["higher_is_better"] else -1
    files = []
    here = {row["device"] for row in report["rows"]}
    there = [found for found in read_devices(folder) if found["timed"] and found["device"] not in here]
    for row in (row for found in (report, *there) for row in found["rows"]):
        score = row["score"]
        drop = None if score is None or reference is None else sign * (reference - score)
        if row["device"] not in here:
            row = _gated(row, drop, recipe["limits"], metric["name"])
        file = File(folder, label, str(recipe["name"]), recipe["task"], metric, drop, row)
        # All that is asked of a row later, so that a damaged one is found here.
        if strange := [key for key in TEXTS if not isinstance(row[key], str)]:
            raise TypeError(f"{strange[0]} is no text")
        _ = [file.value(name) for name in ("drop", "speedup", *OBJECTIVES)], _exam(file), file.name, file.path
        _ = row["device"], row["status"], row["precision"], row["latency_ms"] and _way(row)
        files.append(file)
    return files


def _gated(row: Mapping[str, Any], drop: float | None, limits: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """A row of another device, held to what the recipe's gate asks: the run judged the file by the times of its own."""
    if row["status"] != "ok":
        return row
    lost = None if drop is None else gate.loss(row["score"], drop, limits["score_drop"], metric)
    reason = lost or gate.slowness(row["speedup"] and Speedup(**row["speedup"]), limits["slower"])
    return {**row, "status": "refused", "reason": reason} if reason else row


def _exam(file: File) -> tuple[Any, ...]:
    """What a score is of: scores of other tasks, data or metrics say nothing beside it."""
    data = [file.task.get(name) for name in SOURCES]
    metric = [file.metric[key] for key in ("name", "unit", "higher_is_better")]
    return (file.task["use"], data, metric)


def _place(file: File, files: Sequence[File]) -> tuple[Any, Any, Any]:
    """Device, threads and batch size. What has no threads, on a GPU, stands beside its device's other files."""
    if not file.row["latency_ms"]:
        return None, None, None
    device, threads, batch_size = _way(file.row)
    if threads is None:
        ran = [_way(other.row) for other in files if other.row["latency_ms"]]
        beside = {way[1] for way in ran if way[0] == device and way[2] == batch_size} - {None}
        threads = beside.pop() if len(beside) == 1 else None
    return device, threads, batch_size


def _way(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return row["device"], row["latency_ms"]["threads"], row["latency_ms"]["batch_size"]


def _differences(files: Sequence[File]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for file in files for key in file.task)
    found = {key: list({repr(file.task.get(key)): file.task.get(key) for file in files}.values()) for key in keys}
    found["test samples"] = list(dict.fromkeys(n for file in files if (n := file.row.get("samples")) is not None))
    return {key: values for key, values in found.items() if len(values) > 1}
