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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import default_sigma, read_csv, read_fixations
from avsal.data.items import Annotation, VideoItem
from avsal.data.readers import FolderAnnotation, FrameFolder, OpenVideo, PointAnnotation, find_video
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
    suffixes = [f"_{fold}", ""] if fold is not None else [""]
    candidates = [folder / f"{name}_list_{split}{suffix}_fps.txt" for suffix in suffixes]
    return next((path for path in candidates if path.is_file()), None)


def open_layout_annotation(
    folder: Path,
    images: Path | None = None,
    video: Path | None = None,
    size: tuple[int, int] | None = None,
    sigma: float | None = None,
) -> Annotation:
    """Return the ground truth of one video of the layout.

    Args:
        folder: `annotations/<set>/<video>`.
        images: the folder of the frames, whose numbers count, where there are frames.
        video: the video, for the size of the grid of `fixations.csv`.
        size: (H, W) of that grid where it is known.
        sigma: Gaussian of the densities made from `fixations.csv`, in pixels.
    """
    points = folder / "fixations.csv"
    if not points.is_file() or (folder / "maps").is_dir():
        return FolderAnnotation(folder, images=images)
    if size is None:
        if video is None:
            raise DataError(f"{points}: the size of the picture is not known without the video.")
        from avsal.io.video import probe

        info = probe(video)
        size = (info.height, info.width)
    return PointAnnotation(read_fixations(points, size), sigma or default_sigma(size))


def read_gaze_track(path: Path) -> NDArray[np.float64]:
    """Read `gaze.csv` (frame, time, x, y, gaze_type) as (n, 4) time, x, y, gaze type."""
    columns = read_csv(path)
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
            items.append(_layout_item(root, name, entry, marker))
        except AvsalError as error:
            if strict:
                raise
            if report:
                report(str(error))
    return items


def _layout_item(root: Path, name: str, entry: ListEntry, marker: dict[str, Any]) -> VideoItem:
    frames = root / "video_frames" / name / entry.name
    video = find_video(root / "video" / name, entry.name)
    annotation = root / "annotations" / name / entry.name
    if video is None and not frames.is_dir():
        raise DataError(f"{name}/{entry.name}: neither {frames} nor a video file in {root / 'video' / name}.")
    if not annotation.is_dir():
        raise DataError(f"{name}/{entry.name}: no annotation folder {annotation}.")
    wav = root / "video_audio" / name / entry.name / f"{entry.name}.wav"
    size = (int(marker["size"][0]), int(marker["size"][1])) if "size" in marker else None
    gaze, images = annotation / "gaze.csv", None if video else frames
    return VideoItem(
        f"{name}/{entry.name}",
        entry.frames,
        entry.fps,
        OpenVideo(video) if video is not None else partial(FrameFolder, frames, entry.fps),
        partial(open_layout_annotation, annotation, images, video, size, marker.get("sigma")),
        wav if wav.is_file() else video,
        partial(read_gaze_track, gaze) if gaze.is_file() else None,
        files=(video or frames, annotation),
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
