"""The shipped checkpoints that were trained on real gaze: they look at things, wherever these are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import avsal
from avsal.inference.video import predict_video

NAMES = ("isp-lite-openfix", "mspi-lite-openfix")
PLACES = ((60, 50), (250, 60), (150, 130))


def picture(x: int, y: int, size: tuple[int, int] = (320, 180)) -> Image.Image:
    """A plain wall with one small smiling face."""
    image = Image.new("RGB", size, (150, 160, 150))
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - 18, y - 22, x + 18, y + 22), fill=(235, 195, 165), outline=(90, 60, 40))
    draw.ellipse((x - 9, y - 9, x - 4, y - 4), fill=(20, 20, 20))
    draw.ellipse((x + 4, y - 9, x + 9, y - 4), fill=(20, 20, 20))
    draw.arc((x - 9, y - 2, x + 9, y + 13), 20, 160, fill=(150, 30, 30), width=3)
    return image


def film(path: Path, places: list[tuple[int, int]]) -> Path:
    """A silent film at 25 frames per second with the face at each of the places."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for x, y in places:
            frame = av.VideoFrame.from_image(picture(x, y))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def peak(saliency: torch.Tensor, size: tuple[int, int] = (320, 180)) -> tuple[float, float]:
    row, column = divmod(int(saliency.argmax()), saliency.shape[1])
    return (column + 0.5) / saliency.shape[1] * size[0], (row + 0.5) / saliency.shape[0] * size[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_strongest_place_of_a_photograph_is_the_one_thing_on_it(name: str, tmp_path: Path) -> None:
    module = avsal.from_pretrained(name)
    for k, (x, y) in enumerate(PLACES):
        path = tmp_path / f"{k}.png"
        picture(x, y).save(path)
        (result,) = predict_video(module, path)
        found = peak(result.map)
        assert np.hypot(found[0] - x, found[1] - y) < 30


def test_portraits_are_seen_in_their_own_shape(tmp_path: Path) -> None:
    module = avsal.from_pretrained("isp-lite-openfix")
    picture(100, 250, (180, 320)).save(tmp_path / "portrait.png")
    (result,) = predict_video(module, tmp_path / "portrait.png")
    assert result.map.shape[0] > 1.5 * result.map.shape[1]
    found = peak(result.map, (180, 320))
    assert np.hypot(found[0] - 100, found[1] - 250) < 30


@pytest.mark.slow
def test_the_video_s_map_follows_what_moves_and_is_steadier_than_frame_by_frame(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    places = [(70 + 3 * k + int(random.integers(-4, 5)), 90 + int(random.integers(-4, 5))) for k in range(50)]
    path = film(tmp_path / "face.mp4", places)
    maps = {name: [r.map for r in predict_video(avsal.from_pretrained(name), path)] for name in NAMES}
    for found in maps.values():
        x, y = peak(found[-1])
        assert abs(x - places[-1][0]) < 45
        assert abs(y - 90) < 30

    def steadiness(found: list[torch.Tensor]) -> float:
        flat = torch.stack([m.flatten() for m in found])
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairwise(flat)]))

    assert steadiness(maps["mspi-lite-openfix"]) > steadiness(maps["isp-lite-openfix"])


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_small_and_their_terms_are_stated(name: str) -> None:
    entry = avsal.checkpoints.registry.entries()[name]
    assert entry.size is not None
    assert entry.size <= 15_000_000
    assert entry.licence.weights == "Apache-2.0"
    assert "EfficientNet-Lite2" in entry.licence.notice
    folder = Path(avsal.__file__).parent / "weights"
    assert name in (folder / "NOTICE.md").read_text(encoding="utf-8")
