"""Gaze files as they stand: their header, cells and numbers."""

from __future__ import annotations

import csv
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avsal.data.gaze.options import Reading
from avsal.errors import DataError

FloatArray = NDArray[np.float64]
Known = Callable[[str, str], bool]
#: Cells that mean "no value".
MISSING = frozenset(("", ".", "-", "nan", "na", "n/a", "none", "null", "inf", "-inf", "+inf", "infinity"))
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_UNITS = {
    "ns": "ns", "nanoseconds": "ns", "us": "us", "usec": "us", "microseconds": "us", "ms": "ms", "msec": "ms",
    "milliseconds": "ms", "s": "s", "sec": "s", "secs": "s", "seconds": "s",
}  # fmt: skip
_UNIT = re.compile(rf"(?<=[^a-z0-9])({'|'.join(_UNITS)})\W*$")
#: Gazepoint writes the date of the recording into the name of its time column.
_DATE = re.compile(r"\(\d{4}[/.-].*\)$")


_TRUE = ("true", "yes", "valid", "t", "y", "on", "ok")
_FALSE = ("false", "no", "invalid", "f", "n", "off", "not valid", "notvalid")


@dataclass
class Sheet:
    """A table as it stands in its file.

    Attributes:
        path: the file.
        header: names of the columns.
        rows: cells.
        lines: number of each row's line.
        screen: (H, W) that the file states outside its columns.
        messages: (milliseconds, text) of an EyeLink recording.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    screen: tuple[int, int] | None = None
    messages: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = [squash(name) for name in self.header]
        self.keys, self.units = [key for key, _ in found], [unit for _, unit in found]

    def find(self, names: Sequence[str]) -> int | None:
        """Return the column with the first of these keys that there is."""
        return next((self.keys.index(name) for name in names if name in self.keys), None)

    def named(self, name: str) -> int:
        """Return the column with this very name, in any spelling that differs in case or punctuation."""
        for k, header in enumerate(self.header):
            if header == name or plain(header) == plain(name):
                return k
        raise DataError(f"{self.path}: no column {name}; found {', '.join(self.header)}.")

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Leave only some of the rows."""
        chosen = np.flatnonzero(rows)
        self.rows, self.lines = [self.rows[k] for k in chosen], [self.lines[k] for k in chosen]

    def cells(self, column: int) -> list[str]:
        """Return a column as text without blanks around it."""
        return [row[column].strip() for row in self.rows]

    def where(self, row: int, column: int) -> str:
        """Return a cell's place and content for a message."""
        return (
            f"{self.path}, line {self.lines[row]}, column {self.header[column]!r}: {self.rows[row][column]!r}"
        )

    def numbers(self, columns: Sequence[int]) -> dict[int, FloatArray]:
        """Return columns as floats, NaN where a cell is missing.

        Decimal commas are understood where no number of these columns has a point.

        Raises:
            DataError: a cell is no number, or commas and points are mixed.
        """
        out: dict[int, FloatArray] = {}
        comma: tuple[int, int] | None = None
        point: tuple[int, int] | None = None
        certain = False
        for column in columns:
            if self.header.count(self.header[column]) > 1:
                raise DataError(
                    f"{self.path}: two columns are named {self.header[column]!r}; rename one of them."
                )
            cells = self.cells(column)
            try:
                values = np.array(cells, dtype=np.float64)
                out[column] = np.where(np.isfinite(values), values, np.nan)
                if point is None:
                    point = next(((k, column) for k, c in enumerate(cells) if "." in c), None)
                continue
            except ValueError:
                out[column] = values = np.full(len(cells), np.nan)
            for k, cell in enumerate(cells):
                if cell.lower() in MISSING:
                    continue
                if _NUMBER.fullmatch(cell) is None and _THOUSANDS.fullmatch(cell) is None:
                    raise DataError(
                        f"{self.where(k, column)} is not a number. Cells without a value are empty, '.', '-', 'NaN' or "
                        "'NA'."
                    )
                if "," in cell:
                    comma = comma or (k, column)
                    certain |= _THOUSANDS.fullmatch(cell) is None
                elif "." in cell:
                    point = point or (k, column)
                values[k] = float(cell.replace(",", ".", 1).replace(",", ""))
        if comma is not None and point is not None:
            raise DataError(
                f"{self.where(*comma)} has a decimal comma, but line {self.lines[point[0]]} has a point "
                f"({self.rows[point[0]][point[1]]!r}). Export the table with one of them."
            )
        if comma is not None and not certain:
            raise DataError(
                f"{self.where(*comma)}: the comma may stand for the decimals or for the thousands. Export the table "
                "with decimal points."
            )
        return out

    def flags(self, column: int, rule: str, limit: float) -> NDArray[np.bool_]:
        """Return for which rows a column says that this is gaze.

        Args:
            column: the column.
            rule: "true" (1, True, Valid), "zero" (0, False), "tobii" (0 or 1 of 0..4, Valid), "validity" (one of both),
                "confidence" (at least `limit`), "filled", "empty", "ones" and "tens" (ioHub's status: 2 is a lost eye).
            limit: least confidence.
        """
        cells = [cell.lower() for cell in self.cells(column)]
        if rule in ("filled", "empty"):
            filled = np.array([cell not in MISSING for cell in cells], dtype=bool)
            return filled | (not filled.any()) if rule == "filled" else ~filled
        words = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
        if any(cell in words for cell in cells):
            for k, cell in enumerate(cells):
                if cell not in words and cell not in MISSING and _NUMBER.fullmatch(cell) is None:
                    raise DataError(f"{self.where(k, column)} does not say whether the sample is valid.")
            good = np.array(
                [
                    words[c] if c in words else c not in MISSING and float(c.replace(",", ".")) > 0
                    for c in cells
                ],
                bool,
            )
            return ~good if rule == "zero" else good
        values = self.numbers([column])[column]
        if rule == "validity":
            rule = self._validity(column, values)
        known = np.isfinite(values)
        if rule == "confidence":
            return known & (values >= limit)
        if rule == "tobii":
            return known & (values <= 1)
        if rule == "ones":
            return ~known | (values % 10 != 2)
        if rule == "tens":
            return ~known | (values // 10 != 2)
        return ~known | (values == 0) if rule == "zero" else known & (values > 0)

    def _validity(self, column: int, values: FloatArray) -> str:
        """Return "tobii" (0 is valid), "true" or "zero" by a column's values; raise where they fit both."""
        seen = set(values[np.isfinite(values)].tolist())
        if len(seen) <= 1:
            return "true" if seen == {1.0} else "zero" if seen == {0.0} else "tobii"
        if seen > {0.0, 1.0} or max(seen) > 1:
            return "tobii"
        raise DataError(
            f"{self.path}, column {self.header[column]!r}: holds 0 and 1, and trackers differ in which is valid. "
            f"Pass columns={{'valid': {self.header[column]!r}}} if 1 is, columns={{'invalid': …}} if 0 is."
        )


@dataclass
class Record:
    """A sheet, how to read it, and the video that it belongs to.

    Attributes:
        sheet: the table.
        reading: the caller's options.
        size: (H, W) of the video, None if not known.
        frame_times: (n,) seconds of its frames, or a function that returns them.
        fps: its rate, where the times are not known.
        skipped: rows that are not of this recording, by reason.
        notes: what was assumed.
    """

    sheet: Sheet
    reading: Reading
    size: tuple[int, int] | None = None
    frame_times: FloatArray | Callable[[], FloatArray] | None = None
    fps: float | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = self.sheet.path
        self.own = {role: (self.sheet.named(name) if name else None) for role, name in self.reading.columns}

    def times(self) -> FloatArray | None:
        """Return (n,) seconds of the video's frames, if known."""
        return self.frame_times() if callable(self.frame_times) else self.frame_times

    def column(self, role: str, names: Sequence[str]) -> int | None:
        """Return the column of a role: the caller's, else the first of the known names."""
        return self.own[role] if role in self.own else self.sheet.find(names)

    def leave(self, keep: NDArray[np.bool_], reason: str) -> None:
        """Leave out and count rows that are not of this recording.

        Raises:
            DataError: no row would be left.
        """
        if not keep.any():
            raise DataError(f"{self.path}: all {len(keep)} rows are left out: {reason}.")
        if not keep.all():
            self.skipped[reason] += int((~keep).sum())
            self.sheet.keep(keep)

    def trim(self, last: int) -> None:
        """Drop a last line that breaks off before column `last`, and refuse other short ones."""
        short = [k for k, row in enumerate(self.sheet.rows) if len(row) <= last]
        # A recording that was cut off may end in half a line; more than that is another format.
        if short and short != [len(self.sheet.rows) - 1]:
            raise DataError(
                f"{self.path}, line {self.sheet.lines[short[0]]}: "
                f"{len(short)} lines have fewer columns than the header."
            )
        if short:
            self.leave(np.arange(len(self.sheet.rows)) < short[0], "line that breaks off")


def squash(name: str) -> tuple[str, str | None]:
    """Return a column's key and the unit of time that its name ends in."""
    text = unicodedata.normalize("NFKC", name).lower().strip().replace("μ", "u").replace("µ", "u")
    text = _DATE.sub("", text).replace("(in ", "(")
    unit = _UNIT.search(text)
    if unit is not None:
        text = text[: unit.start()]
    return re.sub(r"[^a-z0-9*]+", "", text), _UNITS[unit[1]] if unit else None


def plain(name: str) -> str:
    """Return a name in lower case, its punctuation as single underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def open_sheet(path: Path, known: Known | None = None) -> Sheet:
    """Read a gaze file: a table with a header (CSV, TSV, Parquet), an EyeLink ASC or a PsychoPy HDF5 file.

    Args:
        path: the file.
        known: returns whether the cells of a column (its key and name) are wanted; None keeps all.

    Raises:
        DataError: it cannot be read, has no header, or a row is longer than it.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _open_parquet(path)
    if suffix in (".hdf5", ".h5"):
        return _open_iohub(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the gaze table cannot be read ({error}).") from error
    if data[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise DataError(f"{path}: this is an Excel workbook; save the sheet as CSV.")
    text = _decode(path, data)
    if suffix == ".asc" or text.startswith("** "):
        return _open_asc(path, text)
    return _open_text(path, text, known)


def _decode(path: Path, data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:4096]:
        raise DataError(f"{path}: the gaze table cannot be read (it is no text).")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # trackers' Windows software; numbers are the same


def _open_text(path: Path, text: str, known: Known | None) -> Sheet:
    number = 0

    def content() -> Iterator[str]:
        nonlocal number
        for at, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#"):
                number = at
                yield line

    first = next(content(), None)
    if first is None:
        raise DataError(f"{path}: the gaze table is empty.")
    delimiter = max("\t;,", key=first.count)
    reader = csv.reader(content(), delimiter=delimiter)
    header = [name.strip() for name in next(reader)]
    if all(_NUMBER.fullmatch(cell) for cell in header):
        raise DataError(
            f"{path}: the first line is numbers ({first[:60]}), not column names; add a header such as "
            "'time_s,x_norm,y_norm'."
        )
    # Exports have many columns that nobody asks for: their cells are not kept.
    wanted = [known is None or known(squash(name)[0], name) for name in header]
    rows, lines = [], []
    for row in reader:
        if len(row) > len(header):
            if any(cell.strip() for cell in row[len(header) :]):
                hint = (
                    " Are the decimals commas? Then separate the columns by ';'." if delimiter == "," else ""
                )
                raise DataError(
                    f"{path}, line {number}, column {len(header) + 1}: the row has {len(row)} cells, the header "
                    f"{len(header)} names.{hint}"
                )
            row = row[: len(header)]
        rows.append([sys.intern(cell) if keep else "" for cell, keep in zip(row, wanted, strict=False)])
        lines.append(number)
    area = re.search(r"^##\s*Calibration Area:\s*(\d+)\s+(\d+)", text, re.MULTILINE)
    return Sheet(path, header, rows, lines, (int(area[2]), int(area[1])) if area else None)


def _open_parquet(path: Path) -> Sheet:
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
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Sheet(path, list(table.column_names), rows, list(range(1, len(rows) + 1)))


def _open_iohub(path: Path) -> Sheet:
    """Read the eye samples of a PsychoPy ioHub file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            events = file.get("data_collection/events/eyetracker", {})
            tables = [events[f"{kind}EyeSampleEvent"] for kind in ("Binocular", "Monocular")
                      if f"{kind}EyeSampleEvent" in events]  # fmt: skip
            table = next((t[()] for t in tables if len(t)), None)
    except OSError as error:
        raise DataError(f"{path}: the gaze table cannot be read ({error}).") from error
    if table is None or table.dtype.names is None:
        raise DataError(f"{path}: holds no eye samples (data_collection/events/eyetracker).")
    names = [n for n in table.dtype.names if table.dtype[n].kind in "iuf" and table.dtype[n].shape == ()]
    rows = [[repr(float(table[n][k])) for n in names] for k in range(len(table))]
    return Sheet(path, names, rows, list(range(1, len(rows) + 1)))


def _open_asc(path: Path, text: str) -> Sheet:
    """Read an EyeLink ASC file into the columns of a sample report, or of a fixation report if it has no samples.

    Samples are labelled by the events that cover them; with both eyes, a fixation of either counts.
    """
    eyes, kind = "", "GAZE"
    samples: list[list[str]] = []
    lines: list[int] = []
    fixations: list[list[str]] = []
    fixation_lines: list[int] = []
    events: dict[str, list[tuple[float, float]]] = {"EFIX": [], "ESACC": [], "EBLINK": []}
    sheet = Sheet(path, ["TIMESTAMP"], [], [])
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        head = words[0]
        if line[0].isdigit():  # calibration reports have indented numbers
            if not eyes:
                eyes = "LR" if len(words) > 6 else "R"
            missing = ["."] * 6
            left, right = (words[1:3], words[4:6]) if eyes == "LR" else (words[1:3], [])
            if eyes == "R":
                left, right = right, left
            samples.append([head, *(left + missing)[:2], *(right + missing)[:2]])
            lines.append(number)
        elif head in events and len(words) >= 5:
            events[head].append((float(words[2]), float(words[3])))
            if head == "EFIX":
                fixations.append([words[2], words[4], *words[5:7]])
                fixation_lines.append(number)
        elif head in ("SAMPLES", "EVENTS") and len(words) > 1:
            kind = words[1]
            if kind != "GAZE":
                raise DataError(
                    f"{path}, line {number}: holds {kind} data; convert the recording with gaze (edf2asc -sg)."
                )
            eyes = ("L" if "LEFT" in words else "") + ("R" if "RIGHT" in words else "")
        elif head == "MSG" and len(words) > 2:
            if words[2] in ("GAZE_COORDS", "DISPLAY_COORDS"):
                at = [float(w) for w in words[3:] if _NUMBER.fullmatch(w)][:4]
                if len(at) == 4:
                    # The last pixel or the size: sizes are even.
                    width, height = (round(at[k + 2] - at[k]) for k in (0, 1))
                    sheet.screen = height + height % 2, width + width % 2
            else:
                sheet.messages.append((float(words[1]), " ".join(words[2:])))
    if samples:
        times = np.array([float(row[0]) for row in samples])
        label = np.full(len(times), "none", dtype=object)
        for event, name in (("EBLINK", "blink"), ("ESACC", "saccade"), ("EFIX", "fixation")):
            for begin, end in events[event]:
                low, high = np.searchsorted(times, begin), np.searchsorted(times, end, side="right")
                label[low:high] = name
        header = ["TIMESTAMP", "LEFT_GAZE_X", "LEFT_GAZE_Y", "RIGHT_GAZE_X", "RIGHT_GAZE_Y"]
        if any(events.values()):
            header.append("EYE_MOVEMENT")
            samples = [[*row, str(name)] for row, name in zip(samples, label, strict=True)]
        return Sheet(path, header, samples, lines, sheet.screen, sheet.messages)
    if fixations:
        header = ["TIMESTAMP", "CURRENT_FIX_DURATION", "CURRENT_FIX_X", "CURRENT_FIX_Y"]
        return Sheet(path, header, fixations, fixation_lines, sheet.screen, sheet.messages)
    raise DataError(f"{path}: neither samples nor fixations in this ASC file.")


def world_clock(path: Path) -> FloatArray | None:
    """Return the seconds of each picture in the `world_timestamps.csv` beside a Pupil Cloud export, None without."""
    beside = path.with_name("world_timestamps.csv")
    if path.name == beside.name or not beside.is_file():
        return None
    sheet = open_sheet(beside)
    column = sheet.find(("timestamp",))
    if column is None or sheet.units[column] != "ns":
        return None
    return sheet.numbers([column])[column] / 1e9


def same_name(cell: str, name: str) -> bool:
    """Return whether a cell that names a stimulus means the video `name` (without suffix)."""
    last = cell.replace("\\", "/").rpartition("/")[2].lower()
    return name.lower() in (cell.lower(), last, last.rpartition(".")[0])
