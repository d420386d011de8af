"""Frames come back complete, upright, in order and at their true times, whatever FFmpeg can open."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avsal.errors import MediaError
from avsal.io.video import Frame, VideoReader, VideoStream, probe
from tests.media import cut, damage, frame_number, picture, tone, write_clip

VFR = [0.0, 0.04, 0.08, 0.3, 0.34, 0.5, 1.0, 1.04]

CLIPS: dict[str, dict[str, Any]] = {
    "constant.mp4": {"sound": tone(1)},
    "variable.mp4": {"times": VFR, "frames": len(VFR)},
    "variable.mkv": {"times": VFR, "frames": len(VFR)},
    "late.mp4": {"start": 0.5, "sound": tone(1.5)},
    "late.mkv": {"start": 0.5, "sound": tone(1.5)},
    "odd.mkv": {"height": 49, "width": 65, "pix_fmt": "yuv444p"},
    "b-frames.mp4": {"coder": {"preset": "medium", "bf": "3", "crf": "10"}},
    "ten-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "wide-pixels.mp4": {"pixel_aspect": Fraction(4, 3)},
    "vp8.webm": {"codec": "libvpx", "sound": tone(1, 48000), "rate": 48000, "audio_codec": "libopus"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1", "height": 96, "width": 128},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "broadcast.ts": {"sound": tone(1)},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8", "fps": 10},
    "bare.h264": {"fps": 25},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one clip of every kind in CLIPS, and longer ones for seeking and damage."""
    folder = tmp_path_factory.mktemp("clips")
    for name, options in CLIPS.items():
        write_clip(folder / name, **options)
    textured = {"frames": 120, "gop": 30, "sound": tone(5), "height": 96, "width": 128}
    write_clip(folder / "long.mp4", muxer={"movflags": "+faststart"}, **textured)
    write_clip(folder / "long.mkv", **textured)
    write_clip(
        folder / "long.webm", **{**textured, "sound": tone(5, 48000)}, codec="libvpx-vp9", rate=48000,
        audio_codec="libopus",
    )  # fmt: skip
    write_clip(folder / "long.avi", **{**textured, "sound": None}, codec="mpeg4")
    return folder


def frames(path: Path) -> tuple[list[Frame], VideoStream]:
    with VideoStream(path) as video:
        return list(video), video


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_comes_once_in_order(clips: Path, name: str) -> None:
    found, video = frames(clips / name)
    count = CLIPS[name].get("frames", 24)
    assert [frame_number(f.image) for f in found] == list(range(count))
    assert [f.index for f in found] == list(range(count))
    assert all(np.diff([f.time for f in found]) > 0)
    assert {f.image.shape for f in found} == {(video.info.height, video.info.width, 3)}
    assert all(f.image.flags.c_contiguous for f in found)
    report = video.report
    assert (report.decoded, report.corrupt, report.lost) == (count, 0, 0)
    assert not report.truncated
    assert report.message is None


@pytest.mark.parametrize("name", CLIPS)
def test_reader_finds_the_frames_of_the_stream_at_their_times(clips: Path, name: str) -> None:
    found, _ = frames(clips / name)
    reader = VideoReader(clips / name)
    assert len(reader) == len(found)
    np.testing.assert_array_equal(reader.times, [f.time for f in found])
    for wanted in ([5, 2, 7, 7, 0], [len(found) - 1], [1], []):
        images = reader.read(wanted)
        assert len(images) == len(wanted)
        for index, image in zip(wanted, images, strict=True):
            np.testing.assert_array_equal(image, found[index].image)


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.webm", "long.avi"])
def test_random_places_of_a_long_clip(clips: Path, name: str) -> None:
    found, _ = frames(clips / name)
    random = np.random.default_rng(3)
    with VideoReader(clips / name) as reader:
        for _ in range(12):
            begin = int(random.integers(0, 104))
            wanted = np.arange(begin, begin + 16)
            np.testing.assert_array_equal(reader.read(wanted), [found[i].image for i in wanted])
        wanted = random.permutation(120)[:40]
        np.testing.assert_array_equal(reader.read(wanted), [found[i].image for i in wanted])


