"""The crop's path against exhaustive search, and its bounds against the path's own derivatives."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from avsal.applications.paths import Motion, best_points, grid, kept, shot_path
from avsal.errors import ConfigError


def worth(gains: np.ndarray, points: np.ndarray, speed: int, acceleration: int, calm: float) -> float:
    steps = np.diff(points)
    motion = np.abs(steps).sum() / max(speed, 1) + np.abs(np.diff(steps)).sum() / max(acceleration, 1)
    return float(gains[np.arange(len(gains)), points[1:]].sum() - calm / 2 * motion)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 4), st.sampled_from([0.0, 0.2, 0.9]))
def test_no_path_within_the_bounds_is_worth_more(
    seed: int, speed: int, acceleration: int, calm: float
) -> None:
    gains = np.random.default_rng(seed).random((4, 5))
    paths = [
        path
        for path in (np.array(points) for points in product(range(5), repeat=5))
        if abs(np.diff(path)).max() <= speed and abs(np.diff(path, 2)).max() <= acceleration
    ]
    found = best_points(gains, speed, acceleration, calm)
    assert abs(np.diff(found)).max() <= speed
    assert abs(np.diff(found, 2)).max() <= acceleration
    best = max(worth(gains, path, speed, acceleration, calm) for path in paths)
    assert worth(gains, found, speed, acceleration, calm) == pytest.approx(best)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_speed_and_acceleration_of_the_whole_path_stay_within_the_bounds(seed: int) -> None:
    random = np.random.default_rng(seed)
    positions, motion = grid(0.4), Motion(speed=0.3, acceleration=0.6)
    times = np.sort(random.uniform(3, 9, 80))
    at = np.linspace(3, 9, 1201)
    path = shot_path(times, random.random((80, len(positions))), positions, motion, at)
    step = at[1] - at[0]
    assert 0 <= path.min() <= path.max() <= 0.6
    assert np.abs(np.diff(path)).max() / step <= 0.3 + 1e-9
    assert np.abs(np.diff(path, 2)).max() / step**2 <= 0.6 + 1e-6


def test_a_slow_target_is_followed_and_a_still_one_is_not_chased() -> None:
    times = np.arange(0, 12, 0.04)
    positions = grid(0.3)
    target = 0.35 + 0.2 * np.sin(times / 2)
    near = np.exp(-(((positions - target[:, None]) / 0.05) ** 2))
    path = shot_path(times, near, positions, Motion(), times)
    assert np.abs(path - target).max() < 0.04
    noise = np.random.default_rng(0).normal(0.3, 0.004, len(times))
    still = np.exp(-(((positions - noise[:, None]) / 0.05) ** 2))
    assert np.ptp(shot_path(times, still, positions, Motion(), times)) < 1e-9


@given(st.floats(0, 0.6), st.integers(2, 40))
@settings(deadline=None)
def test_the_attention_inside_a_crop_is_the_integral_over_its_cells(begin: float, cells: int) -> None:
    shares = np.random.default_rng(cells).dirichlet(np.ones(cells))
    fine = np.repeat(shares / 2000, 2000)  # each cell in 2000 parts
    centres = (np.arange(len(fine)) + 0.5) / len(fine)
    inside = fine[(centres >= begin) & (centres < begin + 0.4)].sum()
    cumulative = np.concatenate([[0], np.cumsum(shares)])
    assert kept(cumulative, np.array([begin]), 0.4)[0] == pytest.approx(inside, abs=2 * fine.max())


def test_one_frame_and_a_crop_of_the_whole_axis_have_a_path() -> None:
    one = np.array([2.0])
    assert shot_path(one, np.eye(5)[[3]], np.linspace(0, 0.4, 5), Motion(), one) == pytest.approx(0.3)
    assert shot_path(one, np.ones((1, 1)), grid(1.0), Motion(), one) == pytest.approx(0.0)


@pytest.mark.parametrize("options", [{"speed": -1.0}, {"acceleration": float("nan")}, {"calm": -0.1}])
def test_motion_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="lengths per second"):
        Motion(**options)
