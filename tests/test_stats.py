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


# Verdicts on simulated noise, of kinds and sizes as they were seen on a shared core: 5 % from block to block.


def quiet(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.ones(num)


def drift(rng: np.random.Generator, num: int) -> np.ndarray:
    """The clock wanders by a tenth."""
    return np.exp(np.cumsum(rng.normal(0, 0.01, num)))


def throttling(rng: np.random.Generator, num: int) -> np.ndarray:
    """From somewhere on all is 40 % slower."""
    return np.where(np.arange(num) < rng.integers(num), 1.0, 1.4)


def neighbours(rng: np.random.Generator, num: int) -> np.ndarray:
    """Other work takes a third of the core, for some blocks in a row."""
    return np.where(np.sin(np.arange(num) / rng.uniform(2, 9)) > 0.5, 1.5, 1.0)


MACHINES = [quiet, drift, throttling, neighbours]


def in_turn(rng: np.random.Generator, machine, factor: float, rounds: int = 100) -> list[list[np.ndarray]]:
    """Blocks of two files in turn, the second `factor` slower; a tenth of all runs is interrupted."""
    course = machine(rng, 2 * rounds)
    found: list[list[np.ndarray]] = [[], []]
    for index in range(rounds):
        for file in (0, 1) if index % 2 == 0 else (1, 0):
            pace = course[2 * index + (file if index % 2 == 0 else 1 - file)] * rng.lognormal(0, 0.035)
            runs = pace * (factor if file else 1.0) * rng.lognormal(0, 0.03, 15)
            found[file].append(np.where(rng.random(15) < 0.1, runs * rng.uniform(2, 6, 15), runs))
    return found


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("factor", "verdict", "at_least"), [(1.0, "no difference", 95), (1.03, "slower", 80)])
def test_of_a_hundred_tries_so_many_say_what_is_true(machine, factor, verdict, at_least):
    tries = [stats.compare(*in_turn(np.random.default_rng(seed), machine, factor)) for seed in range(100)]
    assert sum(found.verdict == verdict for found in tries) >= at_least
    assert sum(found.ci95[0] <= 1 / factor <= found.ci95[1] for found in tries) >= 88


@given(st.integers(0, 10_000), st.sampled_from(MACHINES), st.sampled_from([1.0, 1.1]))
def test_two_files_the_other_way_round_give_the_inverse(seed, machine, factor):
    ours, theirs = in_turn(np.random.default_rng(seed), machine, factor, rounds=12)
    there, back = stats.compare(ours, theirs), stats.compare(theirs, ours)
    assert there.median == pytest.approx(1 / back.median)
    assert there.ci95 == pytest.approx((1 / back.ci95[1], 1 / back.ci95[0]))
    opposite = {"faster": "slower", "slower": "faster", "no difference": "no difference"}
    assert there.verdict == opposite[back.verdict]
    assert there.ci95[0] <= there.median <= there.ci95[1]


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(2, 1000))
def test_a_few_wild_blocks_decide_nothing(seed, wild, factor):
    rng = np.random.default_rng(seed)
    ours, theirs = in_turn(rng, quiet, 1.0, rounds=60)
    for index in rng.choice(60, wild, replace=False):
        ours[index] = ours[index] * factor
    assert stats.compare(ours, theirs).verdict == "no difference"


def test_signed_ranks_leave_out_what_their_tables_say():
    """M. Hollander, D. Wolfe: critical values of the signed-rank test for 5 % on both sides."""
    table = {5: 0, 6: 0, 7: 2, 8: 3, 10: 8, 15: 25, 20: 52, 30: 137, 50: 434}
    assert {count: stats._outside(count, 0.025) for count in table} == table


def test_the_interval_of_signed_ranks_is_right_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [stats.signed_rank_interval(rng.standard_t(3, 25)) for _ in range(1000)]
    assert 930 <= sum(low <= 0 <= high for _, low, high in intervals) <= 975
    assert stats.signed_rank_interval(np.array([3.0])) == (3.0, 3.0, 3.0)


def test_the_interval_of_rank_sums_is_right_as_often_as_it_says():
    rng = np.random.default_rng(2)
    pairs = [(rng.standard_t(3, 15), 0.5 + rng.standard_t(3, 20)) for _ in range(1000)]
    intervals = [stats.rank_sum_interval(*pair) for pair in pairs]
    assert 930 <= sum(low <= 0.5 <= high for _, low, high in intervals) <= 975
    assert all(low <= centre <= high for centre, low, high in intervals)
    assert stats.rank_sum_interval(np.zeros(1), np.ones(1)) == (1.0, 1.0, 1.0)
