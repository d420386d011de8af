"""One video with its sound and its ground truth, whatever files they come from.

A `VideoItem` is a small description that costs nothing to make, to pickle and to send to a worker; `open()` gives
the readers. Every data set is a list of items.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import FixationTable, IntArray, density_from_fixations
from avsal.errors import DataError

NO_POINTS: IntArray = np.zeros((0, 2), dtype=np.int64)
NO_IDS: IntArray = np.zeros(0, dtype=np.int64)
VIDEO_SUFFIXES = (
    ".mp4",
    ".avi",
    ".mkv",
    ".mov",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".yuv4mpeg",
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


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
        """Let go of files."""
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
        frames = self.open_frames()
        try:
            return replace(self, frames=self.frames or len(frames), fps=self.fps or frames.fps)
        finally:
            frames.close()


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
            # Letting go of decoders that were forked would wait for threads that the child does not have.
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


# -- pictures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenVideo:
    """Opens a video file; an instance is the `open_frames` of an item."""

    path: Path
    backend: str = "pyav"

    def __call__(self) -> Frames:
        """Return a reader of the file."""
        from avsal.io.video import VideoReader

        return VideoReader(self.path, backend=self.backend)  # type: ignore[arg-type]


_DIGITS = re.compile(r"(\d+)(?=\D*$)")


class FrameFolder:
    """A folder of numbered images: one directory listing, then files by their own numbers."""

    def __init__(self, folder: Path, fps: float) -> None:
        self.folder, self._fps = folder, fps

    @cached_property
    def _names(self) -> list[str]:
        names = [p.name for p in self.folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        if not names:
            raise DataError(f"{self.folder}: no images in this frames folder.")
        return sorted(
            names, key=lambda name: int(m.group()) if (m := _DIGITS.search(Path(name).stem)) else -1
        )

    def __len__(self) -> int:
        return len(self._names)

    def missing(self) -> list[int]:
        """Return the numbers left out between the first and the last frame."""
        found = [int(m.group()) for name in self._names if (m := _DIGITS.search(Path(name).stem))]
        return sorted(set(range(found[0], found[-1] + 1)) - set(found)) if found else []

    @property
    def fps(self) -> float:
        """Frames per second, from the list."""
        return self._fps

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) k / fps."""
        return np.arange(len(self)) / self._fps

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the images at the given places."""
        from PIL import Image

        pictures: dict[int, NDArray[np.uint8]] = {}
        for k in indices:
            if k not in pictures:
                path = self.folder / self._names[k]
                try:
                    with Image.open(path) as image:
                        pictures[k] = np.asarray(image.convert("RGB"))
                except (OSError, SyntaxError) as error:
                    raise DataError(f"{path}: cannot be read as an image ({error}).") from error
        return np.stack([pictures[k] for k in indices])

    def close(self) -> None:
        """Nothing stays open."""


@dataclass(frozen=True)
class OpenFolder:
    """Opens a folder of frames at a given rate."""

    folder: Path
    fps: float

    def __call__(self) -> Frames:
        """Return a reader of the folder."""
        return FrameFolder(self.folder, self.fps)


class StillFrames:
    """One image shown for `count` frames, so that image sets feed video networks."""

    def __init__(self, path: Path, count: int, fps: float) -> None:
        self.path, self._count, self._fps = path, count, fps

    def __len__(self) -> int:
        return self._count

    @property
    def fps(self) -> float:
        """Frames per second, nominal."""
        return self._fps

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) k / fps."""
        return np.arange(self._count) / self._fps

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the same picture for every index."""
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise DataError(f"{self.path}: cannot be read as an image ({error}).") from error
        return np.repeat(picture[None], len(indices), 0)

    def close(self) -> None:
        """Nothing stays open."""


@dataclass(frozen=True)
class OpenStill:
    """Opens one image as a video of `count` equal frames."""

    path: Path
    count: int = 1
    fps: float = 25.0

    def __call__(self) -> Frames:
        """Return a reader of the image."""
        return StillFrames(self.path, self.count, self.fps)


# -- ground truth ------------------------------------------------------------------------------------------


class PointAnnotation:
    """Ground truth from a table of fixations; the density is made with the data set's Gaussian.

    Args:
        table: the fixations.
        sigma: standard deviation in pixels, None for no density.
    """

    def __init__(self, table: FixationTable, sigma: float | tuple[float, float] | None) -> None:
        self.table, self.sigma = table, sigma

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the maps."""
        return self.table.size

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the map of a frame that has fixations."""
        points, _ = self.table.at(frame)
        if len(points) == 0 or self.sigma is None:
            return None
        return density_from_fixations(points, self.size, self.sigma)

    def density_at(self, frame: int, size: tuple[int, int]) -> NDArray[np.float32] | None:
        """Return the map of a frame drawn on a grid of another size: what resizing it would give, in less time."""
        points, _ = self.table.at(frame)
        if len(points) == 0 or self.sigma is None:
            return None
        scale = np.array(size) / np.array(self.size)
        down, across = (self.sigma, self.sigma) if isinstance(self.sigma, (int, float)) else self.sigma
        return density_from_fixations(
            (points + 0.5) * scale - 0.5, size, (float(down * scale[0]), float(across * scale[1]))
        )

    def fixations(self, frame: int) -> tuple[IntArray, IntArray]:
        """Return the points and observers of a frame."""
        return self.table.at(frame)

    def union(self) -> IntArray:
        """Return the distinct pixels of all frames."""
        return distinct(self.table.points, self.size)


class MapVideo:
    """Densities as a grey-scale video, with fixations from elsewhere (AViMoS, CrowdSAL, users' own maps).

    Args:
        path: the video; its grey value over 255 is the density.
        table: fixations on the same grid, or None.
    """

    def __init__(self, path: Path, table: FixationTable | None = None) -> None:
        from avsal.io.video import VideoReader

        self.path, self.table = path, table
        self._reader = VideoReader(path)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the video."""
        info = self._reader.info
        return info.height, info.width

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the map of a frame; None beyond the video's end, or where the map is black."""
        if not 0 <= frame < len(self._reader):
            return None
        grey = self._reader.read([frame])[0, :, :, 0]
        return grey.astype(np.float32) / np.float32(255) if grey.any() else None

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return the points and observers of a frame."""
        return self.table.at(frame) if self.table is not None else None

    def union(self) -> IntArray:
        """Return the distinct pixels of all frames."""
        return distinct(self.table.points, self.size) if self.table is not None else NO_POINTS


def distinct(points: IntArray, size: tuple[int, int]) -> IntArray:
    """Return the distinct (row, column) pairs of (N, 2) points on a grid of `size`."""
    flat = np.unique(points[:, 0] * size[1] + points[:, 1])
    return np.stack([flat // size[1], flat % size[1]], 1)


def read_map(path: Path) -> NDArray[np.float32]:
    """Return a grey-scale map (H, W) in [0, 1]: 8-bit divided by 255, 16-bit by 65535, float as it is.

    Raises:
        DataError: the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            array = np.asarray(
                image if image.mode in ("L", "F", "I", "I;16", "I;16B") else image.convert("L")
            )
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a map ({error}).") from error
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind in "iu":
        return array.astype(np.float32) / np.float32(65535)
    return array.astype(np.float32)


def read_labels(path: Path) -> NDArray[np.bool_]:
    """Return (H, W), which pixels of a label image of any mode are not black (nor, without colours, 0).

    Raises:
        DataError: the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
                colours = np.asarray(image.convert("RGB"))
                # A palette may lack its colours: then the numbers are all there is.
                indexed = image.mode == "P" and not colours.any()
                return np.asarray(np.asarray(image) > 0 if indexed else colours.any(-1))
            array = np.asarray(image.convert("L") if image.mode in ("LA", "La") else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}).") from error
    return np.asarray(array.reshape(*array.shape[:2], -1).any(-1))


def find_video(folder: Path, name: str) -> Path | None:
    """Return the video file `name` (with any usual suffix) of a folder."""
    for suffix in VIDEO_SUFFIXES:
        for candidate in (folder / f"{name}{suffix}", folder / f"{name}{suffix.upper()}"):
            if candidate.is_file():
                return candidate
    exact = folder / name
    return exact if exact.suffix.lower() in VIDEO_SUFFIXES and exact.is_file() else None


def list_videos(folder: Path) -> Iterable[Path]:
    """Yield the video files of a folder in order of their names."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in VIDEO_SUFFIXES)
