"""One time for pictures, sound and overlays, and frames as they are shown, in files that went wrong elsewhere."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from avsal.io.audio import AudioStream, load_audio
from avsal.io.render import VideoWriter
from avsal.io.video import VideoReader, VideoStream, probe
from tests.io.test_matrix import decoded
from tests.media import frame_number, picture, tone, write_clip

MEDIA = Path(__file__).with_name("media")


def frames(path: Path) -> tuple[list[np.ndarray], list[float], str | None]:
    with VideoStream(path) as video:
        found = list(video)
        return [f.image for f in found], [f.time for f in found], video.report.message


def pitch(samples: Any, rate: int, time: float) -> float:
    """The loudest frequency of the quarter of a second from `time` on."""
    piece = samples[int(time * rate) : int((time + 0.25) * rate)].numpy()
    return float(np.abs(np.fft.rfft(piece * np.hanning(len(piece)))).argmax() * rate / len(piece))


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def overlaid(path: Path, source: Path) -> tuple[Path, str | None]:
    """The pictures of a file written again with its sound, and the writer's note."""
    with VideoStream(source) as video, VideoWriter(
        path, 25, (video.info.height, video.info.width), audio_from=source
    ) as writer:  # fmt: skip
        for frame in video:
            writer.write(frame.image, frame.time)
    return path, writer.note


def test_packed_b_frames_in_avi_give_the_decoders_pictures_in_order() -> None:
    images, times = decoded(MEDIA / "xvid.avi")
    reader = VideoReader(MEDIA / "xvid.avi")
    assert len(reader) == len(images) == 98
    np.testing.assert_array_equal(reader.read(range(98)), images)
    for index in (70, 3, 97, 24, 26):
        np.testing.assert_array_equal(reader.read([index])[0], images[index])
    np.testing.assert_allclose(reader.times[:-1], times[:-1], atol=1e-9)


def test_a_copy_cut_between_key_frames_has_all_its_frames() -> None:
    _, times, message = frames(MEDIA / "cut.mp4")
    reader = VideoReader(MEDIA / "cut.mp4")
    assert len(times) == len(reader) == 52
    np.testing.assert_array_equal(reader.times, times)
    assert (times[0], times[-1]) == (0.0, pytest.approx(2.12))
    assert message is None
    np.testing.assert_array_equal(reader.read(range(52)), decoded(MEDIA / "cut.mp4")[0])


def test_the_parts_of_concatenated_streams_follow_each_other(tmp_path: Path) -> None:
    images, times, message = frames(MEDIA / "cat.ts")
    assert len(images) == 100
    assert np.diff(times) == pytest.approx(0.04, abs=0.03)
    red = [bool(image[..., 0].mean() > image[..., 2].mean()) for image in images]
    assert red == [True] * 50 + [False] * 50
    assert "jumps" in str(message)
    np.testing.assert_array_equal(VideoReader(MEDIA / "cat.ts").read([70, 20]), [images[70], images[20]])
    path, _ = overlaid(tmp_path / "overlay.mp4", MEDIA / "cat.ts")
    for source in (MEDIA / "cat.ts", path):
        samples, rate, _ = load_audio(source)
        assert len(samples) / rate == pytest.approx(4, abs=0.1)
        for time, blue in zip(times[3:-8:10], [not r for r in red[3:-8:10]], strict=True):
            assert pitch(samples, rate, time) == pytest.approx(880 if blue else 440, abs=4)


@pytest.mark.parametrize("start", [0.0, 900.0, 95442.9], ids=["zero", "late", "overflowing"])
@pytest.mark.parametrize("second", [0.0, 5000.0])
def test_clocks_of_parts_may_begin_anywhere(tmp_path: Path, start: float, second: float) -> None:
    parts = [
        write_clip(tmp_path / f"{n}.ts", frames=25, fps=25, sound=tone(1, 48000, frequency=f), rate=48000,
                   start=begin, sound_start=begin)
        for n, (f, begin) in enumerate([(440, start), (880, second), (1320, 0.0)])
    ]  # fmt: skip
    path = joined(tmp_path / "all.ts", *parts)
    images, times, _ = frames(path)
    assert [frame_number(image) for image in images] == 3 * list(range(25))
    assert np.diff(times).max() < 0.12
    assert times[-1] == pytest.approx(2.96, abs=0.15)
    samples, rate, _ = load_audio(path)
    assert [pitch(samples, rate, time) for time in (0.4, 1.5, 2.5)] == pytest.approx([440, 880, 1320], abs=4)


def test_a_track_that_begins_in_the_second_part_lies_under_its_pictures(tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "silent.ts", frames=50, fps=25)
    loud = write_clip(tmp_path / "loud.ts", frames=50, fps=25, sound=tone(2, 48000), rate=48000)
    samples, rate, _ = load_audio(joined(tmp_path / "all.ts", silent, loud))
    assert float((samples.abs() > 0.05).nonzero()[0]) / rate == pytest.approx(2, abs=0.15)


