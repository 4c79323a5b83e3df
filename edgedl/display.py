"""How stages are shown: bars for a person, on stderr or in a notebook, and a line of JSON an event for a machine."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from edgedl.progress import Event, Listener

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

TOLD_SECONDS = 1.0
"""Between two lines of one stage, but for those with new figures, and the last."""


class _Left(ProgressColumn):
    """How long the stage will still take, going by what it has done."""

    def render(self, task: Task) -> Text:
        left, at = task.fields["left"], task.fields["at"]
        if left is None or task.finished or task.stop_time is not None:
            return Text("")
        seconds = max(left - (time.monotonic() - at), 0)
        return Text(f"{timedelta(seconds=round(seconds))} left", style="progress.remaining")


class _Done(ProgressColumn):
    """Whole units, of parts of which stages may tell."""

    def render(self, task: Task) -> Text:
        total = int(task.total or 0)
        return Text(f"{int(task.completed + 1e-6):{len(str(total))}d}/{total}", style="progress.download")


class _Figures(ProgressColumn):
    """What comes last, and is cut where a line is too narrow for all."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


@contextmanager
def bars() -> Iterator[Listener]:
    """Yields the listener that shows a line a stage, with what is done and how long the rest will take."""
    # Its own descriptor: `progress.diverted` points the process's stderr elsewhere meanwhile.
    with os.fdopen(os.dup(sys.__stderr__.fileno()), "w") as stream:  # type: ignore[union-attr]
        console = _console(stream)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=12 if console.width >= 100 else 4, table_column=Column(no_wrap=True)),
            _Done(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            _Left(table_column=Column(no_wrap=True)),
            _Figures(),
        )
        shown = Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
        tasks: dict[int, TaskID] = {}

        def listen(event: Event) -> None:
            number = event.get("number", 0)
            if event["event"] == "stage":
                tasks[number] = shown.add_task(event["stage"], total=event["total"], figures="", left=None, at=0.0)
            elif event["event"] == "progress":
                left = {"left": event["left_seconds"], "at": time.monotonic()}
                figures = {"figures": event["figures"]} if event["figures"] else {}
                shown.update(tasks[number], completed=event["done"], **left, **figures)
            elif event["event"] == "stage done" and event["inner"]:
                shown.remove_task(tasks.pop(number))
            elif event["event"] in ("stage done", "stage failed"):
                shown.stop_task(tasks[number])

        with shown:
            yield listen


def _console(stream: IO[str]) -> Console:
    """The notebook's, where there is one that can show what changes; else it shows what has come of all at the end."""
    if not Console().is_jupyter:
        return Console(file=stream)
    if importlib.util.find_spec("ipywidgets"):
        return Console()
    return Console(file=sys.stderr, force_jupyter=False, force_terminal=False)


def json_lines() -> Listener:
    """The listener that writes each event as a line of JSON to what is stdout now.

    Where nobody reads any more, the work goes on without being told of.
    """
    # Its own descriptor, as above; it stays open until the process ends, for that is when errors are told.
    stream: IO[str] | None = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    told_at: dict[int, float] = {}

    def listen(event: Event) -> None:
        nonlocal stream
        if event["event"] == "progress":
            now = time.monotonic()
            worth = event["figures"] or event["done"] >= event["total"]
            if not worth and now - told_at.get(event["number"], 0.0) < TOLD_SECONDS:
                return
            told_at[event["number"]] = now
        if stream is None:
            return
        line = json.dumps({"event": event["event"], "time": datetime.now().astimezone().isoformat()} | dict(event))
        try:
            print(line, file=stream)
        except BrokenPipeError:
            stream = None

    return listen
