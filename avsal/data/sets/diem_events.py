"""DIEM's event files: recordings as the eye tracker left them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import FixationTable, default_sigma
from avsal.data.readers import PointAnnotation
from avsal.errors import ConfigError, DataError

Eyes = Literal["mean", "left", "right", "both"]

#: DIEM showed its videos in the middle of a screen of this (width, height).
DIEM_SCREEN = (1280, 960)
_SIZE = re.compile(r"_(\d{2,5})x(\d{2,5})$")


def size_in_name(name: str) -> tuple[int, int]:
    """Return (height, width) from a DIEM video's name, which ends in `_<W>x<H>`.

    Raises:
        DataError: it does not.
    """
    match = _SIZE.search(name)
    if not match:
        raise DataError(f"{name}: a DIEM name ends in the video's size, as in 'DIY_SOS_1280x712'.")
    return int(match.group(2)), int(match.group(1))


def read_diem_events(
    path: Path, size: tuple[int, int], *, eyes: Eyes = "mean"
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Read one observer's event file: fixations in the video's own pixels.

    The nine columns are frame (from 1, 30 Hz) and, for the left and the right eye, x, y, pupil and event (-1 error,
    0 blink, 1 fixation, 2 saccade). Coordinates are those of the screen; the video stood in its middle.

    Args:
        path: a tab-separated text file without a header.
        size: (H, W) of the video.
        eyes: "mean" averages the eyes where both fixate and takes the one that does otherwise; "left" and "right"
            take one eye; "both" gives each eye's point.

    Returns:
        (N,) 0-based frames and (N, 2) x and y in pixels; points may lie outside the video.

    Raises:
        DataError: the file is not such a table.
    """
    if eyes not in ("mean", "left", "right", "both"):
        raise ConfigError(f"eyes={eyes!r} is not known; allowed: mean, left, right, both.")
    try:
        table = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a DIEM event file ({error}).") from error
    if table.shape[1] != 9:
        raise DataError(f"{path}: a DIEM event file has 9 columns, this one has {table.shape[1]}.")
    frame = table[:, 0].astype(np.int64) - 1
    left, right = table[:, 1:3], table[:, 5:7]
    seen_left, seen_right = table[:, 4] == 1, table[:, 8] == 1
    if eyes == "left":
        frames, points = frame[seen_left], left[seen_left]
    elif eyes == "right":
        frames, points = frame[seen_right], right[seen_right]
    elif eyes == "both":
        frames = np.concatenate([frame[seen_left], frame[seen_right]])
        points = np.concatenate([left[seen_left], right[seen_right]])
    else:
        any_eye = seen_left | seen_right
        weights = np.stack([seen_left, seen_right]).astype(float)[:, :, None]
        mean = (np.stack([left, right]) * weights).sum(0) / np.maximum(weights.sum(0), 1)
        frames, points = frame[any_eye], mean[any_eye]
    margin = ((DIEM_SCREEN[0] - size[1]) / 2, (DIEM_SCREEN[1] - size[0]) / 2)
    return frames, points - np.array(margin)


def open_diem_events(
    files: Sequence[Path], size: tuple[int, int], *, eyes: Eyes = "mean", sigma: float | None = None
) -> PointAnnotation:
    """Return the annotation of a DIEM video from its event files.

    Args:
        files: one file for each observer.
        size: (H, W) of the video.
        eyes: see `read_diem_events`.
        sigma: Gaussian of the density in pixels; 1/30 of the width by default.
    """
    parts = [read_diem_events(path, size, eyes=eyes) for path in files]
    observer = np.concatenate([np.full(len(frames), k) for k, (frames, _) in enumerate(parts)])
    frame, points = (np.concatenate(column) for column in zip(*parts, strict=True))
    table = FixationTable.build(frame, points[:, 0], points[:, 1], observer, size)
    return PointAnnotation(table, sigma or default_sigma(size))
