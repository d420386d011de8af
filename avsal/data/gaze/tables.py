"""Gaze recordings as tables on the clock and the picture of a video: what is not certain is refused.

A tracker's table says where somebody looked at which time. Files differ in column names, in units (pixels, shares of
the picture, degrees, radians), in the time base (ns, µs, ms, s), in the origin of y and in what the coordinates count.
What a name, a known export (`importers`) or the values say beyond doubt is taken; everything else is refused with the
reason and the option (`options.Reading`) that settles it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avsal.data.gaze.importers import (
    CHECKS,
    MISSING,
    MOVEMENTS,
    OBSERVERS,
    PLAIN,
    Dialect,
    Sheet,
    Source,
    open_sheet,
    recognise,
    same_name,
    world_clock,
)
from avsal.data.gaze.options import Reading, TimeUnit, Units
from avsal.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
FIXATION, SACCADE, OUTSIDE, UNTRACKED = 0, 1, 2, 3

#: Seconds per unit of time.
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
#: Rates in Hz that eye trackers record at; the spacing of samples tells the time unit from them.
RATES = (5.0, 2000.0)
#: Share of a video that samples whose time unit was seen from their spacing must span. Frame numbers of a video of up
#: to 120 Hz, and seconds at 1 Hz, look like milliseconds, and would last less.
SPAN = 0.15
#: Share of a picture's width or height that coordinates of unknown unit must reach. Gaze stays in the middle, but it
#: does not stay above it and to the left of it: such values count a smaller picture, have another origin, or are
#: degrees.
REACH = 0.45
#: Statistics of fewer samples say nothing.
ENOUGH = 20
#: Reasons to leave a sample out of the fixations although it has a position.
_MOVING = ("saccade", "not in a fixation")
_WORDS = {
    **dict.fromkeys(("fixation", "fix", "f", "pursuit", "smooth pursuit", "smoothpursuit", "visual intake"), FIXATION),
    **dict.fromkeys(("saccade", "sac", "s", "pso", "glissade", "unclassified", "unknown", "undefined", "other", "noise",
                     "unknowneyemovement", "none", "-", "separator"), SACCADE),
    **dict.fromkeys(("outside", "offscreen", "out of screen"), OUTSIDE),
    **dict.fromkeys(("", "blink", "eyesnotfound", "eyes not found", "eyesnotfoundmovement", "lost", "untracked", "missing",
                     "invalid", "nan", "na"), UNTRACKED),
}  # fmt: skip


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
        found = Counter({reason: count for reason, count in self.skipped})
        if self.reason is not None:
            found.update(str(reason) for reason in self.reason if reason)
        return dict(found)

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
        after = np.clip(np.searchsorted(self.time, times), 1, max(len(self) - 1, 1))
        if len(self) == 1:
            index = np.zeros(len(times), dtype=np.int64)
        else:
            # Halfway between two samples the earlier one counts: it was known first.
            index = np.where(times - self.time[after - 1] <= self.time[after] - times, after - 1, after)
        return np.where(np.abs(self.time[index] - times) <= max_gap + 1e-9, index, -1)


def read_gaze_table(
    path: Path | str,
    *,
    size: tuple[int, int] | None = None,
    times: FloatArray | Callable[[], FloatArray] | None = None,
    video: str | None = None,
    fps: float | None = None,
    zero_is_lost: bool = True,
    **options: Any,
) -> GazeTable:
    """Read a gaze recording: a table with a header (CSV, TSV, Parquet), an EyeLink ASC or a PsychoPy HDF5 file.

    Known by their columns: the exports of `importers.DIALECTS`, Aria MPS (`tracking_timestamp_us`, `yaw_rads_cpf`, …; all
    generations), Ego4D and CSTS frame labels (`frame`, `x`, `y`, `gaze_type`), plain `time`/`frame`, `x`, `y`,
    `observer`. Samples at exactly (0, 0) from a corner, or with a missing coordinate, count as lost; columns that say
    "this is no gaze" are honoured. Pixels and shares that no column name speaks of are refused where they stay above
    or to the left of the middle of the picture.

    Args:
        path: the file.
        size: (height, width) of the video in pixels, needed where coordinates are in its pixels.
        times: (n,) seconds of the video's frames, or a function that returns them: gives frame numbers their times.
        video: the video's name without suffix, to choose its rows.
        fps: frames per second of the video, to give times to frame numbers where `times` is not known.
        zero_is_lost: whether (0, 0) counts as lost; else it is the corner of the picture.
        options: see `options.Reading`.

    Raises:
        ConfigError: an option is not known.
        DataError: the file cannot be read, a column is missing, a cell is no number, or units, origin or time base
            are not certain.
    """
    path, reading = Path(path), Reading(**options)
    sheet = open_sheet(path)
    if not sheet.rows:
        raise DataError(f"{path}: the gaze table has a header but no samples.")
    return _Reader(sheet, reading, size, times, fps, zero_is_lost).read(video)


def known_columns(path: Path) -> tuple[list[str], dict[str, int]]:
    """Return the header of a gaze table, and which columns are its "time", "x" and "y" by their names.

    Raises:
        DataError: the file cannot be read.
    """
    sheet = open_sheet(path)
    time, found = sheet.find(PLAIN.time), {}
    if time is not None:
        found["time"] = time
    try:
        _, source = recognise(sheet, "auto")
    except DataError:
        return sheet.header, found
    return sheet.header, found | {"x": sheet.keys.index(source.x[0]), "y": sheet.keys.index(source.y[0])}


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


class _Reader:
    """One reading of one sheet."""

    def __init__(
        self,
        sheet: Sheet,
        reading: Reading,
        size: tuple[int, int] | None,
        times: FloatArray | Callable[[], FloatArray] | None,
        fps: float | None,
        zero_is_lost: bool,
    ) -> None:
        self.sheet, self.reading, self.size, self.fps = sheet, reading, size, fps
        self._times, self.zero_is_lost = times, zero_is_lost
        self.path = sheet.path
        self.skipped: Counter[str] = Counter()
        self.notes: list[str] = []
        self.own = {role: (sheet.named(name) if name else None) for role, name in reading.columns}

    def times(self) -> FloatArray | None:
        """(n,) seconds of the video's frames, if known."""
        return self._times() if callable(self._times) else self._times

    def column(self, role: str, names: Sequence[str]) -> int | None:
        """Return the column of a role: the caller's, else the first of the known names."""
        return self.own[role] if role in self.own else self.sheet.find(names)

    def read(self, video: str | None) -> GazeTable:
        sheet, reading = self.sheet, self.reading
        dialect, source = self.dialect()
        self.choose_rows(dialect, video)
        time, frame = self.column("time", dialect.time), self.column("frame", dialect.frame)
        lasts = self.column("duration", dialect.duration)
        if dialect.events and all(name in sheet.keys for name in dialect.events):
            ids = sheet.cells(sheet.keys.index(dialect.events[0]))
            if len(set(ids)) == len(ids):
                time, lasts = (sheet.keys.index(name) for name in dialect.events[1:])
        if time is None and frame is None:
            raise DataError(
                f"{self.path}: neither a time nor a frame column among {', '.join(sheet.header)}; name it: "
                "columns={'time': …}."
            )
        xs = (
            [self.own["x"]]
            if self.own.get("x") is not None
            else [sheet.keys.index(name) for name in source.x]
        )
        ys = (
            [self.own["y"]]
            if self.own.get("y") is not None
            else [sheet.keys.index(name) for name in source.y]
        )
        depth = self.column("depth", ("depthm",))
        since = sheet.find((dialect.since,)) if dialect.since else None
        wanted = [k for k in (*xs, *ys, time, frame, lasts, depth, since) if k is not None]
        self.trim(max(wanted))
        numbers = sheet.numbers(list(dict.fromkeys(wanted)))
        unit = source.unit if reading.units == "auto" else reading.units
        origin = self.origin(source, unit)
        reason = np.full(len(sheet.rows), "", dtype=object)
        x, y = self.eyes(source, [numbers[k] for k in xs], [numbers[k] for k in ys], origin, reason)
        gaze_type = self.judge(dialect, x, y, reason)
        if unit is None and origin == "centre":
            unit = self.guess_centred(x, y)
        elif unit is None:
            unit = _guess_units(self.path, x, y, self.size if reading.screen is None else reading.screen_size)
        x, y = self.place(dialect, source, unit, origin, x, y)
        observer = self.observers()
        seconds = numbers[time] if time is not None else None
        if seconds is not None and since is not None:
            seconds = seconds - numbers[since]
        table = self.clock(dialect, time, seconds, frame, numbers, observer, lasts)
        unusable = table.reason != ""
        reason[unusable & (reason == "")] = table.reason[unusable & (reason == "")]
        key = table.time if np.isfinite(table.time).all() else table.frame
        assert key is not None
        order = np.argsort(key, kind="stable")
        found = replace(
            table,
            time=table.time[order],
            x=x[order],
            y=y[order],
            kind="angles" if unit in ("radians", "degrees") else "points",
            frame=None if table.frame is None else table.frame[order],
            gaze_type=None if gaze_type is None else gaze_type[order],
            observer=None if observer is None else observer[order],
            depth=None if depth is None else numbers[depth][order],
            units=unit,
            reason=reason[order],
            duration=None if table.duration is None else table.duration[order],
            skipped=tuple(self.skipped.items()),
            notes=tuple(self.notes),
        )
        if self._times is not None and not found.by_frame and not callable(self._times):
            try:
                found.check_clock(float(self._times[0]), float(self._times[-1]))
            except DataError as error:
                raise DataError(f"{error}{self.messages()}") from error
        return found

    # Which columns and rows

    def dialect(self) -> tuple[Dialect, Source]:
        sheet, tracker = self.sheet, self.reading.tracker
        own = [self.own.get(axis) for axis in "xy"]
        if own[0] is None or own[1] is None:
            return recognise(sheet, tracker)
        try:
            dialect, source = recognise(sheet, tracker)
        except DataError:
            dialect, source = PLAIN, Source((), (), None)
        x, y = sheet.keys[own[0]], sheet.keys[own[1]]
        for known in (*dialect.sources, *PLAIN.sources):
            if x in known.x and y in known.y:
                return dialect, replace(known, x=(x,), y=(y,), valid=())
        return dialect, Source((x,), (y,), None, source.origin if tracker != "auto" else "top", source.on)

    def choose_rows(self, dialect: Dialect, video: str | None) -> None:
        """Leave out rows that are no samples, and those of other stimuli."""
        sheet = self.sheet
        if dialect.rows and dialect.rows[0] in sheet.keys:
            column = sheet.keys.index(dialect.rows[0])
            cells = [
                "".join(c.lower().split()) if (c := row[column] if column < len(row) else "") else ""
                for row in sheet.rows
            ]
            self.leave(np.array([cell == dialect.rows[1] for cell in cells]), "no sample of the eye tracker")
        column_ = self.column("stimulus", dialect.stimulus)
        wanted = self.reading.stimulus or video
        if column_ is None or wanted is None:
            return
        self.trim(column_)
        cells = sheet.cells(column_)
        names = [name for name in dict.fromkeys(cells) if name.lower() not in MISSING]
        mine = [name for name in names if same_name(name, wanted)]
        if not mine and len(names) == 1 and self.reading.stimulus is None:
            mine = names
        if names and not mine:
            shown = ", ".join(repr(name) for name in names[:8])
            raise DataError(
                f"{self.path}: no row is of {wanted!r}; column {sheet.header[column_]!r} names {shown}. Pass stimulus= with "
                "one of them."
            )
        if mine:
            self.leave(np.array([cell in mine for cell in cells]), "another stimulus")

    def leave(self, keep: NDArray[np.bool_], reason: str) -> None:
        if not keep.any():
            raise DataError(f"{self.path}: all {len(keep)} rows are left out: {reason}.")
        if not keep.all():
            self.skipped[reason] += int((~keep).sum())
            self.sheet.keep(keep)

    def trim(self, last: int) -> None:
        """Drop a last line that breaks off, and refuse other short ones."""
        sheet = self.sheet
        short = [k for k, row in enumerate(sheet.rows) if len(row) <= last]
        # A recording that was cut off may end in half a line; more than that is another format.
        if short and short != [len(sheet.rows) - 1]:
            raise DataError(
                f"{self.path}, line {sheet.lines[short[0]]}: {len(short)} lines have fewer columns than the header."
            )
        if short:
            self.leave(np.arange(len(sheet.rows)) < short[0], "line that breaks off")

    # What is gaze

    def eyes(
        self, source: Source, xs: list[FloatArray], ys: list[FloatArray], origin: str, reason: NDArray[Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Return x and y, the mean of the valid eyes."""
        checks = [(self.sheet.find((name,)), rule) for name, rule in source.valid]
        flags = [self.flag(column, rule) if column is not None else None for column, rule in checks]
        if len(xs) == 1 and len(flags) > 1:
            known = [flag for flag in flags if flag is not None]
            flags = [np.any(known, axis=0)] if known else []
        points = []
        for eye, x in enumerate(xs):
            y = ys[min(eye, len(ys) - 1)]
            lost = ~(np.isfinite(x) & np.isfinite(y))
            if self.zero_is_lost and origin != "centre":
                lost |= (x == 0) & (y == 0)
            flag = flags[eye] if eye < len(flags) else None
            if flag is not None:
                reason[~flag & (reason == "")] = "not valid"
                lost |= ~flag
            points.append((np.where(lost, np.nan, x), np.where(lost, np.nan, y)))
        seen = np.sum([np.isfinite(x) for x, _ in points], 0)
        mean = [np.sum([np.nan_to_num(p[axis]) for p in points], 0) / np.maximum(seen, 1) for axis in (0, 1)]
        reason[seen > 0] = ""
        reason[(seen == 0) & (reason == "")] = "lost"
        return np.where(seen > 0, mean[0], np.nan), np.where(seen > 0, mean[1], np.nan)

    def flag(self, column: int, rule: str) -> NDArray[np.bool_]:
        return self.sheet.flags(column, rule, self.reading.min_confidence)

    def judge(
        self, dialect: Dialect, x: FloatArray, y: FloatArray, reason: NDArray[Any]
    ) -> NDArray[np.int64] | None:
        """Apply the columns that say "this is no gaze"; return the movements."""
        sheet = self.sheet
        named = {name: rule for name, rule in CHECKS.items() if name in sheet.keys}
        columns = [(sheet.keys.index(name), *rule) for name, rule in named.items()]
        for role, rule in (("valid", "true"), ("invalid", "zero")):
            if role in self.own:
                columns = [c for c in columns if c[0] != self.own[role] and c[2] != "not valid"]
                if self.own[role] is not None:
                    columns.append((self.own[role], rule, "not valid"))
        for column, rule, name in columns:
            if rule == "confidence" and self.reading.min_confidence <= 0:
                continue
            fails = ~self.flag(column, rule)
            reason[fails & (reason == "")] = name
            if name not in _MOVING:
                # What was lost anyway is counted as what the tracker says about it.
                reason[fails & (reason == "lost")] = name
                x[fails] = y[fails] = np.nan
        kinds = self.movements(dialect, reason)
        if kinds is not None:
            x[kinds == UNTRACKED] = y[kinds == UNTRACKED] = np.nan
        return kinds

    def movements(self, dialect: Dialect, reason: NDArray[Any]) -> NDArray[np.int64] | None:
        sheet = self.sheet
        names = MOVEMENTS if dialect is not PLAIN else MOVEMENTS[:5]
        columns = [self.own["gaze_type"]] if "gaze_type" in self.own else [
            sheet.keys.index(name) for name in names if name in sheet.keys
        ]  # fmt: skip
        out: NDArray[np.int64] | None = None
        for column in columns:
            if column is None:
                continue
            cells = [cell.lower() for cell in sheet.cells(column)]
            if all(cell in MISSING or cell[0].isdigit() or cell[0] in "+-." for cell in cells):
                kinds = np.nan_to_num(sheet.numbers([column])[column], nan=UNTRACKED).astype(np.int64)
                words = np.array(["fixation", "saccade", "outside the picture", "lost"], dtype=object)[
                    kinds.clip(0, 3)
                ]
                bad = np.flatnonzero((kinds < 0) | (kinds > 3))
                if len(bad):
                    raise DataError(
                        f"{sheet.where(int(bad[0]), column)} is no gaze type; 0 fixation to 3 untracked."
                    )
            else:
                for k, cell in enumerate(cells):
                    if cell not in _WORDS:
                        raise DataError(
                            f"{sheet.where(k, column)} is no eye movement that is known; write Fixation, Saccade, Blink or "
                            "Unclassified."
                        )
                kinds = np.array([_WORDS[cell] for cell in cells], dtype=np.int64)
                words = np.array([cell if cell not in ("", "-", "none") else "not in a fixation" for cell in cells],
                                 dtype=object)  # fmt: skip
            if out is None:
                out, labels = kinds, words
            else:
                better = (kinds == FIXATION) | ((out == UNTRACKED) & (kinds != UNTRACKED))
                out, labels = np.where(better, kinds, out), np.where(better, words, labels)
        if out is not None:
            moving = (out != FIXATION) & ((reason == "") | (reason == "lost"))
            reason[moving] = labels[moving]
        return out

    def observers(self) -> NDArray[np.int64] | None:
        column = self.column("observer", OBSERVERS)
        if column is None:
            return None
        self.trim(column)
        ids: dict[str, int] = {}
        return np.array([ids.setdefault(cell, len(ids)) for cell in self.sheet.cells(column)], dtype=np.int64)

    # Where it is

    def origin(self, source: Source, unit: str | None) -> str:
        given = self.reading.origin
        if unit in ("norm", "height"):
            if given not in ("auto", "centre"):
                raise ConfigError(
                    f"units={unit!r} count from the centre; origin={given!r} does not go with it."
                )
            return "centre"
        if given == "centre" and unit == "normalised":
            raise ConfigError(
                f"{self.path}: origin='centre' does not say where the picture ends: pass units='norm' (-1 to 1) or "
                "'height' (-0.5 to 0.5 of the height) instead of shares of the picture."
            )
        return source.origin if given == "auto" else given

    def guess_centred(self, x: FloatArray, y: FloatArray) -> Units:
        values = np.abs(np.concatenate([x, y]))
        if np.isfinite(values).any() and np.nanquantile(values, 0.95) > 30:
            return "pixels"
        raise DataError(
            f"{self.path}: the coordinates count from the centre, as PsychoPy's do, and the file does not name their "
            "unit. Pass units='norm', 'height', 'pixels', 'cm' or 'degrees', as the experiment's window had."
        )

    def place(
        self, dialect: Dialect, source: Source, unit: str, origin: str, x: FloatArray, y: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return shares of the picture from its top left corner, or radians."""
        if unit == "degrees":
            return np.deg2rad(x), np.deg2rad(y)
        if unit == "radians":
            return _plausible(self.path, x, y, unit, np.pi)
        extent, rectangle = self.extent(dialect, source, unit)
        if unit in ("pixels", "cm"):
            if extent is None:
                raise DataError(
                    f"{self.path}: gaze is in {unit}; pass size=(height, width) of the picture that they count."
                )
            x, y = x / extent[1], y / extent[0]
        elif unit == "norm":
            x, y = x / 2, y / 2
        elif unit == "height":
            if extent is None:
                raise DataError(f"{self.path}: units='height' needs the shape of the screen; pass screen=.")
            x = x * extent[0] / extent[1]
        else:
            x, y = _plausible(self.path, x, y, unit, 1.5)
        if origin == "centre":
            x, y = x + 0.5, 0.5 - y
        elif origin == "bottom":
            y = 1 - y
        if rectangle is not None and extent is not None:
            left, top, width, height = rectangle
            x, y = (x * extent[1] - left) / width, (y * extent[0] - top) / height
        self.check_inside(x, y, unit, origin)
        return x, y

    def extent(
        self, dialect: Dialect, source: Source, unit: str
    ) -> tuple[tuple[float, float] | None, tuple[float, float, float, float] | None]:
        """Return (height, width) of what the coordinates count, and where the picture stood on it."""
        reading, size = self.reading, self.size
        media = [self.constants(names) for names in dialect.media]
        stood = next((m for m in media if m is not None and len(m) == 4), None)
        if source.on == "media" and stood is not None and reading.screen is None:
            return (stood[3], stood[2]), None
        on_screen = source.on != "picture"
        screen: tuple[float, float] | None = None
        if reading.screen is not None:
            screen = reading.screen_size
        elif on_screen:
            sizes = [self.constants(names) for names in dialect.screen]
            stated = next((s for s in sizes if s is not None), None)
            screen = (stated[1], stated[0]) if stated is not None else self.sheet.screen
        if screen is None:
            if reading.picture is not None and reading.picture != "stretch":
                raise DataError(
                    f"{self.path}: picture= says where the video stood on the screen; pass screen= too."
                )
            if on_screen and unit in ("pixels", "cm") and reading.picture is None:
                raise DataError(
                    f"{self.path}: {dialect.tracker} counts the {unit} of the screen, and the file does not say how large "
                    "it was. Pass screen='WIDTHxHEIGHT', and picture= if the video did not fill it."
                )
            if on_screen and unit != "pixels":
                self.notes.append(
                    "shares of the screen: the video is taken to have filled it (screen=, picture=)"
                )
            return size, None
        if reading.rectangle is not None:
            return screen, reading.rectangle
        if on_screen and stood is not None and reading.picture is None and reading.screen is None:
            return screen, (stood[0], stood[1], stood[2], stood[3])
        if size is None or reading.picture == "stretch":
            return screen, None
        ratio = (size[1] / size[0]) / (screen[1] / screen[0])
        if reading.picture is None and abs(np.log(ratio)) > 0.01:
            raise DataError(
                f"{self.path}: the screen of {screen[1]:g}x{screen[0]:g} and the video of {size[1]}x{size[0]} have other "
                "shapes. Pass picture='fit' (bars at two sides), 'stretch', 'centre' (pixel for pixel) or "
                "'LEFT,TOP,WIDTH,HEIGHT'."
            )
        scale = 1.0 if reading.picture == "centre" else min(screen[0] / size[0], screen[1] / size[1])
        height, width = size[0] * scale, size[1] * scale
        return screen, ((screen[1] - width) / 2, (screen[0] - height) / 2, width, height)

    def constants(self, names: Sequence[str]) -> tuple[float, ...] | None:
        """Return the values of columns that say one thing in all rows; None if one is not there or empty."""
        found = []
        for name in names:
            stem = name.replace("{}", "")
            column = self.sheet.find([stem + suffix for suffix in ("", "px", "dacspx", "adcspx")])
            if column is None:
                return None
            values = np.unique(self.sheet.numbers([column])[column])
            values = values[np.isfinite(values)]
            if len(values) != 1:
                if len(values) > 1:
                    raise DataError(
                        f"{self.path}, column {self.sheet.header[column]!r}: holds {len(values)} values; pass screen= and "
                        "picture= instead."
                    )
                return None
            found.append(float(values[0]))
        return tuple(found)

    def check_inside(self, x: FloatArray, y: FloatArray, unit: str, origin: str) -> None:
        """Refuse coordinates most of which cannot lie on the picture."""
        seen = np.isfinite(x)
        if self.size is None or seen.sum() < ENOUGH:
            return
        with np.errstate(invalid="ignore"):
            away = seen & ((x < -0.02) | (x > 1.02) | (y < -0.02) | (y > 1.02))
        if away.sum() <= 0.5 * seen.sum():
            return
        spans = ", ".join(
            f"{name} from {np.nanmin(v):.2f} to {np.nanmax(v):.2f}" for name, v in (("x", x), ("y", y))
        )
        if (x[seen] < 0).mean() > 0.2 or (y[seen] < 0).mean() > 0.2:
            cause = "Is 0 in the centre? Pass units='norm' or 'height', or origin='centre' for pixels."
        else:
            cause = "Pass the screen= that the gaze counts, and picture= where the video did not fill it."
        raise DataError(
            f"{self.path}: {away.sum() / seen.sum():.0%} of the samples lie outside the picture ({spans} in shares of it, "
            f"read as {unit} from the {origin}). {cause}"
        )

    # When it is

    def clock(
        self,
        dialect: Dialect,
        time: int | None,
        seconds: FloatArray | None,
        frame: int | None,
        numbers: Mapping[int, FloatArray],
        observer: NDArray[np.int64] | None,
        lasts: int | None,
    ) -> GazeTable:
        """Return a table without points: the rows' times, frames and durations."""
        sheet, reading = self.sheet, self.reading
        count = len(sheet.rows)
        reason = np.full(count, "", dtype=object)
        unit, guessed, duration = None, False, None
        when = np.full(count, np.nan)
        if lasts is not None:
            duration = numbers[lasts] * SECONDS[sheet.units[lasts] or {"pupil": "ms", "gazepoint": "s"}.get(
                dialect.tracker, "ms" if dialect is not PLAIN or time is None else sheet.units[time] or "s")]  # fmt: skip
            duration = np.nan_to_num(duration).clip(0)
        if seconds is not None and time is not None:
            named = sheet.units[time] or (
                dialect.time_unit if reading.columns == () or "time" not in self.own else None
            )
            missing = ~np.isfinite(seconds)
            if missing.all() and frame is None:
                raise DataError(f"{self.path}: {count} samples have no time.")
            if not missing.all():
                unit, guessed = _time_unit(
                    self.path,
                    sheet.header[time],
                    named,
                    seconds,
                    observer,
                    reading.time_unit,
                    lasts is not None,
                )
                when = seconds * SECONDS[unit]
                reason[missing & (frame is None)] = "no time"
        numbered = numbers[frame] if frame is not None else None
        if numbered is not None and frame is not None:
            odd = np.flatnonzero(np.isfinite(numbered) & (numbered != np.trunc(numbered)))
            if len(odd):
                raise DataError(f"{sheet.where(int(odd[0]), frame)} is no whole frame number.")
        by_frame = self.by_frame(dialect, when, numbered)
        frames: NDArray[np.int64] | None = None
        if numbered is not None:
            frames = np.nan_to_num(numbered, nan=-1).astype(np.int64)
            if by_frame:
                frames, when = self.number(frames, reason)
        if not by_frame and unit is not None:
            when = self.zero(dialect, when, observer)
            # A row without a time must not come first, nor stop the table from being sorted.
            when = np.where(np.isfinite(when), when, np.nanmax(when))
        empty = np.full(count, np.nan)
        return GazeTable(
            self.path, when, empty, empty, "points", frames, time_unit=unit, time_guessed=guessed, reason=reason,
            duration=duration, by_frame=by_frame,
        )  # fmt: skip

    def by_frame(self, dialect: Dialect, when: FloatArray, numbered: FloatArray | None) -> bool:
        """Decide whether frame numbers or times say which frame a row belongs to."""
        if numbered is None:
            return False
        if not np.isfinite(when).any():
            return True
        times = self.times() if self.reading.offset is None else None
        if times is None:
            return False
        if dialect is not PLAIN:
            return True
        inside = (when >= times[0] - 0.2) & (when <= times[-1] + 0.2)
        if inside.mean() < 0.5:
            self.notes.append("the times are of another clock than the video's: the frame numbers count")
            return True
        apart = np.abs(np.searchsorted(times, when[inside] + 5e-4, side="right") - 1 - numbered[inside])
        if np.nanmedian(apart) <= 1:
            return True
        k = int(np.flatnonzero(inside)[np.nanargmax(apart)])
        raise DataError(
            f"{self.path}, line {self.sheet.lines[k]}: by its time ({when[k]:.3f} s) the row is "
            f"{np.nanmax(apart):.0f} frames away from frame {numbered[k]:.0f}, which it names. Leave one of the columns "
            "out: columns={'frame': ''} or columns={'time': ''}; or pass offset=."
        )

    def number(self, frames: NDArray[np.int64], reason: NDArray[Any]) -> tuple[NDArray[np.int64], FloatArray]:
        """Return 0-based frames and their times; numbers before and beyond the video are marked."""
        times, first = self.times(), self.reading.first_frame
        if times is None:
            frames = frames - (first or 0)
            return frames, frames / self.fps if self.fps else np.full(len(frames), np.nan)
        count = len(times)
        low, high = int(frames[frames >= 0].min(initial=count)), int(frames.max())
        if first is None:
            first = 1 if low == 1 and high == count else 0
            if first == 1:
                self.notes.append(f"frames are numbered from 1 to {count}")
            elif low == 1 and high < count:
                self.notes.append(
                    f"frames are numbered from 1 to {high} of {count}: read as counted from 0 (first_frame=1 otherwise)"
                )
        frames = frames - first
        beyond = frames >= count
        if beyond.mean() > 0.05:
            raise DataError(
                f"{self.path}: frame numbers run to {high}, and the video has {count} frames: {beyond.mean():.0%} of the "
                "rows lie beyond it. Is it another video, or another frame rate? Rows with times (time_s) need no numbers."
            )
        reason[beyond], reason[frames < 0] = "after the video", "before the video"
        step = (times[-1] - times[0]) / max(count - 1, 1)
        when = times[frames.clip(0, count - 1)] + (frames - frames.clip(0, count - 1)) * step
        return frames, when

    def zero(self, dialect: Dialect, when: FloatArray, observer: NDArray[np.int64] | None) -> FloatArray:
        """Return times on the video's clock."""
        if self.reading.offset is not None:
            return when - self.reading.offset
        world = world_clock(self.path) if dialect.tracker == "neon" else None
        times = self.times() if world is not None else None
        if world is not None and times is not None:
            if len(world) == len(times):
                step = np.median(np.diff(world)) if len(world) > 1 else 0.04
                out = np.interp(when, world, times)
                out = np.where(when < world[0], times[0] + when - world[0], out)
                return np.where(when > world[-1] + step, times[-1] + when - world[-1], out)
            self.notes.append(
                f"world_timestamps.csv has {len(world)} rows, the video {len(times)} frames: its first row is the offset"
            )
            return when - world[0] + times[0]
        if dialect.zero == "stimulus" and self.column("stimulus", dialect.stimulus) is not None:
            who = observer if observer is not None else np.zeros(len(when), dtype=np.int64)
            self.notes.append("the clock begins at the stimulus' first row")
            return (
                when
                - np.array([np.nanmin(when[who == k], initial=np.inf) for k in range(who.max() + 1)])[who]
            )
        return when

    def messages(self) -> str:
        """Return the recording's messages for the error about clocks."""
        found = [f"{text[:30]!r} at {at / 1e3:.3f} s" for at, text in self.sheet.messages[:8]]
        return f" Its messages: {', '.join(found)}." if found else ""


# -- units -----------------------------------------------------------------------------------------------------


def _guess_units(path: Path, x: FloatArray, y: FloatArray, size: tuple[float, float] | None) -> Units:
    """Tell normalised from pixel coordinates by their values, or refuse."""
    values = np.concatenate([x, y])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "normalised"  # nothing was tracked; no value needs a unit
    low, high = np.quantile(values, (0.05, 0.95))
    right, down = np.nanquantile(x, 0.95), np.nanquantile(y, 0.95)
    tell = f"{path}: the columns do not name the unit of the gaze coordinates, and "
    if low >= -1.5 and high <= 1.5:
        below = float(((x < -0.01) | (y < -0.01)).mean())
        settle = (
            "Pass units='normalised' if they are shares of the picture from its top left corner (with origin='bottom': "
            "from its bottom left), units='norm' or 'height' if 0 is its centre, as in PsychoPy."
        )
        if np.isfinite(x).sum() >= ENOUGH and below > 0.02:
            raise DataError(
                f"{tell}{below:.0%} of the points have a coordinate below zero, which shares of the picture have not. "
                f"{settle}"
            )
        if np.isfinite(x).sum() >= ENOUGH and (right < REACH or down < REACH):
            raise DataError(
                f"{tell}as shares they stay within x={right:.2f}, y={down:.2f}: above or to the left of the middle of the "
                f"picture. {settle}"
            )
        if low >= -0.5:
            return "normalised"
    if (values < -1.5).mean() > 0.2:
        raise DataError(
            f"{tell}{(values < -1.5).mean():.0%} of the values are below zero (from {values.min():g} to "
            f"{values.max():g}), as angles are. Pass units='degrees' or 'radians', or units='pixels' if they are (with "
            "origin='centre' if 0 is the centre)."
        )
    if high > 10:
        if size is not None:
            scale = max(np.nanquantile(x, 0.9) / size[1], np.nanquantile(y, 0.9) / size[0])
            if scale > 1.2:
                raise DataError(
                    f"{tell}they reach x={np.nanquantile(x, 0.9):g}, y={np.nanquantile(y, 0.9):g}, far outside a "
                    f"picture of {size[1]:g}x{size[0]:g}. Pass the screen= (WIDTHxHEIGHT) that the gaze was recorded on."
                )
            if right < REACH * size[1] and down < REACH * size[0]:
                raise DataError(
                    f"{tell}as pixels they stay within x={right:g}, y={down:g}, the upper left of a picture of "
                    f"{size[1]:g}x{size[0]:g}. Pass the screen= (WIDTHxHEIGHT) that the gaze was recorded on; or "
                    "units='pixels' if it did stay there, 'degrees' if they are."
                )
        return "pixels"
    raise DataError(
        f"{tell}values from {values.min():g} to {values.max():g} fit neither shares of the picture (0..1) nor pixels. "
        "Pass units='normalised', 'pixels', 'degrees' or 'radians'."
    )


def _plausible(
    path: Path, x: FloatArray, y: FloatArray, unit: str, limit: float
) -> tuple[FloatArray, FloatArray]:
    values = np.abs(np.concatenate([x, y]))
    if np.isfinite(values).any() and np.nanmedian(values) > limit:
        raise DataError(
            f"{path}: {unit} gaze coordinates do not have a median of {np.nanmedian(values):g}; "
            "check the unit: pixels or degrees?"
        )
    return x, y


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
