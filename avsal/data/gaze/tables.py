"""Gaze recordings as tables: CSV dialects by column name, units and time base recognised or refused.

A tracker's table says where somebody looked at which time. Files differ in column names, in units (pixels,
shares of the picture, degrees, radians), in the time base (ns, µs, ms, s) and in the origin of y. What a name or the
values say beyond doubt is taken; everything else is refused with the reason and the argument that settles it.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avsal.errors import DataError

FloatArray = NDArray[np.float64]
TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
Units = Literal["auto", "normalised", "pixels", "radians", "degrees"]
Origin = Literal["auto", "top", "bottom"]

FIXATION, SACCADE, OUTSIDE, UNTRACKED = 0, 1, 2, 3

#: Seconds per unit of time.
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
#: Rates in Hz that eye trackers record at; the spacing of samples tells the time unit from them.
RATES = (5.0, 2000.0)
#: Share of a video that samples whose time unit was seen from their spacing must span. Frame numbers of a video of up
#: to 120 Hz, and seconds at 1 Hz, look like milliseconds, and would last less.
SPAN = 0.15
#: Share of a picture's width or height that pixels of unknown origin must reach. Gaze stays in the middle, but it does
#: not stay above it and to the left of it: such pixels count a smaller picture, or are degrees.
REACH = 0.45


@dataclass(frozen=True)
class _Dialect:
    """Column names of one pair of coordinates; `unit` None is decided by the values."""

    x: tuple[str, ...]
    y: tuple[str, ...]
    unit: Units | None
    origin: Literal["top", "bottom"] = "top"


# Names are compared in lower case, with blanks, brackets and hyphens as one underscore. Earlier rows win.
_COORDINATES = (
    _Dialect(("x_upright_norm",), ("y_upright_norm",), "normalised"),
    # Pupil Labs counts y from the bottom.
    _Dialect(("norm_pos_x",), ("norm_pos_y",), "normalised", "bottom"),
    _Dialect(("x_norm", "gaze_x_norm", "norm_x"), ("y_norm", "gaze_y_norm", "norm_y"), "normalised"),
    _Dialect(
        ("gaze_x_px", "b_por_x_px", "l_por_x_px", "r_por_x_px", "x_px", "gaze_position_x_px", "x_pixels"),
        ("gaze_y_px", "b_por_y_px", "l_por_y_px", "r_por_y_px", "y_px", "gaze_position_y_px", "y_pixels"),
        "pixels",
    ),
    _Dialect(
        ("yaw_rads_cpf", "yaw_rads", "yaw_rad", "azimuth_rad"),
        ("pitch_rads_cpf", "pitch_rads", "pitch_rad", "elevation_rad"),
        "radians",
    ),
    _Dialect(("azimuth_deg", "yaw_deg", "x_deg"), ("elevation_deg", "pitch_deg", "y_deg"), "degrees"),
    _Dialect(
        ("x", "gaze_x", "gazex", "por_x", "fixation_x", "pos_x"),
        ("y", "gaze_y", "gazey", "por_y", "fixation_y", "pos_y"),
        None,
    ),
    # Vergence files have a yaw for each eye: the mean is the direction of both.
    _Dialect(("left_yaw_rads_cpf",), ("pitch_rads_cpf", "left_pitch_rads_cpf"), "radians"),
)  # fmt: skip
_TIME = (
    "tracking_timestamp", "canonical_timestamp", "video_timestamp", "gaze_timestamp", "timestamps", "timestamp",
    "recording_timestamp", "time", "t", "start", "onset",
)  # fmt: skip
_FRAME = ("frame", "frame_index", "frame_id", "frame_number", "world_index")
_OBSERVER = ("observer", "subject", "participant", "participant_id", "user", "wearer_id")
_TYPE = ("gaze_type",)
_TIME_SUFFIX = {
    "_ns": "ns", "_us": "us", "_µs": "us", "_usec": "us", "_ms": "ms", "_msec": "ms", "_s": "s", "_sec": "s",
    "_seconds": "s", "_milliseconds": "ms", "_microseconds": "us", "_nanoseconds": "ns",
}  # fmt: skip


@dataclass(frozen=True)
class GazeTable:
    """The samples of one gaze recording, in order of time.

    Attributes:
        path: the file.
        time: (n,) seconds on the recording's own clock; NaN where the table has only frame numbers.
        x: (n,) share of the picture's width in 0..1 from the left, or yaw in radians; NaN where tracking was lost.
        y: (n,) share of the picture's height in 0..1 from the top, or pitch in radians; NaN likewise.
        kind: "points" on the picture, or "angles", which need a camera's calibration to become points.
        frame: (n,) int64 0-based frame numbers, None if the table has none.
        gaze_type: (n,) int64 0 fixation, 1 saccade, 2 outside the image, 3 untracked, None if not given.
        observer: (n,) int64, numbered in order of appearance, None if not given.
        depth: (n,) metres along an angle, NaN where unknown; None for points.
        units: what the file's coordinates are in.
        time_unit: what the file's times are in, None without times.
        time_guessed: the time unit was seen from the spacing of the samples alone.
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

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lost(self) -> int:
        """Samples without a position (blinks, lost tracking)."""
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
        if len(times) and (self.time[-1] < times[0] - max_gap or self.time[0] > times[-1] + max_gap):
            raise DataError(
                f"{self.path}: gaze runs from {self.time[0]:.3f} to {self.time[-1]:.3f} s, the video from "
                f"{times[0]:.3f} to {times[-1]:.3f} s: they do not meet. Gaze and video are on different "
                "clocks (pass the offset) or the time unit is not the file's (pass time_unit)."
            )
        if len(times):
            self.check_span(float(times[-1] - times[0]))
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
    time_unit: TimeUnit = "auto",
    units: Units = "auto",
    origin: Origin = "auto",
    fps: float | None = None,
    columns: Mapping[str, str] | None = None,
    zero_is_lost: bool = True,
) -> GazeTable:
    """Read a gaze recording from a CSV or TSV file with a header.

    Known by name, among others: Aria MPS (`tracking_timestamp_us`, `yaw_rads_cpf`, …; all generations), Pupil Labs
    (`gaze_timestamp`, `norm_pos_x`, y from the bottom; `gaze x [px]`), SMI BeGaze (`B POR X [px]`), Ego4D and
    CSTS frame labels (`frame`, `x`, `y`, `gaze_type`), plain `time`/`frame`, `x`, `y`, `observer`. Samples at exactly
    (0, 0), or with an empty or infinite coordinate, count as lost. Pixels that no column name speaks of are refused
    where they stay above and to the left of the middle of the picture.

    Args:
        path: the file.
        size: (height, width) of the picture in pixels, needed where coordinates are in pixels.
        time_unit: unit of the time column; "auto" takes it from the column's name, else from the spacing of the
            samples (5 to 2000 Hz).
        units: unit of the coordinates; "auto" takes it from the columns' names, else from the values.
        origin: where y is 0; "auto" is the top except for Pupil Labs' `norm_pos_y`.
        fps: frames per second of the video, to give times to a table that has only frame numbers.
        columns: own names for "time", "x", "y", "frame", "observer" or "gaze_type".
        zero_is_lost: whether (0, 0) counts as lost; else it is the corner of the picture.

    Raises:
        DataError: the file cannot be read, a column is missing, or units or time base are not certain.
    """
    path = Path(path)
    header, rows = _open(path)
    names = [_plain(name) for name in header]
    chosen = {role: _plain(name) for role, name in (columns or {}).items()}
    unknown = [name for name in chosen.values() if name not in names]
    if unknown:
        raise DataError(f"{path}: no column {', '.join(unknown)}; found {', '.join(header)}.")
    dialect = _dialect(path, names, header, chosen)
    time_name = chosen.get("time") or _named(names, _TIME, _TIME_SUFFIX)
    frame_name = chosen.get("frame") or _named(names, _FRAME)
    if time_name is None and frame_name is None:
        raise DataError(
            f"{path}: neither a time nor a frame column among {', '.join(header)}; name it: columns={{'time': …}}."
        )
    x_name, y_name = dialect.x[0], dialect.y[0]
    both_eyes = {"left_yaw_rads_cpf": "right_yaw_rads_cpf", "left_pitch_rads_cpf": "right_pitch_rads_cpf"}
    extra = {
        "frame": frame_name,
        "type": chosen.get("gaze_type") or _named(names, _TYPE),
        "observer": chosen.get("observer") or _named(names, _OBSERVER),
        "depth": "depth_m" if "depth_m" in names else None,
        "x2": both_eyes.get(x_name) if both_eyes.get(x_name) in names else None,
        "y2": both_eyes.get(y_name) if both_eyes.get(y_name) in names else None,
    }
    wanted = {
        role: names.index(name)
        for role, name in {"time": time_name, "x": x_name, "y": y_name, **extra}.items()
        if name
    }
    table = _columns(path, rows, wanted)
    if len(table["x"]) == 0:
        raise DataError(f"{path}: the gaze table has a header but no samples.")
    x, y = table["x"], table["y"]
    if "x2" in table:
        x = (x + table["x2"]) / 2
    if "y2" in table:
        y = (y + table["y2"]) / 2
    lost = ~(np.isfinite(x) & np.isfinite(y)) | ((x == 0) & (y == 0) & zero_is_lost)
    x, y = np.where(lost, np.nan, x), np.where(lost, np.nan, y)
    unit = dialect.unit if units == "auto" else units
    if unit is None:
        unit = _guess_units(path, x, y, size)
    x, y = _scale(path, x, y, unit, size)
    bottom = dialect.origin == "bottom" if origin == "auto" else origin == "bottom"
    if bottom and unit in ("normalised", "pixels"):
        y = 1 - y
    observer = _observers(table.get("observer_text"))
    frame = table["frame"].astype(np.int64) if "frame" in table else None
    if "time" in table:
        found, guessed = _time_unit(path, time_name or "", table["time"], observer, time_unit)
        time = table["time"] * SECONDS[found]
    else:
        found, guessed = None, False
        time = frame / fps if frame is not None and fps else np.full(len(x), np.nan)
    key = time if np.isfinite(time).all() else frame
    if key is None:
        raise DataError(f"{path}: {int((~np.isfinite(time)).sum())} samples have no time.")
    order = np.argsort(key, kind="stable")
    kinds = table.get("type")
    return GazeTable(
        path,
        time[order],
        x[order],
        y[order],
        "points" if unit in ("normalised", "pixels") else "angles",
        frame[order] if frame is not None else None,
        np.nan_to_num(kinds, nan=UNTRACKED).astype(np.int64)[order] if kinds is not None else None,
        observer[order] if observer is not None else None,
        table["depth"][order] if "depth" in table else None,
        unit,
        found,
        guessed,
    )


