"""The comparison of the joint recipe with its parts: fair recipes, and a table that says what the reports say."""

from __future__ import annotations

import json

import pytest

from benchmarks import joint
from edgedl import recipe
from tests.sample_report import row

JOINT = list(joint.FORMS)[-1]


def measured(variant: str, target: str, latency_ms: float | None, size_bytes: int, score: float, speedup: float | None):
    found = row(variant, target, latency_ms, size_bytes, score)
    return found | {"speedup": speedup and {"median": speedup, "ci95": [speedup, speedup], "verdict": "faster"}}


def results(seed: int, score: float) -> list[joint.Row]:
    """Figures of all forms, as if each had run."""
    rows = []
    for form in joint.FORMS:
        found = []
        for target in joint.RUNTIMES:
            found.append(measured("float", target, 0.1, 3000, 0.9, None))
            found.append(measured("compressed", target, 0.02, 1000, score, 5.0))
        found.append(measured("compressed", "tensorrt", None, 1000, score, None))
        rows += joint.figures(form, seed, {"rows": found})
    return rows


@pytest.mark.parametrize("name", joint.FORMS.values(), ids=joint.FORMS)
def test_what_is_compared_comes_from_the_same_float_network(name):
    whole, part = recipe.load("resnet8-p50-kd-qat"), recipe.load(name)
    assert (part.seed, part.task, part.model, part.steps[0]) == (whole.seed, whole.task, whole.model, whole.steps[0])
    for step in part.steps[1:-1]:
        assert step in whole.steps or step.use == "distill"


def test_without_a_teacher_all_else_is_the_same():
    whole, part = (recipe.load(joint.FORMS[form]) for form in (JOINT, "pruned, trained on, QAT"))
    assert part.steps[:2] == whole.steps[:2]
    for own, taught in zip(part.steps[2:], whole.steps[2:], strict=True):
        assert taught.weight > 0
        assert own == taught.model_copy(update={"weight": 0.0})


def test_training_on_takes_as_long_as_what_it_is_compared_with():
    whole, part = (recipe.load(joint.FORMS[form]) for form in (JOINT, "pruned, trained on, PTQ"))
    assert part.steps[2].weight == 0  # from labels alone
    assert part.steps[2].epochs == whole.steps[2].epochs + whole.steps[3].epochs


def test_a_seed_is_written_into_the_recipe_that_a_run_keeps():
    source = recipe.find("resnet8-p50-kd-qat").read_text(encoding="utf-8")
    assert recipe.parse(joint.seeded(source, 7), recipe.find("resnet8-p50-kd-qat")).seed == 7


def test_the_table_has_a_line_for_each_network_and_runtime_with_means_over_the_seeds():
    lines = joint.markdown([*results(0, 0.8), *results(1, 0.9)]).splitlines()
    assert len(lines) == 2 + len(joint.RUNTIMES) * (1 + len(joint.FORMS))
    assert lines[2] == (
        "| tflite | as trained, float | 0.9000 (0.9000 to 0.9000) | +0.0000 | 3,000 | 1.00× | 100.0 µs | 1.00× |"
    )
    assert lines[3] == (
        "| tflite | PTQ alone | 0.8500 (0.8000 to 0.9000) | -0.0500 | 1,000 | 3.00× | 20.0 µs | 5.00× |"
    )
    assert f"| onnxruntime | {JOINT} | 0.8500" in lines[-1]


def test_a_network_that_is_missing_at_a_seed_is_not_averaged_away():
    rows = [*results(0, 0.8), *results(1, 0.9)]
    rows = [found for found in rows if (found["form"], found["seed"]) != (JOINT, 1)]
    with pytest.raises(AssertionError):
        joint.markdown(rows)


def test_a_new_table_takes_the_place_of_the_old(tmp_path):
    document = tmp_path / "joint.md"
    document.write_text(f"before\n{joint.START}\nold\n\n{joint.END}after\n", encoding="utf-8")
    joint.write_table(document, "| new |\n")
    assert document.read_text(encoding="utf-8") == f"before\n{joint.START}\n| new |\n\n{joint.END}after\n"


def test_the_table_in_the_documents_is_that_of_the_results():
    rows = json.loads(joint.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert joint.markdown(rows) in joint.DOCUMENT.read_text(encoding="utf-8")
