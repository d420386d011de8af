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

from avsal.data.items import VideoItem
from avsal.data.module import SaliencyDataModule, Split, items_in_split
from avsal.data.readers import MapVideo, find_video, list_videos, read_point_lists, table_of_lists, video_item
from avsal.errors import DataError


def open_saliency_video(saliency: Path, fixations: Path | None) -> MapVideo:
    """Return the reader of a clip's saliency video, with its `fixations.json` where there is one."""
    annotation = MapVideo(saliency)
    if fixations is not None:
        lists = read_point_lists(fixations)
        annotation.table, _ = table_of_lists(fixations, lists, annotation.size)
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
