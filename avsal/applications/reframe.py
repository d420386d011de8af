"""Re-framing: a film cropped to another shape, such as 16:9 to 9:16, around what is looked at."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from avsal.applications.attention import Tick, computed, saved, source_of
from avsal.applications.paths import FloatArray, Motion, grid, kept, shot_path
from avsal.errors import ConfigError, DataError, MediaError
from avsal.files import write_json
from avsal.io.render import VideoWriter
from avsal.io.shots import THRESHOLD, ShotDetector
from avsal.io.video import VideoStream

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

#: What a box that has to stay in the picture weighs against all attention of a frame.
KEEP = 10.0


@dataclass(frozen=True)
class Box:
    """A part of the picture that shall stay inside the crop for some time.

    Attributes:
        start, end: seconds.
        left, top, right, bottom: 0..1 of the picture.
    """

    start: float
    end: float
    left: float
    top: float
    right: float
    bottom: float

    def along(self, axis: int) -> tuple[float, float]:
        """Return where the box begins and ends along the rows (0) or the columns (1)."""
        return ((self.top, self.bottom), (self.left, self.right))[axis]


@dataclass
class Reframed:
    """A crop's path through a film.

    Attributes:
        film: the source.
        axis: 1 if the crop slides along the columns, 0 if along the rows.
        length: the crop's length along that axis, 0..1; it is whole along the other.
        times: (n,) seconds of the film's frames.
        path: (n,) where the crop begins at each frame, 0..1 - length.
        cuts: seconds at which new shots begin.
        attention: (m,) share of attention inside the crop, at each frame that has a map.
        centre: mean share inside the centre crop.
        static: mean share inside the best crop that never moves.
        limit: mean share inside the best crop of each frame on its own, which would jump.
        out: the film written, if any.
        notes: what was lost or repaired.
    """

    film: Path
    axis: int
    length: float
    times: FloatArray
    path: FloatArray
    cuts: list[float]
    attention: FloatArray
    centre: float
    static: float
    limit: float
    out: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def jitter(self) -> float:
        """Mean absolute acceleration of the crop within shots, in lengths of the axis per second squared."""
        parts = [p for p in np.split(self.path, np.searchsorted(self.times, self.cuts)) if len(p) > 2]
        step = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1.0
        bends = np.concatenate([np.abs(np.diff(p, 2)) for p in parts]) if parts else np.zeros(1)
        return float(bends.mean() / step**2)

    def summary(self) -> dict[str, Any]:
        """Return all numbers as plain JSON."""
        return {
            "film": self.film.name,
            "axis": ("rows", "columns")[self.axis],
            "crop_length": round(self.length, 6),
            "attention_kept": round(float(self.attention.mean()), 4),
            "centre_crop": round(self.centre, 4),
            "best_static_crop": round(self.static, 4),
            "best_of_each_frame": round(self.limit, 4),
            "jitter": round(self.jitter, 5),
            "cuts": [round(time, 3) for time in self.cuts],
            "notes": self.notes,
            "frames": np.stack([self.times.round(4), self.path.round(5)], 1).tolist(),
        }


def read_aspect(text: str) -> float:
    """Return width over height of "9:16", "1:1" or "0.8".

    Raises:
        ConfigError: it is neither two positive numbers nor one.
    """
    try:
        width, _, height = text.partition(":")
        value = float(width) / float(height or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0.05 <= value <= 20:
        raise ConfigError(f"aspect={text!r}: expected width:height, such as 9:16, 1:1 or 4:5.")
    return value


def read_boxes(path: Path) -> list[Box]:
    """Return the boxes of a CSV table with the columns start, end (seconds), left, top, right, bottom (0..1).

    Raises:
        DataError: the file cannot be read, a column is missing, or a value is out of range; with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV table ({error}).") from None
    boxes = []
    for line, row in enumerate(rows, 2):
        try:
            box = Box(*(float(row[name]) for name in ("start", "end", "left", "top", "right", "bottom")))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {line}: expected numbers in the columns start, end, left, top, right, bottom ({error})."
            ) from None
        if not (box.start < box.end and 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1):
            raise DataError(
                f"{path}, line {line}: expected start < end, and a box within 0..1 of the picture."
            )
        boxes.append(box)
    return boxes


