"""SALICON and MIT1003: images, for the image-saliency encoder (MSPI). An image is a video of equal frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import NO_POINTS, IntArray, distinct
from avsal.data.items import VideoItem
from avsal.data.matfile import load_mat
from avsal.data.module import SaliencyDataModule, Split, hash_of, in_split
from avsal.data.readers import IMAGE_SUFFIXES, read_map, still_item
from avsal.errors import DataError

Points = tuple[IntArray, IntArray, tuple[int, int]]  #: points (row, column), observers, (H, W)
#: Images whose fixations are the negatives of shuffled AUC (its original definition uses ten others).
OTHERS = 10


class ImageAnnotation:
    """The ground truth of one image; every frame asked for is that image.

    Args:
        density: the map's file.
        points: reads the image's fixations.
        others: read other images' fixations: the negatives of shuffled AUC, moved to this image's grid.
    """

    def __init__(
        self,
        density: Path,
        points: Callable[[], Points] | None,
        others: tuple[Callable[[], Points], ...] = (),
    ) -> None:
        self._density, self._points, self._others = density, points, others
        self._map = read_map(density)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the map."""
        return self._map.shape[0], self._map.shape[1]

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the map; None if it is empty."""
        return self._map if self._map.any() else None

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return the points and observers."""
        if self._points is None:
            return None
        points, observers, size = self._points()
        return _moved(points, size, self.size), observers

    def union(self) -> IntArray:
        """Return the distinct pixels of other images' fixations."""
        moved = []
        for read in self._others:
            points, _, size = read()
            moved.append(_moved(points, size, self.size))
        return distinct(np.concatenate(moved), self.size) if moved else NO_POINTS


def _moved(points: IntArray, source: tuple[int, int], size: tuple[int, int]) -> IntArray:
    if source == size or len(points) == 0:
        return points
    scaled = np.floor((points + 0.5) * (np.array(size) / np.array(source))).astype(np.int64)
    return np.minimum(scaled, np.array(size) - 1)


def read_salicon_fixations(path: Path) -> Points:
    """Read `fixations/<split>/<image>.mat`: `gaze(k).fixations`, x and y from 1, for each observer."""
    content = load_mat(path)
    try:
        height, width = (int(v) for v in np.asarray(content["resolution"]).ravel()[:2])
        gaze = content["gaze"]
        gaze = [gaze] if isinstance(gaze, dict) else list(gaze)
        lists = [np.asarray(one["fixations"], dtype=np.float64).reshape(-1, 2) for one in gaze]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a SALICON fixation file ({type(error).__name__}: {error}).") from error
    xy = np.concatenate([np.zeros((0, 2)), *lists])
    who = np.repeat(np.arange(len(lists)), [len(points) for points in lists])
    points = xy[:, ::-1].round().astype(np.int64) - 1
    inside = ((points >= 0) & (points < (height, width))).all(1)
    return points[inside], who[inside].astype(np.int64), (height, width)


def read_binary_image(path: Path) -> Points:
    """Read `<stem>_fixPts.jpg`: a binary image that JPEG has smeared, so that only values above half count."""
    image = read_map(path)
    points = np.argwhere(image > 127.5 / 255).astype(np.int64)
    return points, np.full(len(points), -1, dtype=np.int64), (image.shape[0], image.shape[1])


class Entry(NamedTuple):
    """One image with the files of its map and its fixations."""

    name: str
    image: Path
    density: Path
    points: Callable[[], Points] | None


def with_others(entries: Sequence[Entry]) -> list[VideoItem]:
    """Return the items of images; the negatives of each come from other images, chosen by name."""
    ranked = sorted(entries, key=lambda entry: hash_of(entry.name))
    items = {}
    for place, entry in enumerate(ranked):
        near = (ranked[(place + k) % len(ranked)] for k in range(1, min(OTHERS + 1, len(ranked))))
        others = tuple(other.points for other in near if other.points is not None)
        annotation = partial(ImageAnnotation, entry.density, entry.points, others)
        items[entry.name] = still_item(entry.name, entry.image, annotation, entry.density)
    return [items[entry.name] for entry in entries]


class SALICONDataModule(SaliencyDataModule):
    """SALICON: 10,000 training and 5,000 validation images of MS COCO, 640x480, gaze from mouse movements.

    ::

        images/[train|val/]COCO_train2014_*.jpg, maps/{train,val}/*.png, fixations/{train,val}/*.mat

    `test` takes the validation images: the labels of the test set are withheld. The editions of 2015 and 2017 made
    their fixations differently; keep them in different folders.
    """

    name = "salicon"

    def items(self, split: Split) -> list[VideoItem]:
        """Return the images of a split."""
        root = self.require_root()
        part = "train" if split == "train" else "val"
        maps = root / "maps" / part
        if not maps.is_dir():
            raise DataError(
                f"{maps}: there is no such folder; 'avsal data info salicon' shows what is expected."
            )
        folders = [f for f in (root / "images" / part, root / "images") if f.is_dir()]
        entries = []
        for density in sorted(p for p in maps.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
            image = _image(folders, density.stem)
            if image is None:
                self.leave_out(f"SALICON/{density.stem}: no image of this name in {root / 'images'}.")
                continue
            points = root / "fixations" / part / f"{density.stem}.mat"
            read = partial(read_salicon_fixations, points) if points.is_file() else None
            entries.append(Entry(f"SALICON/{density.stem}", image, density, read))
        return with_others(entries)


class MIT1003DataModule(SaliencyDataModule):
    """MIT1003: 1003 images, 15 observers, 3 s each.

    ::

        ALLSTIMULI/*.jpeg, ALLFIXATIONMAPS/<stem>_fixMap.jpg, ALLFIXATIONMAPS/<stem>_fixPts.jpg

    Args:
        root: the folder.
        test_fraction: share of the images that is tested, chosen by their names.
        val_fraction: share of the others that validates (MSPI used about 103 images).
        options: see `SaliencyDataModule`.
    """

    name = "mit1003"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        test_fraction: float = 0.1,
        val_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.test_fraction, self.val_fraction = test_fraction, val_fraction

    def items(self, split: Split) -> list[VideoItem]:
        """Return the images of a split."""
        root = self.require_root()
        stimuli, maps = root / "ALLSTIMULI", root / "ALLFIXATIONMAPS"
        if not stimuli.is_dir() or not maps.is_dir():
            raise DataError(
                f"{root}: ALLSTIMULI or ALLFIXATIONMAPS is missing; see 'avsal data info mit1003'."
            )
        entries = []
        for image in sorted(p for p in stimuli.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
            density, points = maps / f"{image.stem}_fixMap.jpg", maps / f"{image.stem}_fixPts.jpg"
            if not density.is_file():
                self.leave_out(f"MIT1003/{image.stem}: no map {density.name}.")
                continue
            read = partial(read_binary_image, points) if points.is_file() else None
            entries.append(Entry(f"MIT1003/{image.stem}", image, density, read))
        names = [entry.name for entry in entries]
        chosen = in_split(names, split, test=self.test_fraction, val=self.val_fraction)
        return with_others([entry for entry in entries if entry.name in chosen])


def _image(folders: list[Path], stem: str) -> Path | None:
    candidates = (folder / f"{stem}{suffix}" for folder in folders for suffix in IMAGE_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)
