"""Five-second segments of egocentric recordings: how they are sampled, and the lists that name them.

A segment is a line of the published lists, `<video>/<video>_t<start>_t<end>.mp4`, seconds from the start of the
recording.
"""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avsal.errors import ConfigError, DataError

#: Length of every segment in seconds. The lists of Aria name an end one second too early.
SECONDS = 5


@dataclass(frozen=True)
class Protocol:
    """How one data set is sampled (released loader of CSTS).

    Attributes:
        fps: frames per second that frame numbers count.
        spacing: frames from one sampled frame to the next.
        observed: frames of a segment that anticipation may see and hear.
        lead: frames from the last observed one to the first anticipated one.
        estimation_last: estimation is tested on the last frames of a segment instead of the first.
        saccade: movement per frame that is a saccade, in pixels of `grid`.
        grid: (width, height) in pixels that the movement is measured on.
        untracked: (x, y) of frames without known gaze.
        thresholds: the list in which the adaptive F1 of anticipation looks (see `avsal.metrics.gaze_thresholds`).
    """

    fps: int
    spacing: int
    observed: int
    lead: int
    estimation_last: bool
    saccade: float
    grid: tuple[int, int]
    untracked: tuple[float, float]
    thresholds: str

    @property
    def frames(self) -> int:
        """Frames of a whole segment."""
        return SECONDS * self.fps

    def seen(self, anticipation: bool) -> int:
        """Frames of a segment whose picture and sound may be used."""
        return self.observed if anticipation else self.frames

    def starts(self, clip: int, anticipation: bool) -> tuple[int, int]:
        """Return the last start of a training clip of `clip` frames (the first is 0), and that of the test clip."""
        last = self.seen(anticipation) - ((clip - 1) * self.spacing + 1)
        if last < 0:
            raise ConfigError(
                f"A clip of {clip} frames {self.spacing} apart is longer than the {self.seen(anticipation)} frames "
                "that may be seen; take fewer."
            )
        return last, last if anticipation or self.estimation_last else 0

    def labels(self, start: int, clip: int, anticipation: bool) -> NDArray[np.int64]:
        """Return the frames (clip,) of a segment that the maps of a clip from `start` on belong to."""
        steps = self.spacing * np.arange(clip)
        return start + steps + ((clip - 1) * self.spacing + self.lead if anticipation else 0)


EGO4D = Protocol(30, 9, 86, 1, False, 40.0, (1088, 1080), (0.0, 0.0), "ego4d_forecast")
ARIA = Protocol(20, 5, 60, 5, True, 24.0, (640, 640), (0.5, 0.5), "aria_forecast")


@dataclass(frozen=True)
class Segment:
    """One line of a list.

    Attributes:
        video: the recording's name.
        start: seconds from its start.
        clip: file name without suffix, as the list has it.
    """

    video: str
    start: int
    clip: str


_CLIP = re.compile(r"^(?P<video>.+)_t(?P<start>\d+)_t(?P<end>\d+)$")


def read_segments(path: Path) -> list[Segment]:
    """Read a published list: one clip path on each line, no header.

    Raises:
        DataError: the list is missing or empty, or a line is no clip path.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list of clips cannot be read ({error}). It is published with the code of CSTS (folder data)."
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = Path(line.split(",")[0].strip()).stem
        match = _CLIP.match(name)
        if match is None:
            raise DataError(
                f"{path}, line {number}: expected <video>/<video>_t<start>_t<end>.mp4, found {line.strip()!r}."
            )
        found.append(Segment(match["video"], int(match["start"]), name))
    if not found:
        raise DataError(f"{path}: the list of clips is empty.")
    return found


def read_untracked(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Read intervals without usable gaze: rows `video, hh:mm:ss, hh:mm:ss[, code]`, in seconds per video.

    A row that ends before it begins has no effect, as in the authors' script; twice the same row counts once.
    """
    intervals: dict[str, set[tuple[int, int]]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not any(cell.strip() for cell in row):
                    continue
                try:
                    begin, end = (_clock(cell) for cell in row[1:3])
                except (ValueError, IndexError) as error:
                    raise DataError(
                        f"{path}, line {number}: expected video,hh:mm:ss,hh:mm:ss,code, found {','.join(row)!r}."
                    ) from error
                if end >= begin:
                    intervals.setdefault(row[0].strip(), set()).add((begin, end))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the untracked intervals cannot be read ({error}).") from error
    return {video: sorted(spans) for video, spans in intervals.items()}


def _clock(text: str) -> int:
    hours, minutes, seconds = (int(part) for part in text.strip().split(":"))
    return 3600 * hours + 60 * minutes + seconds


def segments_of(
    video: str, duration: float, stride: int, untracked: Iterable[tuple[int, int]] = ()
) -> list[Segment]:
    """Return the segments of a recording that has no published list.

    Args:
        video: its name.
        duration: its length in seconds.
        stride: seconds from one segment to the next (Ego4D 5, Aria 2).
        untracked: (begin, end) seconds; a segment that touches one is left out.
    """
    spans = list(untracked)
    return [
        Segment(video, start, f"{video}_t{start}_t{start + SECONDS}")
        for start in range(0, int(duration + 1e-6) - SECONDS + 1, stride)
        if not any(begin <= start + SECONDS and end >= start for begin, end in spans)
    ]


def read_names(path: Path) -> dict[str, str]:
    """Read the sheet that matches the old names of Aria recordings to the current ones, both ways.

    Args:
        path: the authors' spreadsheet (.xlsx), or a CSV file of two columns with a header.

    Raises:
        DataError: the file is neither.
    """
    try:
        if path.suffix.lower() == ".xlsx":
            pairs = _sheet(path)
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                pairs = [(row[0].strip(), row[1].strip()) for row in csv.reader(file) if len(row) > 1]
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise DataError(f"{path}: not a sheet of recording names ({error}).") from error
    found: dict[str, str] = {}
    for left, right in pairs[1:]:
        found[left], found[right] = right, left
    return found


def _sheet(path: Path) -> list[tuple[str, str]]:
    """Return columns A and B of the first sheet of a workbook."""
    space = {"m": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    with zipfile.ZipFile(path) as book:
        texts = ElementTree.fromstring(book.read("xl/sharedStrings.xml")).findall("m:si", space)
        strings = ["".join(part.text or "" for part in text.iter(f"{{{space['m']}}}t")) for text in texts]
        rows = ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml")).findall(".//m:row", space)
    pairs = []
    for row in rows:
        cells: dict[str, str] = {}
        for cell in row.findall("m:c", space):
            value = cell.findtext("m:v", default="", namespaces=space)
            cells[cell.get("r", "")[:1]] = strings[int(value)] if cell.get("t") == "s" and value else value
        if cells.get("A") and cells.get("B"):
            pairs.append((cells["A"].strip(), cells["B"].strip()))
    return pairs