def known_columns(path: Path) -> tuple[list[str], dict[str, int]]:
    """Return the header of a gaze table, and which columns are its "time", "x" and "y" by their names.

    Raises:
        DataError: the file cannot be read.
    """
    header, _ = _open(path)
    names = [_plain(name) for name in header]
    found: dict[str, int] = {}
    if (time := _named(names, _TIME, _TIME_SUFFIX)) is not None:
        found["time"] = names.index(time)
    with contextlib.suppress(DataError):
        dialect = _dialect(path, names, header, {})
        found |= {"x": names.index(dialect.x[0]), "y": names.index(dialect.y[0])}
    return header, found


# -- the file ------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[\s\[\]()\-/:]+", "_", name.strip().lower()).strip("_")


def _open_parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs the package pyarrow: pip install pyarrow.") from error
    try:
        table = read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: the gaze table cannot be read ({error}).") from error
    columns = [
        ["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns
    ]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _open(path: Path) -> tuple[list[str], list[list[str]]]:
    if path.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the gaze table cannot be read ({error}).") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise DataError(f"{path}: the gaze table is empty.")
    delimiter = max("\t;,", key=lines[0].count)
    reader: Iterator[list[str]] = csv.reader(lines, delimiter=delimiter)
    header = next(reader)
    if all(_number(cell) == _number(cell) for cell in header):
        raise DataError(
            f"{path}: the first line is numbers ({lines[0][:60]}), not column names; add a header such as "
            "'time_s,x_norm,y_norm'."
        )
    return header, list(reader)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _columns(path: Path, rows: list[list[str]], wanted: Mapping[str, int]) -> dict[str, Any]:
    """Return the wanted columns as floats ("observer_text" as strings); what is no number is NaN."""
    last = max(wanted.values())
    short = sum(len(row) <= last for row in rows)
    # A recording that was cut off may end in half a line; more than that is another format.
    if short > 1 or (short == 1 and len(rows[-1]) > last):
        raise DataError(f"{path}: {short} lines have fewer columns than the header.")
    rows = rows[: len(rows) - short]
    table: dict[str, Any] = {}
    for role, index in wanted.items():
        cells = [row[index] for row in rows]
        if role == "observer":
            table["observer_text"] = cells
            continue
        try:
            table[role] = np.array(cells, dtype=np.float64)
        except ValueError:
            table[role] = np.array([_number(cell) for cell in cells], dtype=np.float64)
    return table


def _named(names: list[str], stems: Sequence[str], suffixes: Mapping[str, str] | None = None) -> str | None:
    for stem in stems:
        for suffix in ("", *(suffixes or ())):
            if stem + suffix in names:
                return stem + suffix
    return None


def _dialect(path: Path, names: list[str], header: list[str], chosen: Mapping[str, str]) -> _Dialect:
    if "x" in chosen and "y" in chosen:
        for dialect in _COORDINATES:
            if chosen["x"] in dialect.x and chosen["y"] in dialect.y:
                return replace(dialect, x=(chosen["x"],), y=(chosen["y"],))
        return _Dialect((chosen["x"],), (chosen["y"],), None)
    for dialect in _COORDINATES:
        x = next((name for name in dialect.x if name in names), None)
        y = next((name for name in dialect.y if name in names), None)
        if x and y:
            return replace(dialect, x=(x,), y=(y,))
    raise DataError(
        f"{path}: no pair of gaze coordinates among the columns {', '.join(header)}; "
        "name them: columns={'x': …, 'y': …}."
    )


def _observers(cells: list[str] | None) -> NDArray[np.int64] | None:
    if cells is None:
        return None
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(cell, len(ids)) for cell in cells], dtype=np.int64)


