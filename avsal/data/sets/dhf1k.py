"""DHF1K, Hollywood-2 and UCF Sports: silent sets that the visual branches are pre-trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from avsal.data.items import VideoItem
from avsal.data.module import SaliencyDataModule, Split, items_in_split
from avsal.data.readers import FolderAnnotation, FrameFolder, find_video, video_item
from avsal.errors import DataError


def open_maps_and_fixations(folder: Path, images: Path | None = None) -> FolderAnnotation:
    """Return the reader of `maps/*.png` and `fixation/*.png` (or `fixation/maps/*.mat`) of one video.

    Args:
        folder: holds `maps` and `fixation`.
        images: the folder of numbered frames, where there is one.
    """
    points = _first_folder(folder, ("fixation", "fixations")) or folder / "fixation"
    return FolderAnnotation(folder, points=points, images=images)


def _frames_item(name: str, images: Path, folder: Path, fps: float) -> VideoItem:
    """Return the item of a folder of frames and the folder of its ground truth."""
    annotation = partial(open_maps_and_fixations, folder, images)
    return VideoItem(name, None, fps, partial(FrameFolder, images, fps), annotation, files=(images, folder))


class DHF1KDataModule(SaliencyDataModule):
    """DHF1K: 600 videos for training, 100 for validation (30 fps, 17 observers); 300 for test without public labels.

    ::

        video/001.AVI …            or images/001/0001.png … (also annotation/0001/images)
        annotation/0001/maps/0001.png, annotation/0001/fixation/0001.png

    Names may have three or four digits. `test` takes the validation videos, as published tables do: the labels
    of the true test set are withheld.

    Args:
        root: the folder that holds `annotation`.
        fps: rate where there are only images.
        segment: see `SaliencyDataModule`; by default one random clip of each video and epoch, as is usual for this set.
        options: see `SaliencyDataModule`.
    """

    name = "dhf1k"

    def __init__(
        self, root: str | Path | None = None, *, fps: float = 30.0, segment: int | None = None, **options: Any
    ) -> None:
        super().__init__(root, segment=segment, **options)
        self.fps = fps

    def items(self, split: Split) -> list[VideoItem]:
        """Return videos 1 to 600 for training, 601 to 700 for validation and test."""
        root = self.require_root()
        if not (root / "annotation").is_dir():
            raise DataError(
                f"{root}: no folder 'annotation'; 'avsal data info dhf1k' shows what is expected."
            )
        found = []
        for number in range(1, 601) if split == "train" else range(601, 701):
            item = self._item(root, number)
            if item is not None:
                found.append(item)
            else:
                self.leave_out(f"DHF1K/{number:03d}: its video or its annotation is missing in {root}.")
        return found

    def _item(self, root: Path, number: int) -> VideoItem | None:
        names = (f"{number:03d}", f"{number:04d}")
        annotation = _first_folder(root / "annotation", names)
        if annotation is None:
            return None
        title = f"DHF1K/{number:03d}"
        for name in names:
            video = find_video(root / "video", name)
            if video is not None:
                opened = partial(open_maps_and_fixations, annotation)
                return video_item(title, video, opened, annotation, audio=False)
        images = _first_folder(root / "images", names) or _first_folder(annotation, ("images",))
        return _frames_item(title, images, annotation, self.fps) if images is not None else None


def _first_folder(parent: Path, names: Sequence[str]) -> Path | None:
    return next((parent / name for name in names if (parent / name).is_dir()), None)


class _ClipFolders(SaliencyDataModule):
    """Sets with one folder for each clip: `<split>/<clip>/{images,maps,fixation}/*.png`.

    Args:
        root: the folder with `training` and `testing`.
        fps: rate of the frames.
        val_fraction: share of the training clips that validates.
        options: see `SaliencyDataModule`.
    """

    set_name = ""
    train_folders: tuple[str, ...] = ("training", "train")
    test_folders: tuple[str, ...] = ("testing", "test")

    def __init__(
        self, root: str | Path | None = None, *, fps: float = 24.0, val_fraction: float = 0.1, **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.fps, self.val_fraction = fps, val_fraction

    def items(self, split: Split) -> list[VideoItem]:
        """Return the clips of a split; validation clips are dealt out of the training ones by their names."""
        root = self.require_root()
        folder = _first_folder(root, self.test_folders if split == "test" else self.train_folders)
        if folder is None:
            wanted = "' or '".join(self.test_folders if split == "test" else self.train_folders)
            raise DataError(
                f"{root}: no folder '{wanted}' in it; 'avsal data info {self.name}' shows what is expected."
            )
        items = []
        for clip in sorted(p for p in folder.iterdir() if p.is_dir()):
            images = _first_folder(clip, ("images", "frames"))
            if images is None or not (clip / "maps").is_dir():
                self.report(f"{self.set_name}/{clip.name}: no folder 'images' or no folder 'maps' in {clip}.")
                continue
            items.append(_frames_item(f"{self.set_name}/{clip.name}", images, clip, self.fps))
        return items if split == "test" else items_in_split(items, split, val=self.val_fraction)


class Hollywood2DataModule(_ClipFolders):
    """Hollywood-2 with eye tracking: 823 training and 884 test videos (cut into shots), 24 fps, 19 observers."""

    name = "hollywood2"
    set_name = "Hollywood-2"


class UCFSportsDataModule(_ClipFolders):
    """UCF Sports with eye tracking: 103 training and 47 test clips, 19 observers."""

    name = "ucfsports"
    set_name = "UCFSports"
