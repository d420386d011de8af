"""A crop's way through a shot: the path that keeps most attention among all that move smoothly.

The crop slides along one axis of the picture. Its position is a uniform quadratic B-spline whose control points lie
on a grid of positions, `KNOT` seconds apart. Such a spline's speed lies between the differences of neighbouring
control points, and its acceleration is their second difference, so that bounds on these bound the whole path; and it
never leaves the range of its control points. The best control points are found exactly, by dynamic programming over
position and speed (Viterbi).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from avsal.errors import ConfigError

FloatArray = NDArray[np.float64]
#: Seconds between control points, and grid positions in one length of the picture's axis.
KNOT, GRID = 0.25, 192


@dataclass(frozen=True)
class Motion:
    """How a crop may move.

    Args:
        speed: largest speed, in lengths of the picture's axis per second.
        acceleration: largest acceleration, in lengths per second squared.
        calm: attention (share of a frame's, 0..1) that motion at full speed and full acceleration has to gain.
    """

    speed: float = 0.25
    acceleration: float = 0.5
    calm: float = 0.05

    def __post_init__(self) -> None:
        if not (0 <= self.speed <= 10 and 0 <= self.acceleration <= 100 and self.calm >= 0):
            raise ConfigError(
                f"speed={self.speed}, acceleration={self.acceleration}, calm={self.calm}: expected 0 to 10 lengths "
                "per second, 0 to 100 lengths per second squared, and 0 or more."
            )

    def steps(self) -> tuple[int, int]:
        """Return the bounds in grid positions per knot and per knot squared."""
        return int(self.speed * KNOT * GRID + 1e-9), int(self.acceleration * KNOT * KNOT * GRID + 1e-9)


def kept(cumulative: FloatArray, positions: FloatArray, length: float) -> FloatArray:
    """Return the share of attention inside a crop at each position.

    Args:
        cumulative: (n + 1,) attention before each of the n + 1 edges of a map's cells along the axis, from 0 to 1.
        positions: where the crop begins, 0..1 - length, in lengths of the axis.
        length: the crop's, 0..1.

    Returns:
        shares 0..1, like `positions`; attention is even within a cell.
    """
    edges = np.linspace(0, 1, len(cumulative))
    return np.interp(positions + length, edges, cumulative) - np.interp(positions, edges, cumulative)


def grid(length: float) -> FloatArray:
    """Return the grid of positions for a crop of that length: from 0 to 1 - length, at most 1 / GRID apart."""
    return np.linspace(0, 1 - length, int(np.ceil((1 - length) * GRID - 1e-9)) + 1)


def best_points(gains: FloatArray, speed: int, acceleration: int, calm: float = 0.0) -> NDArray[np.int64]:
    """Return the control points with the largest sum of gains, less the cost of motion, within the bounds.

    Args:
        gains: (K, P) what position p is worth at knot k.
        speed: largest difference of neighbouring points, in grid positions.
        acceleration: largest second difference.
        calm: cost of a difference of `speed` and of a second difference of `acceleration`, half each.

    Returns:
        (K + 1,) indices 0..P-1: the point before the first knot, then one for each knot.
    """
    count, places = gains.shape
    speed = min(speed, places - 1)
    velocities = np.arange(-speed, speed + 1)
    turns = range(-min(acceleration, 2 * speed), min(acceleration, 2 * speed) + 1)
    toll = calm * 0.5 * np.abs(velocities) / max(speed, 1)
    before = np.arange(places)[:, None] - velocities  # position one knot earlier, for (position, velocity)
    allowed = (before >= 0) & (before < places)
    before = before.clip(0, places - 1)
    value = np.where(allowed, gains[0][:, None] - toll, -np.inf)
    choice = np.zeros((count, places, len(velocities)), np.int16)  # index of the previous velocity
    for knot in range(1, count):
        best = np.full_like(value, -np.inf)
        for turn in turns:  # previous velocity = velocity - turn
            columns = np.arange(len(velocities)) - turn
            inside = (columns >= 0) & (columns < len(velocities))
            columns = columns.clip(0, len(velocities) - 1)
            found = value[before, columns] - calm * 0.5 * abs(turn) / max(acceleration, 1)
            found[~(allowed & inside)] = -np.inf
            better = found > best
            best[better] = found[better]
            choice[knot][better] = np.broadcast_to(columns, best.shape)[better]
        value = best + gains[knot][:, None] - toll
    place, speed_index = np.unravel_index(int(value.argmax()), value.shape)
    points = np.empty(count + 1, np.int64)
    for knot in range(count - 1, -1, -1):
        points[knot + 1] = place
        place, speed_index = place - velocities[speed_index], choice[knot, place, speed_index]
    points[0] = place
    return points


def shot_path(
    times: FloatArray, values: FloatArray, positions: FloatArray, motion: Motion, at: FloatArray
) -> FloatArray:
    """Return the crop's position during one shot.

    Args:
        times: (n,) seconds at which attention is known, increasing.
        values: (n, P) what each position is worth then.
        positions: (P,) the grid, evenly spaced.
        motion: bounds.
        at: (m,) seconds of the shot's frames, increasing.

    Returns:
        (m,) positions within the range of `positions`.
    """
    if len(positions) == 1:
        return np.full(len(at), positions[0])
    place = (at - at[0]) / KNOT
    knots = int(np.rint(place[-1])) + 2  # one beyond the last frame: the spline needs a point on either side
    nearest = np.rint((times - at[0]) / KNOT).astype(np.int64).clip(0, knots - 1)
    gains = np.zeros((knots, len(positions)))
    np.add.at(gains, nearest, values)
    gains /= np.bincount(nearest, minlength=knots).clip(1)[:, None]
    control = positions[best_points(gains, *motion.steps(), motion.calm)]
    return np.asarray(BSpline(np.arange(len(control) + 3) - 2.5, control, 2)(place))