# -- units -----------------------------------------------------------------------------------------------------


def _guess_units(path: Path, x: FloatArray, y: FloatArray, size: tuple[int, int] | None) -> Units:
    """Tell normalised from pixel coordinates by their values, or refuse."""
    values = np.concatenate([x, y])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "normalised"  # nothing was tracked; no value needs a unit
    low, high = np.quantile(values, (0.05, 0.95))
    tell = f"{path}: the columns do not name the unit of the gaze coordinates, and "
    if low >= -0.5 and high <= 1.5:
        return "normalised"
    if (values < -1.5).mean() > 0.2:
        raise DataError(
            f"{tell}{(values < -1.5).mean():.0%} of the values are below zero (from {values.min():g} to "
            f"{values.max():g}), as angles are. Pass units='degrees' or 'radians', or units='pixels' if they are."
        )
    if high > 10:
        if size is not None:
            scale = max(np.nanquantile(x, 0.9) / size[1], np.nanquantile(y, 0.9) / size[0])
            if scale > 1.2:
                raise DataError(
                    f"{tell}they reach x={np.nanquantile(x, 0.9):g}, y={np.nanquantile(y, 0.9):g}, far outside a "
                    f"picture of {size[1]}x{size[0]}. Pass the size in pixels that the gaze was recorded on."
                )
            right, down = np.nanquantile(x, 0.95), np.nanquantile(y, 0.95)
            if right < REACH * size[1] and down < REACH * size[0]:
                raise DataError(
                    f"{tell}as pixels they stay within x={right:g}, y={down:g}, the upper left of a picture of "
                    f"{size[1]}x{size[0]}. Pass the size in pixels that the gaze was recorded on; or units='pixels' if "
                    "it did stay there, 'degrees' if they are."
                )
        return "pixels"
    raise DataError(
        f"{tell}values from {values.min():g} to {values.max():g} fit neither shares of the picture (0..1) nor pixels. "
        "Pass units='normalised', 'pixels', 'degrees' or 'radians'."
    )


