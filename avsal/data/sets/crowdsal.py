"""AViMoS, NTIRE 2026 and CrowdSAL: thousands of Full-HD videos with sound under CC-BY, gaze from mouse movements.

A density is a grey-scale video of the same number of frames, fixations are JSON: a list over frames of lists of points
in pixels of that video. The organisers' scorer reads a point as (row, column).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import FixationTable
from avsal.data.items import Annotation, VideoItem
from avsal.data.module import SaliencyDataModule, Split, held_out
from avsal.data.readers import MapVideo, OpenVideo, find_video, list_videos
from avsal.errors import ConfigError, DataError


def read_fixation_json(path: Path, size: tuple[int, int]) -> FixationTable:
    """Read `fixations.json`: for each frame a list of points.

    Args:
        path: the file.
        size: (H, W) of the saliency video.

    Returns:
        Fixations on that grid; observers are not known. Points are taken as (row, column); a file whose
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


@dataclass(frozen=True)
class OpenCrowdAnnotation:
    """Opens the saliency video and the fixations of one clip."""

    saliency: Path
    fixations: Path | None

    def __call__(self) -> Annotation:
        """Return the annotation."""
        annotation = MapVideo(self.saliency)
        if self.fixations is not None:
            annotation.table = read_fixation_json(self.fixations, annotation.size)
        return annotation


class _CrowdDataModule(SaliencyDataModule):
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

    def listed(self, root: Path) -> dict[str, list[Path]]:
        """Return the videos of "train" and "test"."""
        raise ConfigError(f"{type(self).__name__} defines no listed().")

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of a split; validation videos are dealt out of the training ones by their names."""
        root = self.require_root()
        part = "test" if split == "test" else "train"
        items = []
        for video in self.listed(root)[part]:
            item = self._item(root, part, video)
            if item is not None:
                items.append(item)
        if split == "test":
            return items
        val = held_out([item.name for item in items], self.val_fraction)
        return [item for item in items if (item.name in val) == (split == "val")]

    def _item(self, root: Path, part: str, video: Path) -> VideoItem | None:
        title, stem = part.capitalize(), video.stem
        saliency = _first(
            find_video(folder, stem)
            for folder in (root / title / "Saliency", root / f"Saliency{title}", root / f"Saliency{title}" / title,
                           root / "Saliency" / title, root / "Saliency")
        )  # fmt: skip
        if saliency is None:
            message = f"{self.set_name}/{stem}: no saliency video of this name."
            if self.strict:
                raise DataError(message)
            self.report(message)
            return None
        candidates = [
            candidate
            for folder in (root / title / "Fixations", root / f"Fixations{title}", root / f"Fixations{title}" / title,
                           root / "Fixations" / title, root / "Fixations")
            for candidate in (folder / stem / "fixations.json", folder / f"{stem}.json")
        ]  # fmt: skip
        points = next((c for c in candidates if c.is_file()), None)
        return VideoItem(
            f"{self.set_name}/{stem}", None, None, OpenVideo(video), OpenCrowdAnnotation(saliency, points), video,
            files=tuple(p for p in (video, saliency, points) if p is not None),
        )  # fmt: skip


def _first(found: Any) -> Path | None:
    return next((path for path in found if path is not None), None)


class AViMoSDataModule(_CrowdDataModule):
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
        videos = next((root / name for name in ("Videos", "videos", "") if find_any(root / name)), root)
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


def find_any(folder: Path) -> bool:
    """Say whether a folder holds a video."""
    return folder.is_dir() and next(iter(list_videos(folder)), None) is not None


class NTIRE2026DataModule(AViMoSDataModule):
    """The NTIRE 2026 challenge on video saliency: 1,200 training and 800 test videos, CC-BY; files as AViMoS."""

    name = "ntire2026"
    set_name = "NTIRE2026"


class CrowdSALDataModule(_CrowdDataModule):
    """CrowdSAL: 3,000 training and 2,000 test videos, 30 fps, sound on, CC-BY.

    ::

        {Train,Test}/Videos/<id>.mp4, {Train,Test}/Saliency/<id>.mp4, {Train,Test}/Fixations/<id>.json
    """

    name = "crowdsal"
    set_name = "CrowdSAL"

    def listed(self, root: Path) -> dict[str, list[Path]]:
        """Return the videos of both folders."""
        found: dict[str, Sequence[Path]] = {
            part: list(list_videos(root / part.capitalize() / "Videos"))
            if (root / part.capitalize() / "Videos").is_dir()
            else []
            for part in ("train", "test")
        }
        if not found["train"] and not found["test"]:
            raise DataError(
                f"{root}: no videos in Train/Videos or Test/Videos; see 'avsal data info crowdsal'."
            )
        return {part: list(videos) for part, videos in found.items()}
