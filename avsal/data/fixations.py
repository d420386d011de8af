"""From points that people looked at to fixation lists and density maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.errors import DataError

IntArray = NDArray[np.int64]
NO_POINTS: IntArray = np.zeros((0, 2), dtype=np.int64)
NO_IDS: IntArray = np.zeros(0, dtype=np.int64)


def distinct(points: IntArray, size: tuple[int, int]) -> IntArray:
    """Return the distinct (row, column) pairs of (N, 2) points on a grid of `size`."""
    flat = np.unique(points[:, 0] * size[1] + points[:, 1])
    return np.stack([flat // size[1], flat % size[1]], 1)


def density_from_fixations(
    points: NDArray[Any], size: tuple[int, ...], sigma: float | tuple[float, float]
) -> NDArray[np.float32]:
    """Return the sum of one Gaussian for each fixation, divided by its maximum.

    The Gaussians are neither cut off nor mirrored at the border (their tails leave the picture).

    Args:
        points: (N, 2) row and column in pixels; a point is the middle of its pixel. Duplicates add up.
        size: (H, W) of the map.
        sigma: standard deviation in pixels, one for both axes or (vertical, horizontal).

    Returns:
        (H, W) float32 in [0, 1]; all zero without points.
    """
    height, width = int(size[0]), int(size[1])
    if len(points) == 0:
        return np.zeros((height, width), dtype=np.float32)
    down, across = (sigma, sigma) if isinstance(sigma, (int, float)) else sigma
    where = np.asarray(points, dtype=np.float32)
    rows = np.exp(-0.5 * ((np.arange(height, dtype=np.float32)[:, None] - where[None, :, 0]) / down) ** 2)
    columns = np.exp(-0.5 * ((np.arange(width, dtype=np.float32)[None, :] - where[:, 1, None]) / across) ** 2)
    total = rows @ columns  # separable: one matrix product for all points
    return total / total.max()


def default_sigma(size: tuple[int, int]) -> float:
    """Return the Gaussian used where a set does not say: 1/30 of the width, about one degree on a screen."""
    return size[1] / 30


@dataclass(frozen=True)
class FixationTable:
    """All fixations of one video, as pixels of a grid.

    Attributes:
        frame: (N,) int64, 0-based, sorted.
        points: (N, 2) int64 row and column, inside the grid.
        observer: (N,) int64, -1 where unknown.
        size: (H, W) of the grid.
        outside: samples that were dropped because they lay outside the picture.
        dropped: (reason, rows) of all that was left out, where the source gives reasons.
    """

    frame: IntArray
    points: IntArray
    observer: IntArray
    size: tuple[int, int]
    outside: int = 0
    dropped: tuple[tuple[str, int], ...] = ()

    @classmethod
    def build(
        cls,
        frame: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[Any],
        observer: NDArray[Any] | None,
        size: tuple[int, int],
        frames: int | None = None,
    ) -> FixationTable:
        """Sort, floor to pixels, and drop (and count) what lies outside the picture or is NaN.

        Args:
            frame: (N,) 0-based frame of each point.
            x: (N,) pixels from the left.
            y: (N,) pixels from the top.
            observer: (N,) ids, or None.
            size: (H, W) of the picture.
            frames: number of frames of the video, if points beyond it are to be dropped.
        """
        frame, x, y = (np.asarray(a, dtype=np.float64) for a in (frame, x, y))
        ids = np.full(len(frame), -1) if observer is None else np.asarray(observer)
        with np.errstate(invalid="ignore"):
            inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0]) & (frame >= 0)
            if frames is not None:
                inside &= frame < frames
        frame, x, y, ids = frame[inside].astype(np.int64), x[inside], y[inside], ids[inside].astype(np.int64)
        order = np.lexsort((ids, frame))
        points = np.stack([np.floor(y), np.floor(x)], 1).astype(np.int64)
        return cls(frame[order], points[order], ids[order], size, int((~inside).sum()))

    def at(self, frame: int) -> tuple[IntArray, IntArray]:
        """Return the points (N, 2) and observers (N,) of one frame."""
        low, high = np.searchsorted(self.frame, (frame, frame + 1))
        return self.points[low:high], self.observer[low:high]

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,) which frames, up to the last one with a fixation, have any."""
        seen = np.zeros(int(self.frame[-1]) + 1 if len(self.frame) else 0, dtype=bool)
        seen[self.frame] = True
        return seen


def read_fixations(path: Path, size: tuple[int, int], frames: int | None = None) -> FixationTable:
    """Read `fixations.csv`: a header with frame, x, y and perhaps observer; 0-based frames, pixels.

    Raises:
        DataError: the file cannot be read, or a column is missing.
    """
    columns = read_csv(path)
    missing = [name for name in ("frame", "x", "y") if name not in columns]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; found {', '.join(columns) or 'none'}.")
    return FixationTable.build(
        columns["frame"], columns["x"], columns["y"], columns.get("observer"), size, frames
    )


def read_csv(path: Path) -> Mapping[str, NDArray[np.float64]]:
    """Read a CSV file of numbers with a header into columns.

    Raises:
        DataError: the file is missing, empty or holds something that is no number.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [name.strip() for name in file.readline().split(",")]
            lines = [line for line in file.read().splitlines() if line.strip()]
            table = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.zeros((0, 0))
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table of numbers ({error}).") from error
    if table.size and table.shape[1] != len(names):
        raise DataError(f"{path}: {len(names)} column names, but {table.shape[1]} columns of numbers.")
    return {name: table[:, k] if table.size else np.zeros(0) for k, name in enumerate(names)}
