"""Which frames make a clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avsal.types import ClipSpec, Coverage

#: Length of the segments that training clips are drawn from (STAViS, and most papers after it).
SEGMENT = 90


@dataclass(frozen=True)
class Window:
    """The frames of one clip.

    Attributes:
        target: 0-based frame that the clip is about.
        frames: (T,) indices into the video, inside it.
        times: (T,) nominal seconds of the slots, in the window's own order; they may lie outside the video.
        reverse: the window runs backwards, and so does its sound.
        clip_sound: the span of sound is cut at the ends of the file instead of being filled with silence.
    """

    target: int
    frames: NDArray[np.int64]
    times: NDArray[np.float64]
    reverse: bool = False
    clip_sound: bool = False


def reach(spec: ClipSpec, fps: float) -> tuple[int, int, int]:
    """Return how many frames a clip reaches before its target, after it, and how far its last map lies ahead."""
    step = spec.step * fps if spec.step_unit == "seconds" else spec.step
    before = round(spec.target_index * step)
    after = round((spec.frames - 1 - spec.target_index) * step)
    ahead = round(max(spec.target) * fps) if isinstance(spec.target, tuple) else 0
    return before, after, max(ahead, after)


def window_at(
    spec: ClipSpec,
    target: int,
    count: int,
    times: NDArray[np.float64],
    fps: float,
    coverage: Coverage = "full",
) -> Window:
    """Return the clip about frame `target` of a video of `count` frames.

    Args:
        spec: the network's clip.
        target: 0-based frame.
        count: frames of the video.
        times: (count or more,) seconds of its frames.
        fps: its rate.
        coverage: "full" clamps the window at both ends; "authors" follows the paper's own rule.
    """
    before, length = spec.target_index, spec.frames
    rule = spec.authors_coverage if coverage == "authors" else "clamp"
    if rule == "cyclic":
        start = max(target - before, 0)
        frames = start + np.arange(length) % min(length, count - start)
        return Window(target, frames, times[frames], clip_sound=True)
    if rule == "reversed" and target < length - 1:
        back = np.arange(length - 1, -1, -1)
        return Window(target, np.minimum(target + back, count - 1), times[target] + back / fps, True, True)
    offsets = np.arange(length) - before
    seconds = offsets * (spec.step if spec.step_unit == "seconds" else spec.step / fps)
    nominal = times[target] + seconds
    if spec.step_unit == "frames":
        frames = np.clip(target + np.rint(offsets * spec.step).astype(np.int64), 0, count - 1)
        return Window(target, frames, nominal, clip_sound=rule == "reversed")
    return Window(target, nearest(times[:count], nominal), nominal)


def nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the increasing `times` that lie nearest to the wanted ones."""
    after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(wanted), dtype=np.int64)
    left = wanted - times[after - 1] <= times[after] - wanted
    return np.where(left, after - 1, after).astype(np.int64)


def scored_frames(spec: ClipSpec, count: int, coverage: Coverage = "full", stride: int = 1) -> range:
    """Return the frames of a video that get a map in validation or test."""
    if coverage == "authors" and spec.authors_coverage == "reversed" and count < spec.authors_shortest:
        return range(0)
    first = spec.target_index if coverage == "authors" and spec.authors_coverage == "cyclic" else 0
    return range(min(first, count - 1), count, stride)


def segments(
    count: int, span: int, segment: int | None = SEGMENT, *, short: bool = False
) -> list[tuple[int, int]]:
    """Return the (begin, end) of the training segments of a video.

    Neighbours overlap by one clip. A last piece that is not longer than a clip lies inside its neighbour already
    and is left out. `segment=None` makes the whole video one segment.

    Args:
        count: frames of the video.
        span: frames that one clip covers.
        segment: frames of a segment.
        short: keep a last piece of two frames or more, as STAViS's loader does.
    """
    if segment is None or count <= span:
        return [(0, count)]
    length = max(segment, span + 1)
    starts = range(0, max(count - (1 if short else span), 1), length - span)
    return [(start, min(start + length, count)) for start in starts]
