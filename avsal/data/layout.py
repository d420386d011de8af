"""The folder layout that STAViS published and later audio-visual papers use.

::

    video_frames/<set>/<video>/img_00001.jpg …      frames, counted from 1; or, instead of them,
    video/<set>/<video>.mp4                         the original video
    video_audio/<set>/<video>/<video>.wav           sound; without it, the original video's sound track
    annotations/<set>/<video>/maps/eyeMap_00001.jpg continuous maps, 8 bit (or 16 bit, or float TIFF)
    annotations/<set>/<video>/fixMap_00001.mat      binary fixation images, variable `eyeMap`, v5 or v7.3
    annotations/<set>/<video>/fixations.csv         instead of both: points with observers (frame, x, y, observer)
    fold_lists/<set>_list_<split>[_<fold>]_fps.txt  `name frames fps` on each line

A frame without its own map or fixation file is unlabelled; numbers may have gaps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import IntArray, read_fixations
from avsal.data.items import (
    IMAGE_SUFFIXES,
    NO_IDS,
    NO_POINTS,
    Annotation,
    OpenFolder,
    OpenVideo,
    PointAnnotation,
    VideoItem,
    find_video,
    read_labels,
    read_map,
)
from avsal.data.matfile import load_mat
from avsal.errors import AvsalError, DataError

Report = Callable[[str], None]


@dataclass(frozen=True)
class ListEntry:
    """One line of a fold list.

    Attributes:
        name: the video.
        frames: its number of frames.
        fps: its frames per second.
    """

    name: str
    frames: int
    fps: float


def read_fold_list(path: Path) -> list[ListEntry]:
    """Read a fold list: `name frames fps`, blank separated; any line ends, empty lines ignored.

    Raises:
        DataError: the list is missing, or a line does not have these three fields.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the fold list cannot be read ({error}).") from error
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            entries.append(ListEntry(" ".join(fields[:-2]), int(float(fields[-2])), float(fields[-1])))
            if not fields[:-2] or entries[-1].frames < 1 or not 0 < entries[-1].fps < 1000:
                raise ValueError("out of range")
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{path}, line {number}: expected 'name frames fps', found {line.strip()!r}."
            ) from error
    return entries


def fold_list(root: Path, name: str, split: str, fold: int | None) -> Path | None:
    """Return the list of a set's split, with the fold's number or (DIEM) without; None if there is none."""
    folder = root / "fold_lists"
    candidates = [f"{name}_list_{split}_{fold}_fps.txt"] if fold is not None else []
    candidates.append(f"{name}_list_{split}_fps.txt")
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    return None


