"""Gaze recordings as tables on the clock and the picture of a video: what is not certain is refused.

A tracker's table says where somebody looked at which time. Files differ in column names, in units (pixels, shares of
the picture, degrees, radians), in the time base (ns, µs, ms, s), in the origin of y and in what the coordinates count.
What a name, a known export (`importers`) or the values say beyond doubt is taken; everything else is refused with the
reason and the option (`options.Reading`) that settles it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.gaze.clocks import read_clock
from avsal.data.gaze.importers import CHECKS, KEYS, MOVEMENTS, OBSERVERS, PLAIN, Dialect, Source, recognise
from avsal.data.gaze.options import Reading
from avsal.data.gaze.placing import find_origin, guess_centred, guess_units, place
from avsal.data.gaze.samples import FIXATION, OUTSIDE, SACCADE, UNTRACKED, GazeTable
from avsal.data.gaze.sheets import MISSING, FloatArray, Record, open_sheet, plain, same_name
from avsal.errors import DataError

__all__ = ["FIXATION", "OUTSIDE", "SACCADE", "UNTRACKED", "GazeTable", "known_columns", "read_gaze_table"]

#: Reasons to leave a sample out of the fixations although it has a position.
_MOVING = ("saccade", "not in a fixation")
_WORDS = {
    **dict.fromkeys(("fixation", "fix", "f", "pursuit", "smooth pursuit", "smoothpursuit", "visual intake"), FIXATION),
    **dict.fromkeys(("saccade", "sac", "s", "pso", "glissade", "unclassified", "unknown", "undefined", "other", "noise",
                     "unknowneyemovement", "none", "-", "separator"), SACCADE),
    **dict.fromkeys(("outside", "offscreen", "out of screen"), OUTSIDE),
    **dict.fromkeys(("", "blink", "eyesnotfound", "eyes not found", "eyesnotfoundmovement", "lost", "untracked",
                     "missing", "invalid", "nan", "na"), UNTRACKED),
}  # fmt: skip


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

    The columns tell the format: those of `importers.DIALECTS`, Aria MPS (`tracking_timestamp_us`, `yaw_rads_cpf`, …;
    all generations), Ego4D and CSTS frame labels (`frame`, `x`, `y`, `gaze_type`), plain `time`/`frame`, `x`, `y`,
    `observer`. Samples at exactly (0, 0) from a corner, or with a missing coordinate, count as lost; columns that mark
    rows as no gaze are honoured. Pixels and shares without a unit in their column's name are refused where they stay
    above or to the left of the middle of the picture.

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
    reading = Reading(**options)
    own = {plain(name) for _, name in reading.columns}
    sheet = open_sheet(Path(path), lambda key, name: key in KEYS or plain(name) in own)
    if not sheet.rows:
        raise DataError(f"{path}: the gaze table has a header but no samples.")
    return _Reader(Record(sheet, reading, size, times, fps), zero_is_lost).read(video)


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


class _Reader:
    """One reading of one record."""

    def __init__(self, record: Record, zero_is_lost: bool) -> None:
        self.record, self.zero_is_lost = record, zero_is_lost

    def read(self, video: str | None) -> GazeTable:
        record, sheet, reading = self.record, self.record.sheet, self.record.reading
        dialect, source = self.dialect()
        self.choose_rows(dialect, video)
        columns = [record.column(role, getattr(dialect, role)) for role in ("time", "frame", "duration")]
        if columns[0] is None and "time" not in record.own:
            columns[0] = sheet.find(PLAIN.time)
        if dialect.events and all(name in sheet.keys for name in dialect.events):
            ids = sheet.cells(sheet.keys.index(dialect.events[0]))
            if len(set(ids)) == len(ids):
                columns[0], columns[2] = (sheet.keys.index(name) for name in dialect.events[1:])
        if columns[0] is None and columns[1] is None:
            raise DataError(
                f"{record.path}: neither a time nor a frame column among {', '.join(sheet.header)}; name it: "
                "columns={'time': …}."
            )
        points = [
            [own] if (own := record.own.get(axis)) is not None else [sheet.keys.index(name) for name in names]
            for axis, names in (("x", source.x), ("y", source.y))
        ]
        depth, who = record.column("depth", ("depthm",)), record.column("observer", OBSERVERS)
        wanted = [k for k in (*points[0], *points[1], *columns, depth) if k is not None]
        record.trim(max([*wanted, *([who] if who is not None else [])]))
        numbers = sheet.numbers(list(dict.fromkeys(wanted)))
        unit = source.unit if reading.units == "auto" else reading.units
        origin = find_origin(record, source, unit)
        reason = np.full(len(sheet.rows), "", dtype=object)
        x, y = self.eyes(
            source, [numbers[k] for k in points[0]], [numbers[k] for k in points[1]], origin, reason
        )
        kinds = self.judge(dialect, x, y, reason)
        if unit is None and origin == "centre":
            unit = guess_centred(record, x, y)
        elif unit is None:
            size = record.size if reading.screen is None else reading.screen_size
            unit = guess_units(record.path, x, y, size)
        x, y = place(record, dialect, source, unit, origin, x, y)
        observer = _numbered(sheet.cells(who)) if who is not None else None
        clock = read_clock(record, dialect, (columns[0], columns[1], columns[2]), numbers, observer)
        reason = np.where((clock.reason != "") & (reason == ""), clock.reason, reason)
        nowhen = np.isin(clock.reason, ("no time", "no frame number"))
        x, y = np.where(nowhen, np.nan, x), np.where(nowhen, np.nan, y)
        found = GazeTable(
            record.path, x=x, y=y, kind="angles" if unit in ("radians", "degrees") else "points", gaze_type=kinds,
            observer=observer, depth=numbers.get(depth) if depth is not None else None, units=unit,
            skipped=tuple(record.skipped.items()), notes=tuple(record.notes), **{**vars(clock), "reason": reason},
        )  # fmt: skip
        key = clock.time if np.isfinite(clock.time).all() else clock.frame
        assert key is not None
        return self.compared(found.take(np.argsort(key, kind="stable")))

    def compared(self, found: GazeTable) -> GazeTable:
        """Return the table if its clock can be the video's; the error names the recording's messages."""
        times = self.record.frame_times
        if not isinstance(times, np.ndarray):
            return found
        try:
            found.check_clock(float(times[0]), float(times[-1]))
        except DataError as error:
            during = [
                f"{text[:30]!r} at {at / 1e3:.3f} s"
                for at, text in self.record.sheet.messages
                if not text.startswith("!") and found.time[0] - 1 <= at / 1e3 <= found.time[-1]
            ]
            messages = f" Its messages: {', '.join(during[:12])}." if during else ""
            raise DataError(f"{error}{messages}") from error
        return found

    # Which columns and rows

    def dialect(self) -> tuple[Dialect, Source]:
        sheet, tracker = self.record.sheet, self.record.reading.tracker
        own = [self.record.own.get(axis) for axis in "xy"]
        if own[0] is None or own[1] is None:
            return recognise(sheet, tracker)
        try:
            dialect, source = recognise(sheet, tracker)
        except DataError:
            dialect, source = PLAIN, Source((), (), None)
        x, y = sheet.keys[own[0]], sheet.keys[own[1]]
        for known in (*dialect.sources, *PLAIN.sources):
            if x in known.x and y in known.y:
                return dialect, replace(known, x=(x,), y=(y,), valid=known.valid if len(known.x) == 1 else ())
        return dialect, Source((x,), (y,), None, source.origin if tracker != "auto" else "top", source.on)

    def choose_rows(self, dialect: Dialect, video: str | None) -> None:
        """Leave out rows that are no samples, and those of other stimuli."""
        sheet = self.record.sheet
        if dialect.rows and dialect.rows[0] in sheet.keys:
            column = sheet.keys.index(dialect.rows[0])
            cells = [
                "".join(c.lower().split()) if (c := row[column] if column < len(row) else "") else ""
                for row in sheet.rows
            ]
            self.record.leave(
                np.array([cell == dialect.rows[1] for cell in cells]), "no sample of the eye tracker"
            )
        column_ = self.record.column("stimulus", dialect.stimulus)
        wanted = self.record.reading.stimulus or video
        if column_ is None or wanted is None:
            return
        self.record.trim(column_)
        cells = sheet.cells(column_)
        names = [name for name in dict.fromkeys(cells) if name.lower() not in MISSING]
        mine = [name for name in names if same_name(name, wanted)]
        if not mine and len(names) == 1 and self.record.reading.stimulus is None:
            mine = names
        if names and not mine:
            shown = ", ".join(repr(name) for name in names[:8])
            raise DataError(
                f"{sheet.path}: no row is of {wanted!r}; column {sheet.header[column_]!r} names {shown}. Pass "
                "stimulus= with one of them."
            )
        if mine:
            self.record.leave(np.array([cell in mine for cell in cells]), "another stimulus")

    # What is gaze

    def eyes(
        self, source: Source, xs: list[FloatArray], ys: list[FloatArray], origin: str, reason: NDArray[Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Return x and y, the mean of the valid eyes."""
        checks = [(self.record.sheet.find((name,)), rule) for name, rule in source.valid]
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
        return self.record.sheet.flags(column, rule, self.record.reading.min_confidence)

    def judge(
        self, dialect: Dialect, x: FloatArray, y: FloatArray, reason: NDArray[Any]
    ) -> NDArray[np.int64] | None:
        """Apply the columns that say "this is no gaze"; return the movements."""
        sheet = self.record.sheet
        named = {name: rule for name, rule in CHECKS.items() if name in sheet.keys}
        columns = [(sheet.keys.index(name), *rule) for name, rule in named.items()]
        for role, rule in (("valid", "true"), ("invalid", "zero")):
            if role in self.record.own:
                own = self.record.own[role]
                columns = [c for c in columns if c[0] != own and c[2] != "not valid"]
                columns += [(own, rule, "not valid")] if own is not None else []
        for column, rule, name in columns:
            if rule == "confidence" and self.record.reading.min_confidence <= 0:
                continue
            fails = ~self.flag(column, rule)
            reason[fails & (reason == "")] = name
            if name not in _MOVING:
                # What was lost anyway is counted as what the tracker reports.
                reason[fails & (reason == "lost")] = name
                x[fails] = y[fails] = np.nan
        kinds = self.movements(dialect, reason)
        if kinds is not None:
            x[kinds == UNTRACKED] = y[kinds == UNTRACKED] = np.nan
        return kinds

    def movements(self, dialect: Dialect, reason: NDArray[Any]) -> NDArray[np.int64] | None:
        sheet = self.record.sheet
        names = MOVEMENTS if dialect is not PLAIN else MOVEMENTS[:5]
        columns = [self.record.own["gaze_type"]] if "gaze_type" in self.record.own else [
            sheet.keys.index(name) for name in names if name in sheet.keys
        ]  # fmt: skip
        out: NDArray[np.int64] | None = None
        for column in columns:
            if column is None:
                continue
            cells = [cell.lower() for cell in sheet.cells(column)]
            if all(cell in MISSING for cell in cells):
                continue  # the events were not detected, or not exported
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
                            f"{sheet.where(k, column)} is no known eye movement; write Fixation, Saccade, Blink or "
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


def _numbered(cells: list[str]) -> NDArray[np.int64]:
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(cell, len(ids)) for cell in cells], dtype=np.int64)
