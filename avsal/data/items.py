"""One video with its sound and its ground truth, whatever files they come from.

A `VideoItem` is a small description that costs nothing to make, to pickle and to send to a worker; `open()` gives
the readers. Every data set is a list of items.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import NO_POINTS, IntArray
from avsal.errors import OutputError
from avsal.files import cache_folder, write_text


class Frames(Protocol):
    """The pictures of one video."""

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) seconds of each frame."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return (k, H, W, 3) uint8 RGB for 0-based indices in any order."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Annotation(Protocol):
    """The ground truth of one video, on its own pixel grid."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the maps and fixations."""
        ...

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the (H, W) map in [0, 1] of a 0-based frame, None where there is none."""
        ...

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return points (N, 2) (row, column) and observers (N,), None where the source has no fixations."""
        ...

    def union(self) -> IntArray:
        """Return (M, 2) the distinct pixels fixated in any frame."""
        ...


@dataclass(frozen=True)
class VideoItem:
    """One video of a data set.

    Attributes:
        name: `<set>/<video>`.
        frames: number of frames that count; None is found by opening the file.
        fps: frames per second where the file itself does not say.
        open_frames: makes the reader of the pictures.
        open_annotation: makes the reader of the ground truth; None without any.
        audio: the file with the sound, None without.
        open_gaze: reads a table (n, 4) of time, x, y in 0..1 and gaze type; for gaze sets.
        open_audio: makes the reader of the sound from a rate (None: its own), instead of `audio`.
        files: the files that the item is read from.
    """

    name: str
    frames: int | None
    fps: float | None
    open_frames: Callable[[], Frames]
    open_annotation: Callable[[], Annotation] | None = None
    audio: Path | None = None
    open_gaze: Callable[[], NDArray[np.float64]] | None = None
    open_audio: Callable[[int | None], Any] | None = None
    files: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def set(self) -> str:
        """The data set's name."""
        return self.name.partition("/")[0]

    def open(self, rate: int | None = None, *, sound: bool = True) -> OpenItem:
        """Return the readers; `rate` resamples the sound."""
        return OpenItem(self, rate, sound)

    def counted(self) -> VideoItem:
        """Return the item with its number of frames and rate filled in (opens the file if needed)."""
        if self.frames is not None and self.fps is not None:
            return self
        with contextlib.closing(self.open_frames()) as frames:
            return replace(self, frames=self.frames or len(frames), fps=self.fps or frames.fps)


class Counts:
    """Numbers of frames and rates of a data set's videos, kept in the cache: opening thousands of files takes minutes.

    An entry is valid while its file has the same size and modification time.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: Path | None) -> None:
        name = hashlib.sha256(str(root.absolute() if root else "").encode()).hexdigest()[:16]
        self.path = cache_folder() / "index" / f"{name}.json"
        self._new = False
        try:
            self._known: dict[str, list[float]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}  # nothing remembered, or not readable: it is only a cache

    def counted(self, item: VideoItem) -> VideoItem:
        """Return the item with its number of frames and rate; opens its file if it is new or changed.

        Raises:
            AvsalError: the file cannot be read.
        """
        if (item.frames is not None and item.fps is not None) or not item.files:
            return item.counted()
        source = item.files[0]
        try:
            stat = source.stat()
        except OSError:
            return item.counted()  # says what is wrong with it
        found = self._known.get(str(source))
        if found is None or found[:2] != [stat.st_size, stat.st_mtime_ns]:
            opened = item.counted()
            assert opened.frames is not None
            assert opened.fps is not None
            found = [stat.st_size, stat.st_mtime_ns, opened.frames, opened.fps]
            self._known[str(source)] = found
            self._new = True
        return replace(item, frames=item.frames or int(found[2]), fps=item.fps or float(found[3]))

    def save(self) -> None:
        """Write the cache, if there is anything new and it can be written."""
        if not self._new:
            return
        with contextlib.suppress(OutputError):  # a read-only cache costs time, nothing else
            write_text(self.path, json.dumps(self._known))


class OpenItem:
    """The readers of one video, opened when first used and closed together."""

    def __init__(self, item: VideoItem, rate: int | None, sound: bool) -> None:
        self.item, self._rate, self._sound = item, rate, sound

    @cached_property
    def frames(self) -> Frames:
        """The pictures."""
        return self.item.open_frames()

    @cached_property
    def annotation(self) -> Annotation | None:
        """The ground truth."""
        return self.item.open_annotation() if self.item.open_annotation else None

    @cached_property
    def gaze(self) -> NDArray[np.float64] | None:
        """(n, 4) time, x, y, type for gaze sets."""
        return self.item.open_gaze() if self.item.open_gaze else None

    @cached_property
    def audio(self) -> Any:
        """An `avsal.io.audio.AudioStream`, or None where there is no file with sound."""
        if not self._sound:
            return None
        if self.item.open_audio is not None:
            return self.item.open_audio(self._rate)
        if self.item.audio is None:
            return None
        from avsal.io.audio import AudioStream

        return AudioStream(self.item.audio, rate=self._rate)

    @cached_property
    def union(self) -> IntArray:
        """The distinct pixels fixated in any frame of the video."""
        return self.annotation.union() if self.annotation is not None else NO_POINTS

    @property
    def count(self) -> int:
        """Number of frames that count: the list's, but never more than the file has."""
        return min(self.item.frames or len(self.frames), len(self.frames))

    def close(self) -> None:
        """Close what was opened."""
        for name in ("frames", "audio"):
            opened = self.__dict__.pop(name, None)
            if opened is not None:
                opened.close()


_INHERITED: list[Any] = []


class OpenItems:
    """A bounded cache of open items, of one process: a forked worker starts with an empty one."""

    def __init__(
        self, items: Sequence[VideoItem], *, keep: int = 8, rate: int | None = None, sound: bool = True
    ) -> None:
        self.items, self.keep, self._rate, self._sound = items, keep, rate, sound
        self._open: OrderedDict[int, OpenItem] = OrderedDict()
        self._process = -1

    def __getitem__(self, index: int) -> OpenItem:
        if self._process != os.getpid():
            # Freeing decoders that were forked would wait for threads that the child does not have.
            _INHERITED.append(self._open)
            self._open, self._process = OrderedDict(), os.getpid()
        found = self._open.pop(index, None)
        if found is None:
            found = self.items[index].open(self._rate, sound=self._sound)
            while len(self._open) >= self.keep:
                self._open.popitem(last=False)[1].close()
        self._open[index] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"items": self.items, "keep": self.keep, "_rate": self._rate, "_sound": self._sound,
                "_open": OrderedDict(), "_process": -1}  # fmt: skip
