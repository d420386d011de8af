"""Which frames make a clip: the one plan that prediction, test, training and packs share.

A window's frames are taken by index where the video's clock is steady, and by time where it is not, so that a map
always belongs to the time of its own frame. The authors' rules (`coverage="authors"`) count frames, as the papers'
loaders do. Everything here is a function of frame numbers and times; no file is opened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from avsal.errors import ConfigError
from avsal.types import AudioSpec, ClipSpec, Coverage

if TYPE_CHECKING:
    from torch import Tensor

#: Length of the segments that training clips are drawn from (STAViS, and most papers after it).
SEGMENT = 90


class Sound(Protocol):
    """A waveform that is read by sample index, such as `avsal.io.audio.AudioStream`."""

    @property
    def rate(self) -> int:
        """Samples per second."""
        ...

    @property
    def length(self) -> int:
        """Samples from time 0 to the end of the sound."""
        ...

    def read(self, begin: int, end: int) -> Tensor:
        """Return the samples [begin, end), silence outside the sound."""
        ...


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

    def sound(self, stream: Sound, audio: AudioSpec, fps: float) -> tuple[Tensor, float]:
        """Return the waveform (S,) of the window's span, and the second at which it begins."""
        begin, end = audio.samples(float(self.times.min()), float(self.times.max()), fps, stream.rate)
        if self.clip_sound:
            begin, end = max(begin, 0), min(end, stream.length)
        wave = stream.read(begin, max(end, begin))
        return wave.flip(0) if self.reverse else wave, begin / stream.rate


def window_at(
    spec: ClipSpec,
    target: int,
    times: NDArray[np.float64],
    fps: float,
    coverage: Coverage = "full",
    first: int = 0,
) -> Window:
    """Return the clip about one frame of a video.

    Args:
        spec: the network's clip.
        target: 0-based frame.
        times: (n,) increasing seconds of the frames `first` to `first + n - 1`; the video ends there.
        fps: the video's average rate.
        coverage: "full" clamps the window at both ends; "authors" follows the paper's own rule.
        first: frame of the first time.

    Raises:
        ConfigError: the authors' rule does not hold for this step.
    """
    rule, length, end = _rule(spec, coverage), spec.frames, first + len(times)
    if rule == "cyclic":
        start = max(target - spec.target_index, 0)
        frames = start + np.arange(length) % min(length, end - start)
        return Window(target, frames, times[frames - first], clip_sound=True)
    reverse = rule == "reversed" and target < length - 1
    slots = np.arange(length)[::-1] if reverse else np.arange(length) - spec.target_index
    nominal = times[target - first] + slots * _step_seconds(spec, fps)
    if spec.step_unit == "frames":
        wanted = target + np.rint(slots * spec.step).astype(np.int64)
        frames = wanted.clip(first, end - 1)
        if rule == "reversed":
            return Window(target, frames, nominal, reverse, clip_sound=True)
        # Steady: within half a frame. A container's average rate may be a little off: 5 % drift per slot is allowed.
        drift = np.abs(times[frames - first] - nominal) * fps
        if ((frames != wanted) | (drift <= 0.5 + 0.05 * np.abs(slots))).all():
            return Window(target, frames, nominal)
    return Window(target, first + nearest(times, nominal), nominal)


