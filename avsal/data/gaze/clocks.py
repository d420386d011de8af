"""When gaze was: times, their units and zero, and frame numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.gaze.importers import PLAIN, Dialect
from avsal.data.gaze.options import TimeUnit
from avsal.data.gaze.sheets import FloatArray, Record, world_clock
from avsal.errors import DataError

#: Seconds per unit of time.
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
#: Rates in Hz that eye trackers record at; the time unit is inferred from the spacing of the samples.
RATES = (5.0, 2000.0)


@dataclass(frozen=True)
class Clock:
    """When the rows were.

    Attributes:
        time: (n,) seconds; NaN where they are not known.
        frame: (n,) 0-based frame numbers, None without.
        time_unit: of the file's times, None without.
        time_guessed: the unit was seen from the spacing alone.
        duration: (n,) seconds that a row lasts, None for samples.
        by_frame: the frame numbers count, not the times.
        reason: (n,) why a row cannot be placed, "" where it can.
    """

    time: FloatArray
    frame: NDArray[np.int64] | None
    time_unit: str | None
    time_guessed: bool
    duration: FloatArray | None
    by_frame: bool
    reason: NDArray[Any]


def read_clock(
    record: Record,
    dialect: Dialect,
    columns: tuple[int | None, int | None, int | None],
    numbers: Mapping[int, FloatArray],
    observer: NDArray[np.int64] | None,
) -> Clock:
    """Return the times of the rows on the video's clock.

    Args:
        record: the table.
        dialect: the export that the table is.
        columns: of the time, the frame and the duration.
        numbers: the columns, by their place.
        observer: (n,) who looked.

    Raises:
        DataError: the unit is not certain, times and frame numbers contradict each other, or are another video's.
    """
    sheet, reading = record.sheet, record.reading
    time, frame, lasts = columns
    count = len(sheet.rows)
    reason = np.full(count, "", dtype=object)
    unit, guessed, duration = None, False, None
    when = np.full(count, np.nan)
    if time is not None:
        seconds = numbers[time]
        since = sheet.find((dialect.since,)) if dialect.since else None
        if since is not None:
            seconds = seconds - sheet.numbers([since])[since]
        missing = ~np.isfinite(seconds)
        if missing.all() and frame is None:
            raise DataError(f"{record.path}: {count} samples have no time.")
        if not missing.all():
            known = sheet.keys[time] in (*dialect.time, *(dialect.events or ()))
            named = sheet.units[time] or (dialect.time_unit if known else None)
            unit, guessed = _time_unit(
                record.path, sheet.header[time], named, seconds, observer, reading.time_unit, lasts is not None
            )  # fmt: skip
            when = seconds * SECONDS[unit]
            if frame is None:
                reason[missing] = "no time"
    if lasts is not None:
        duration_unit = sheet.units[lasts] or dialect.duration_unit or unit or "s"
        duration = np.nan_to_num(numbers[lasts] * SECONDS[duration_unit]).clip(0)
    numbered = numbers[frame] if frame is not None else None
    if numbered is not None and frame is not None:
        odd = np.flatnonzero(np.isfinite(numbered) & (numbered != np.trunc(numbered)))
        if len(odd):
            raise DataError(f"{sheet.where(int(odd[0]), frame)} is no whole frame number.")
    by_frame = counts_frames(record, dialect, when, numbered)
    frames: NDArray[np.int64] | None = None
    if numbered is not None:
        frames = np.nan_to_num(numbered, nan=-1).astype(np.int64)
        if by_frame:
            frames, when = number_frames(record, frames, reason)
            reason[~np.isfinite(numbered)] = "no frame number"
    if not by_frame and unit is not None:
        when = find_zero(record, dialect, when, observer)
        # A row without a time must not come first, nor stop the table from being sorted.
        when = np.where(np.isfinite(when), when, np.nanmax(when))
    return Clock(when, frames, unit, guessed, duration, by_frame, reason)


def counts_frames(record: Record, dialect: Dialect, when: FloatArray, numbered: FloatArray | None) -> bool:
    """Decide whether frame numbers or times say which frame a row belongs to."""
    if numbered is None:
        return False
    if not np.isfinite(when).any():
        return True
    times = record.times() if record.reading.offset is None else None
    if times is None:
        return False
    if dialect is not PLAIN:
        return True
    inside = (when >= times[0] - 0.2) & (when <= times[-1] + 0.2)
    if inside.mean() < 0.5:
        record.notes.append("the times are of another clock than the video's: the frame numbers count")
        return True
    apart = np.abs(np.searchsorted(times, when[inside] + 5e-4, side="right") - 1 - numbered[inside])
    if np.nanquantile(apart, 0.9) <= 1:
        return True
    k = int(np.flatnonzero(inside)[np.nanargmax(apart)])
    raise DataError(
        f"{record.path}, line {record.sheet.lines[k]}: by its time ({when[k]:.3f} s) the row is "
        f"{np.nanmax(apart):.0f} frames away from frame {numbered[k]:.0f}, its number. Leave one of the columns "
        "out: columns={'frame': ''} or columns={'time': ''}; or pass offset=."
    )


def number_frames(
    record: Record, frames: NDArray[np.int64], reason: NDArray[Any]
) -> tuple[NDArray[np.int64], FloatArray]:
    """Return 0-based frames and their times; numbers before and beyond the video are marked."""
    times, first = record.times(), record.reading.first_frame
    if times is None:
        frames = frames - (first or 0)
        return frames, frames / record.fps if record.fps else np.full(len(frames), np.nan)
    count = len(times)
    low, high = int(frames[frames >= 0].min(initial=count)), int(frames.max())
    if first is None:
        first = 1 if low >= 1 and high == count else 0
        if first == 1:
            record.notes.append("frames are numbered from 1")
        elif low == 1 and high < count:
            record.notes.append(
                f"frames are numbered from 1 to {high} of {count}: read as counted from 0 (first_frame=1 otherwise)"
            )
    frames = frames - first
    beyond = frames >= count
    if beyond.mean() > 0.05:
        raise DataError(
            f"{record.path}: frame numbers run to {high}, and the video has {count} frames: {beyond.mean():.0%} of the "
            "rows lie beyond it. Is it another video or frame rate, or another first number (first_frame=)?"
        )
    reason[beyond], reason[frames < 0] = "after the video", "before the video"
    step = (times[-1] - times[0]) / max(count - 1, 1)
    when = times[frames.clip(0, count - 1)] + (frames - frames.clip(0, count - 1)) * step
    return frames, when


def find_zero(
    record: Record, dialect: Dialect, when: FloatArray, observer: NDArray[np.int64] | None
) -> FloatArray:
    """Return times on the video's clock."""
    if record.reading.offset is not None:
        return when - record.reading.offset
    world = world_clock(record.path) if dialect.tracker == "neon" else None
    times = record.times() if world is not None else None
    if world is not None and times is not None:
        if len(world) == len(times):
            out = np.interp(when, world, times)
            out = np.where(when < world[0], times[0] + when - world[0], out)
            return np.where(when > world[-1], times[-1] + when - world[-1], out)
        record.notes.append(
            f"world_timestamps.csv has {len(world)} rows, the video {len(times)} frames: its first row is the offset"
        )
        return when - world[0] + times[0]
    if dialect.zero == "stimulus" and record.column("stimulus", dialect.stimulus) is not None:
        who = observer if observer is not None else np.zeros(len(when), dtype=np.int64)
        record.notes.append("the clock begins at the stimulus' first row")
        return when - np.array([np.nanmin(when[who == k], initial=np.inf) for k in range(who.max() + 1)])[who]
    return when


