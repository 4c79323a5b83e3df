"""Calibrators: the laws that all hold, and what each is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedl.quantize.calibrators import CALIBRATORS, SATURATING, Histogram, entropy, min_max, mse, percentile
from edgedl.quantize.quantizer import ActivationObserver
from edgedl.quantize.schemes import AFFINE, SYMMETRIC


def histogram(values: np.ndarray, num_bins: int = 2048) -> Histogram:
    reach = 2.0 ** np.ceil(np.log2(max(abs(values).max(), 1e-30)))
    counts, _ = np.histogram(values, num_bins, (-reach, reach))
    return Histogram(counts.astype(float), reach, float(values.min()), float(values.max()))


def observer(scheme) -> ActivationObserver:
    qscheme = torch.per_tensor_symmetric if scheme.symmetric_activations else torch.per_tensor_affine
    return ActivationObserver(torch.int8, scheme.activation_min, scheme.activation_max, qscheme)


samples = st.builds(
    lambda seed, scale, shift, relu: np.maximum(
        np.random.default_rng(seed).standard_t(3, 4000) * scale + shift, 0.0 if relu else -np.inf
    ),
    st.integers(0, 1000),
    st.floats(0.01, 100),
    st.floats(-5, 5),
    st.booleans(),
)


@given(samples, st.sampled_from(sorted(CALIBRATORS)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_range_holds_zero_and_stays_within_what_was_seen(values, name, symmetric):
    low, high = CALIBRATORS[name](histogram(values), symmetric)
    assert low <= 0 <= high
    whole_low, whole_high = min_max(histogram(values), symmetric)
    slack = 1e-6 * (whole_high - whole_low)
    assert whole_low - slack <= low
    assert high <= whole_high + slack
    if symmetric:
        assert low == -high


def test_percentile_cuts_outliers_that_min_max_keeps():
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 100_000), [1000.0]])
    assert min_max(histogram(values, 1 << 16), False)[1] == 1000
    assert percentile(histogram(values, 1 << 16), False)[1] < 10


def test_mse_has_less_error_than_min_max_on_heavy_tails():
    values = np.random.default_rng(0).standard_t(2, 50_000)

    def error(range_: tuple[float, float]) -> float:
        step = (range_[1] - range_[0]) / 255
        return float(np.square(values - np.round(np.clip(values, *range_) / step) * step).mean())

    tails = histogram(values, 1 << 14)
    assert error(mse(tails, False)) < 0.95 * error(min_max(tails, False))


def test_entropy_keeps_the_bulk_of_a_relu_and_cuts_its_outlier():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(50_000), np.abs(rng.normal(0, 1, 50_000)), [300.0]])
    high = entropy(histogram(values, 1 << 14), False)[1]
    assert 2 < high < 100


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC], ids=lambda scheme: scheme.name)
def test_the_order_of_batches_does_not_matter(scheme):
    values = torch.randn(6, 500) * torch.tensor([0.01, 1, 30, 0.5, 200, 3])[:, None]
    forward, backward = observer(scheme), observer(scheme)
    for row in values:
        forward(row)
    for row in values.flip(0):
        backward(row)
    for name in CALIBRATORS:
        assert forward.calibrated(name) == backward.calibrated(name)


@given(st.floats(-100, 100, width=32, allow_subnormal=False), st.floats(-100, 100, width=32, allow_subnormal=False))
def test_the_grid_covers_the_whole_range_and_zero_exactly(first, second):
    watched = observer(AFFINE)
    watched(torch.tensor([first, second]))
    scale, zero_point = watched.calibrated("min-max")
    assert -128 <= zero_point <= 127
    assert scale > 0
    low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
    assert low <= min(first, second, 0) + 1e-5 * abs(low)
    assert high >= max(first, second, 0) - 1e-5 * abs(high)


def test_a_tensor_of_zeros_gets_a_scale_one_can_divide_by():
    watched = observer(AFFINE)
    watched(torch.zeros(10))
    for name in CALIBRATORS:
        scale, zero_point = watched.calibrated(name)
        assert np.isfinite(1 / np.float32(scale))
        assert -128 <= zero_point <= 127


@pytest.mark.parametrize("name", sorted(SATURATING))
def test_what_a_function_saturates_needs_no_codes(name):
    """In front of a sigmoid or tanh, the range is that of values which still make a difference behind it."""
    values, function = np.random.default_rng(0).normal(0, 6, 50_000), SATURATING[name]

    def error(covered: tuple[float, float]) -> float:
        low, high = covered
        step = (high - low) / 255
        rounded = np.round(np.clip(values, low, high) / step) * step
        return float(np.square(function(rounded) - function(values)).mean())

    through = mse(histogram(values), False, function)
    assert error(through) < 0.6 * error(mse(histogram(values), False))
    assert min_max(histogram(values), False)[1] > 3 * through[1]
