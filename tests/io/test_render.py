"""What is written is what another reader reads, at the same times, with the same sound, whole or not at all."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from avsal.errors import ConfigError, MediaError
from avsal.io.audio import load_audio
from avsal.io.render import NpyWriter, VideoWriter, colourise, draw_points, grey, overlay
from avsal.io.video import VideoStream, probe
from tests.media import frame_number, picture, tone, write_clip

VFR = [0.0, 0.04, 0.08, 0.3, 0.34, 0.5, 1.0, 1.04]


def blob(row: float, column: float, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / 40.0).astype(np.float32)


def test_colours_are_matplotlibs() -> None:
    import matplotlib

    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    expected = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round()
    assert np.abs(colourise(ramp)[0].astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(colourise(np.arange(256, dtype=np.uint8)[None]), colourise(ramp))
    np.testing.assert_array_equal(colourise(ramp * 0.01, peak=None), colourise(ramp))
    np.testing.assert_array_equal(colourise(ramp * 5, peak=5.0), colourise(ramp))
    with pytest.raises(ConfigError, match="nosuchmap"):
        colourise(ramp, colormap="nosuchmap")
    with pytest.raises(ValueError, match="two axes"):
        colourise(np.zeros((1, 2, 2)))


def test_grey_levels() -> None:
    values = np.array([[-1.0, 0.0, 0.5, 1.0, 3.0, np.nan]])
    np.testing.assert_array_equal(grey(values), [[0, 0, 128, 255, 255, 0]])
    np.testing.assert_array_equal(grey(np.zeros((2, 2)), peak=None), np.zeros((2, 2)))
    assert grey(blob(20, 30), size=(96, 128)).shape == (96, 128)


def test_overlay_shows_the_map_where_it_is_and_the_picture_elsewhere() -> None:
    image = picture(7)
    np.testing.assert_array_equal(overlay(image, np.zeros((6, 8))), image)
    np.testing.assert_array_equal(overlay(image, blob(24, 32), alpha=0.0), image)
    full = overlay(image, np.ones((48, 64)), alpha=1.0)
    assert np.abs(full.astype(int) - colourise(np.ones((1, 1)))[0, 0]).max() <= 1
    change = np.abs(overlay(image, blob(10, 50)).astype(int) - image).sum(-1)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert abs(row - 10) <= 3
    assert abs(column - 50) <= 3
    assert change[40:, :20].max() == 0
    # A small map lands on the same place of a larger picture.
    small = np.zeros((6, 8))
    small[1, 6] = 1
    change = np.abs(overlay(image, small).astype(int) - image).sum(-1)
    rows, columns = np.nonzero(change)
    assert 8 <= rows.mean() + 0.5 <= 16
    assert 48 <= columns.mean() + 0.5 <= 56
    with pytest.raises(ValueError, match="alpha"):
        overlay(image, small, alpha=2)


def test_points_are_discs_at_x_y_and_are_cut_at_the_border() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    out = draw_points(image, [(50, 10), (0, 39), (-30, -30), (float("nan"), 3)], (255, 0, 0), 3)
    assert (image == 100).all()
    assert tuple(out[10, 50]) == (255, 0, 0)
    assert tuple(out[39, 0]) == (255, 0, 0)
    red = (out == (255, 0, 0)).all(-1)
    assert red[:20].sum() == 29  # lattice points within distance 3
    assert tuple(out[10, 54]) == (0, 0, 0)
    assert tuple(out[10, 55]) == (100, 100, 100)


@pytest.mark.parametrize("point", [(-5, 20), (64, 20), (30, -5), (30, 44), (90, 90), (1e9, 20), (-1e9, -1e9)])
def test_points_wholly_outside_a_picture_on_any_side_draw_nothing(point: tuple[float, float]) -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    np.testing.assert_array_equal(draw_points(image, [point], radius=3), image)
    # One pixel nearer, the rim shows.
    near = tuple(np.clip(point, (-4, -4), (63, 43)))
    if 0 <= point[0] < 60 or 0 <= point[1] < 40:
        assert (draw_points(image, [near], radius=3) == 0).all(-1).sum() == 1


@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_video_keeps_pictures_and_times(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "new" / "out.mp4"
    with VideoWriter(path, 24, size) as writer:
        for number, time in enumerate(VFR):
            writer.write(picture(number, *size), time)
        assert not path.exists()
    assert os.listdir(path.parent) == ["out.mp4"]
    with VideoStream(path) as video:
        found = list(video)
    assert [frame_number(f.image[: size[0], : size[1]]) for f in found] == list(range(len(VFR)))
    np.testing.assert_allclose([f.time for f in found], VFR, atol=1e-5)
    assert found[0].image.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    # Flat areas keep their colour (BT.709 both ways), away from the edges that 4:2:0 smears.
    for row, column in ((24, 50), (42, 20), (24, 10)):
        difference = found[3].image[row, column].astype(int) - picture(3, *size)[row, column]
        assert np.abs(difference).max() <= 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 23.976, 12])
def test_without_times_the_rate_counts(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, fps, (48, 64)) as writer:
        for number in range(20):
            writer.write(picture(number))
    with VideoStream(path) as video:
        np.testing.assert_allclose([f.time for f in video], np.arange(20) / float(fps), atol=2e-5)
    assert probe(path).fps == pytest.approx(float(fps), rel=1e-3)


@pytest.mark.parametrize("is_grey", [True, False])
def test_lossless_video_is_exact(tmp_path: Path, is_grey: bool) -> None:
    random = np.random.default_rng(0)
    shape = (49, 65) if is_grey else (49, 65, 3)
    images = random.integers(0, 256, (10, *shape), dtype=np.uint8)
    path = tmp_path / "out.mkv"
    with VideoWriter(path, 25, (49, 65), lossless=True, grey=is_grey) as writer:
        for image in images:
            writer.write(image)
    with VideoStream(path) as video:
        for image, frame in zip(images, video, strict=True):
            np.testing.assert_array_equal(frame.image, image[..., None].repeat(3, 2) if is_grey else image)
            assert frame.time == pytest.approx(frame.index / 25, abs=1e-9)


def test_lossless_grey_video_opens_in_another_reader(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "out.mkv"
    with VideoWriter(path, 25, (48, 64), lossless=True, grey=True) as writer:
        writer.write(grey(blob(10, 50)))
    good, image = cv2.VideoCapture(str(path)).read()
    assert good
    np.testing.assert_array_equal(image[..., 0], grey(blob(10, 50)))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "copied"),
    [
        ("a.mp4", "aac", 44100, True),
        ("a.mkv", "libmp3lame", 44100, True),
        ("a.avi", "libmp3lame", 44100, True),
        ("a.ts", "aac", 48000, True),
        ("a.mkv", "libopus", 48000, True),
        ("a.mkv", "mp2", 44100, False),
        ("a.avi", "pcm_s16le", 11025, False),
        ("a.mkv", "pcm_f32le", 96000, False),
    ],
)
def test_the_original_sound_goes_along(
    tmp_path: Path, name: str, codec: str, rate: int, copied: bool
) -> None:
    late = 0.25 if name != "a.avi" else 0.0
    sound = tone(1.5, rate, 2)
    sound[:, : rate // 2] = 0  # the sound itself begins half-way, at a time one can measure
    source = write_clip(
        tmp_path / name, codec="mpeg4", frames=48, sound=sound, rate=rate, audio_codec=codec, sound_start=late
    )
    out = tmp_path / "out.mp4"
    with VideoStream(source) as video, VideoWriter(out, 24, (48, 64), audio_from=source) as writer:
        times = [frame.time for frame in video if writer.write(frame.image, frame.time) is None]
    with VideoStream(out) as video:
        np.testing.assert_allclose([f.time for f in video], times, atol=1e-5)
    before, _, _ = load_audio(source, 8000)
    after, _, has_audio = load_audio(out, 8000)
    assert has_audio
    first = [float((x.abs() > 0.05).nonzero()[0]) / 8000 for x in (before, after)]
    assert first[1] == pytest.approx(first[0], abs=2e-3)
    begin, end = int((first[0] + 0.1) * 8000), int((first[0] + 0.8) * 8000)
    shift = round((first[1] - first[0]) * 8000)
    level = before[begin:end].pow(2).mean().sqrt()
    assert float(after[begin + shift : end + shift].pow(2).mean().sqrt()) == pytest.approx(
        float(level), rel=0.02
    )
    with av.open(str(out)) as container:
        kept = container.streams.audio[0].codec_context.codec.canonical_name
    with av.open(str(source)) as container:
        original = container.streams.audio[0].codec_context.codec.canonical_name
    assert kept == (original if copied else "aac")


def test_copied_sound_is_bit_identical(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=24, sound=tone(2))  # longer than the picture
    out = tmp_path / "out.mp4"
    with VideoWriter(out, 24, (48, 64), audio_from=source) as writer:
        for number in range(24):
            writer.write(picture(number))
    assert torch.equal(load_audio(out)[0], load_audio(source)[0])


def test_a_source_without_sound_gives_a_video_without(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=4)
    with VideoWriter(tmp_path / "out.mp4", 24, (48, 64), audio_from=source) as writer:
        writer.write(picture(0))
    assert not probe(tmp_path / "out.mp4").has_audio


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"older")

    def stop_in_the_middle(writer: VideoWriter | NpyWriter, item: np.ndarray) -> None:
        with writer:
            writer.write(item)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_in_the_middle(VideoWriter(out, 24, (48, 64)), picture(0))
    with pytest.raises(RuntimeError, match="stop"):
        stop_in_the_middle(NpyWriter(tmp_path / "out.npy", (2,)), np.zeros(2, np.float16))
    with pytest.raises(MediaError, match="no frame"), VideoWriter(out, 24, (48, 64)):
        pass
    with pytest.raises(MediaError, match="no such file"):
        VideoWriter(out, 24, (48, 64), audio_from=tmp_path / "missing.mp4")
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert out.read_bytes() == b"older"


def test_wrong_names_and_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.mkv"):
        VideoWriter(tmp_path / "out.mp4", 24, (48, 64), lossless=True)
    with pytest.raises(ConfigError, match=r"\.mp4"):
        VideoWriter(tmp_path / "out.xyz", 24, (48, 64))
    with pytest.raises(ConfigError, match="fps"):
        VideoWriter(tmp_path / "out.mp4", 0, (48, 64))
    writer = VideoWriter(tmp_path / "out.mp4", 24, (48, 64))
    with pytest.raises(ValueError, match="expected uint8"):
        writer.write(np.zeros((48, 64, 3), np.float32))
    with pytest.raises(ValueError, match="expected uint8"):
        writer.write(picture(0, 24, 32))
    writer.abort()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("count", [0, 1, 1234])
def test_npy_grows_and_loads(tmp_path: Path, count: int) -> None:
    path = tmp_path / "maps.npy"
    values = np.random.default_rng(0).random((count, 5, 7)).astype(np.float32)
    with NpyWriter(path, (5, 7), np.float16) as writer:
        for value in values:
            writer.write(value)
    loaded = np.load(path, mmap_mode="r")
    assert loaded.dtype == np.float16
    np.testing.assert_array_equal(loaded, values.astype(np.float16))
    assert os.listdir(tmp_path) == ["maps.npy"]
    with NpyWriter(tmp_path / "more.npy", (5, 7), np.uint8) as writer:
        with pytest.raises(ValueError, match="expected shape"):
            writer.write(np.zeros((7, 5), np.uint8))
        with pytest.raises(TypeError):
            writer.write(np.zeros((5, 7), np.float32))
