"""How pictures and ground truth are read: video files, folders of images, maps, fixation images.

What is opened belongs to one process. An item holds an `Open...` instance, which is small, can be pickled and makes
the reader when it is called.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsal.data.fixations import NO_IDS, NO_POINTS, FixationTable, IntArray, density_from_fixations, distinct
from avsal.data.items import Annotation, Frames, VideoItem
from avsal.data.matfile import load_mat
from avsal.errors import DataError

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
#: Of maps and fixation images, which may be deeper than 8 bits.
MAP_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff")


@dataclass(frozen=True)
class OpenVideo:
    """Opens a video file; an instance is an item's `open_frames`."""

    path: Path

    def __call__(self) -> Frames:
        """Return a reader of the file."""
        from avsal.io.video import VideoReader

        return VideoReader(self.path)


def video_item(
    name: str, video: Path, annotation: Callable[[], Annotation], *files: Path, audio: bool = True
) -> VideoItem:
    """Return the item of a video file whose sound is its own.

    Args:
        name: `<set>/<video>`.
        video: the file.
        annotation: makes the reader of the ground truth.
        files: the files that the annotation is read from.
        audio: whether the sound counts.
    """
    return VideoItem(
        name, None, None, OpenVideo(video), annotation, video if audio else None, files=(video, *files)
    )


def still_item(name: str, image: Path, annotation: Callable[[], Annotation], *files: Path) -> VideoItem:
    """Return the item of an image, as a video of one frame."""
    return VideoItem(name, 1, 25.0, partial(Pictures, (image,)), annotation, files=(image, *files))


def size_and_times(video: Path) -> tuple[tuple[int, int], NDArray[np.float64]]:
    """Return (H, W) of a video file and the (n,) seconds of its frames."""
    from avsal.io.video import VideoReader

    with VideoReader(video) as reader:
        return (reader.info.height, reader.info.width), reader.times


@contextlib.contextmanager
def open_image(path: Path, kind: str = "an image") -> Iterator[Image.Image]:
    """Open an image file.

    Raises:
        DataError: it cannot be opened, or not be read inside the block.
    """
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {kind} ({error}).") from error


_DIGITS = re.compile(r"(\d+)(?=\D*$)")


class Pictures:
    """Image files as the frames of a video with a nominal rate.

    Args:
        paths: one file for each frame; a still image is the same file several times.
        fps: frames per second.
    """

    def __init__(self, paths: Sequence[Path], fps: float = 25.0) -> None:
        self.paths, self.fps = paths, fps

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) k / fps."""
        return np.arange(len(self)) / self.fps

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the (k, H, W, 3) uint8 RGB images at the given places."""
        pictures: dict[Path, NDArray[np.uint8]] = {}
        for path in (self.paths[k] for k in indices):
            if path not in pictures:
                with open_image(path) as image:
                    pictures[path] = np.asarray(image.convert("RGB"))
        return np.stack([pictures[self.paths[k]] for k in indices])

    def close(self) -> None:
        """Nothing stays open."""