def test_reading_forward_decodes_no_frame_twice(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avsal.io._random_access import FrameSource

    reader = VideoReader(clips / "long.mp4")
    reader.read([0])
    rewinds: list[int] = []
    original = FrameSource._seek
    monkeypatch.setattr(FrameSource, "_seek", lambda self, key: (rewinds.append(key), original(self, key)))
    for begin in range(0, 28, 4):
        reader.read(range(begin, begin + 4))
    assert rewinds == []
    reader.read(range(90, 100))
    assert rewinds == [90]


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv"])
def test_variable_frame_rate_keeps_its_times(clips: Path, name: str) -> None:
    found, _ = frames(clips / name)
    np.testing.assert_allclose([f.time for f in found], VFR, atol=1e-9)


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_a_late_picture_stays_late_against_the_sound(clips: Path, name: str) -> None:
    assert probe(clips / name).start == pytest.approx(0.5, abs=1e-3)
    assert VideoReader(clips / name).times[0] == pytest.approx(0.5, abs=1e-3)


def test_a_clock_that_starts_late_for_all_streams_starts_at_zero(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "cut.mkv", start=7.5, sound=tone(1), sound_start=8.0)
    found, video = frames(path)
    assert found[0].time == 0.0
    assert found[-1].time == pytest.approx(23 / 24, abs=2e-3)
    assert not video.report.truncated


@pytest.mark.parametrize(("turn", "back"), [(90, -1), (180, 2), (-90, 1)])
def test_rotation_is_applied(tmp_path: Path, turn: int, back: int) -> None:
    plain = write_clip(tmp_path / "plain.mp4")
    turned = write_clip(tmp_path / "turned.mp4", rotation=turn)
    expected, _ = frames(plain)
    found, video = frames(turned)
    upright = (48, 64) if turn == 180 else (64, 48)
    assert (video.info.height, video.info.width) == upright
    assert video.info.rotation == turn % 360
    for index in (0, 13):
        np.testing.assert_array_equal(np.rot90(found[index].image, back), expected[index].image)
    np.testing.assert_array_equal(VideoReader(turned).read([13])[0], found[13].image)


def test_colours_are_right(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "exact.mkv", codec="ffv1", pix_fmt="bgr0", frames=3)
    found, _ = frames(path)
    for number in range(3):
        np.testing.assert_array_equal(found[number].image, picture(number))


def test_probe_tells_what_is_there(clips: Path) -> None:
    info = probe(clips / "constant.mp4")
    assert (info.width, info.height, info.fps, info.frames, info.codec) == (64, 48, 24.0, 24, "h264")
    assert info.duration == pytest.approx(1.0)
    assert (info.has_audio, info.audio_rate, info.audio_channels) == (True, 16000, 1)
    silent = probe(clips / "mpeg4.avi")
    assert (silent.has_audio, silent.audio_rate, silent.audio_channels) == (False, None, None)
    assert probe(clips / "wide-pixels.mp4").pixel_aspect == pytest.approx(4 / 3)
    assert probe(clips / "vp9.webm").frames is None
    assert VideoReader(clips / "vp9.webm").info.frames == 24


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.webm", "long.avi"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_truncated_file_gives_its_beginning_and_reports_the_loss(
    clips: Path, tmp_path: Path, name: str, share: float
) -> None:
    path = cut(clips / name, tmp_path / name, share)
    found, video = frames(path)
    report = video.report
    assert 20 < len(found) < 120
    good = [f for f in found if not f.corrupt]
    assert [frame_number(f.image) for f in good] == [f.index for f in good]
    assert report.truncated
    assert report.decoded == len(found)
    assert str(path) in str(report.message)
    assert "breaks off" in str(report.message)
    reader = VideoReader(path)
    assert abs(len(reader) - len(found)) <= 1
    assert reader.read([0, 10, len(reader) - 1]).shape[0] == 3


