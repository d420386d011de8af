"""The ground truth of a data set in training and test, and in `avsal evaluate`: one reader, one truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from avsal.data.layout import open_layout_annotation
from avsal.data.sets.crowdsal import open_saliency_video
from avsal.data.sets.dhf1k import open_maps_and_fixations
from avsal.evaluation.pairs import find_pairs
from tests.evaluation.test_maps import write_video

SIZE = (12, 20)
RNG = np.random.default_rng(0)
MAPS = RNG.random((3, *SIZE))
POINTS = RNG.random((3, *SIZE)) < 0.05


def save_map(path: Path, kind: str, values: np.ndarray) -> np.ndarray:
    """Write a map as an image and return what it says, in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    eight, sixteen = np.round(values * 255).astype(np.uint8), np.round(values * 65535).astype(np.uint16)
    if kind == "16 bit":
        Image.fromarray(sixteen).save(path.with_suffix(".png"))
        return sixteen / 65535
    if kind == "float":
        Image.fromarray(values.astype(np.float32)).save(path.with_suffix(".tif"))
        return values
    picture = Image.fromarray(eight)
    if kind == "colour":
        picture = picture.convert("RGB")
    picture.save(path.with_suffix(".bmp" if kind == "bitmap" else ".png"))
    return eight / 255


def save_points(path: Path, kind: str, points: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = points.astype(np.uint8)
    if kind == "mat":
        savemat(path.with_suffix(".mat"), {"eyeMap": labels})
        return
    picture = Image.fromarray(labels if kind == "ones" else 255 * labels)
    if kind == "palette":
        picture = Image.fromarray(labels).convert("P")
        picture.putpalette([0, 0, 0, 200, 30, 30])
    elif kind == "colour":
        picture = picture.convert("RGB")
    elif kind == "alpha":
        picture = picture.convert("LA")
    picture.save(path.with_suffix(".png"))


@pytest.mark.parametrize("layout", ["stavis", "dhf1k"])
@pytest.mark.parametrize("maps", ["8 bit", "16 bit", "float", "colour", "bitmap"])
@pytest.mark.parametrize("points", ["mat", "ones", "255", "palette", "colour", "alpha"])
def test_both_doors_read_the_same_truth_from_images(
    tmp_path: Path, layout: Any, maps: str, points: str
) -> None:
    folder = tmp_path / "truth" / "clip"
    said = []
    for k in range(3):
        name = f"eyeMap_{k + 1:05d}" if layout == "stavis" else f"{k + 1:04d}"
        said.append(save_map(folder / "maps" / name, maps, MAPS[k]))
        place = folder / (f"fixMap_{k + 1:05d}" if layout == "stavis" else f"fixation/{k + 1:04d}")
        save_points(place, points, POINTS[k])
    (tmp_path / "pred").mkdir()
    (pair,) = find_pairs(tmp_path / "pred", tmp_path / "truth", layout)
    scored = pair.truth()
    if layout == "stavis":
        trained: Any = open_layout_annotation(folder)
    else:
        trained = open_maps_and_fixations(folder)
    for k in range(3):
        truth = scored.frame(k)
        assert truth is not None
        np.testing.assert_array_equal(truth.density, trained.density(k))
        np.testing.assert_array_equal(truth.fixations, trained.fixations(k)[0])
        np.testing.assert_allclose(truth.density, said[k], atol=1e-6)
        np.testing.assert_array_equal(truth.fixations, np.argwhere(POINTS[k]))
    np.testing.assert_array_equal(scored.union(), trained.union())
    np.testing.assert_array_equal(scored.union(), np.argwhere(POINTS.any(0)))
    assert (scored.count(), scored.frame(3)) == (3, None)


@pytest.mark.parametrize("pixels", ["gray", "gray16le", "yuv420p", "bgra"])
@pytest.mark.parametrize("points", ["whole", "fractional", "x first", "by frame"])
def test_both_doors_read_the_same_truth_from_videos(tmp_path: Path, pixels: str, points: str) -> None:
    deep = pixels == "gray16le"
    values = np.round(MAPS * (65535 if deep else 255)).astype(np.uint16 if deep else np.uint8)
    frames = values
    if pixels == "bgra":
        colours = [values, values // 2, values // 3, np.full_like(values, 255)]
        frames = np.stack(colours, -1)
    video = tmp_path / "truth" / "clip.mkv"
    write_video(video, frames, pixels)
    wanted = [np.argwhere(p) for p in POINTS]
    wanted[0] = np.concatenate([wanted[0], [[1, SIZE[1] - 1]]])  # fits in one order only
    written: Any = [(p + (0.7 if points == "fractional" else 0)).tolist() for p in wanted]
    if points == "x first":
        written = [[pair[::-1] for pair in frame] for frame in written]
    elif points == "by frame":
        written = {str(k): frame for k, frame in enumerate(written)}
    (tmp_path / "truth" / "clip.json").write_text(json.dumps(written))
    (tmp_path / "pred").mkdir()
    (pair,) = find_pairs(tmp_path / "pred", tmp_path / "truth", "crowdsal")
    scored, trained = pair.truth(), open_saliency_video(video, video.with_suffix(".json"))
    np.testing.assert_array_equal(scored.union(), trained.union())
    for k in range(3):
        truth, density, fixations = scored.frame(k), trained.density(k), trained.fixations(k)
        assert truth is not None
        assert density is not None
        assert fixations is not None
        np.testing.assert_array_equal(truth.density / np.float32(65535 if deep else 255), density)
        np.testing.assert_array_equal(truth.fixations, fixations[0])
        np.testing.assert_array_equal(truth.fixations, wanted[k])
        if pixels.startswith("gray"):
            np.testing.assert_array_equal(truth.density, values[k])
        elif pixels == "bgra":
            np.testing.assert_allclose(truth.density, frames[k, :, :, :3].mean(-1), atol=1e-4)
    assert any("turned" in note for note in scored.notes) == (points == "x first")
    scored.close()


def test_fixation_images_of_another_size_than_their_maps_are_refused(tmp_path: Path) -> None:
    from avsal.errors import DataError

    save_map(tmp_path / "maps" / "eyeMap_00001", "8 bit", MAPS[0])
    save_points(tmp_path / "fixMap_00001", "mat", POINTS[0][:-1])
    with pytest.raises(DataError, match=r"\(11, 20\) pixels"):
        open_layout_annotation(tmp_path).fixations(0)
