"""Files of several runs side by side: what is compared with what, the Pareto front, and the file to ship."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgedl
from edgedl import comparison, picking, plugins
from edgedl.comparison import File, Group
from edgedl.core import MissingPackage, UsageError
from edgedl.report import compared, side_by_side
from edgedl.run import DEVICES_KEYS, DEVICES_SCHEMA
from tests import quick
from tests.sample_report import METRIC, row, sample_report
from tests.test_cli import run_in, the_line

# The Pareto front

COSTS = st.lists(st.tuples(*[st.sampled_from([1.0, 2.0, 3.0, float("inf")])] * 3), max_size=12)


@given(COSTS)
def test_nobody_dominates_the_front_and_somebody_of_it_dominates_all_others(costs):
    front = [cost for cost, alone in zip(costs, comparison.undominated(costs), strict=True) if alone]
    others = [cost for cost in costs if cost not in front]
    assert not any(comparison.dominates(one, other) for one in costs for other in front)
    assert all(any(comparison.dominates(one, other) for one in front) for other in others)
    assert bool(front) == bool(costs)


@given(COSTS, st.randoms(use_true_random=False))
def test_the_order_makes_no_difference_to_the_front(costs, shuffle: random.Random):
    places = list(range(len(costs)))
    shuffle.shuffle(places)
    shuffled = comparison.undominated([costs[place] for place in places])
    assert shuffled == [comparison.undominated(costs)[place] for place in places]


def test_only_files_that_may_ship_stand_on_the_front():
    group = grouped(
        file(0.97, 2.0, 200),
        file(0.99, 1.0, 100, status="refused"),
        file(0.99, None, 100, status="built"),
        file(0.96, 3.0, 100),
        file(0.96, 3.0, 300),
    )
    assert [member.row["size_bytes"] for member in group.front] == [200, 100]


def test_less_is_better_where_the_metric_says_so_and_unknown_energy_counts_as_the_most():
    error = {"name": "error", "unit": "dB", "higher_is_better": False}
    group = grouped(file(0.5, 1.0, 100, metric=error), file(0.6, 1.0, 100, metric=error))
    assert [member.row["score"] for member in group.front] == [0.5]
    group = grouped(file(0.5, 1.0, 100), file(0.5, 1.0, 100, energy_mj=4.0), file(0.5, 1.0, 100, energy_mj=3.0))
    assert [member.value("energy") for member in group.front] == [3.0]


# What is compared with what


def test_tasks_devices_threads_and_batch_sizes_are_told_apart_and_what_did_not_run_comes_last():
    members = [
        file(0.9, None, 100, status="built"),
        file(0.9, 1.0, 100),
        file(0.9, 1.0, 100, device="a phone"),
        file(0.9, 1.0, 100, threads=2),
        file(0.9, 1.0, 100, batch_size=8),
        file(0.9, 1.0, 100, task={"use": "text"}),
        file(0.9, 1.0, 100, metric=METRIC | {"name": "F1"}),
        file(0.9, 1.0, 100, task={"use": "data", "source": "one.npz"}),
        file(0.9, 1.0, 100, task={"use": "data", "source": "two.npz"}),
        file(0.8, 2.0, 200),
    ]
    found = comparison.groups(members)
    assert [[members.index(member) for member in group.files] for group in found] == [
        [1, 9], [2], [3], [4], [5], [6], [7], [8], [0],
    ]  # fmt: skip
    assert [group.where for group in found[:4]] == [
        "Some Processor, 1 thread, batch size 1", "a phone, 1 thread, batch size 1",
        "Some Processor, 2 threads, batch size 1", "Some Processor, 1 thread, batch size 8",
    ]  # fmt: skip
    assert found[6].judged == "data one.npz, accuracy (higher is better)"
    assert not found[-1].front


def test_rows_of_devices_that_time_files_stand_in_a_table_of_their_own(tmp_path):
    report = sample_report()
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "devices").mkdir()
    own = [found for found in report["rows"] if found["latency_ms"]]
    for name, device, timed in (("a", "a board", True), ("b", "emulated", False), ("c", own[0]["device"], True)):
        rows = [found | {"device": device} for found in own]
        content = {"schema": DEVICES_SCHEMA, **dict.fromkeys(DEVICES_KEYS), "device": device, "timed": timed}
        (tmp_path / "devices" / f"{name}.json").write_text(json.dumps(content | {"rows": rows}))
    found = comparison.groups(comparison.read([str(tmp_path)], tmp_path))
    on_board = next(group for group in found if group.device == "a board")
    assert len(on_board.files) == len(own)
    assert sum(len(group.files) for group in found) == len(report["rows"]) + len(own)


def test_a_file_on_the_gpu_stands_beside_those_of_its_device_unless_their_threads_differ():
    members = [file(0.9, 1.0, 100, device="Orin", threads=4), file(0.9, 0.5, 100, device="Orin", threads=None)]
    assert len(comparison.groups(members)) == 1
    members.append(file(0.9, 1.0, 100, device="Orin", threads=1))
    assert [group.threads for group in comparison.groups(members)] == [4, None, 1]
    assert comparison.groups(members)[1].where == "Orin, batch size 1"


def test_settings_in_which_tasks_differ_are_told():
    members = [file(0.9, 1.0, 100, task={"use": "denoising", "noise": noise}) for noise in (0.3, 0.5)]
    (group,) = comparison.groups(members)
    assert group.settings == {"noise": [0.3, 0.5]}
    assert "denoising, accuracy (higher is better): noise is not the same in all runs: 0.3, 0.5" in side_by_side.notes(
        [group]
    )


def test_runs_of_one_recipe_are_told_apart_and_a_run_that_is_named_twice_is_there_once(tmp_path):
    for folder, name in (("a/one", "cnn"), ("a/two", "cnn"), ("b/one", "mlp")):
        write(tmp_path / folder, name)
    names = [str(tmp_path / folder) for folder in ("a/one", "a/two", "b/one", "a/two/report.json")]
    assert list(dict.fromkeys(found.label for found in comparison.read(names, tmp_path))) == [
        "cnn/one", "cnn/two", "mlp",
    ]  # fmt: skip
    assert len(comparison.read(names, tmp_path)) == 3 * 8


# Limits in words


@given(
    name=st.sampled_from(list(picking.UNITS)),
    sign=st.sampled_from(list(picking.OPERATORS)),
    hundredths=st.integers(-10_000, 10_000),
    space=st.sampled_from(["", " ", "  "]),
    data=st.data(),
)
def test_a_limit_is_read_as_it_was_written(name, sign, hundredths, space, data):
    unit = data.draw(st.sampled_from(list(picking.UNITS[name])))
    text = f"{name}{space}{sign}{space}{hundredths / 100}{space}{unit}"
    limit, other = picking.parse(f"{space}{text}{space},{text}")
    assert limit == other
    assert (limit.name, limit.sign, limit.text, limit.percent) == (name, sign, text.strip(), unit == "%")
    assert limit.bound == pytest.approx(hundredths / 100 * float(picking.UNITS[name][unit]))


@given(st.text(alphabet="latencysorz<>=5.,%µ \n\t", max_size=30) | st.text(max_size=10))
def test_any_text_is_limits_or_one_line_that_names_a_character(text):
    try:
        assert picking.parse(text)
    except UsageError as error:
        said = str(error)
        assert len(said.splitlines()) == 1 or "\u2028" in text or "\u2029" in text or "\x85" in text
        at = int(re.search(r"\": character (\d+): ", said)[1])
        assert 1 <= at <= len(text) + 1


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("", 1, "expected the name of a figure: latency, score, drop, size, speedup or energy"),
        ("latency<5ms,", 13, "expected the name of a figure: latency, score, drop, size, speedup or energy"),
        ("score>=0.97, lateny<5ms", 14, 'no figure "lateny"; did you mean latency?'),
        ("latency<5", 10, "latency needs a unit: us, ms or s"),
        ("latency < 5 kB", 13, 'no unit "kB": us, ms or s'),
        ("size<200KB", 9, 'no unit "KB": B, kB or MB'),
        ("score>=0.97ms", 12, 'no unit "ms": none or %'),
        ("score=>0.97", 6, "expected <, <=, > or >= behind score, not '=>0.97'"),
        ("latency<ms", 9, "expected a number, not 'ms'"),
        ("latency<1.2.3ms", 9, "expected a number, not '1.2.3ms'"),
        ("score>=0.9 size<1MB", 12, "expected a comma, or the end, not 'size<1MB'"),
        ("score>=0,97", 10, "expected the name of a figure: latency, score, drop, size, speedup or energy, not '97'"),
    ],
)
def test_a_wrong_limit_is_told_with_its_place(text, at, said):
    with pytest.raises(UsageError) as caught:
        picking.parse(text)
    assert str(caught.value) == f'--pick "{text}": character {at}: {said}'


def test_units_are_those_of_the_report():
    limits = picking.parse(
        "latency<5µs, latency<2s, score>=97%, drop<=0.5%, size<.2MB, size<=1B, speedup>1.5x, energy<1J"
    )
    assert [limit.bound for limit in limits] == [0.005, 2000.0, 0.97, 0.005, 200_000.0, 1.0, 1.5, 1000.0]


# The file to ship

FILES = st.lists(
    st.builds(
        lambda *figures: figures,
        st.sampled_from([0.90, 0.95, 0.97, 0.99]),
        st.sampled_from([None, 1.0, 2.0, 5.0]),
        st.sampled_from([100, 200, 400]),
        st.sampled_from(["ok", "ok", "ok", "refused"]),
    ),
    min_size=1,
    max_size=8,
)
WISHES = st.lists(
    st.sampled_from(["score>=0.95", "score>0.97", "latency<5ms", "latency<=1ms", "size<200B", "size<=200B", "drop<1%"]),
    min_size=1,
    max_size=3,
)


@given(FILES, WISHES, st.randoms(use_true_random=False))
def test_what_is_picked_meets_all_limits_is_beaten_by_none_and_does_not_depend_on_the_order(figures, wishes, shuffle):
    members = [file(*each, path=str(place)) for place, each in enumerate(figures)]
    limits = picking.parse(", ".join(wishes))
    able = [member for member in members if member.row["status"] == "ok" and member.row["latency_ms"]]
    met = [member for member in able if all(limit.is_met(member) for limit in limits)]
    found = picking.pick(grouped(*members), limits)
    assert found.is_met == bool(met)
    assert found.num_met == len(met)
    assert (found.file is None) == (not able)
    if met:
        assert found.file in met
        costs = {member: [member.cost(name) for name in comparison.OBJECTIVES] for member in met}
        assert not any(comparison.dominates(cost, costs[found.file]) for cost in costs.values())
        assert found.file in grouped(*members).front  # limits that bound the bad side alone leave it there
    elif able:
        assert [limit for limit in limits if not limit.is_met(found.file)] == found.missed != []
        worst = {member: max(limit.miss(member) for limit in limits) for member in able}
        assert worst[found.file] == min(worst.values())
    shuffle.shuffle(members)
    again = picking.pick(grouped(*members), limits)
    assert (again.file, list(again.missed)) == (found.file, list(found.missed))


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("latency<5ms", "best score"),
        ("score>=0.9", "fastest"),
        ("drop<=0.2", "fastest"),
        ("score>=0.9, latency<5ms", "smallest"),
        ("score>=0.9, speedup>0.1", "smallest"),
        ("score>=0.9, latency<5ms, size<1MB", "best score"),
    ],
)
def test_what_no_limit_is_on_decides(wish, expected):
    members = {
        "best score": file(0.99, 4.0, 900, speedup=1.0),
        "fastest": file(0.92, 1.0, 500, speedup=4.0),
        "smallest": file(0.91, 3.0, 100, speedup=1.3),
    }
    found = picking.pick(grouped(*members.values()), picking.parse(wish))
    assert found.file is members[expected]
    assert side_by_side.in_words(found).endswith(f"; {expected} of 3 files that meet all limits")


def test_the_nearest_miss_is_told_with_what_is_missing():
    group = grouped(file(0.96, 4.0, 100), file(0.969, 5.5, 150_000), file(0.99, 1.0, 100, status="refused"))
    found = picking.pick(group, picking.parse("latency<5ms, score>=0.97"))
    assert side_by_side.in_words(found) == (
        "Some Processor, 1 thread, batch size 1: no file meets all limits; nearest is run/model: "
        "accuracy 0.9600, 4.00 ms, 100 B; it misses score>=0.97 by 0.01 (score 0.96)"
    )
    found = picking.pick(group, picking.parse("energy<3mJ, size<90B, latency<1us"))
    assert "energy<3mJ: its energy is not known; size<90B by 10 B (size 100 B); latency<1us by 4.00 ms" in (
        side_by_side.in_words(found)
    )


def test_the_speed_up_of_a_float_file_is_one():
    reference = file(0.97, 4.0, 100, variant="float")
    assert reference.value("speedup") == 1.0
    assert picking.pick(grouped(reference), picking.parse("speedup>=1")).file is reference


def test_nothing_that_may_not_ship_is_picked_however_good():
    group = grouped(file(0.99, 1.0, 1, status="refused"), file(0.99, 1.0, 1, status="failed"))
    found = picking.pick(group, picking.parse("score>0"))
    assert (found.file, found.is_met) == (None, False)
    assert side_by_side.in_words(found).endswith(": none to ship: no file ran there that may")


# Printed, on sample runs


def test_markdown_shows_names_letter_by_letter(tmp_path):
    hostile = "a|b\n# <img src=x> `c` *d*"
    write(tmp_path / "run", hostile)
    text = side_by_side.as_markdown(comparison.groups(comparison.read([str(tmp_path / "run")], tmp_path)))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {11}
    assert r"a\|b \# \<img src=x\> \`c\` \*d\*" in text
    assert "\n#" not in text


def test_energy_has_a_column_where_a_device_measures_it(tmp_path, capsys):
    write(tmp_path / "run", "cnn")
    found = comparison.groups(comparison.read([str(tmp_path / "run")], tmp_path))
    assert "energy" not in side_by_side.columns_of(found)
    write(tmp_path / "run", "cnn", energy_mj=1.2345)
    found = comparison.groups(comparison.read([str(tmp_path / "run")], tmp_path))
    side_by_side.print_tables(found)
    assert "1.23 mJ" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal_and_cut_no_name(tmp_path, capsys, monkeypatch, columns):
    from rich.console import Console

    monkeypatch.setattr(side_by_side, "open_console", lambda: Console(markup=False, highlight=False, width=columns))
    for name in ("resnet8-p50-kd-qat", "cnn-int8"):
        write(tmp_path / name, name)
    side_by_side.print_tables(comparison.groups(comparison.read(map(str, tmp_path.iterdir()), tmp_path)))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    for name in ("resnet8-p50-kd-qat", "onnxruntime", "compressed", "speed-up", "1.69 MB", "54.3 µs", "refused"):
        assert name in out


@pytest.mark.parametrize("lost", ["score", "latency_ms", "status", "target", "speedup", "device"])
def test_a_row_without_what_is_compared_is_a_damaged_report(tmp_path, lost):
    report = write(tmp_path / "run", "cnn")
    del report["rows"][1][lost]
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    with pytest.raises(
        UsageError, match=rf"run/report\.json: damaged, or a file of the run beside it: KeyError: '{lost}'"
    ):
        comparison.read([str(tmp_path / "run")], tmp_path)


def test_files_of_another_device_are_held_to_the_recipes_limits_there(tmp_path):
    write(tmp_path / "run", "cnn")
    rows = [
        row("float", "tflite", 4.0, 1_692_144),
        row("compressed", "tflite", 1.0, 432_464, score=0.9722),
        row("compressed", "onnxruntime", 1.0, 458_060, score=0.9),
        row("compressed", "onnxruntime", 5.0, 458_060)
        | {"speedup": {"median": 0.8, "ci95": [0.79, 0.82], "verdict": "slower"}},
    ]
    found = {"schema": 1, "device": "a phone", "timed": True, "environment": {}, "left_out": [], "warnings": [],
             "rows": [each | {"device": "a phone"} for each in rows]}  # fmt: skip
    (tmp_path / "run" / "devices").mkdir()
    (tmp_path / "run" / "devices" / "phone.json").write_text(json.dumps(found))
    files = comparison.read([str(tmp_path / "run")], tmp_path)
    (group,) = (group for group in comparison.groups(files) if group.device == "a phone")
    assert [member.row["status"] for member in group.files] == ["ok", "ok", "refused", "refused"]
    assert "the recipe allows" in group.files[2].row["reason"]
    assert "0.80x (0.79 to 0.82)" in group.files[3].row["reason"]
    assert picking.pick(group, picking.parse("latency<2ms, score>=0.5")).file is group.files[1]


def test_a_page_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    write(tmp_path / "run", "cnn")
    found = comparison.groups(comparison.read([str(tmp_path / "run")], tmp_path))
    with pytest.raises(UsageError, match="there is no such folder: name a file"):
        compared.write_page(found, [], tmp_path / "gone" / "page.html")
    with pytest.raises(UsageError, match="is a folder: name a file"):
        compared.write_page(found, [], tmp_path)
    monkeypatch.setattr(plugins, "installed", lambda module: module != "plotly")
    with pytest.raises(MissingPackage, match=r"plotly.*pip install 'edgedl\[report\]'"):
        compared.write_page(found, [], tmp_path / "page.html")


# The program, on real runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two small runs of the main job are, of one task."""
    folders = [quick.finished_run(tmp_path_factory, network).folder for network in ("mlp", "cnn")]
    return folders[0].parents[1]