class FolderAnnotation:
    """Numbered maps and fixation images of one video, found by one listing of each folder.

    Args:
        folder: holds `maps/` and `fixMap_*.mat`.
        maps: the folder of the maps, if it is another.
        points: the folder of the fixation images (.mat or .png), if it is another.
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
        return _numbered(self._map_folder, (".jpg", ".jpeg", ".png", ".tif", ".tiff"))

    @cached_property
    def _points(self) -> dict[int, Path]:
        found = _numbered(self._point_folder, (".mat",))
        if not found and self._point_folder != self.folder:
            found = _numbered(self._point_folder, (".png",)) or _numbered(
                self._point_folder / "maps", (".mat",)
            )
        return found

    @cached_property
    def _numbers(self) -> list[int] | None:
        return list(_numbered(self._images, IMAGE_SUFFIXES)) if self._images is not None else None

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

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the map of a frame; None without a file, or where the map is empty."""
        path = self._maps.get(self._number(frame))
        if path is None:
            return None
        density = read_map(path)
        return density if density.any() else None

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return the fixated pixels of a frame; the source does not know observers."""
        path = self._points.get(self._number(frame))
        if path is None:
            return (NO_POINTS, NO_IDS) if self._points else None
        points = np.argwhere(read_fixation_image(path) > 0).astype(np.int64)
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


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = {}
    for path in folder.iterdir():
        match = _NUMBER.search(path.stem)
        if match and path.suffix.lower() in suffixes:
            found[int(match.group())] = path
    return dict(sorted(found.items()))


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


@dataclass(frozen=True)
class OpenLayoutAnnotation:
    """Opens the annotation of one video of the layout.

    Attributes:
        folder: `annotations/<set>/<video>`.
        images: the folder of the frames, whose numbers count, where there are frames.
        video: the video, for the size of the grid of `fixations.csv`.
        size: (H, W) of that grid where it is known.
        sigma: Gaussian of the densities made from `fixations.csv`, in pixels.
    """

    folder: Path
    images: Path | None = None
    video: Path | None = None
    size: tuple[int, int] | None = None
    sigma: float | None = None

    def __call__(self) -> Annotation:
        """Return the annotation of the folder."""
        points = self.folder / "fixations.csv"
        if not points.is_file() or (self.folder / "maps").is_dir():
            return FolderAnnotation(self.folder, images=self.images)
        size = self.size
        if size is None:
            if self.video is None:
                raise DataError(f"{points}: the size of the picture is not known without the video.")
            from avsal.io.video import probe

            info = probe(self.video)
            size = (info.height, info.width)
        return PointAnnotation(read_fixations(points, size), self.sigma or default_sigma(size))


def default_sigma(size: tuple[int, int]) -> float:
    """Return the Gaussian used where a set does not say: 1/30 of the width, about one degree on a screen."""
    return size[1] / 30


@dataclass(frozen=True)
class OpenGazeTrack:
    """Opens `gaze.csv`: frame, time, x, y, gaze_type."""

    path: Path

    def __call__(self) -> NDArray[np.float64]:
        """Return (n, 4) time, x, y, gaze type."""
        from avsal.data.fixations import read_csv

        columns = read_csv(self.path)
        return np.stack([columns[name] for name in ("time", "x", "y", "gaze_type")], 1)


def read_layout(
    root: Path,
    name: str,
    split: str,
    *,
    fold: int | None = None,
    strict: bool = False,
    report: Report | None = None,
) -> list[VideoItem]:
    """Return the videos of one set's split.

    Args:
        root: the folder that holds `fold_lists` and the others.
        name: the set, for example `DIEM` or `Coutrot_db1`.
        split: `train`, `val` or `test`, as in the list's name.
        fold: number of the fold; sets with one split ignore it.
        strict: raise for the first video with missing parts, instead of leaving it out.
        report: called with one sentence for each video that is left out.

    Raises:
        DataError: there is no such list; or, with `strict`, a video lacks its parts.
    """
    listed = fold_list(root, name, split, fold)
    if listed is None:
        raise DataError(
            f"{root / 'fold_lists'}: no list {name}_list_{split}[_{fold or 'N'}]_fps.txt. Put the fold lists of the "
            "data set there; 'avsal data info' says where they come from."
        )
    marker = _marker(root)
    items = []
    for entry in read_fold_list(listed):
        try:
            items.append(layout_item(root, name, entry, marker))
        except AvsalError as error:
            if strict:
                raise
            if report:
                report(str(error))
    return items


def layout_item(root: Path, name: str, entry: ListEntry, marker: dict[str, Any] | None = None) -> VideoItem:
    """Return one listed video.

    Raises:
        DataError: neither its frames nor its video file, or no annotation, is there.
    """
    frames = root / "video_frames" / name / entry.name
    video = find_video(root / "video" / name, entry.name)
    annotation = root / "annotations" / name / entry.name
    if video is None and not frames.is_dir():
        raise DataError(f"{name}/{entry.name}: neither {frames} nor a video file in {root / 'video' / name}.")
    if not annotation.is_dir():
        raise DataError(f"{name}/{entry.name}: no annotation folder {annotation}.")
    wav = root / "video_audio" / name / entry.name / f"{entry.name}.wav"
    marker = marker or {}
    size = (int(marker["size"][0]), int(marker["size"][1])) if "size" in marker else None
    gaze = annotation / "gaze.csv"
    return VideoItem(
        f"{name}/{entry.name}",
        entry.frames,
        entry.fps,
        OpenVideo(video) if video is not None else OpenFolder(frames, entry.fps),
        OpenLayoutAnnotation(annotation, None if video else frames, video, size, marker.get("sigma")),
        wav if wav.is_file() else video,
        OpenGazeTrack(gaze) if gaze.is_file() else None,
        files=tuple(p for p in (video or frames, annotation) if p is not None),
    )


def _marker(root: Path) -> dict[str, Any]:
    """Return what `synthav.json` says about the grid, {} for other sets."""
    path = root / "synthav.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); generate the set again.") from error
    return content if isinstance(content, dict) else {}
