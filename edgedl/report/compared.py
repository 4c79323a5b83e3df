"""A page of several runs side by side, which needs no network: plots and tables, and what to leave out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import __version__, files
from edgedl.comparison import File, Group
from edgedl.core import UsageError
from edgedl.picking import Pick
from edgedl.report import words
from edgedl.report.page import NUM_COLOURS, STATUSES, filled, require
from edgedl.report.side_by_side import in_words, notes

if TYPE_CHECKING:
    from edgedl.report.figures import Figure
    from edgedl.report.trade_off import Point


def write_page(groups: Sequence[Group], picks: Sequence[Pick], file: Path) -> None:
    """Writes the page. Raises `MissingPackage`, and `UsageError` where no file can be."""
    require()
    if file.is_dir() or not file.parent.is_dir():
        raise UsageError(f"{file}: {'is a folder' if file.is_dir() else 'there is no such folder'}: name a file")
    files.write_text(file, _rendered(groups, picks))


def _rendered(groups: Sequence[Group], picks: Sequence[Pick]) -> str:
    from edgedl.report.trade_off import symbols_of, trade_off

    numbers = {file: number for number, file in enumerate(file for group in groups for file in group.files)}
    colours = {
        label: f"var(--series-{index % NUM_COLOURS})"
        for index, label in enumerate(dict.fromkeys(file.label for file in numbers))
    }
    figures: dict[str, Figure] = {}
    symbols: dict[int, dict[str, str]] = {}
    for index, group in enumerate(groups):
        if points := _points(group, colours, numbers):
            figures[f"trade-off-{index}"] = trade_off(points, group.metric, None)
            symbols[index] = symbols_of(points)
    return filled(
        "compared.html.jinja",
        figures,
        {},
        Path(),
        None,
        version=__version__,
        groups=groups,
        numbers=numbers,
        colours=colours,
        symbols=symbols,
        statuses=STATUSES,
        facets=_facets(list(numbers)),
        notes=[note for note in notes(groups) if not note.startswith("*")],
        picks=[(found, in_words(found)) for found in picks],
        picked=[found.file for found in picks if found.is_met],
        judge=_judge,
        energy=any(file.value("energy") is not None for file in numbers),
    )


def _points(group: Group, colours: Mapping[str, str], numbers: Mapping[File, int]) -> list[Point]:
    """Colours tell runs apart, symbols targets; names have only those on the front, lest they cover each other."""
    from edgedl.report.trade_off import Point

    if group.device is None:
        return []
    return [
        Point(
            file.label,
            file.row["variant"],
            colours[file.label],
            file.row,
            kind=file.row["target"],
            title=file.name,
            prominent=file in group.front,
            number=numbers[file],
        )
        for file in group.files
        if file.value("score") is not None
    ]


def _facets(compared: Sequence[File]) -> dict[str, list[str]]:
    """By what files can be left out, where they differ in it."""
    found = {
        "device": [file.row["device"] or "none" for file in compared],
        "target": [file.row["target"] for file in compared],
        "run": [file.label for file in compared],
    }
    return {name: list(dict.fromkeys(values)) for name, values in found.items() if len(set(values)) > 1}


def _judge(file: File) -> dict[str, Any]:
    """Score and drop in the words of the file's own metric."""
    return {
        "score": words.score(file.value("score"), file.metric),
        "change": words.change(file.drop, file.metric),
    }
