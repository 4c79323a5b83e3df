"""Which runs there are, how far each came, what room it takes, and which of them can go."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from edgedl.core import UsageError
from edgedl.run import RECIPE, is_run, locked, read_stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

State = Literal["finished", "analyzed", "under way", "interrupted"]
AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Found:
    """A run folder as it stands."""

    folder: Path
    recipe: str
    started: datetime
    """When it was begun, or last gone on with."""
    state: State
    stage: str
    """The last stage that has finished."""
    size_bytes: int
    steps: tuple[str, ...]
    """The key of each step that is kept: the same in two runs, where the one took it from the other or could have."""


@dataclass(frozen=True)
class Choice:
    """Runs that go: those that meet every condition that is given, of those that are not under way."""

    interrupted: bool = False
    keep: int | None = None
    """How many of each recipe stay, the newest."""
    older: timedelta | None = None

    def of(self, found: Sequence[Found], now: datetime | None = None) -> list[Found]:
        """None of them is one that a run which stays takes its teacher or weights from."""
        newest: Counter[str] = Counter()
        going = []
        for run in sorted(found, key=lambda run: (run.started, run.folder.name), reverse=True):
            newest[run.recipe] += 1
            if (
                run.state != "under way"
                and not (self.interrupted and run.state != "interrupted")
                and not (self.keep is not None and newest[run.recipe] <= self.keep)
                and not (self.older is not None and (now or datetime.now()) - run.started < self.older)
            ):
                going.append(run)
        while needed := _needed(going, [run for run in found if run not in going], found):
            going = [run for run in going if run not in needed]
        return going[::-1]


def age(text: str) -> timedelta:
    """What "30d" or "12h" says. Raises `UsageError`."""
    said = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if said is None:
        raise UsageError(f"--older {text}: give a number and one of {', '.join(AGES)}, such as 30d")
    return timedelta(seconds=int(said[1]) * AGES[said[2]])


def runs(root: Path) -> list[Found]:
    """All runs under a folder, the oldest of a recipe first; links are not followed."""
    folders = (folder for folder in sorted(root.glob("*/*")) if is_run(folder) and not folder.is_symlink())
    return [_found(folder) for folder in folders]


def as_rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """As `edgedl runs list --json` prints them."""
    times = Counter(key for run in found for key in set(run.steps))
    return [
        {
            "run": str(run.folder),
            "recipe": run.recipe,
            "started": run.started.isoformat(),
            "state": run.state,
            "stage": run.stage,
            "size_bytes": run.size_bytes,
            "steps": len(run.steps),
            "shared_steps": sum(times[key] > 1 for key in run.steps),
        }
        for run in found
    ]


def remove(run: Found) -> bool:
    """Deletes a run's folder, unless it is under way by now; what is half deleted is no run any more."""
    with locked(run.folder) as free:
        if not free:
            return False
        gone = run.folder.with_name(f".{run.folder.name}.partial")
        run.folder.rename(gone)
        shutil.rmtree(gone)
    if not any(run.folder.parent.iterdir()):
        run.folder.parent.rmdir()
    return True


def _found(folder: Path) -> Found:
    with locked(folder) as free:
        stages = read_stages(folder)
        return Found(
            folder,
            folder.parent.name,
            _started(folder),
            _state(folder, free),
            next(reversed(stages), "nothing"),
            sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()),
            tuple(_keys(folder)),
        )


def _state(folder: Path, free: bool) -> State:
    if (folder / "report.json").is_file():
        return "finished"
    if not free:
        return "under way"
    return "analyzed" if (folder / "analysis.json").is_file() else "interrupted"


def _started(folder: Path) -> datetime:
    """By its name or, of a folder that was renamed, by its recipe's file."""
    try:
        return datetime.strptime(folder.name[:19], "%Y-%m-%dT%H-%M-%S")
    except ValueError:
        return datetime.fromtimestamp(int((folder / RECIPE).stat().st_mtime))


def _keys(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("steps/*/step.json")):
        try:
            yield str(json.loads(file.read_text(encoding="utf-8"))["key"])
        except (OSError, ValueError, LookupError, TypeError):
            continue


def _needed(going: Iterable[Found], staying: Iterable[Found], found: Sequence[Found]) -> list[Found]:
    """Those of `going` that the recipe of one that stays names: by a path into it, or by the name of its recipe, of
    which it is the latest that has finished.
    """
    latest = {run.recipe: run for run in found if run.state == "finished"}
    named = {text for run in staying for text in _texts(_recipe(run.folder))}
    paths = [Path(text).resolve() for text in named if "/" in text and "\0" not in text]
    return [
        run
        for run in going
        if (latest.get(run.recipe) is run and run.recipe in named)
        or any(path.is_relative_to(run.folder.resolve()) for path in paths)
    ]


def _recipe(folder: Path) -> Any:
    try:
        return tomllib.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