class FrameFolder(Pictures):
    """A folder of numbered images, listed at first use and ordered by their numbers."""

    def __init__(self, folder: Path, fps: float) -> None:
        self.folder, self.fps = folder, fps

    @cached_property
    def paths(self) -> Sequence[Path]:  # type: ignore[override]
        """The images."""
        found = [path for path in self.folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise DataError(f"{self.folder}: no images in this frames folder.")
        return sorted(found, key=lambda path: int(m.group()) if (m := _DIGITS.search(path.stem)) else -1)

    def missing(self) -> list[int]:
        """Return the numbers left out between the first and the last frame."""
        found = [int(m.group()) for path in self.paths if (m := _DIGITS.search(path.stem))]
        return sorted(set(range(found[0], found[-1] + 1)) - set(found)) if found else []


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
        path: the video; its grey value, over the largest one of its bit depth, is the density.
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
        grey = self._reader.grey(frame)
        return grey if grey.any() else None

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return the points and observers of a frame."""
        return self.table.at(frame) if self.table is not None else None

    def union(self) -> IntArray:
        """Return the distinct pixels of all frames."""
        return distinct(self.table.points, self.size) if self.table is not None else NO_POINTS


class FolderAnnotation:
    """Numbered maps and fixation images of one video, found by one listing of each folder.

    Args:
        folder: holds `maps/` and `fixMap_*.mat`.
        maps: the folder of the maps, if it is another.
        points: the folder of the fixation images, if it is another: `.mat` files, or else `.png` (in a folder of
            their own any images, or `.mat` files in its folder `maps`).
        images: the folder of the frames; the k-th frame has the number in its name. Without it, k counts from 1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        maps: Path | None = None,
        points: Path | None = None,
        images: Path | None = None,
    ) -> None:
        self.folder = folder
        self._map_folder, self._point_folder, self._images = maps or folder / "maps", points or folder, images

    @cached_property
    def _maps(self) -> dict[int, Path]:
        return numbered(self._map_folder, MAP_SUFFIXES)

    @cached_property
    def _points(self) -> dict[int, Path]:
        own = self._point_folder != self.folder
        found = numbered(self._point_folder, (".mat",))
        found = found or numbered(self._point_folder, MAP_SUFFIXES if own else (".png",))
        return found or (numbered(self._point_folder / "maps", (".mat",)) if own else {})

    @cached_property
    def _numbers(self) -> list[int] | None:
        return list(numbered(self._images, IMAGE_SUFFIXES)) if self._images is not None else None

    def _number(self, frame: int) -> int:
        if self._numbers is None:
            return frame + 1
        return self._numbers[frame] if frame < len(self._numbers) else -1

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first map or fixation image."""
        if self._maps:
            shape = read_map(next(iter(self._maps.values()))).shape
        elif self._points:
            shape = read_fixation_image(next(iter(self._points.values()))).shape
        else:
            raise DataError(f"{self.folder}: neither maps nor fixation files in this folder.")
        return shape[0], shape[1]

    def listed(self, frame: int) -> bool:
        """Return whether a frame has a file of its own, be it empty."""
        return self._number(frame) in self._maps or self._number(frame) in self._points

    @property
    def count(self) -> int:
        """Number of frames that have a file of their own."""
        return len(self._maps.keys() | self._points.keys())

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the map of a frame; None without a file, or where the map is empty."""
        path = self._maps.get(self._number(frame))
        if path is None:
            return None
        density = read_map(path)
        return density if density.any() else None

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return the fixated pixels of a frame; the source has no observers."""
        path = self._points.get(self._number(frame))
        if path is None:
            return (NO_POINTS, NO_IDS) if self._points else None
        image = read_fixation_image(path) > 0
        if image.shape != self.size:
            raise DataError(f"{path}: {image.shape} pixels, the first map of {self.folder} has {self.size}.")
        points = np.argwhere(image).astype(np.int64)
        return points, np.full(len(points), -1, dtype=np.int64)

    def union(self) -> IntArray:
        """Return the distinct pixels of all frames (reads every file once)."""
        total = np.zeros(self.size, dtype=bool)
        for path in self._points.values():
            image = read_fixation_image(path) > 0
            if image.shape == total.shape:
                total |= image
        return np.argwhere(total).astype(np.int64)


_NUMBER = re.compile(r"(\d+)$")


def numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Return the files of a folder by the number that ends their name, in rising order; {} without the folder."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in folder.iterdir():
        match = _NUMBER.search(path.stem)
        if match and path.suffix.lower() in suffixes:
            found[int(match.group())] = path
    return dict(sorted(found.items()))


def read_map(path: Path) -> NDArray[np.float32]:
    """Return a grey-scale map (H, W) in [0, 1]: 8-bit divided by 255, 16-bit by 65535, float as it is.

    Raises:
        DataError: the file cannot be read as an image.
    """
    with open_image(path, "a map") as image:
        grey = image.mode in ("L", "F", "I", "I;16", "I;16B")
        array = np.asarray(image if grey else image.convert("L"))
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
    with open_image(path) as image:
        if image.mode in ("P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
            colours = np.asarray(image.convert("RGB"))
            # A palette may lack its colours: then the numbers are all there is.
            indexed = image.mode == "P" and not colours.any()
            return np.asarray(np.asarray(image) > 0 if indexed else colours.any(-1))
        array = np.asarray(image.convert("L") if image.mode in ("LA", "La") else image)
    return np.asarray(array.reshape(*array.shape[:2], -1).any(-1))


def read_fixation_image(path: Path) -> NDArray[Any]:
    """Return the binary fixation image of a `fixMap_*.mat` (variable `eyeMap`), or of an image file.

    Any pixel that is not black is a fixation in a lossless file (label images hold 0 and 1); in a JPEG, whose black is
    not exact, it takes more than half of the range.

    Raises:
        DataError: the file cannot be read, holds no image, or holds fixations in most of its pixels.
    """
    if path.suffix.lower() != ".mat":
        lossy = path.suffix.lower() in (".jpg", ".jpeg", ".webp")
        points = read_map(path) > 0.5 if lossy else read_labels(path)
        if points.mean() > 0.5:
            raise DataError(
                f"{path}: {points.mean():.0%} of the pixels are not black; fixations are the bright points of a black "
                "image. Is it inverted, or a map?"
            )
        return points
    content = load_mat(path)
    value = content.get("eyeMap")
    if value is None:
        images = [
            v
            for v in content.values()
            if isinstance(v, np.ndarray) and v.ndim == 2 and v.dtype.kind in "uifb"
        ]
        if len(images) != 1:
            raise DataError(f"{path}: no variable 'eyeMap'; found {', '.join(content) or 'nothing'}.")
        value = images[0]
    array = np.asarray(value.todense() if hasattr(value, "todense") else value)
    if array.ndim != 2:
        raise DataError(f"{path}: 'eyeMap' has the shape {array.shape}; a fixation image has two axes.")
    return array


def read_point_lists(path: Path) -> list[NDArray[np.float64]]:
    """Read a `fixations.json`: a list over frames of lists of coordinate pairs, or an object with frames as keys.

    Returns:
        (N, 2) for each frame, in the order and with the fractions that the file has.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = [content[key] for key in sorted(content, key=int)]
        lists = [np.asarray(points if len(points) else NO_POINTS, dtype=np.float64) for points in content]
        if odd := [k for k, points in enumerate(lists) if points.ndim != 2 or points.shape[1] != 2]:
            raise ValueError(f"frame {odd[0]} is no list of pairs")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a list over frames of lists of (row, column) ({error}).") from error
    return lists


def table_of_lists(
    path: Path, lists: Sequence[NDArray[np.float64]], size: tuple[int, int]
) -> tuple[FixationTable, bool]:
    """Return the points of `read_point_lists` on a grid of `size`, and whether they are (x, y); fractions are floored.

    Raises:
        DataError: more than one in a hundred points fits neither order; `path` is named.
    """
    points = np.concatenate(lists) if lists else np.zeros((0, 2))
    frame = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
    rows, columns, turned = points_order(path, points, size)
    return FixationTable.build(frame, columns, rows, None, size), turned


def points_order(
    path: Path, points: NDArray[Any], size: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Return rows and columns of points, and whether they are (x, y), which is tried where (row, column) does not fit.

    Raises:
        DataError: more than one in a hundred points fits neither.
    """
    first, second = points[:, 0], points[:, 1]
    for share in (1.0, 0.99):
        for rows, columns, turned in ((first, second, False), (second, first, True)):
            inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
            if len(points) == 0 or inside.mean() >= share:
                return rows, columns, turned
    raise DataError(
        f"{path}: points reach ({first.max():g}, {second.max():g}), outside the {size[0]}x{size[1]} pixels of the map "
        "in either order of coordinates; do the fixations and the saliency video belong together?"
    )


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
