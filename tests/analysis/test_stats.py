"""Intervals hold what they promise: by hand where it can be done, by simulation where not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from efficientllm.analysis import stats
from efficientllm.analysis.stats import (
    Interval,
    autocorrelation,
    counted,
    over_documents,
    over_trials,
    percentile,
    within_run,
)
from efficientllm.spec.protocol import PROFILES, Protocol

RUNS = 3000


@pytest.mark.parametrize(
    ("looked", "quantile"),
    [(False, 4.302653), (True, 6.205347)],  # Student's t with 2 degrees of freedom
    ids=["fixed", "looked"],
)
def test_three_trials_by_hand(looked: bool, quantile: float) -> None:
    # logarithms 0, d, 2d: mean d, standard deviation d
    d = math.log(1.1)
    half = quantile * d / math.sqrt(3)
    found = over_trials([1.0, 1.1, 1.21], looked=looked)
    assert found.value == pytest.approx(1.1)
    assert found.low == pytest.approx(1.1 * math.exp(-half), rel=1e-5)
    assert found.high == pytest.approx(1.1 * math.exp(half), rel=1e-5)
    assert (found.n, found.basis) == (3, "trials")


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_a_fixed_number_of_trials_covers_the_truth_as_often_as_stated(n: int) -> None:
    generator = np.random.default_rng(n)
    for noise in (0.002, 0.02, 0.08):
        trials = 7.0 * generator.lognormal(0, noise, size=(RUNS, n))
        found = [over_trials(run, looked=False) for run in trials]
        covered = np.mean([i.low <= 7.0 <= i.high for i in found])  # type: ignore[operator]
        assert 0.93 <= covered <= 0.97


def test_uncorrected_looking_would_break_the_promise() -> None:
    """The reason for the wider interval: stopping at the first lucky look with a plain one."""
    generator = np.random.default_rng(0)
    covered = 0
    for run in generator.lognormal(0, 0.02, size=(RUNS, 10)):
        for n in (3, 5, 7, 10):
            found = over_trials(run[:n], looked=False)
            if found.half_width is not None and found.half_width <= 0.02:
                break
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.0 <= found.high
    assert covered / RUNS < 0.94


@pytest.mark.parametrize("profile", ["standard", "publish"])
@pytest.mark.parametrize("noise", [0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
def test_stopping_at_a_look_keeps_the_promise(profile: str, noise: float) -> None:
    looks, target = Protocol(profile=profile).looks(), PROFILES[profile].time_half_width
    assert looks == {"standard": (3, 5, 7, 10), "publish": (5, 7, 10, 14, 20)}[profile]
    assert target is not None
    generator = np.random.default_rng(round(noise * 1000))
    covered = 0
    for run in generator.lognormal(0, noise, size=(RUNS, looks[-1])):
        for n in looks:
            found = over_trials(run[:n], looked=True)
            assert found.half_width is not None
            if found.half_width <= target:
                break
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.0 <= found.high
    assert covered / RUNS >= 0.95


@pytest.mark.parametrize("values", [[5.0], [4.0, 9.0]])
def test_one_or_two_trials_have_a_mean_and_no_interval(values: list[float]) -> None:
    found = over_trials(values, looked=True)
    expected = {1: 5.0, 2: 6.0}[len(values)]  # geometric
    assert found == Interval(pytest.approx(expected), None, None, len(values), "none")
    assert found.half_width is None


def test_values_that_are_not_positive_have_no_interval() -> None:
    assert over_trials([0.0, 1.0, 2.0], looked=False) == Interval(1.0, None, None, 3, "none")


def test_equal_trials_have_an_interval_of_no_width() -> None:
    found = over_trials([3.0] * 4, looked=True)
    assert found.half_width == pytest.approx(0.0)
    assert found.value == pytest.approx(3.0)


def test_the_half_width_is_relative_to_the_value() -> None:
    assert Interval(200.0, 190.0, 210.0, 5, "trials").half_width == 0.05
    assert Interval(0.0, 0.0, 0.0, 5, "trials").half_width is None


def test_counts_that_agree_are_exact_and_others_are_none() -> None:
    assert counted([0.0, 0.0, 0.0]) == Interval(0.0, None, None, 3, "exact")
    assert counted([7.0]) == Interval(7.0, None, None, 1, "exact")
    assert counted([7.0, 7.0, 8.0]) is None


def test_blocks_of_one_run_say_how_steady_that_run_was() -> None:
    found = within_run(10.0, [9.0, 10.0, 11.0])
    logs = np.log([9.0, 10.0, 11.0])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    assert found.value == 10.0
    assert found.low == pytest.approx(10 * math.exp(-half), rel=1e-5)
    assert found.high == pytest.approx(10 * math.exp(half), rel=1e-5)
    assert found.basis == "within-run"


@pytest.mark.parametrize("blocks", [[], [1.0, 2.0], [1.0, 0.0, 2.0]])
def test_too_few_blocks_say_nothing(blocks: list[float]) -> None:
    assert within_run(1.5, blocks) == Interval(1.5, None, None, len(blocks), "none")


def test_the_interval_over_documents_is_of_the_ratio_of_sums() -> None:
    equal = over_documents([2.0, 4.0, 8.0] * 3, [1, 2, 4] * 3)
    assert equal == (pytest.approx(2.0), pytest.approx(2.0))
    found = over_documents([1.0] * 50 + [3.0] * 50, [1] * 100)
    assert found is not None
    low, high = found
    # the standard error of the mean of a fair coin between 1 and 3, of 100 throws
    assert (low, high) == (pytest.approx(2 - 1.96 * 0.1, abs=0.02), pytest.approx(2.196, abs=0.02))
    assert over_documents([1.0] * 7, [1] * 7) is None


def test_the_interval_over_documents_is_the_same_every_time() -> None:
    nll = [float(i % 7) + 1 for i in range(30)]
    assert over_documents(nll, [3] * 30) == over_documents(nll, [3] * 30)


def test_the_interval_over_documents_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        sizes = generator.integers(200, 2000, size=60)
        nll = sizes * generator.normal(0.7, 0.1, size=60)
        found = over_documents(nll.tolist(), sizes.tolist(), draws=500)
        assert found is not None
        covered += found[0] <= 0.7 <= found[1]
    assert 0.91 <= covered / 400 <= 0.98


def test_autocorrelation_is_that_of_the_process() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=20_000)
    for rho in (0.0, 0.5, 0.8, -0.5):
        series = [0.0]
        for shock in noise:
            series.append(rho * series[-1] + shock)
        assert autocorrelation(series) == pytest.approx(rho, abs=0.03)


def test_autocorrelation_by_hand() -> None:
    # 1, 2 in turn: centred -1/2, 1/2 ...; nine products of -1/4 over ten squares of 1/4
    assert autocorrelation([1.0, 2.0] * 5) == pytest.approx(-0.9)
    assert autocorrelation([1.0, 2.0] * 4) is None  # eight samples say too little
    assert autocorrelation([3.0] * 50) is None


@pytest.mark.parametrize(("q", "needed"), [(90, 64), (95, 130), (99, 662)])
def test_a_percentile_needs_its_samples(q: int, needed: int) -> None:
    samples = [float(i) for i in range(1, needed + 1)]
    assert percentile(samples[:-1], q) is None
    assert percentile(samples, q) == math.ceil(q / 100 * needed)
    # LoadGen's rule: with so many, one sample above leaves 99 % confidence
    p = q / 100
    confidence = 1 - p**needed - needed * (1 - p) * p ** (needed - 1)
    assert confidence >= 0.99
    fewer = needed - 1
    assert 1 - p**fewer - fewer * (1 - p) * p ** (fewer - 1) < 0.99


def test_the_median_needs_one_sample() -> None:
    assert percentile([4.0], 50) == 4.0
    assert percentile([9.0, 1.0, 5.0], 50) == 5.0
    assert stats.PERCENTILE_NEEDS[50] == 1