def crop_path(
    film: Path,
    aspect: float,
    attention: Iterable[tuple[float, FloatArray]],
    *,
    keep: list[Box] | None = None,
    motion: Motion | None = None,
    threshold: float = THRESHOLD,
) -> Reframed:
    """Return the path of the largest crop of a shape that keeps most attention and moves smoothly; see `paths`.

    Args:
        film: the file.
        aspect: width over height of the crop as displayed (pixels that are not square are taken into account).
        attention: (seconds, shares (h, w) that sum to 1), as `computed` and `saved` of `attention` give them.
        keep: boxes that stay inside the crop as far as they fit.
        motion: bounds on speed and acceleration.
        threshold: of the detection of shot changes, 0..100.

    Raises:
        MediaError, DataError: the film, or the maps, cannot be read.
    """
    motion = motion or Motion()
    times, cuts, info, notes = _shots(film, threshold)
    shape = info.width * info.pixel_aspect / info.height
    axis, length = (1, aspect / shape) if aspect < shape else (0, shape / aspect)
    pairs = [(time, np.concatenate([[0], np.cumsum(map_.sum(1 - axis))])) for time, map_ in attention]
    if not pairs:
        raise DataError(f"{film}: there is no map of any frame.")
    seen = np.array([time for time, _ in pairs])
    positions = grid(min(length, 1.0))
    values = np.stack([kept(below, positions, length) for _, below in pairs])
    # Where all positions are worth the same, as in a map of zeros, the crop stays in the middle.
    penalty = np.tile(-1e-6 * np.abs(positions - positions.mean()), (len(values), 1))
    for box in keep or []:
        begin, end = box.along(axis)
        out = np.maximum(positions - begin, 0) + np.maximum(end - positions - length, 0)
        penalty[(seen >= box.start) & (seen <= box.end)] -= KEEP * out / (end - begin)
    path = np.empty(len(times))
    edges = [0, *np.searchsorted(times, cuts).tolist(), len(times)]
    for first, last in pairwise(edges):
        at = times[first:last]
        stop = times[last] if last < len(times) else np.inf
        inside = (seen >= at[0]) & (seen < stop) if first else seen < stop
        if not inside.any():  # a shot shorter than the stride: the nearest map counts
            inside = np.arange(len(seen)) == np.abs(seen - at[0]).argmin()
        path[first:last] = shot_path(seen[inside], (values + penalty)[inside], positions, motion, at)
    where = np.interp(seen, times, path)
    if cuts:  # between the last frame of a shot and the first of the next nothing is interpolated
        where = path[(np.searchsorted(times, seen, side="right") - 1).clip(0)]
    return Reframed(
        film, axis, min(length, 1.0), times, path, cuts,
        attention=np.array([kept(below, np.array([x]), length)[0] for (_, below), x in zip(pairs, where, strict=True)]),
        centre=float(np.mean([kept(below, np.array([(1 - length) / 2]), length)[0] for _, below in pairs])),
        static=float(values.mean(0).max()),
        limit=float(values.max(1).mean()),
        notes=notes,
    )  # fmt: skip


def reframe(
    film: Path,
    out: Path,
    aspect: str = "9:16",
    *,
    module: SaliencyModule | None = None,
    maps: Path | None = None,
    keep: list[Box] | None = None,
    motion: Motion | None = None,
    height: int | None = None,
    stride: int = 1,
    batch_size: int = 8,
    tick: Tick | None = None,
) -> Reframed:
    """Write a film cropped to another shape, with its sound and frame times, and the path beside it as JSON.

    Args:
        film: the file, or a folder of `avsal predict` whose film is still in its place.
        out: .mp4, .mov or .mkv.
        aspect: width:height of the result, such as "9:16".
        module: the model whose maps count; None needs saved maps.
        maps: a folder of `avsal predict` for this film.
        keep: boxes that stay inside the crop as far as they fit.
        motion: bounds on speed and acceleration.
        height: rows of the result; None takes the crop's own.
        stride: attention is computed for every which frame.
        batch_size: windows per forward pass.
        tick: is told the frames done and, where known, how many there are.

    Raises:
        ConfigError: an option is out of its range.
        MediaError, DataError: the film, or the maps, cannot be read.
    """
    ratio = read_aspect(aspect)
    if height is not None and not 16 <= height <= 16384:
        raise ConfigError(f"height={height}: expected 16 to 16384 rows.")
    film, there = source_of(film)
    if folder := maps or there:
        attention = saved(folder)
    elif module is not None:
        attention = computed(module, film, stride=stride, batch_size=batch_size, tick=tick)
    else:
        raise ConfigError(f"{film}: reframe needs a module, or maps of `avsal predict`.")
    found = crop_path(film, ratio, attention, keep=keep, motion=motion)
    found.out = out
    _write(found, ratio, height)
    write_json(out.with_suffix(".json"), found.summary())
    return found


def _shots(film: Path, threshold: float) -> tuple[FloatArray, list[float], Any, list[str]]:
    """Return the times of a film's frames, the times of its cuts, what the container says, and what was lost."""
    detector = ShotDetector(threshold)
    times: list[float] = []
    cuts: list[float] = []
    with VideoStream(film) as stream:
        for frame in stream:
            if detector.push(frame.image, frame.time) and times:
                cuts.append(frame.time)
            times.append(frame.time)
        if not times:
            raise MediaError(f"{film}: no frame could be decoded; check the file with another player.")
        return np.array(times), cuts, stream.info, [note for note in [stream.report.message] if note]


def _write(found: Reframed, aspect: float, height: int | None) -> None:
    assert found.out is not None
    with VideoStream(found.film) as stream:
        info = stream.info
        frame_size = np.array([info.height, info.width], float)
        crop = frame_size.copy()
        crop[found.axis] *= found.length
        rows = height or round(crop[0])
        columns = round(rows * aspect) if height else round(crop[1])
        size = (max(2, rows - rows % 2), max(2, columns - columns % 2))
        sound = found.film if info.has_audio else None
        pixel_aspect = 1.0 if height else info.pixel_aspect
        with VideoWriter(found.out, info.fps, size, audio_from=sound, pixel_aspect=pixel_aspect) as writer:
            for frame, place in zip(stream, found.path, strict=False):
                corner = np.zeros(2)
                corner[found.axis] = place * frame_size[found.axis]
                # A box of fractions of pixels: slow motion does not step from pixel to pixel.
                box = (
                    corner[1],
                    corner[0],
                    min(corner[1] + crop[1], frame_size[1]),
                    min(corner[0] + crop[0], frame_size[0]),
                )
                picture = Image.fromarray(frame.image).resize(
                    (size[1], size[0]), Image.Resampling.BICUBIC, box=box
                )
                writer.write(np.asarray(picture), frame.time)
    if writer.note:
        found.notes.append(writer.note)