def test_a_track_that_appears_in_the_middle_stops_no_reader(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.ts", frames=100, fps=25, sound=tone(4, 48000), rate=48000)
    data = bytearray(clip.read_bytes())
    starts = [at for at in range(0, len(data), 188) if data[at + 1] == 0x41 and data[at + 2] == 0x01]
    data[starts[-2] + 2] = 0x05  # a piece of the sound says that it belongs to track 0x105
    path = tmp_path / "stray.ts"
    path.write_bytes(bytes(data))
    images, _, _ = frames(path)
    assert [frame_number(image) for image in images] == [*range(100)]
    np.testing.assert_array_equal(VideoReader(path).read([95]), [images[95]])
    assert load_audio(path)[2]


def test_sound_that_begins_after_more_than_an_hour_stays_there() -> None:
    samples, rate, has_audio = load_audio(MEDIA / "late1h.mkv")
    assert has_audio
    assert float((samples.abs() > 0.02).nonzero()[0]) / rate == pytest.approx(3700.01, abs=0.02)
    stream = AudioStream(MEDIA / "late1h.mkv")
    assert not stream.read(0, rate).any()
    np.testing.assert_allclose(
        stream.read(3701 * rate, 3702 * rate), samples[3701 * rate : 3702 * rate], atol=1e-3
    )


def test_sound_that_pauses_for_more_than_an_hour_resumes_where_it_does(tmp_path: Path) -> None:
    path = tmp_path / "pause.mkv"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        for begin in (0, 3700 * 8000):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, 8000), 9000, np.int16), format="s16", layout="mono"
            )
            frame.rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), begin
            out.mux(stream.encode(frame))
    stream = AudioStream(path)
    loud = [bool(stream.read(t * 8000, t * 8000 + 4000).abs().min() > 0.2) for t in (0, 1, 3699, 3700)]
    assert loud == [True, False, False, True]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_the_whole_display_matrix_is_applied(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for number in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        out.mux(stream.encode(None))
    shown = np.rot90(picture(2), degrees // 90)
    shown = shown[:, ::-1] if mirrored else shown  # FFmpeg: mirrored after the rotation
    images, _, _ = frames(path)
    assert images[2].shape == shown.shape
    assert np.abs(images[2].astype(int) - shown).mean() < 8
    np.testing.assert_array_equal(VideoReader(path).read([2])[0], images[2])
    info = probe(path)
    assert (info.height, info.width) == shown.shape[:2]
    assert info.mirrored == mirrored


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("value", range(1, 9))
def test_all_eight_exif_orientations_of_stills_are_applied(tmp_path: Path, suffix: str, value: int) -> None:
    path = tmp_path / f"still.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(picture(5)).save(path, exif=exif)
    with Image.open(path) as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    images, _, message = frames(path)
    assert images[0].shape == shown.shape
    assert np.abs(images[0].astype(int) - shown).mean() < 6
    np.testing.assert_array_equal(VideoReader(path).read([0])[0], images[0])
    assert message is None


def test_the_pixel_aspect_goes_into_the_overlay_and_turns_with_the_picture(tmp_path: Path) -> None:
    aspect = Fraction(64, 45)
    for rotation, expected in ((0, aspect), (90, 1 / aspect)):
        path = write_clip(tmp_path / f"{rotation}.mp4", pixel_aspect=aspect, rotation=rotation, frames=3)
        info = probe(path)
        assert info.pixel_aspect == pytest.approx(float(expected))
        out = tmp_path / f"overlay-{rotation}.mp4"
        with VideoWriter(out, 25, (info.height, info.width), pixel_aspect=info.pixel_aspect) as writer:
            writer.write(np.zeros((info.height, info.width, 3), np.uint8))
        with av.open(str(out)) as container:
            assert container.streams.video[0].sample_aspect_ratio == expected


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_bare_stream_has_the_rate_that_its_codec_says(tmp_path: Path, codec: str) -> None:
    suffix = {"libx264": "h264", "libx265": "hevc"}[codec]
    path = write_clip(
        tmp_path / f"bare.{suffix}", frames=60, fps=30, codec=codec, coder={"preset": "ultrafast"}
    )
    _, times, _ = frames(path)
    assert np.allclose(times, np.arange(60) / 30)
    info = VideoReader(path).info
    assert (info.fps, info.duration) == (30.0, pytest.approx(2.0))


@pytest.mark.parametrize(
    "name", ["film: part 1.mp4", "http:x.mp4", "100%.mp4", "img%d.mp4", "a b#c.mp4", "-y.mp4"]
)
def test_a_file_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3, sound=tone(0.2))
    clip.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path(name)):
        assert len(frames(path)[0]) == len(VideoReader(path)) == 3
        assert load_audio(path)[2]
        assert overlaid(tmp_path / f"overlay of {name}", path)[1] is None


