"""Photographs with raw fixations in one plain format: OSIE, EyeCrowd, Scene500, and anybody's own.

::

    <set>/images/<name>.jpg, <set>/fixations.csv.gz

The table has a header with image, observer, order (0: first of the viewing), x and y in [0, 1) of the picture, origin
top left. Which pictures train, validate and test is fixed (`photos_splits.json`); a set that is not listed there is
split by the pictures' names.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avsal.data.fixations import FixationTable, IntArray, distinct
from avsal.data.frames import fitting_size, resize_frames
from avsal.data.items import Annotation, VideoItem
from avsal.data.loading import ClipLoader, Sample, collate
from avsal.data.module import SaliencyDataModule, Split, in_split
from avsal.data.readers import PointAnnotation, open_image, still_item
from avsal.data.sets.salicon import OTHERS
from avsal.errors import ConfigError, DataError
from avsal.types import ClipSpec

SETS = ("osie", "eyecrowd", "scene500")
#: The ground truth's Gaussian, as a share of the longer side: about one degree of visual angle.
SIGMA = 1 / 30
#: Training pictures are kept this much larger than the network sees them, for crops without loss of detail.
MARGIN = 1.15

Columns = dict[str, NDArray[np.float64]]


@lru_cache(maxsize=8)
def read_photo_fixations(path: Path) -> dict[str, Columns]:
    """Return each image's columns observer, order, x and y.

    Raises:
        DataError: the table is missing, lacks a column, or holds something that is no number.
    """
    wanted = ("observer", "order", "x", "y")
    rows: dict[str, list[tuple[float, ...]]] = {}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            reader = csv.DictReader(file)
            missing = {"image", *wanted} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: no column {', '.join(sorted(missing))}.")
            for row in reader:
                rows.setdefault(row["image"], []).append(tuple(float(row[name]) for name in wanted))
    except (OSError, EOFError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a table of fixations ({error}).") from error
    return {name: dict(zip(wanted, np.array(values).T, strict=True)) for name, values in rows.items()}


class PhotoAnnotation(PointAnnotation):
    """A picture's fixations; the negatives of shuffled AUC are those of other pictures, at the same shares."""

    def __init__(self, table: FixationTable, sigma: float, others: IntArray) -> None:
        super().__init__(table, sigma)
        self._others = others

    def union(self) -> IntArray:
        """Return the distinct pixels of other pictures' fixations."""
        return distinct(self._others, self.size)


@dataclass(frozen=True)
class OpenPhotoFixations:
    """Opens the fixations of one picture as its annotation."""

    table: Path
    name: str
    image: Path
    others: tuple[str, ...] = ()

    def __call__(self) -> Annotation:
        """Return the annotation on the picture's own grid; every fixation counts."""
        with open_image(self.image) as image:
            size = image.height, image.width
        table = self._points((self.name,), size)
        return PhotoAnnotation(table, SIGMA * max(size), self._points(self.others, size).points)

    def _points(self, names: tuple[str, ...], size: tuple[int, int]) -> FixationTable:
        known = read_photo_fixations(self.table)
        x, y, observer = (
            np.concatenate([np.zeros(0), *(known[n][column] for n in names)])
            for column in ("x", "y", "observer")
        )
        return FixationTable.build(np.zeros(len(x)), x * size[1], y * size[0], observer, size)


@dataclass
class Photo:
    """A training picture in memory.

    Attributes:
        name: `<set>/<picture>`.
        pixels: (3, H, W) uint8.
        points: (N, 2) float32 x and y of the fixations in shares of the picture.
    """

    name: str
    pixels: Tensor
    points: Tensor


