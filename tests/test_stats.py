"""Medians, intervals, verdicts and signal-to-noise ratios."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedl import stats


def blocks(rng: np.random.Generator, median_ms: float, num_blocks: int = 30, runs: int = 40) -> list[np.ndarray]:
    drift = rng.normal(1, 0.02, num_blocks)
    return [median_ms * factor * rng.lognormal(0, 0.05, runs) for factor in drift]


def test_summary_of_known_samples():
    latency = stats.summarize([np.full(100, 2.0), np.full(100, 2.0), np.full(100, 4.0)])
    assert latency.median == 2.0
    assert latency.runs == 300
    assert latency.p99 is None  # 300 runs say nothing of one in a hundred


def test_p99_needs_a_thousand_runs():
    assert stats.summarize([np.ones(999)]).p99 is None
    assert stats.summarize([np.ones(1000)]).p99 == 1.0


@given(st.integers(0, 10_000))
def test_the_interval_holds_the_median(seed):
    latency = stats.summarize(blocks(np.random.default_rng(seed), 1.0))
    assert latency.ci95[0] <= latency.median <= latency.ci95[1]
    assert latency.median <= latency.p90


@pytest.mark.parametrize(
    ("factor", "verdict"), [(2.0, "faster"), (0.5, "slower"), (1.0, "no difference"), (1.005, "no difference")]
)
def test_verdicts(factor, verdict):
    rng = np.random.default_rng(0)
    found = stats.compare(blocks(rng, factor), blocks(rng, 1.0))
    assert found.verdict == verdict
    assert found.ci95[0] <= factor * 1.02
    assert found.ci95[1] >= factor * 0.98


@given(st.integers(0, 500))
def test_a_file_against_itself_is_never_faster_or_slower(seed):
    rng = np.random.default_rng(seed)
    assert stats.compare(blocks(rng, 1.0), blocks(rng, 1.0)).verdict == "no difference"


def test_what_slows_the_whole_machine_cancels():
    rng = np.random.default_rng(0)
    slow = np.where(np.arange(30) % 10 < 5, 3.0, 1.0)
    base = [factor * np.full(40, 2.0) * rng.lognormal(0, 0.01, 40) for factor in slow]
    other = [factor * np.full(40, 1.0) * rng.lognormal(0, 0.01, 40) for factor in slow]
    found = stats.compare(base, other)
    assert found.median == pytest.approx(2.0, rel=0.02)
    assert found.ci95[1] - found.ci95[0] < 0.05


def test_sqnr_of_known_noise():
    reference = np.array([1.0, -1.0, 1.0, -1.0])
    assert stats.sqnr_db(reference, reference + 0.1) == pytest.approx(20)
    assert stats.sqnr_db(reference, reference) == stats.EXACT_DB
    assert stats.sqnr_db(np.zeros(4), np.ones(4)) == -stats.EXACT_DB


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(-1e3, 1e3))
def test_sqnr_is_always_a_json_number(values, error):
    reference = np.array(values)
    json.dumps(stats.sqnr_db(reference, reference + error), allow_nan=False)