def test_damaged_pictures_are_counted_and_the_rest_is_used(clips: Path, tmp_path: Path) -> None:
    path = damage(clips / "long.mp4", tmp_path / "damaged.mp4", 40)
    found, video = frames(path)
    report = video.report
    assert 100 <= len(found) <= 120
    assert report.corrupt == sum(f.corrupt for f in found)
    assert report.corrupt + report.lost > 0
    assert not report.truncated
    assert str(path) in str(report.message)
    assert VideoReader(path).read(range(0, 120, 7)).shape[0] == 18


def test_a_hole_in_the_stream_does_not_shift_the_frames_after_it(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "long.mkv").read_bytes())
    with av.open(str(clips / "long.mkv")) as container:
        for packet in [p for p in container.demux(video=0) if p.size][40:45]:
            place = data.index(bytes(packet))
            data[place : place + packet.size] = bytes(packet.size)
    path = tmp_path / "holes.mkv"
    path.write_bytes(bytes(data))
    found, video = frames(path)
    assert video.report.lost + video.report.corrupt >= 5
    reader = VideoReader(path)
    assert len(reader) == 120
    images = reader.read([39, 42, 95])  # 42 is a damaged picture or its neighbour; 90 is a key frame
    assert frame_number(images[0]) == 39
    assert frame_number(images[2]) == 95
    assert {39, 95} <= {round(f.time * 24) for f in found}


BAD: dict[str, tuple[bytes | None, str]] = {
    "missing.mp4": (None, "no such file"),
    "empty.mp4": (b"", "empty"),
    "text.mp4": (b"This is a diary, not a film.\n" * 50, "cannot open"),
    "text.txt": (b"This is a diary, not a film.\n" * 50, "text file"),
    "noise.mp4": (np.random.default_rng(0).bytes(4000), "cannot open"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_media_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for attempt in (probe, VideoStream, lambda p: len(VideoReader(p)), lambda p: VideoReader(p).read([0])):
        with pytest.raises(MediaError, match=words) as error:
            attempt(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_other_things_without_pictures_are_refused(clips: Path, tmp_path: Path) -> None:
    sound = write_clip(tmp_path / "sound.m4a", frames=0, sound=tone(1))
    with pytest.raises(MediaError, match="no video stream"):
        VideoStream(sound)
    with pytest.raises(MediaError, match="folder"):
        VideoStream(tmp_path)
    header_only = write_clip(tmp_path / "plain.mp4")  # its index comes last, so the cut takes it away
    with pytest.raises(MediaError, match="cannot open"):
        VideoStream(cut(header_only, tmp_path / "cut.mp4", 0.5))
    with av.open(str(clips / "long.mp4")) as container:
        first = next(p.pos for p in container.demux(video=0))
    data = (clips / "long.mp4").read_bytes()
    no_frames = tmp_path / "no-frames.mp4"
    no_frames.write_bytes(data[:first])
    with pytest.raises(MediaError, match="not one frame"):
        VideoStream(no_frames)


def test_indices_outside_the_video_are_refused(clips: Path) -> None:
    reader = VideoReader(clips / "constant.mp4")
    for wanted in ([24], [-1]):
        with pytest.raises(IndexError, match=r"0\.\.23"):
            reader.read(wanted)


def test_reader_travels_to_other_processes(clips: Path) -> None:
    reader = VideoReader(clips / "long.mp4")
    expected = reader.read([50])
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read([50]), expected)
    # After a fork the parent's open file must not be used.
    import gc
    import multiprocessing

    if sys.platform == "linux":
        # What other tests left behind is not for the children to collect.
        gc.collect()
        gc.freeze()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for images in pool.map(reader.read, [[50], [50], [50]]):
                np.testing.assert_array_equal(images, expected)


def test_a_long_film_needs_constant_memory(tmp_path: Path) -> None:
    # 40 minutes at 2 frames a second; all frames together would take 260 MB.
    path = write_clip(
        tmp_path / "film.mkv", frames=4800, fps=2, height=120, width=160, gop=240, codec="mpeg4"
    )
    tracemalloc.start()
    with VideoStream(path) as video:
        for count, frame in enumerate(video, 1):
            if count == 200:
                tracemalloc.reset_peak()
                early = tracemalloc.get_traced_memory()[0]
            last = frame
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4800
    assert last.time == pytest.approx(2399.5)
    assert peak - early < 2e6
