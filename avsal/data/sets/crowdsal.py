"""AViMoS, NTIRE 2026 and CrowdSAL: thousands of Full-HD videos with sound under CC-BY, gaze from mouse movements.

A density is a grey-scale video of the same number of frames, fixations are JSON: a list over frames of lists of points
in pixels of that video. The organisers' scorer reads a point as (row, column).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import FixationTable
from avsal.data.items import VideoItem
from avsal.data.module import SaliencyDataModule, Split, items_in_split
from avsal.data.readers import MapVideo, find_video, list_videos, video_item
from avsal.errors import DataError


def read_fixation_json(path: Path, size: tuple[int, int]) -> FixationTable:
    """Read `fixations.json`: for each frame a list of points.

    Args:
        path: the file.
        size: (H, W) of the saliency video.

    Returns:
        Fixations on that grid; observers are unknown. Points are taken as (row, column); a file whose
        points only fit as (x, y) is read as such.

    Raises:
        DataError: the file is no such list, or its points fit neither order.
    """
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(frames, dict):
            # Keys are frame numbers.
            frames = [frames[key] for key in sorted(frames, key=int)]
        lists = [np.asarray(points, dtype=np.float64).reshape(-1, 2) for points in frames]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a list of points for each frame ({error}).") from error
    points = np.concatenate(lists) if lists else np.zeros((0, 2))
    frame = np.concatenate([np.full(len(p), k) for k, p in enumerate(lists)]) if lists else np.zeros(0)
    rows, columns = points_order(path, points, size)
    return FixationTable.build(frame, columns, rows, None, size)


def points_order(
    path: Path, points: NDArray[Any], size: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rows and columns of points; (row, column) where that fits the picture, else (x, y).

    Raises:
        DataError: more than one in a hundred points fits neither.
    """
    if len(points) == 0:
        return points[:, 0], points[:, 1]

    def fits(rows: NDArray[Any], columns: NDArray[Any]) -> bool:
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        return bool(inside.mean() >= 0.99)

    first, second = points[:, 0], points[:, 1]
    if fits(first, second):
        return first, second
    if fits(second, first):
        return second, first
    raise DataError(
        f"{path}: points reach ({first.max():g}, {second.max():g}), which fits a picture of {size[0]} rows and "
        f"{size[1]} columns in neither order; do the fixations and the saliency video belong together?"
    )


def open_saliency_video(saliency: Path, fixations: Path | None) -> MapVideo:
    """Return the reader of a clip's saliency video, with its `fixations.json` where there is one."""
    annotation = MapVideo(saliency)
    if fixations is not None:
        annotation.table = read_fixation_json(fixations, annotation.size)
    return annotation


class _SaliencyVideos(SaliencyDataModule):
    """Base of the three sets.

    Args:
        root: the folder that `avsal data fetch` made, or the extracted archives.
        val_fraction: share of the training videos that validates.
        options: see `SaliencyDataModule`.
    """

    set_name = ""

    def __init__(self, root: str | Path | None = None, *, val_fraction: float = 0.05, **options: Any) -> None:
        super().__init__(root, **options)
        self.val_fraction = val_fraction

    @abstractmethod
    def listed(self, root: Path) -> dict[str, list[Path]]:
        """Return the videos of "train" and "test"."""

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of a split; validation videos are dealt out of the training ones by their names."""
        root = self.require_root()
        part = "test" if split == "test" else "train"
        found = (self._item(root, part, video) for video in self.listed(root)[part])
        items = [item for item in found if item is not None]
        return items if split == "test" else items_in_split(items, split, val=self.val_fraction)

    def _item(self, root: Path, part: str, video: Path) -> VideoItem | None:
        title, stem = part.capitalize(), video.stem

        def folders(kind: str) -> list[Path]:
            names = (f"{title}/{kind}", f"{kind}{title}", f"{kind}{title}/{title}", f"{kind}/{title}", kind)
            return [root / name for name in names]

        saliency = next((p for f in folders("Saliency") if (p := find_video(f, stem)) is not None), None)
        if saliency is None:
            self.leave_out(f"{self.set_name}/{stem}: no saliency video of this name.")
            return None
        candidates = (
            path for f in folders("Fixations") for path in (f / stem / "fixations.json", f / f"{stem}.json")
        )
        points = next((path for path in candidates if path.is_file()), None)
        return video_item(
            f"{self.set_name}/{stem}", video, partial(open_saliency_video, saliency, points), saliency,
            *([points] if points is not None else []),
        )  # fmt: skip


class AViMoSDataModule(_SaliencyVideos):
    """AViMoS (AIM 2024): 1,000 training and 500 test videos, sound on, over 70 observers each, CC-BY.

    ::

        Videos/<name>.mp4, TrainTestSplit.json, Saliency{Train,Test}/<name>.mp4,
        Fixations{Train,Test}/<name>/fixations.json
    """

    name = "avimos"
    set_name = "AViMoS"

    def listed(self, root: Path) -> dict[str, list[Path]]:
        """Return the videos that `TrainTestSplit.json` names, by split."""
        path = root / "TrainTestSplit.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parts = {str(key): [Path(str(name)).stem for name in names] for key, names in content.items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); see 'avsal data info {self.name}'."
            ) from error
        videos = next(
            (f for f in (root / "Videos", root / "videos", root) if f.is_dir() and any(list_videos(f))), root
        )
        out: dict[str, list[Path]] = {"train": [], "test": []}
        for key, names in parts.items():
            for name in names:
                video = find_video(videos, name)
                if video is None:
                    self.report(
                        f"{self.set_name}/{name}: listed as {key}, but there is no video of this name."
                    )
                else:
                    out["test" if "test" in key.lower() else "train"].append(video)
        return out


class NTIRE2026DataModule(AViMoSDataModule):
    """The NTIRE 2026 challenge on video saliency: 1,200 training and 800 test videos, CC-BY; files as AViMoS."""

    name = "ntire2026"
    set_name = "NTIRE2026"


class CrowdSALDataModule(_SaliencyVideos):
    """CrowdSAL: 3,000 training and 2,000 test videos, 30 fps, sound on, CC-BY.

    ::

        {Train,Test}/Videos/<id>.mp4, {Train,Test}/Saliency/<id>.mp4, {Train,Test}/Fixations/<id>.json
    """

    name = "crowdsal"
    set_name = "CrowdSAL"

    def listed(self, root: Path) -> dict[str, list[Path]]:
        """Return the videos of both folders."""
        folders = {part: root / part.capitalize() / "Videos" for part in ("train", "test")}
        found = {part: list(list_videos(f)) if f.is_dir() else [] for part, f in folders.items()}
        if not any(found.values()):
            raise DataError(
                f"{root}: no videos in Train/Videos or Test/Videos; see 'avsal data info crowdsal'."
            )
        return found