def test_an_image_whose_name_looks_like_a_sequence_is_one_image(tmp_path: Path) -> None:
    for name, number in (
        ("img%d.png", 7),
        ("img1.png", 1),
        ("img2.png", 2),
        ("img%02d.jpg", 9),
        ("img*.png", 4),
    ):
        Image.fromarray(picture(number)).save(tmp_path / name)
    for name, number in (("img%d.png", 7), ("img%02d.jpg", 9), ("img*.png", 4)):
        images, _, _ = frames(tmp_path / name)
        assert [frame_number(image) for image in images] == [number]


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    from avsal.errors import MediaError

    write_clip(tmp_path / "clip.ts", frames=3)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile http://127.0.0.1:9/clip.ts\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n")
    for name in ("list.ffconcat", "list.m3u8"):
        with pytest.raises(MediaError, match=name):
            VideoStream(tmp_path / name)


def test_sound_with_a_lost_packet_is_encoded_again_and_said(tmp_path: Path) -> None:
    path, note = overlaid(tmp_path / "overlay.mp4", MEDIA / "drop2.ts")
    assert "encoded again" in str(note)
    assert len(frames(path)[0]) == 50
    samples, rate, has_audio = load_audio(path)
    assert has_audio
    assert len(samples) / rate == pytest.approx(2, abs=0.1)


def test_sound_whose_parameters_change_is_encoded_again(tmp_path: Path) -> None:
    kinds = [(48000, 1, 440), (44100, 2, 880), (48000, 2, 1320)]
    parts = [
        write_clip(
            tmp_path / f"{n}.ts", frames=25, fps=25, sound=tone(1, rate, channels, frequency), rate=rate
        )
        for n, (rate, channels, frequency) in enumerate(kinds)
    ]
    source = joined(tmp_path / "changes.ts", *parts)
    path, note = overlaid(tmp_path / "overlay.mp4", source)
    assert "encoded again" in str(note)
    for each in (source, path):
        samples, rate, _ = load_audio(each)
        assert len(samples) / rate == pytest.approx(3, abs=0.15)
        heard = [pitch(samples, rate, time) for time in (0.4, 1.5, 2.5)]
        assert heard == pytest.approx([440, 880, 1320], abs=5)


def test_sound_that_holds_no_numbers_is_silenced_and_said(tmp_path: Path) -> None:
    source = MEDIA / "nanaudio.mkv"
    stream = AudioStream(source)
    samples = stream.read(0, 8000)
    assert np.isfinite(samples.numpy()).all()
    assert samples.abs().max() < 10
    assert "not numbers" in str(stream.message)
    path, note = overlaid(tmp_path / "overlay.mp4", source)
    assert "not numbers" in str(note)
    assert load_audio(path)[2]


def test_a_sound_that_cannot_be_written_costs_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avsal.io import soundtrack

    source = write_clip(tmp_path / "a.mp4", frames=10, sound=tone(0.5))

    def fail(*_: object) -> None:
        raise av.InvalidDataError(1, "the muxer refuses")

    monkeypatch.setattr(soundtrack, "_copied", fail)
    monkeypatch.setattr(soundtrack, "_encoded", fail)
    path, note = overlaid(tmp_path / "overlay.mp4", source)
    assert "the video has none" in str(note)
    assert [frame_number(image) for image in frames(path)[0]] == list(range(10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "overlay.mp4"]


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("trfs_97.mp4", 29, "1 of 30 packets"),
        ("flip_webm_17.webm", 19, "19 of about 30 frames"),
        ("cutimage.jpg", 1, "cut or damaged"),
    ],
)
def test_what_is_lost_is_said(name: str, count: int, words: str) -> None:
    images, _, message = frames(MEDIA / name)
    assert len(images) == count
    assert words in str(message)
    np.testing.assert_array_equal(VideoReader(MEDIA / name).read(range(count)), images)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_cut_still_is_never_simply_done(tmp_path: Path, suffix: str) -> None:
    from avsal.errors import MediaError

    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(whole)
    assert frames(whole)[2] is None
    for share in (0.5, 0.8, 0.97):
        path = tmp_path / f"cut-{share}.{suffix}"
        path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        try:
            _, _, message = frames(path)
        except MediaError:
            continue
        assert "cut or damaged" in str(message)


def test_a_lost_packet_of_any_codec_with_threads_is_counted(tmp_path: Path) -> None:
    # A decoder with threads drops the frame of an unreadable packet without a word.
    for name, codec in (("a.mkv", "libx264"), ("b.mp4", "libx264"), ("c.webm", "libvpx-vp9")):
        path = write_clip(tmp_path / name, codec=codec, frames=40)
        data = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            packets = [bytes(p) for p in container.demux(video=0) if p.size]
        place = data.index(packets[-2])
        data[place : place + len(packets[-2])] = bytes([255]) * len(packets[-2])
        path.write_bytes(bytes(data))
        images, _, message = frames(path)
        assert len(images) == len(decoded(path)[0])
        assert message is not None
