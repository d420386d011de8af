"""Means over videos and folds against NumPy, and intervals against a direct bootstrap and the normal approximation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from avsal.report.statistics import Units, average, f1_of, gaze_f1, interval, paired, resamples


def units(values: np.ndarray, weights: np.ndarray | None = None, rule: str = "pool") -> Units:
    values = np.atleast_2d(values.T).T
    return Units(
        tuple(f"v{k:03d}" for k in range(len(values))), values, np.ones_like(values) if weights is None else weights,
        rule,  # type: ignore[arg-type]
    )  # fmt: skip


def test_pooled_mean_drops_videos_without_a_score() -> None:
    values = np.array([0.2, np.nan, 0.8])
    assert units(values).mean() == pytest.approx(0.5)


def test_mean_of_fold_means_counts_each_fold_once() -> None:
    values = np.array([[0.1, 0.5], [0.3, np.nan], [0.5, np.nan]])
    assert units(values, rule="folds").mean() == pytest.approx((0.3 + 0.5) / 2)


def test_weights_make_the_mean_over_frames() -> None:
    values, frames = np.array([[0.2], [0.8]]), np.array([[30.0], [10.0]])
    assert units(values, frames).mean() == pytest.approx(np.average([0.2, 0.8], weights=[30, 10]))


def test_resamples_draw_as_many_videos_as_there_are_and_depend_on_seed_and_data_only() -> None:
    counts = resamples(17, draws=200, seed=3, data="DIEM")
    assert counts.shape == (200, 17)
    assert (counts.sum(1) == 17).all()
    assert (counts == resamples(17, draws=200, seed=3, data="DIEM")).all()
    assert (counts != resamples(17, draws=200, seed=3, data="AVAD")).any()
    assert (counts != resamples(17, draws=200, seed=4, data="DIEM")).any()


def test_draws_equal_a_loop_over_resampled_videos() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(9, 3))
    values[2, 1] = np.nan
    made = units(values, rule="folds")
    counts = resamples(9, draws=50)
    slow = [np.mean(np.nanmean(np.repeat(values, row.astype(int), 0), 0)) for row in counts]
    np.testing.assert_allclose(made.draws(counts), slow, rtol=1e-12)


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.3, 60)
    low, high = interval(units(values).draws(resamples(60, draws=20_000)))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=0)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_paired_difference_is_certain_where_every_video_gains_the_same() -> None:
    values = np.random.default_rng(2).normal(2.0, 1.0, 20)
    gap, low, high = paired(units(values + 0.1), units(values))
    assert (gap, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_paired_difference_uses_common_videos_only() -> None:
    first, second = units(np.array([1.0, 2.0, 9.0])), units(np.array([0.0, 1.0]))
    assert paired(first, second)[0] == pytest.approx(1.0)
    assert np.isnan(paired(first, Units(("other",), np.ones((1, 1)), np.ones((1, 1))))[0])


def test_the_mean_of_independent_sets_is_more_certain_than_each() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 40)
    parts = [units(values).draws(resamples(40, data=name)) for name in ("DIEM", "AVAD", "ETMD", "SumMe")]
    assert average(parts).std() == pytest.approx(parts[0].std() / 2, rel=0.05)


def test_f1_is_the_harmonic_mean() -> None:
    assert f1_of(np.array([0.5]), np.array([0.25]))[0] == pytest.approx(stats.hmean([0.5, 0.25]), abs=1e-5)


def test_f1_of_frames_pooled_over_videos_and_its_difference_equal_a_loop() -> None:
    random = np.random.default_rng(3)
    frames = random.integers(20, 60, 12).astype(float)[:, None]
    ours, theirs = (
        tuple(units(random.uniform(0.2, 0.8, (12, 1)), frames) for _ in ("recall", "precision"))
        for _ in range(2)
    )

    def f1(parts: tuple[Units, ...], drawn: np.ndarray) -> float:
        recall, precision = (np.average(p.values[drawn, 0], weights=frames[drawn, 0]) for p in parts)
        return float(2 * recall * precision / (recall + precision + 1e-6))

    everything = np.arange(12)
    value, low, high = gaze_f1(ours, draws=300)  # type: ignore[arg-type]
    assert value == pytest.approx(f1(ours, everything))
    rows = [np.repeat(everything, row.astype(int)) for row in resamples(12, draws=300)]
    slow = [f1(ours, row) for row in rows]
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    gap, low, high = gaze_f1(ours, theirs, draws=300)  # type: ignore[arg-type]
    assert gap == pytest.approx(f1(ours, everything) - f1(theirs, everything))
    slow = [f1(ours, row) - f1(theirs, row) for row in rows]
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