class PhotoBatches(Dataset[Any]):
    """Whole training batches of cropped, mirrored and recoloured pictures, addressed by (epoch, index).

    The pictures of a batch have one size, near their own shape; the same pictures meet others in every epoch.

    Args:
        photos: the pictures.
        spec: the network's clip; `spec.size` gives the area.
        batch_size: pictures of a batch.
        seed: seed of all draws.
        flip: probability of mirroring.
        low_epochs: so many epochs at half the height and width come first.
        jitter: strength of the changes of contrast, brightness, saturation and colour.
    """

    def __init__(
        self, photos: Sequence[Photo], spec: ClipSpec, batch_size: int, *, seed: int = 0, flip: float = 0.5,
        low_epochs: int = 0, jitter: float = 0.3,
    ) -> None:  # fmt: skip
        self.photos, self.spec, self.batch_size, self.seed = photos, spec, batch_size, seed
        self.flip, self.low_epochs, self.jitter = flip, low_epochs, jitter
        self._mean = torch.tensor(spec.mean).view(3, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1)

    def __len__(self) -> int:
        return max(1, len(self.photos) // self.batch_size)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))

    @lru_cache(maxsize=2)  # noqa: B019 - one data set lives as long as its process
    def plan(self, epoch: int) -> list[list[int]]:
        """Return the pictures of each batch of an epoch: neighbours in a slightly shuffled order of shape."""
        random = self._random(epoch)
        shapes = np.array([math.log(p.pixels.shape[2] / p.pixels.shape[1]) for p in self.photos])
        order = np.argsort(np.round(shapes, 1) + random.uniform(-0.05, 0.05, len(shapes)))
        start = int(random.integers(0, len(order) - len(self) * self.batch_size + 1))
        count = len(self) * self.batch_size
        return order[start : start + count].reshape(len(self), -1).tolist()

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        random = self._random(epoch, index + 1)
        chosen = [self.photos[k] for k in self.plan(epoch)[index]]
        shape = float(np.median([p.pixels.shape[2] / p.pixels.shape[1] for p in chosen]))
        # Now and then another shape, portraits above all, which are rare in the sets.
        shape = random.choice([shape, 3 / 4, 1.0, 4 / 3, 16 / 9], p=[0.7, 0.1, 0.05, 0.05, 0.1])
        low = 2 if epoch < self.low_epochs else 1
        area = (self.spec.size[0] // low, self.spec.size[1] // low)
        size = fitting_size(1000, round(1000 * shape), area)
        return collate([self._sample(photo, size, random) for photo in chosen])

    def _sample(self, photo: Photo, size: tuple[int, int], random: np.random.Generator) -> Sample:
        height, width = photo.pixels.shape[1:]
        for attempt in range(4):
            top, left, rows, columns = crop_box(height, width, size, random, least=0.5 if attempt < 3 else 1)
            xy = (photo.points * torch.tensor([width, height]) - torch.tensor([left, top])) / torch.tensor(
                [columns, rows]
            )
            inside = ((xy >= 0) & (xy < 1)).all(1)
            if int(inside.sum()) >= 5:
                break
        pixels = photo.pixels[:, top : top + rows, left : left + columns]
        picture = resize_frames(pixels[None], size)[0].float()
        if random.random() < self.flip:
            picture = picture.flip(-1)
            xy = torch.stack([1 - xy[:, 0], xy[:, 1]], 1)
        grid = (size[0] // 4, size[1] // 4)
        sigma = SIGMA * max(height, width)
        density = gaussians(xy, grid, (sigma / rows * grid[0], sigma / columns * grid[1]))
        points = (xy[inside] * torch.tensor([grid[1], grid[0]])).floor().long().flip(1)
        picture = (recolour(picture, random, self.jitter) - self._mean) / self._std
        return {
            "video": picture[:, None], "density": density[None], "labelled": torch.tensor([len(points) > 0]),
            "fixations": [points.clamp(torch.tensor(0), torch.tensor(grid) - 1)], "frame": torch.tensor([0]),
            "video_id": 0, "video_name": photo.name,
        }  # fmt: skip


def crop_box(
    height: int, width: int, size: tuple[int, int], random: np.random.Generator, *, least: float
) -> tuple[int, int, int, int]:
    """Return (top, left, rows, columns) of a random crop of nearly the shape of `size`.

    Args:
        height: of the picture.
        width: of the picture.
        size: (H, W) that the crop is for.
        random: the draws.
        least: smallest share of the largest such crop's area.
    """
    shape = size[1] / size[0] * math.exp(random.uniform(-0.12, 0.12))
    scale = math.sqrt(random.uniform(least, 1)) if random.random() < 0.7 else 1.0
    columns = min(width, height * shape) * scale
    rows = min(height, width / shape) * scale
    rows, columns = max(8, min(height, round(rows))), max(8, min(width, round(columns)))
    return (
        int(random.integers(0, height - rows + 1)),
        int(random.integers(0, width - columns + 1)),
        rows,
        columns,
    )


def gaussians(xy: Tensor, size: tuple[int, int], sigma: tuple[float, float]) -> Tensor:
    """Return the (h, w) sum of a Gaussian for each point (x, y in shares), divided by its maximum."""
    rows = torch.arange(size[0])[:, None] + 0.5 - xy[None, :, 1] * size[0]
    columns = torch.arange(size[1])[:, None] + 0.5 - xy[None, :, 0] * size[1]
    total = torch.exp(-0.5 * (rows / sigma[0]) ** 2) @ torch.exp(-0.5 * (columns / sigma[1]) ** 2).T
    return total / total.max().clamp_min(1e-12)


def recolour(picture: Tensor, random: np.random.Generator, strength: float) -> Tensor:
    """Return a (3, H, W) picture in 0..255 with contrast, brightness, saturation and colour balance changed."""
    contrast, brightness, saturation = 1 + strength * random.uniform(-1, 1, 3)
    balance = torch.tensor(1 + strength / 3 * random.uniform(-1, 1, (3, 1, 1)), dtype=torch.float32)
    grey = picture.mean(0, keepdim=True)
    picture = grey + (picture - grey) * saturation
    return ((picture - grey.mean()) * contrast + grey.mean() * brightness).mul(balance).clamp(0, 255)


class PhotosDataModule(SaliencyDataModule):
    """Photographs with raw fixations; frames of videos may train with them.

    Args:
        root: the folder that holds the sets' folders.
        sets: names of the sets.
        clips: module of a video set, whose training videos' frames join the training pictures.
        clip_step: seconds between those frames.
        low_epochs: epochs at half the height and width before those at the network's own size.
        jitter: strength of the changes of colour.
        first_fixations: keep each viewing's first fixation in training; it shows where the eye was before.
        options: see `SaliencyDataModule`.
    """

    name = "photos"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        sets: Sequence[str] = SETS,
        clips: SaliencyDataModule | None = None,
        clip_step: float = 1.0,
        low_epochs: int = 0,
        jitter: float = 0.3,
        first_fixations: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.sets, self.clips, self.clip_step = tuple(sets), clips, clip_step
        self.low_epochs, self.jitter, self.first_fixations = low_epochs, jitter, first_fixations
        if not self.sets:
            raise ConfigError("sets is empty; name at least one folder of the root.")

    def items(self, split: Split) -> list[VideoItem]:
        """Return the pictures of a split."""
        root = self.require_root()
        found = []
        for name in self.sets:
            folder = root / name
            table = next(
                (t for t in (folder / "fixations.csv.gz", folder / "fixations.csv") if t.is_file()), None
            )
            if table is None:
                raise DataError(
                    f"{folder}: no fixations.csv.gz; 'avsal data info photos' shows what is expected."
                )
            pictures = {
                p.stem: p
                for p in sorted((folder / "images").glob("*"))
                if p.suffix.lower() in (".jpg", ".jpeg", ".png")
            }
            known = [p for p in read_photo_fixations(table) if p in pictures]
            chosen = split_names(name, known, split)
            for place, picture in enumerate(chosen):
                near = {chosen[(place + k) % len(chosen)] for k in range(1, OTHERS + 1)} - {picture}
                path = pictures[picture]
                annotation = OpenPhotoFixations(table, picture, path, tuple(sorted(near)))
                found.append(still_item(f"{name}/{picture}", path, annotation))
        return found

    @cached_property
    def photos(self) -> list[Photo]:
        """The training pictures, read and shrunk once."""
        return [*self._stills(), *self._frames()]

    def _stills(self) -> Iterator[Photo]:
        for item in self.split_items("train"):
            opener = item.open_annotation
            assert isinstance(opener, OpenPhotoFixations)
            one = read_photo_fixations(opener.table)[opener.name]
            kept = (one["order"] > 0) | self.first_fixations
            kept |= not kept.any()
            points = torch.from_numpy(np.stack([one["x"], one["y"]], 1)[kept]).float()
            frames = item.open_frames()
            yield Photo(item.name, self._kept(frames.read([0])), points)

    def _frames(self) -> Iterator[Photo]:
        for item in self.clips.split_items("train") if self.clips is not None else []:
            with closing(item.open(sound=False)) as opened:
                step = max(1, round(self.clip_step * (item.fps or 25)))
                # Eyes need half a second to leave what they saw before the clip.
                for frame in range(step // 2, opened.count, step):
                    assert opened.annotation is not None
                    found = opened.annotation.fixations(frame)
                    if found is not None and len(found[0]) >= 5:
                        size = torch.tensor(opened.annotation.size)
                        points = ((torch.from_numpy(found[0]) + 0.5) / size).flip(1).float()
                        yield Photo(f"{item.name}@{frame}", self._kept(opened.frames.read([frame])), points)

    def _kept(self, frames: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        area = math.prod(self.spec.size) * MARGIN**2
        scale = min(1.0, math.sqrt(area / math.prod(pixels.shape[2:])))
        size = (max(8, round(pixels.shape[2] * scale)), max(8, round(pixels.shape[3] * scale)))
        return resize_frames(pixels, size)[0].contiguous()

    def train_dataloader(self) -> ClipLoader:
        """Return the training loader, whose items are whole batches."""
        dataset = PhotoBatches(
            self.photos, self.spec, self.batch_size, seed=self.seed, flip=self.flip,
            low_epochs=self.low_epochs, jitter=self.jitter,
        )  # fmt: skip
        return self._loader(dataset, shuffle=True, batch_size=None)


@lru_cache(maxsize=1)
def fixed_splits() -> dict[str, dict[str, list[str]]]:
    """Return the listed names of each set's "val" and "test" pictures; the others train."""
    text = (files("avsal.data.sets") / "photos_splits.json").read_text(encoding="utf-8")
    return json.loads(text)["sets"]


def split_names(name: str, pictures: Sequence[str], split: Split) -> list[str]:
    """Return the pictures of a split of a set."""
    listed = fixed_splits().get(name)
    if listed is None:
        chosen = in_split(pictures, split, test=0.15, val=0.1)
    elif split == "train":
        chosen = set(pictures) - {*listed["val"], *listed["test"]}
    else:
        chosen = set(listed[split])
    return [picture for picture in pictures if picture in chosen]