class WindowPlanner:
    """Plans the windows of a video whose frames arrive one by one: those of `window_at`, in bounded memory.

    Args:
        spec: the network's clip.
        fps: the video's average rate.
        coverage: as in `window_at`.
        stride: distance of the frames that get a window.
        begin: no frame before this one gets a window.

    Attributes:
        start: first frame that gets a window.
        first: frames before this one are in no window to come.
        capacity: times kept at most, where frames are so dense, or the rate so wrong, that a window spans more; it must
            hold one window. None for no bound.
        shortened: whether windows were cut to `capacity`.
    """

    def __init__(
        self, spec: ClipSpec, fps: float, coverage: Coverage = "full", stride: int = 1, begin: int = 0
    ) -> None:
        self.spec, self.fps, self.coverage, self.stride = spec, fps, coverage, stride
        self._rule = _rule(spec, coverage)
        self.start = self._next = max(scored_frames(spec, spec.authors_shortest, coverage).start, begin)
        self._before, self._after, _ = reach(spec, fps) if spec.step_unit == "frames" else (0, 0, 0)
        self.capacity: int | None = None
        self.first, self.shortened = 0, False
        self._times: deque[float] = deque()

    def push(self, time: float) -> list[Window]:
        """Return the windows that are complete with one more frame, at `time` seconds."""
        self._times.append(time)
        return list(self._ready(ended=False))

    def finish(self) -> list[Window]:
        """Return the remaining windows: no frame follows."""
        return list(self._ready(ended=True))

    def _ready(self, *, ended: bool) -> Iterator[Window]:
        end = self.first + len(self._times)
        if self._next >= end:
            self._forget(end - 1)
        while scored_frames(self.spec, end, self.coverage) and self._next < end:
            if not (ended or self._complete(end - 1)):
                return
            times = np.array(self._times)
            yield window_at(self.spec, self._next, times, self.fps, self.coverage, self.first)
            self._next += self.stride
            self._forget(end - 1)

    def _complete(self, last: int) -> bool:
        """Return whether no frame after `last` can be in the next window."""
        if self._rule == "reversed":
            ahead = self.spec.frames - 1
            return last >= self._next + (ahead if self._next < ahead else 0)
        if self._rule == "cyclic":
            return last >= self._next + self._after
        if self.capacity is not None and len(self._times) > self.capacity:
            self.shortened = True
            return True
        seconds = (self.spec.frames - 1 - self.spec.target_index) * _step_seconds(self.spec, self.fps)
        until = self._times[self._next - self.first] + seconds
        return last >= self._next + self._after and self._times[-1] >= until - 1e-6

    def _forget(self, last: int) -> None:
        """Let go of the frames that are in no window to come."""
        since = float("inf")
        if self._rule == "clamp":
            seconds = self.spec.target_index * _step_seconds(self.spec, self.fps)
            since = self._times[min(self._next, last) - self.first] - seconds
        # By time, the last frame before a window's first slot may be the nearest one.
        while self.first < min(self._next - self._before, last) and self._times[1] <= since:
            self._drop()
        while self.capacity is not None and len(self._times) > self.capacity and self.first < self._next:
            self._drop()

    def _drop(self) -> None:
        self._times.popleft()
        self.first += 1


def nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the increasing `times` that lie nearest to the wanted ones, the earlier of two."""
    after = np.searchsorted(times, wanted).clip(1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(wanted), dtype=np.int64)
    left = wanted - times[after - 1] <= times[after] - wanted
    return np.where(left, after - 1, after).astype(np.int64)


def scored_frames(spec: ClipSpec, count: int, coverage: Coverage = "full", stride: int = 1) -> range:
    """Return the frames that get a map in a video of `count` frames."""
    rule = _rule(spec, coverage)
    if rule != "clamp" and count < spec.authors_shortest:
        return range(0)
    return range(spec.target_index if rule == "cyclic" else 0, count, stride)


def reach(spec: ClipSpec, fps: float) -> tuple[int, int, int]:
    """Return how many frames a clip reaches before its target, after it, and how far its last map lies ahead."""
    step = spec.step * fps if spec.step_unit == "seconds" else spec.step
    before = round(spec.target_index * step)
    after = round((spec.frames - 1 - spec.target_index) * step)
    ahead = round(max(spec.target) * fps) if isinstance(spec.target, tuple) else 0
    return before, after, max(ahead, after)


def _rule(spec: ClipSpec, coverage: Coverage) -> Literal["cyclic", "reversed", "clamp"]:
    """Return how windows are filled at a video's ends."""
    rule = spec.authors_coverage if coverage == "authors" else "clamp"
    if rule != "clamp" and (spec.step != 1 or spec.step_unit != "frames"):
        raise ConfigError(
            f"coverage='authors' takes neighbouring frames, and this network's step is {spec.step:g} {spec.step_unit}; "
            "use coverage='full'."
        )
    return rule


def _step_seconds(spec: ClipSpec, fps: float) -> float:
    return spec.step if spec.step_unit == "seconds" else spec.step / fps


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
