"""Means over videos as the papers take them, and their bootstrap: one pass of matrix products, no loop."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
#: Draws of the bootstrap; the interval's third digit is stable with so many.
DRAWS = 10_000


@dataclass(frozen=True)
class Units:
    """Scores of the videos of one system on one data set.

    Attributes:
        names: U videos; with `rule="pool"` a video of each fold is a unit of its own.
        values: (U, F) each video's mean in each of F folds; NaN where no frame could be scored.
        weights: (U, F) what a video counts: 1, or its number of frames where all frames are averaged.
        rule: "pool" (one fold's column, or all folds' videos in one), or "folds": every fold has its mean, and
            these are averaged (DIEM, whose test videos are the same in each fold).
    """

    names: tuple[str, ...]
    values: FloatArray
    weights: FloatArray
    rule: Literal["pool", "folds"] = "pool"

    def mean(self) -> float:
        """Return the data set's number: mean over videos in each fold, then over folds."""
        return float(self._means(np.ones((1, len(self.names))))[0])

    def draws(self, counts: FloatArray) -> FloatArray:
        """Return (B,) the number for each resample; `counts` (B, U) says how often each video was drawn."""
        return self._means(counts)

    def _means(self, counts: FloatArray) -> FloatArray:
        valid = ~np.isnan(self.values)
        weight = self.weights * valid
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (counts @ (np.where(valid, self.values, 0.0) * weight)) / (counts @ weight)
        if means.shape[1] == 1:
            return means[:, 0]
        used = ~np.isnan(means)
        with np.errstate(invalid="ignore"):
            return np.where(used, means, 0.0).sum(1) / used.sum(1)


def resamples(videos: int, *, draws: int = DRAWS, seed: int = 0, data: str = "") -> FloatArray:
    """Return (draws, videos) how often each video is drawn when as many are drawn with replacement.

    Args:
        videos: number of units.
        draws: number of resamples.
        seed: of the draws.
        data: the data set: others get other draws, so that their means are independent.
    """
    key = (seed, videos, zlib.crc32(data.encode()))
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    return random.multinomial(videos, np.full(videos, 1.0 / videos), size=draws).astype(np.float64)


def interval(samples: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Return the central percentile interval of bootstrap samples; NaN without any."""
    samples = samples[~np.isnan(samples)]
    if samples.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(first: Units, second: Units, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """Return the difference of two systems over the videos that both have, and its interval.

    Both are resampled with the same videos, so what makes a video easy or hard for both drops out.

    Args:
        first, second: with equal rules and numbers of folds.
        draws, seed: see `resamples`.
    """
    both = sorted(set(first.names) & set(second.names))
    if not both:
        return (float("nan"),) * 3
    a, b = _restrict(first, both), _restrict(second, both)
    counts = resamples(len(both), draws=draws, seed=seed)
    return a.mean() - b.mean(), *interval(a.draws(counts) - b.draws(counts))


def gaze_f1(
    first: tuple[Units, Units],
    second: tuple[Units, Units] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    data: str = "",
) -> tuple[float, float, float]:
    """Return F1 from recall and precision, and its interval; with `second`, the difference over the same videos.

    Args:
        first, second: recall and precision of each system.
        draws, seed, data: see `resamples`.
    """
    both = sorted(set(first[0].names) & set((second or first)[0].names))
    if not both:
        return (float("nan"),) * 3
    counts = resamples(len(both), draws=draws, seed=seed, data=data)
    once = np.ones((1, len(both)))
    values, samples = [], []
    for parts in (first, second) if second is not None else (first,):
        units = [_restrict(part, both) for part in parts]
        values.append(float(f1_of(*(u.draws(once) for u in units))[0]))
        samples.append(f1_of(*(u.draws(counts) for u in units)))
    if second is None:
        return values[0], *interval(samples[0])
    return values[0] - values[1], *interval(samples[0] - samples[1])


def average(parts: Sequence[FloatArray]) -> FloatArray:
    """Return (B,) the mean of several data sets' resamples, drawn independently of each other."""
    return np.mean(np.stack(parts), 0)


def f1_of(recall: FloatArray, precision: FloatArray) -> FloatArray:
    """Return F1 from mean recall and precision, as CSTS does."""
    return 2 * recall * precision / (recall + precision + 1e-6)


def _restrict(units: Units, names: Sequence[str]) -> Units:
    place = {name: k for k, name in enumerate(units.names)}
    rows = [place[name] for name in names]
    return Units(tuple(names), units.values[rows], units.weights[rows], units.rule)
