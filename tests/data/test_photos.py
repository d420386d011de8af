"""Photographs with raw fixations: the plain format, the fixed splits, training batches."""

from __future__ import annotations

import gzip
import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avsal.data import PhotosDataModule
from avsal.data.fixations import density_from_fixations
from avsal.data.frames import fitting_size
from avsal.data.sets.photos import Photo, PhotoBatches, crop_box, gaussians, split_names
from avsal.errors import DataError
from avsal.types import ClipSpec

SPEC = ClipSpec(frames=1, size=(64, 96), resize="keep_aspect")


def make_set(root: Path, name: str = "mine", count: int = 24) -> Path:
    """Pictures with one red square each, where all fixations but the first lie."""
    random = np.random.default_rng(0)
    (root / name / "images").mkdir(parents=True)
    lines = ["image,observer,order,x,y,duration_ms"]
    for k in range(count):
        width, height = [(120, 90), (90, 120), (160, 90)][k % 3]
        pixels = np.full((height, width, 3), 90, np.uint8)
        left, top = random.integers(0, width - 20), random.integers(0, height - 20)
        pixels[top : top + 20, left : left + 20] = (230, 20, 20)
        Image.fromarray(pixels).save(root / name / "images" / f"p{k:02}.png")
        for observer in range(6):
            lines.append(f"p{k:02},{observer},0,0.5,0.5,200")
            lines.append(f"p{k:02},{observer},1,{(left + 10) / width:.4f},{(top + 10) / height:.4f},200")
    with gzip.open(root / name / "fixations.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("photos"))


def test_the_fixed_splits_are_those_that_were_written_down_and_near_duplicates_stay_together() -> None:
    content = json.loads((files("avsal.data.sets") / "photos_splits.json").read_text())
    for name, splits in content["sets"].items():
        assert not set(splits["val"]) & set(splits["test"])
        for split, pictures in splits.items():
            assert hashlib.sha256("\n".join(pictures).encode()).hexdigest() == content["sha256"][name][split]
    where = {
        p: split for split in ("train", "val", "test") for p in split_names("osie", ["1279", "1374"], split)
    }
    assert where["1279"] == where["1374"]


def test_every_picture_is_in_one_split_and_the_same_one_whatever_else_is_there() -> None:
    names = [f"p{k}" for k in range(200)]
    splits = {split: split_names("mine", names, split) for split in ("train", "val", "test")}
    assert sorted(n for names in splits.values() for n in names) == sorted(f"p{k}" for k in range(200))
    assert 15 < len(splits["test"]) < 50


def test_evaluation_keeps_all_fixations_on_the_picture_s_grid_and_training_drops_the_first(
    root: Path,
) -> None:
    data = PhotosDataModule(root, sets=["mine"], spec=SPEC, num_workers=0, eval_batch_size=1)
    batch = next(iter(data.test_dataloader()))
    height, width = batch["density"].shape[2:]
    assert int((batch["fixations"][0, 0, :, 0] >= 0).sum()) == 12
    assert batch["video"].shape[3:] == fitting_size(height, width, SPEC.size)
    centre = torch.tensor([height // 2, width // 2])
    assert int((batch["fixations"][0, 0] == centre).all(-1).sum()) == 6
    assert all(len(photo.points) == 6 for photo in data.photos)


def test_a_training_batch_shows_the_square_where_its_density_and_fixations_are(root: Path) -> None:
    data = PhotosDataModule(root, sets=["mine"], spec=SPEC, num_workers=0, batch_size=4)
    dataset = data.train_dataloader().dataset
    sizes = set()
    for epoch in range(4):
        for index in range(len(dataset)):
            batch = dataset[epoch, index]
            video, density = batch["video"][:, :, 0], batch["density"][:, 0]
            sizes.add(tuple(video.shape[2:]))
            red = torch.nn.functional.avg_pool2d((video[:, :1] - video[:, 1:2]).clamp_min(0), 4)[:, 0]
            for picture, map_, points in zip(red, density, batch["fixations"][:, 0], strict=True):
                peak = divmod(int(map_.argmax()), map_.shape[1])
                assert float(map_[peak]) == 1.0
                for row, column in points[points[:, 0] >= 0].tolist():
                    assert abs(row - peak[0]) <= 1
                    assert abs(column - peak[1]) <= 1
                    assert float(picture[row, column]) > 0.5 * float(picture.max())
    assert len(sizes) > 2


def test_batches_follow_from_seed_epoch_and_index(root: Path) -> None:
    def make(seed: int) -> PhotosDataModule:
        return PhotosDataModule(root, sets=["mine"], spec=SPEC, num_workers=0, batch_size=4, seed=seed)

    one, again, other = (make(seed).train_dataloader().dataset[2, 1] for seed in (0, 0, 1))
    assert torch.equal(one["video"], again["video"])
    assert one["video"].shape != other["video"].shape or not torch.equal(one["video"], other["video"])


def test_low_epochs_come_at_half_the_size() -> None:
    photos = [Photo(f"s/{k}", torch.zeros(3, 70, 100, dtype=torch.uint8), torch.rand(9, 2)) for k in range(8)]
    dataset = PhotoBatches(photos, SPEC, 4, low_epochs=1)
    areas = [np.mean([dataset[e, k]["video"][0, 0].numel() for k in range(2)]) for e in range(2)]
    assert 0.15 < areas[0] / areas[1] < 0.45


def test_the_density_is_the_package_s_own() -> None:
    points = torch.tensor([[0.2, 0.3], [0.7, 0.9], [0.71, 0.88]])
    found = gaussians(points, (30, 40), (2.0, 3.0)).numpy()
    grid = points.numpy()[:, ::-1] * (30, 40) - 0.5
    np.testing.assert_allclose(found, density_from_fixations(grid, (30, 40), (2.0, 3.0)), atol=1e-5)


def test_crops_lie_inside_and_have_about_the_shape_asked_for() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        top, left, rows, columns = crop_box(90, 160, (96, 72), random, least=0.5)
        assert 0 <= top <= 90 - rows
        assert 0 <= left <= 160 - columns
        assert 0.75 * 0.85 < columns / rows < 0.75 * 1.18


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (100, 100), (333, 500), (100, 300)])
def test_keeping_the_aspect_keeps_shape_and_area(height: int, width: int) -> None:
    rows, columns = fitting_size(height, width, (192, 288))
    assert rows % 16 == columns % 16 == 0
    assert abs(np.log(rows / columns * width / height)) < 0.08
    assert abs(np.log(rows * columns / (192 * 288))) < 0.12


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    folder = make_set(tmp_path, count=3) / "mine"
    (folder / "fixations.csv.gz").unlink()
    (folder / "fixations.csv").write_text("image,observer,x,y\np00,0,0.5,0.5\n")
    with pytest.raises(DataError, match="no column order"):
        PhotosDataModule(tmp_path, sets=["mine"]).split_items("train")
    with pytest.raises(DataError, match=r"other: no fixations\.csv"):
        PhotosDataModule(tmp_path, sets=["other"]).split_items("train")
