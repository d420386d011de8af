"""Films with a moving square, cropped along saved maps: what is in the result, and what is refused."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avsal.applications import reframe
from avsal.applications.attention import normalised
from avsal.applications.reframe import Box, crop_path, read_aspect, read_boxes
from avsal.errors import AvsalError, ConfigError, DataError, MediaError
from avsal.io.render import VideoWriter
from avsal.io.video import VideoStream
from tests.media import tone, write_clip

FPS, COUNT = 24, 60


def centre(second: float) -> float:
    """Where the square's middle is, 0..1 of the width: to the right, and after the cut at 1.5 s on the left."""
    return 0.3 + 0.25 * second if second < 1.5 else 0.2


def draw(height: int, width: int, second: float) -> np.ndarray:
    image = np.full((height, width, 3), (60, 20, 20) if second < 1.5 else (20, 60, 200), np.uint8)
    middle, size = round(centre(second) * width), height // 12
    image[height // 2 - size : height // 2 + size, middle - size : middle + size] = 255
    return image


def result_folder(folder: Path, film: Path, maps: np.ndarray, times: np.ndarray) -> Path:
    """What `avsal predict` leaves, as far as re-framing reads it."""
    folder.mkdir()
    np.save(folder / "maps.npy", maps.astype(np.float32))
    peaks = [{"frame": n, "time": float(time), "x": 0.5, "y": 0.5} for n, time in enumerate(times)]
    summary = {"source": {"path": str(film)}, "model": "ISPModule", "peaks": peaks}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def film(tmp_path: Path) -> Path:
    sound = tmp_path / "sound.mp4"
    write_clip(sound, frames=COUNT, fps=FPS, sound=tone(COUNT / FPS))
    path = tmp_path / "film <b>&'é.mp4"
    with VideoWriter(path, FPS, (144, 256), audio_from=sound) as writer:
        for number in range(COUNT):
            writer.write(draw(144, 256, number / FPS), number / FPS)
    return path


@pytest.fixture
def maps(film: Path, tmp_path: Path) -> Path:
    times = np.arange(COUNT) / FPS
    columns = (np.arange(32) + 0.5) / 32
    rows = np.exp(-(((columns - np.array([centre(t) for t in times])[:, None]) / 0.06) ** 2))
    return result_folder(tmp_path / "maps", film, np.repeat(rows[:, None], 18, 1), times)


def frames_of(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with VideoStream(path) as stream:
        frames = list(stream)
    return [frame.image for frame in frames], [frame.time for frame in frames]


def test_the_square_stays_inside_a_portrait_crop_through_a_cut(
    film: Path, maps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "portrait.mp4"
    found = reframe(film, out, "9:16", maps=maps)
    images, times = frames_of(out)
    assert times == pytest.approx([number / FPS for number in range(COUNT)], abs=1e-4)
    assert images[0].shape == (144, 80, 3)  # 81 columns of 256 keep 9:16; H.264 needs an even number
    assert found.cuts == pytest.approx([1.5])
    for image in images:
        white = np.argwhere(image[72].min(-1) > 200)
        assert len(white) == pytest.approx(24, abs=3)  # the whole square, not a part of it
    assert len(av.open(str(out)).streams.audio) == 1
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["attention_kept"] > numbers["best_static_crop"] > numbers["centre_crop"]
    assert numbers["attention_kept"] <= numbers["best_of_each_frame"]
    assert len(numbers["frames"]) == COUNT


def test_a_shot_without_a_map_of_its_own_takes_the_nearest_and_even_attention_the_middle(film: Path) -> None:
    right = np.zeros((4, 32))
    right[:, 28:] = 1 / 16
    early = crop_path(film, 9 / 16, [(0.0, right)])  # the second shot begins at 1.5 s
    assert early.cuts == pytest.approx([1.5])
    assert early.path == pytest.approx(np.full(COUNT, 1 - early.length))
    even = crop_path(film, 9 / 16, [(0.0, np.full((4, 32), 1 / 128))])
    assert even.path == pytest.approx(np.full(COUNT, (1 - even.length) / 2), abs=1 / 192)


def test_a_folder_of_results_leads_to_its_film(film: Path, maps: Path, tmp_path: Path) -> None:
    one = reframe(maps, tmp_path / "one.mp4", "1:1")
    other = reframe(film, tmp_path / "other.mp4", "1:1", maps=maps)
    assert np.array_equal(one.path, other.path)
    film.unlink()
    with pytest.raises(DataError, match="no longer at"):
        reframe(maps, tmp_path / "two.mp4", "1:1")


def test_the_picture_moves_with_the_path_by_fractions_of_a_pixel(
    film: Path, maps: Path, tmp_path: Path
) -> None:
    found = reframe(film, tmp_path / "out.mp4", "1:1", maps=maps)
    images, times = frames_of(tmp_path / "out.mp4")
    for image, time, place in zip(images[2:30], times[2:30], found.path[2:30], strict=True):
        light = np.clip(image[72].astype(float).mean(-1) - 60, 0, None)
        middle = (light * (np.arange(len(light)) + 0.5)).sum() / light.sum()
        scale = len(light) / (found.length * 256)
        assert middle / scale == pytest.approx(round(centre(time) * 256) - place * 256, abs=0.6)


def test_a_portrait_film_is_cropped_along_its_rows(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "tall.mp4", frames=12, height=128, width=72)
    maps = np.zeros((12, 16, 9))
    maps[:, 12:14] = 1  # attention in the blue bottom third
    folder = result_folder(tmp_path / "maps", film, maps, np.arange(12) / 24)
    found = reframe(film, tmp_path / "wide.mp4", "16:9", maps=folder)
    images, _ = frames_of(tmp_path / "wide.mp4")
    assert found.axis == 0
    assert images[5].shape == (40, 72, 3)
    assert np.abs(images[5][20].mean(0) - (40, 40, 200)).max() < 12


def test_rotation_and_pixel_aspect_are_those_of_the_picture_as_shown(tmp_path: Path) -> None:
    turned = write_clip(tmp_path / "turned.mp4", frames=6, height=96, width=128, rotation=90)
    wide = write_clip(tmp_path / "wide.mp4", frames=6, height=96, width=64, pixel_aspect=Fraction(2))
    for film, shape in ((turned, (128, 96)), (wide, (96, 64))):
        folder = result_folder(tmp_path / film.stem, film, np.ones((6, 8, 8)), np.arange(6) / 24)
        found = reframe(film, tmp_path / f"{film.stem}-out.mp4", "1:1", maps=folder)
        with VideoStream(tmp_path / f"{film.stem}-out.mp4") as stream:
            info = stream.info
        assert info.width * info.pixel_aspect / info.height == pytest.approx(1, abs=0.03)
        assert found.axis == (0 if film is turned else 1)
        assert info.height <= shape[0]


def test_a_box_stays_inside_although_attention_is_elsewhere(film: Path, maps: Path, tmp_path: Path) -> None:
    table = tmp_path / "keep.csv"
    table.write_text("start,end,left,top,right,bottom\n0,2.5,0.8,0.2,0.95,0.6\n")
    found = reframe(film, tmp_path / "out.mp4", "9:16", maps=maps, keep=read_boxes(table))
    assert (found.path <= 0.8 + 1e-9).all()
    assert (found.path + found.length >= 0.95 - 1e-9).all()


def test_a_model_gives_the_maps_of_a_film_without_sound_shorter_than_its_window(tmp_path: Path) -> None:
    from avsal.models.baselines import BaselineModule

    film = write_clip(tmp_path / "short.mp4", frames=3)
    found = reframe(film, tmp_path / "out.mp4", "1:2", module=BaselineModule("centre"), height=64)
    images, _ = frames_of(tmp_path / "out.mp4")
    assert [image.shape for image in images] == [(64, 32, 3)] * 3
    assert found.path == pytest.approx([(1 - found.length) / 2] * 3, abs=1 / 192)


@pytest.mark.parametrize("text", ["", "9:0", "a:b", "-1", "1:1000", "nan"])
def test_an_aspect_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="9:16"):
        read_aspect(text)


@pytest.mark.parametrize(
    "line", ["0,1,0.2,0.2,1.4,0.6", "0,1,0.6,0.2,0.5,0.6", "2,1,0,0,1,1", "0,1,x,0,1,1", "0,1,0,0,1"]
)
def test_a_table_of_boxes_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    table = tmp_path / "keep.csv"
    table.write_text(f"start,end,left,top,right,bottom\n0,1,0,0,1,1\n{line}\n")
    with pytest.raises(DataError, match=r"keep\.csv, line 3"):
        read_boxes(table)
    assert Box(0, 1, 0.1, 0.2, 0.3, 0.4).along(0) == (0.2, 0.4)


def test_what_cannot_be_read_leaves_nothing_behind(film: Path, maps: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(MediaError):
        reframe(tmp_path / "text.mp4", tmp_path / "out" / "a.mp4", maps=maps)
    (maps / "maps.npy").write_bytes(b"cut")
    with pytest.raises(AvsalError, match=r"maps\.npy"):
        reframe(film, tmp_path / "out" / "b.mp4", maps=maps)
    (maps / "summary.json").unlink()
    with pytest.raises(DataError, match="no complete result"):
        reframe(film, tmp_path / "out" / "c.mp4", maps=maps)
    assert not (tmp_path / "out").exists()


def test_attention_of_a_crop_lies_in_its_part_of_the_picture() -> None:
    whole = normalised(np.ones((4, 4)), (0.0, 0.25, 1.0, 0.75))
    assert whole.shape == (4, 8)
    assert whole[:, 2:6].sum() == pytest.approx(1)
    assert normalised(np.zeros((2, 3)), (0.0, 0.0, 1.0, 1.0)).sum() == pytest.approx(1)
