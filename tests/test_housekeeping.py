"""Runs are listed as they stand, and none goes that is under way, or that another needs."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgedl import housekeeping, recipe
from edgedl.cli.main import app
from edgedl.core import UsageError
from edgedl.housekeeping import Choice
from edgedl.run import Run, locked
from tests.sample_report import sample_report

NOW = datetime(2026, 6, 30, 12)


def made(root: Path, recipe: str, days: int, *, finished: bool, text: str = "", keys: tuple[str, ...] = ()) -> Path:
    """A run folder so many days old, with a file of 1,000 bytes."""
    folder = root / recipe / (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H-%M-%S")
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(text)
    stages = ["created", *(f"steps/{number:02}-train" for number in range(len(keys)))]
    (folder / "run.json").write_text(json.dumps({stage: {"finished": "x"} for stage in stages}))
    for number, key in enumerate(keys):
        step = folder / f"steps/{number:02}-train"
        step.mkdir(parents=True)
        (step / "step.json").write_text(json.dumps({"key": key}))
    (folder / "weights").write_bytes(b"x" * 1000)
    if finished:
        (folder / "report.json").write_text("{}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two finished runs of `a` and one that was interrupted, one of `b` that takes its teacher from the older `a`."""
    old = made(tmp_path, "a", 40, finished=True, keys=("one",))
    made(tmp_path, "a", 2, finished=True, keys=("one", "two"))
    made(tmp_path, "a", 1, finished=False, keys=("one",))
    teacher = f'steps = [{{ use = "distill", teacher = "{old}/targets/float/tflite/model.tflite" }}]'
    made(tmp_path, "b", 35, finished=True, text=teacher, keys=("three",))
    (tmp_path / "a" / "notes").mkdir()  # no run
    (tmp_path / "link").symlink_to(tmp_path / "a")
    return tmp_path


def going(root: Path, choice: Choice) -> list[tuple[str, int]]:
    return [(run.recipe, (NOW - run.started).days) for run in choice.of(housekeeping.runs(root), NOW)]


def test_runs_are_listed_as_they_stand(root):
    (root / "link").unlink()
    with locked(root / "a" / "2026-06-29T12-00-00"):
        (_, _, under_way, _) = housekeeping.runs(root)
    assert under_way.state == "under way"
    found = housekeeping.runs(root)
    assert [(run.recipe, run.state, run.stage) for run in found] == [
        ("a", "finished", "steps/00-train"),
        ("a", "finished", "steps/01-train"),
        ("a", "interrupted", "steps/00-train"),
        ("b", "finished", "steps/00-train"),
    ]
    assert all(1000 < run.size_bytes < 2000 for run in found)
    assert [row["shared_steps"] for row in housekeeping.as_rows(found)] == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(interrupted=True), [("a", 1)]),
        (Choice(keep=2), []),  # the third of `a` is a teacher
        (Choice(keep=1), [("a", 2)]),
        (Choice(keep=0, interrupted=True), [("a", 1)]),
        (Choice(keep=0, older=timedelta(days=30)), [("a", 40), ("b", 35)]),  # with whom it taught
        (Choice(older=timedelta(days=36)), []),
        (Choice(keep=0), [("a", 40), ("b", 35), ("a", 2), ("a", 1)]),
    ],
)
def test_those_go_that_meet_all_conditions_and_that_no_other_needs(root, choice, wanted):
    (root / "link").unlink()
    assert going(root, choice) == wanted


def test_the_latest_run_of_a_recipe_that_is_named_stays(root):
    (root / "link").unlink()
    made(root, "c", 1, finished=True, text='steps = [{ use = "distill", teacher = "b" }]')
    assert ("b", 35) not in going(root, Choice(older=timedelta(days=3)))


@pytest.mark.parametrize(("text", "wanted"), [("30d", timedelta(days=30)), ("12h", timedelta(hours=12))])
def test_ages_are_read(text, wanted):
    assert housekeeping.age(text) == wanted


@pytest.mark.parametrize("text", ["", "d", "30", "-1d", "1y", "1e9d", "٣d"])
def test_what_is_no_age_is_told(text):
    with pytest.raises(UsageError, match="--older"):
        housekeeping.age(text)


def test_a_run_that_is_under_way_is_not_deleted(root):
    (run, *_) = housekeeping.runs(root)
    with locked(run.folder):
        assert not housekeeping.remove(run)
    assert run.folder.is_dir()
    assert housekeeping.remove(run)
    assert not run.folder.exists()


def test_clean_asks_and_deletes(root):
    (root / "link").unlink()
    folder = root / "a" / "2026-06-29T12-00-00"
    program = CliRunner()
    asked = program.invoke(app, ["runs", "clean", "--out", str(root)])
    assert isinstance(asked.exception, UsageError)
    assert "--yes" in str(asked.exception)
    shown = program.invoke(app, ["runs", "clean", "--out", str(root), "--dry-run", "--json"])
    assert [(row["run"], row["deleted"]) for row in json.loads(shown.stdout)] == [(str(folder), False)]
    assert folder.is_dir()
    done = program.invoke(app, ["runs", "clean", "--out", str(root), "--yes"])
    assert done.exit_code == 0
    assert "deleted: 1 runs" in done.stdout
    assert not folder.exists()
    left = program.invoke(app, ["runs", "list", "--out", str(root), "--json"])
    assert len(json.loads(left.stdout)) == 3
    assert program.invoke(app, ["runs", "clean", "--out", str(root), "--yes"]).exit_code == 0


DAMAGED = ["", "[]", "[" * 100_000, '{"created": 3}', '{"created": {"resumed": "x"}}', "\udcff"]


@pytest.mark.parametrize("content", DAMAGED, ids=["empty", "a list", "deep", "a number", "a text", "no text"])
def test_a_run_whose_notes_are_damaged_is_listed_and_gone_on_with(content, tmp_path):
    text = 'task = { use = "digits" }\nmodel = { use = "mlp" }\nsteps = [{ use = "quantize" }]\n'
    text += 'targets = [{ use = "onnxruntime" }]\n'
    folder = made(tmp_path, "b", 1, finished=False, text=text)
    (folder / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    (found,) = housekeeping.runs(tmp_path)
    assert found.state == "interrupted"
    with Run.started(recipe.parse(text, Path("b.toml")), text, tmp_path) as run:
        assert (run.folder / "weights").is_file()  # of the folder that was there
        assert run.stages()["created"]["resumed"] == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: report["rows"][0].pop("score"),
        lambda report: report["rows"][1].update(latency_ms=3),
        lambda report: report["verdicts"][0].pop("why"),
        lambda report: report["ladder"][0].update(rungs=[{}]),
        lambda report: report["recipe"].pop("description"),
        lambda report: report["rows"][0].update(target=True),
    ],
    ids=["no score", "another latency", "no reason", "no rung", "no description", "no name"],
)
def test_a_report_with_something_else_in_it_is_damaged(damage, tmp_path):
    report = sample_report()
    damage(report)
    (tmp_path / "report.json").write_text(json.dumps(report))
    for command in ("report", "compare"):
        done = CliRunner().invoke(app, [command, str(tmp_path)])
        assert isinstance(done.exception, UsageError | SystemExit | type(None)), done.exception
        if isinstance(done.exception, UsageError):
            assert str(done.exception).startswith(f"{tmp_path / 'report.json'}: damaged")
    assert isinstance(CliRunner().invoke(app, ["report", str(tmp_path)]).exception, UsageError)