def _scale(
    path: Path, x: FloatArray, y: FloatArray, unit: Units, size: tuple[int, int] | None
) -> tuple[FloatArray, FloatArray]:
    if unit == "pixels":
        if size is None:
            raise DataError(
                f"{path}: gaze is in pixels; pass size=(height, width) of the picture that they count."
            )
        return x / size[1], y / size[0]
    if unit == "degrees":
        return np.deg2rad(x), np.deg2rad(y)
    limit = {"normalised": 1.5, "radians": np.pi}[unit]
    values = np.abs(np.concatenate([x, y]))
    if np.isfinite(values).any() and np.nanmedian(values) > limit:
        raise DataError(
            f"{path}: {unit} gaze coordinates do not have a median of {np.nanmedian(values):g}; "
            "check the unit: pixels or degrees?"
        )
    return x, y


def _time_unit(
    path: Path, name: str, time: FloatArray, observer: NDArray[np.int64] | None, given: TimeUnit
) -> tuple[str, bool]:
    """Return the unit of a time column, as given, named or from the spacing of samples, and whether it is a guess."""
    order = np.lexsort((time, observer)) if observer is not None else np.argsort(time)
    steps = np.diff(time[order])
    spacing = float(np.median(steps[steps > 0])) if (steps > 0).any() else None
    named = next((u for suffix, u in _TIME_SUFFIX.items() if name.endswith(suffix)), None)
    unit = given if given != "auto" else named
    if unit is not None:
        if spacing is not None and not 0.2 <= 1 / (spacing * SECONDS[unit]) <= 2 * RATES[1]:
            raise DataError(
                f"{path}: samples {spacing:g} {unit} apart would be {1 / (spacing * SECONDS[unit]):g} Hz, which no eye "
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