def _time_unit(
    path: Path,
    name: str,
    named: str | None,
    time: FloatArray,
    observer: NDArray[np.int64] | None,
    given: TimeUnit,
    events: bool,
) -> tuple[str, bool]:
    """Return the unit of a time column, as given, named or from the spacing of samples, and whether it is a guess."""
    order = np.lexsort((time, observer)) if observer is not None else np.argsort(time)
    steps = np.diff(time[order])
    spacing = float(np.median(steps[steps > 0])) if (steps > 0).any() else None
    unit = given if given != "auto" else named
    if unit is not None:
        rate = 1 / (spacing * SECONDS[unit]) if spacing is not None else 1.0
        if rate > 2 * RATES[1] or (rate < 0.2 and not events):
            raise DataError(
                f"{path}: samples {spacing:g} {unit} apart would be {rate:g} Hz, which no eye "
                f"tracker records; column {name!r} is not in {unit}. Pass the right time_unit."
            )
        return unit, False
    if spacing is None:
        raise DataError(f"{path}: one time only in column {name!r}: its unit cannot be seen. Pass time_unit.")
    fitting = [u for u, seconds in SECONDS.items() if RATES[0] <= 1 / (spacing * seconds) <= RATES[1]]
    if len(fitting) != 1:
        raise DataError(
            f"{path}: samples {spacing:g} apart in column {name!r} fit no unit at {RATES[0]:g} to {RATES[1]:g} Hz. "
            "Pass time_unit='s', 'ms', 'us' or 'ns'."
        )
    return fitting[0], True
