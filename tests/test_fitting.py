"""Tables on terminals of any width."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from edgedl.report import fitting
from edgedl.report.numbers import NONE

NAMES = st.text("abcdefg-/.", min_size=1, max_size=30)
FIGURES = st.integers(0, 10**6).map(lambda number: f"{number / 1000:.3f} ms") | st.just(NONE)
WORDS = st.lists(st.text("äbcde漢", min_size=1, max_size=12), max_size=9).map(" ".join)
SHAPES = {"turned": fitting.turned, "listed": fitting.listed}


def printed(table, width):
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False)
    console.print(table)
    return file.getvalue()


def table_of(rows):
    table = fitting.empty(
        "file", "latency", "95 % interval", "why", title="a title", right=("latency", "95 % interval")
    )
    for name, latency, interval, why in rows:
        table.add_row(name, latency, interval, Text(why, style="red"))
    return table


@pytest.mark.parametrize("shape", SHAPES)
@given(st.lists(st.tuples(NAMES, FIGURES, FIGURES, WORDS), min_size=1, max_size=9), st.integers(46, 200))
def test_nothing_is_cut_at_any_width(shape, rows, width):
    text = printed(SHAPES[shape](table_of(rows), width), width)
    assert "…" not in text
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    for name, latency, interval, why in rows:
        assert name in text
        assert all(word in text for word in why.split())
        if shape == "turned" or NONE not in (latency, interval):
            assert re.search(r"\s+".join(map(re.escape, latency.split())), text)
            assert re.search(r"\s+".join(map(re.escape, interval.split())), text)


@pytest.mark.parametrize("shape", SHAPES)
def test_where_there_is_room_it_is_a_table(shape):
    rows = [("a.tflite", "1.000 ms", "0.9-1.1 ms", "of its own"), ("b.onnx", "12.000 ms", NONE, "")]
    assert [line.rstrip() for line in printed(SHAPES[shape](table_of(rows), 60), 60).splitlines()] == [
        "a title",
        "file        latency  95 % interval  why",
        "a.tflite   1.000 ms     0.9-1.1 ms  of its own",
        "b.onnx    12.000 ms              –",
    ]


def test_where_there_is_less_headers_and_words_take_several_lines_and_figures_one():
    rows = [("a.tflite", "1.000 ms", "0.9-1.1 ms", "of its own")]
    assert [line.rstrip() for line in printed(fitting.turned(table_of(rows), 36), 36).splitlines()] == [
        "a title",
        "                          95 %",
        "file       latency    interval  why",
        "a.tflite  1.000 ms  0.9-1.1 ms  of",
        "                                its",
        "                                own",
    ]


def test_where_there_is_too_little_rows_become_columns():
    rows = [(name, "1.000 ms", NONE, "unsatisfactory") for name in ("encoder.tflite", "decoder.tflite", "c.onnx")]
    assert [line.rstrip() for line in printed(fitting.turned(table_of(rows), 47), 47).splitlines()] == [
        "a title",
        "file           encoder.tflite  decoder.tflite",
        "latency        1.000 ms        1.000 ms",
        "95 % interval  –               –",
        "why            unsatisfactory  unsatisfactory",
        "",
        "file           c.onnx",
        "latency        1.000 ms",
        "95 % interval  –",
        "why            unsatisfactory",
    ]


def test_or_a_list_that_leaves_out_what_is_not_known():
    rows = [("a.tflite", "1.000 ms", NONE, "of\nits\nown"), ("b.onnx", NONE, NONE, "another")]
    assert [line.rstrip() for line in printed(fitting.listed(table_of(rows), 30), 30).splitlines()] == [
        "a title",
        "a.tflite",
        "  latency: 1.000 ms; why: of,",
        "  its, own",
        "b.onnx",
        "  why: another",
    ]