def test_json_and_csv_say_the_same_of_every_file_unrounded(root):
    done = run_in(root, "compare", "mlp", "cnn", "--out", ".", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    reports = [json.loads(next(root.glob(f"{name}/*/report.json")).read_text()) for name in ("mlp", "cnn")]
    stated = [stated for report in reports for stated in report["rows"]]
    assert [{key: found[key] for key in each} for found, each in zip(rows, stated, strict=True)] == stated
    assert all((root / found["path"]).is_file() for found in rows)
    table = list(
        csv.DictReader(io.StringIO(run_in(root, "compare", "mlp", "cnn", "--out", ".", "--format", "csv").stdout))
    )
    for line, found in zip(table, rows, strict=True):
        assert (line["run"], line["variant"], line["target"]) == (found["run"], found["variant"], found["target"])
        assert float(line["score"]) == found["score"]
        assert line["latency_ms"] == (repr(found["latency_ms"]["median"]) if found["latency_ms"] else "")
        assert line["front"] == str(found["front"]).lower()
    assert edgedl.compare(
        *(root / found for found in ("mlp", "cnn") if not (root / found).exists()), "mlp", "cnn", root=root
    ) == [{**found, "run": str(root / found["run"]), "path": str(root / found["path"])} for found in rows]


def test_the_front_of_two_runs_is_marked_whatever_their_order(root):
    def front(*names: str) -> set[str]:
        rows = json.loads(run_in(root, "compare", *names, "--out", ".", "--format", "json").stdout)
        return {found["path"] for found in rows if found["front"]}

    paths = front("mlp", "cnn")
    assert paths == front("cnn", "mlp")
    assert paths
    assert not any("tensorrt" in path for path in paths)  # built, not run
    done = run_in(root, "compare", "mlp", "cnn", "--out", ".")
    marked = [line for line in done.stdout.splitlines() if re.match(r"\*  (mlp|cnn) ", line)]
    assert len(marked) == len(paths)
    assert "digits, accuracy (higher is better): not run here" in done.stdout


def test_pick_names_a_file_that_is_there_and_ends_with_0_or_the_nearest_and_1(root, tmp_path):
    done = run_in(root, "compare", "mlp", "cnn", "--out", ".", "--pick", "latency<1s, score>=0%")
    assert (done.returncode, done.stderr) == (0, "")
    (said,) = re.findall(r": ship (\S+): accuracy ", done.stdout)
    sizes = {path: path.stat().st_size for path in root.glob("*/*/targets/*/*/model.*") if "tensorrt" not in str(path)}
    assert (root / said).stat().st_size == min(sizes.values())
    done = run_in(root, "compare", "mlp", "cnn", "--out", ".", "--pick", "score>1, latency<1s", "--format", "csv")
    assert done.returncode == 1
    assert re.search(r"no file meets all limits; nearest is \S+: .*; it misses score>1 by ", done.stderr)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {line["picked"] for line in rows} == {"false"}
    assert {line["missed"] for line in rows if line["target"] == "tflite"} == {"score>1"}
    page = tmp_path / "page.html"
    done = run_in(root, "compare", "mlp", "--out", ".", "--pick", "score>=0", "--json", "--html", page)
    (picked,) = [found for found in json.loads(done.stdout) if found["picked"]]
    assert done.stderr.splitlines()[-1] == f"page: {page}"
    text = page.read_text(encoding="utf-8")
    assert f"ship {picked['path']}" in text
    assert text.count("plotly.js v") == 1


def test_only_one_target_is_compared_and_nothing_is_picked_where_nothing_was_measured(root):
    rows = json.loads(run_in(root, "compare", "mlp", "--out", ".", "--target", "tflite", "--json").stdout)
    assert {found["target"] for found in rows} == {"tflite"}
    done = run_in(root, "compare", "mlp", "--out", ".", "--target", "tensorrt", "--pick", "score>0")
    assert done.returncode == 1
    assert "none to ship: no file of these runs was measured" in done.stdout
    assert "nothing to compare by latency: no file of these runs was measured" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pick", "lateny<5ms"], '--pick "lateny<5ms": character 1: no figure "lateny"; did you mean latency?'),
        (["--json", "--format", "csv"], "--json and --format csv are two ways to print: give one of them"),
        (
            ["--target", "tflit"],
            "no file with --target tflit; there are targets onnxruntime, tensorrt, tflite; devices ",
        ),
        (["--device", "a phone"], "no file with --device a phone; there are targets onnxruntime, "),
        (["--html", "gone/page.html"], "gone/page.html: there is no such folder: name a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(root, arguments, said):
    done = run_in(root, "compare", "mlp", "--out", ".", *arguments)
    assert done.returncode == 2
    assert the_line(done).startswith(f"edgedl: {said}")


def test_one_pick_is_for_one_task_and_a_share_for_a_metric_that_is_one(tmp_path):
    for name, task in (("cnn", "digits"), ("lstm", "text")):
        write(tmp_path / name, name, task=task)
    done = run_in(tmp_path, "compare", "cnn", "lstm", "--pick", "latency<5ms")
    assert done.returncode == 2
    assert the_line(done) == (
        "edgedl: --pick is for runs of one task and metric, and these are digits, accuracy (higher is better); text, "
        "accuracy (higher is better): give runs of one"
    )
    done = run_in(tmp_path, "compare", "cnn", "lstm")
    assert "they cannot be compared" in done.stdout
    report = sample_report() | {"metric": {"name": "PSNR", "unit": "dB", "higher_is_better": True}}
    (tmp_path / "cnn" / "report.json").write_text(json.dumps(report))
    done = run_in(tmp_path, "compare", "cnn", "--pick", "score>=97%")
    assert the_line(done) == "edgedl: --pick: score>=97%: PSNR is no share of 100 %: leave out the %"


def file(
    score: float,
    latency_ms: float | None,
    size_bytes: int,
    status: str = "ok",
    *,
    variant: str = "compressed",
    path: str = "model",
    task: dict[str, Any] | None = None,
    metric: dict[str, Any] | None = None,
    device: str = "Some Processor",
    threads: int | None = 1,
    batch_size: int = 1,
    speedup: float | None = None,
    **more: Any,
) -> File:
    """A file of a run of its own."""
    content = row(variant, "tflite", latency_ms, size_bytes, score, status)
    content |= {"device": device, "file": path, "speedup": speedup and {"median": speedup}, **more}
    if latency_ms is not None:
        content["latency_ms"] |= {"threads": threads, "batch_size": batch_size}
    return File(Path("run"), "run", "run", task or {"use": "digits"}, metric or METRIC, 0.99 - score, content)


def grouped(*members: File) -> Group:
    return Group("Some Processor", 1, 1, members)


def write(folder: Path, name: str, task: str = "digits", **more: Any) -> dict[str, Any]:
    """A sample run's report, as of a recipe."""
    report = copy.deepcopy(sample_report())
    report["recipe"] |= {"name": name, "task": {"use": task}}
    for found in report["rows"]:
        found |= more
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    return report
