"""The gate: each reason to refuse, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedl import gate
from edgedl.core import Baseline, Limits, Metric, OperatorTime
from edgedl.ladder import Agreement, Climb, Rung
from edgedl.measure import Scored
from edgedl.stats import Speedup

ACCURACY = Metric(name="accuracy", unit="fraction", higher_is_better=True)
ERROR = Metric(name="error", unit="m", higher_is_better=False)
FASTER, SLOWER = Speedup(2.0, (1.9, 2.1), "faster"), Speedup(0.5, (0.45, 0.55), "slower")
EQUAL = Speedup(1.0, (0.99, 1.01), "no difference")


def climb(score: float = 0.9, drop: float = 0.0, breach: str | None = None) -> Climb:
    rungs = (Rung("float", score + drop, 0.0), Rung("deployed", score, drop))
    scored = Scored({"y": np.zeros((1, 1))}, score, 1, None)
    return Climb(rungs, 40.0, Agreement(240.0, 1.0, 0), None, breach, scored)


def judged(
    candidate: gate.Candidate, limits: Limits | None = None, metric: Metric = ACCURACY, there: str | None = None
):
    reference = gate.Candidate("float", 4000, climb(), None)
    return gate.judge(reference, [candidate], {}, limits or Limits(), metric, "a test", there)


def compressed(speedup=FASTER, drop=0.0, breach=None, **more) -> gate.Candidate:
    return gate.Candidate("compressed", 1000, climb(drop=drop, breach=breach), speedup, **more)


def test_faster_and_as_good_ships_with_its_gains_in_words():
    verdict = judged(compressed())
    assert verdict.ship == "compressed"
    assert "2.00x faster" in verdict.why
    assert "4.00x smaller" in verdict.why
    assert "a test" in verdict.why
    assert not verdict.refused


def test_slower_is_refused_with_what_costs_the_time():
    operators = [OperatorTime("q", "QuantizeLinear", 0.3), OperatorTime("c", "Conv", 0.7)]
    verdict = judged(compressed(SLOWER, operators=operators, channels=[13, 32, 31]))
    assert verdict.ship == "float"
    reason = verdict.refused["compressed"]
    assert "slower" in reason
    assert "30% of its time goes into conversions" in reason
    assert "1 operator runs in float" in reason
    assert "13, 31 channels are no multiple of 8" in reason


def test_slower_may_be_allowed():
    assert judged(compressed(SLOWER), Limits(slower="allow")).ship == "compressed"


def test_no_difference_ships_since_it_is_smaller():
    assert judged(compressed(EQUAL)).ship == "compressed"


def test_a_worse_score_is_refused():
    verdict = judged(compressed(drop=0.02), Limits(score_drop=0.01))
    assert verdict.ship == "float"
    assert "0.0200 worse" in verdict.refused["compressed"]


@given(st.floats(-1, 1), st.floats(0, 1))
def test_exactly_the_drops_beyond_the_limit_are_refused(drop, limit):
    verdict = judged(compressed(drop=drop), Limits(score_drop=limit))
    assert (verdict.ship == "float") == (drop > limit)


@pytest.mark.parametrize(("metric", "drop", "word"), [(ACCURACY, 0.005, "lower"), (ERROR, 0.005, "higher")])
def test_the_direction_of_a_metric_is_minded(metric, drop, word):
    assert metric.drop(1.0, 1.0 - drop if metric.higher_is_better else 1.0 + drop) == pytest.approx(drop)
    assert f"0.0050 {word}" in judged(compressed(drop=drop), metric=metric).why


def test_a_file_that_computes_something_else_is_refused_whatever_its_score_and_speed():
    verdict = judged(compressed(breach="they part at layer x"))
    assert verdict.ship == "float"
    assert verdict.refused["compressed"] == "they part at layer x"


def test_what_cannot_run_here_is_judged_on_the_device():
    verdict = judged(compressed(None), there="`edgedl bench a --vs b`")
    assert verdict.ship == "host only"
    assert "edgedl bench a --vs b" in verdict.why
    assert judged(compressed(None, drop=0.5), there="`x`").ship == "float"  # a bad score needs no device


def test_a_variant_that_failed_leaves_float_to_ship():
    reference = gate.Candidate("float", 4000, climb(), None)
    verdict = gate.judge(reference, [], {"compressed": "it failed: no int8"}, Limits(), ACCURACY, "a test", None)
    assert verdict.ship == "float"
    assert "no int8" in verdict.why


def test_no_sound_file_ships_nothing():
    broken = gate.Candidate("float", 4000, climb(breach="broken"), None)
    verdict = gate.judge(broken, [compressed(breach="broken too")], {}, Limits(), ACCURACY, "a test", None)
    assert verdict.ship == "none"
    assert set(verdict.refused) == {"float", "compressed"}


COMMONEST = Baseline(0.5, "always answering the commonest class")


@pytest.mark.parametrize(
    ("score", "metric", "learned"),
    [(0.51, ACCURACY, True), (0.5, ACCURACY, False), (0.48, ACCURACY, False), (float("nan"), ACCURACY, False),
     (0.49, ERROR, True), (0.5, ERROR, False), (0.6, ERROR, False)],
)  # fmt: skip
def test_a_network_has_learned_if_it_beats_the_baseline(score, metric, learned):
    assert (gate.why_unlearned(score, metric, COMMONEST) is None) == learned
    assert gate.why_unlearned(score, metric, None) is None


def test_nothing_of_a_network_that_never_learned_ships_however_fast_and_exact():
    unlearned = gate.why_unlearned(0.48, ACCURACY, COMMONEST)
    said = "the float network does no better than always answering the commonest class: accuracy 0.4800 against 0.5000"
    assert unlearned == said
    reference = gate.Candidate("float", 4000, climb(), None)
    for there in (None, "a command"):
        failures = {"int4": "it failed: no kernel"}
        verdict = gate.judge(reference, [compressed()], failures, Limits(), ACCURACY, "a test", there, unlearned)
        assert verdict.ship == "none"
        assert said in verdict.why
        assert verdict.refused == {"float": said, "compressed": said, "int4": "it failed: no kernel"}
