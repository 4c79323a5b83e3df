"""Tables on terminals of any width: nothing is ever cut; where columns have no room, rows stand in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from edgedl.report.numbers import NONE

GAP = 2
"""Spaces between columns."""


def empty(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """A table without rows. What stands `right` are figures, which stay on one line."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def show(console: Console, table: Table, form: Callable[[Table, int], RenderableType]) -> None:
    """Prints a table as it fits into a terminal; one that goes into a file is as wide as it has to be."""
    width = console.width
    if not console.is_terminal and not console.record:
        console.width = max(width, _whole(table))
    console.print(form(table, console.width))
    console.width = width


def turned(table: Table, width: int) -> RenderableType:
    """The table; where it is too wide, with a column for each row, as many of them beside each other as fit."""
    return table if _fits(table, width) else Group(*_on_its_side(table, width))


def listed(table: Table, width: int) -> RenderableType:
    """The table; where it is too wide, the first cell of each row, and below that all else that is known."""
    return table if _fits(table, width) else Group(*_entries(table))


def _fits(table: Table, width: int) -> bool:
    """Whether there is room for each word and figure; if so, columns are given as much more as they want."""
    least = [_least(column) for column in table.columns]
    wants = [_wide(_texts(column)) - few for column, few in zip(table.columns, least, strict=True)]
    room = width - GAP * (len(least) - 1) - sum(least)
    if room < 0:
        return False
    for num_given, index in enumerate(sorted(range(len(wants)), key=wants.__getitem__)):
        more = min(wants[index], room // (len(wants) - num_given))
        table.columns[index].width = least[index] + more
        room -= more
    return True


def _whole(table: Table) -> int:
    """The width of a table whose cells have one line."""
    return sum(_wide(_texts(column)) for column in table.columns) + GAP * (len(table.columns) - 1)


def _texts(column: Column) -> list[RenderableType]:
    return [column.header, *column.cells]


def _least(column: Column) -> int:
    """How narrow a column may be: its header may take several lines, and its cells if they are no figures."""
    cells = list(map(str, column.cells))
    return _wide([*str(column.header).split(), *(cells if column.justify == "right" else " ".join(cells).split())])


def _on_its_side(table: Table, width: int) -> Iterator[RenderableType]:
    """Tables that have the headers as their first column."""
    headers = [column.header for column in table.columns]
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    room = width - _wide(headers)
    if table.title:
        yield Text.assemble((str(table.title), "italic"))
    while rows:
        num, taken = 1, _wide(rows[0]) + GAP
        while num < len(rows) and taken + _wide(rows[num]) + GAP <= room:
            taken += _wide(rows[num]) + GAP
            num += 1
        part = empty(str(headers[0]))
        for row in rows[:num]:
            part.add_column(row[0], overflow="fold")
        for header, *cells in list(zip(headers, *rows[:num], strict=True))[1:]:
            part.add_row(Text(str(header), style="bold"), *cells)
        rows = rows[num:]
        yield part if not rows else Padding(part, (0, 0, 1, 0))


def _entries(table: Table) -> Iterator[RenderableType]:
    headers = [str(column.header) for column in table.columns]
    if table.title:
        yield Text.assemble((str(table.title), "italic"))
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        yield Text(str(first), style="bold", overflow="fold")
        told = Text("; ").join(
            Text.assemble((f"{header}: ", "dim"), Text(", ").join(_text(cell).split("\n")))
            for header, cell in zip(headers[1:], others, strict=True)
            if str(cell) != NONE
        )
        yield Padding(told, (0, 0, 0, 2))


def _wide(cells: Iterable[RenderableType]) -> int:
    """Columns of a terminal that the longest line takes."""
    return max((cell_len(line) for cell in cells for line in str(cell).splitlines()), default=0)


def _text(cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))
