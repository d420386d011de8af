"""The samples of a gaze recording on the picture and the clock of a video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avsal.data.windows import nearest
from avsal.errors import DataError

FloatArray = NDArray[np.float64]
FIXATION, SACCADE, OUTSIDE, UNTRACKED = 0, 1, 2, 3

#: Share of a video that samples whose time unit was seen from their spacing must span. Frame numbers of a video of up
#: to 120 Hz, and seconds at 1 Hz, look like milliseconds, and would last less.
SPAN = 0.15


@dataclass(frozen=True)
class GazeTable:
    """The samples of one gaze recording, in order of time.

    Attributes:
        path: the file.
        time: (n,) seconds; NaN where the table has only frame numbers and the video's times are not known.
        x: (n,) share of the picture's width in 0..1 from the left, or yaw in radians; NaN where there is no gaze.
        y: (n,) share of the picture's height in 0..1 from the top, or pitch in radians; NaN likewise.
        kind: "points" on the picture, or "angles", which need a camera's calibration to become points.
        frame: (n,) int64 0-based frame numbers, None if the table has none.
        gaze_type: (n,) int64 0 fixation, 1 saccade, 2 outside the image, 3 untracked, None if not given.
        observer: (n,) int64, numbered in order of appearance, None if not given.
        depth: (n,) metres along an angle, NaN where unknown; None for points.
        units: what the file's coordinates are in.
        time_unit: what the file's times are in, None without times.
        time_guessed: the time unit was seen from the spacing of the samples alone.
        reason: (n,) why a sample is no fixation, "" where it may be one.
        duration: (n,) seconds that a row lasts, None where rows are samples.
        by_frame: the frame numbers, not the times, say which frame a row belongs to.
        skipped: rows of the file that are not of this recording, by reason.
        notes: what was assumed.
    """

    path: Path
    time: FloatArray
    x: FloatArray
    y: FloatArray
    kind: Literal["points", "angles"]
    frame: NDArray[np.int64] | None = None
    gaze_type: NDArray[np.int64] | None = None
    observer: NDArray[np.int64] | None = None
    depth: FloatArray | None = None
    units: str = "normalised"
    time_unit: str | None = None
    time_guessed: bool = False
    reason: NDArray[Any] | None = None
    duration: FloatArray | None = None
    by_frame: bool = False
    skipped: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lost(self) -> int:
        """Samples without a position (blinks, lost tracking, what the tracker calls no gaze)."""
        return int((~self.tracked).sum())

    @property
    def outside(self) -> int:
        """Samples with a position outside the picture."""
        if self.kind == "angles":
            return 0
        with np.errstate(invalid="ignore"):
            return int((self.tracked & ((self.x < 0) | (self.x > 1) | (self.y < 0) | (self.y > 1))).sum())

    @property
    def tracked(self) -> NDArray[np.bool_]:
        """(n,) whether the sample has a position."""
        return np.isfinite(self.x) & np.isfinite(self.y)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that are no fixation, counted by reason."""
        found = Counter(dict(self.skipped))
        if self.reason is not None:
            found.update(str(reason) for reason in self.reason if reason)
        return dict(found)

    def take(self, rows: NDArray[np.int64]) -> GazeTable:
        """Return the table with these rows in this order."""
        columns = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return GazeTable(**{**vars(self), **columns})

    def shifted(self, seconds: float) -> GazeTable:
        """Return the table on a clock whose zero is `seconds` later."""
        return replace(self, time=self.time - seconds)

    def check_span(self, seconds: float) -> None:
        """Refuse a time unit that was guessed and makes a video of `seconds` much longer than its gaze.

        Raises:
            DataError: gaze lasts less than 15 % of it.
        """
        lasts = float(self.time[-1] - self.time[0])
        if self.time_guessed and np.isfinite(seconds) and lasts < SPAN * seconds:
            raise DataError(
                f"{self.path}: the time column names no unit. By the spacing of its samples it is in {self.time_unit}, "
                f"but then gaze lasts {lasts:.3f} s of {seconds:.3f} s of video. Pass time_unit, or, if the column "
                "counts frames, name it 'frame'."
            )

    def check_clock(self, first: float, last: float, max_gap: float = 0.2) -> None:
        """Refuse a clock on which gaze and the video's frames, from `first` to `last` seconds, do not meet.

        Raises:
            DataError: gaze ends before the video or begins after it, or `check_span` refuses it.
        """
        if self.by_frame or len(self) == 0:
            return
        if self.time[-1] < first - max_gap or self.time[0] > last + max_gap:
            raise DataError(
                f"{self.path}: gaze runs from {self.time[0]:.3f} to {self.time[-1]:.3f} s, the video from "
                f"{first:.3f} to {last:.3f} s: they do not meet. Gaze and video are on different "
                "clocks (pass the offset=) or the time unit is not the file's (pass time_unit)."
            )
        self.check_span(last - first)

    def nearest(self, times: Sequence[float] | FloatArray, *, max_gap: float = 0.2) -> NDArray[np.int64]:
        """Return the sample nearest in time to each of `times` (m,) seconds.

        Args:
            times: seconds on the table's clock.
            max_gap: farther samples do not count.

        Returns:
            (m,) int64 indices, -1 where no sample lies within `max_gap`.

        Raises:
            DataError: the table has no times, or ends before the first of `times` or begins after the last one:
                then the two run on different clocks. Or its time unit was guessed, and in that unit it lasts less than
                15 % of `times`.
        """
        times = np.asarray(times, dtype=np.float64)
        if len(self) == 0 or not np.isfinite(self.time).all():
            raise DataError(
                f"{self.path}: the gaze table has no times; pass the video's fps to read_gaze_table."
            )
        if len(times):
            self.check_clock(float(times[0]), float(times[-1]), max_gap)
        index = nearest(self.time, times)
        return np.where(np.abs(self.time[index] - times) <= max_gap + 1e-9, index, -1)


def write_plain(tables: Sequence[GazeTable], path: Path, frames: tuple[float, float]) -> int:
    """Write avsal's plain table of one video: time_s, x_norm, y_norm, duration_s where rows last, observer.

    Args:
        tables: recordings on the video's clock, of other observers each.
        path: the file; it is written under another name and renamed.
        frames: seconds at which the first picture begins and the last one ends.

    Returns:
        The number of rows: fixations, or samples that may be one, inside the picture and the video.
    """
    from avsal.files import write_text

    lasting = all(table.duration is not None for table in tables)
    lines, people = [], 0
    for table in tables:
        with np.errstate(invalid="ignore"):
            inside = (
                (table.x >= 0) & (table.x < 1) & (table.y >= 0) & (table.y < 1) & (table.time < frames[1])
            )
        end = table.time + (table.duration if lasting and table.duration is not None else 5e-4)
        keep = np.flatnonzero(inside & (end >= frames[0]) & (table.reason == ""))
        who = table.observer if table.observer is not None else np.zeros(len(table), dtype=np.int64)
        for k in keep:
            extra = f",{table.duration[k]:.6f}" if lasting and table.duration is not None else ""
            lines.append(
                (
                    table.time[k],
                    f"{table.time[k]:.6f},{table.x[k]:.6f},{table.y[k]:.6f}{extra},{people + who[k]}",
                )
            )
        people += int(who.max()) + 1 if len(who) else 0
    lines.sort(key=lambda line: line[0])
    header = f"time_s,x_norm,y_norm{',duration_s' if lasting else ''},observer"
    write_text(path, "\n".join([header, *(line for _, line in lines)]) + "\n")
    return len(lines)
