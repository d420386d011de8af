"""The real clips: every container and codec that people bring along, against the facts recorded beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from avsal.io.audio import AudioStream, load_audio
from avsal.io.render import VideoWriter, overlay
from avsal.io.video import VideoReader, VideoStream

# frames, (height, width), frames per second, samples per second, level of the mono sound
FACTS = {
    "avatars_sound_left.mp4": (50, (1080, 1920), 25.0, 48000, 0.013),
    "big_buck_bunny_432_433.webm": (24, (720, 1280), 24.0, 44100, 0.097),
    "chaplin.mp4": (241, (360, 640), 25.0, 44100, 0.087),
    "cockatoo.mp4": (280, (720, 1280), 20.0, 16000, 0.0),
    "flipping_a_pancake.mkv": (310, (240, 426), 30.0, 48000, 0.041),
    "nasa_13013.mp4": (325, (180, 320), 25.0, 8000, 0.077),
    "no_duration.webm": (74, (720, 1280), 14.985, 48000, 0.0),
    "realshort.mp4": (36, (240, 320), 30.02, 48000, 0.002),
    "sintel_2s.mp4": (48, (480, 854), 24.0, 44100, 0.139),
    "video_with_failing_audio.mp4": (280, (360, 640), 25.0, 44100, 0.013),
}


@pytest.mark.parametrize("name", FACTS)
def test_real_clips_are_read_as_recorded(real_data: Path, name: str) -> None:
    path = real_data / "media" / name
    count, size, fps, rate, level = FACTS[name]
    with VideoStream(path) as video:
        times = []
        for frame in video:
            times.append(frame.time)
            if frame.index == count // 2:
                middle = frame.image
        report = video.report
    assert (report.decoded, report.corrupt, report.truncated, report.message) == (count, 0, False, None)
    assert middle.shape == (*size, 3)
    assert video.info.fps == pytest.approx(fps, abs=0.01)
    reader = VideoReader(path)
    np.testing.assert_array_equal(reader.times, times)
    np.testing.assert_array_equal(reader.read([count // 2])[0], middle)
    samples, got_rate, has_audio = load_audio(path)
    assert (got_rate, has_audio) == (rate, True)
    assert float(samples.pow(2).mean().sqrt()) == pytest.approx(level, abs=0.001)
    # Pieces, read out of order and resampled, are those of the whole.
    expected = torch.nn.functional.pad(resample(samples, rate, 16000), (0, 32000))
    stream = AudioStream(path, rate=16000)
    for begin in (8000, 0, len(expected) - 32000, 3000):
        torch.testing.assert_close(
            stream.read(begin, begin + 16000), expected[begin : begin + 16000], rtol=0, atol=1e-4
        )


def test_the_two_avatar_clips_differ_in_their_stereo_image_only(real_data: Path) -> None:
    left, right = (real_data / "media" / f"avatars_sound_{side}.mp4" for side in ("left", "right"))
    np.testing.assert_array_equal(VideoReader(left).read([0, 20, 49]), VideoReader(right).read([0, 20, 49]))
    a, b = load_audio(left)[0], load_audio(right)[0]
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.999


def test_silent_films_are_read(real_data: Path) -> None:
    for path in sorted((real_data / "gaze" / "lund2013_video").glob("*.avi")):
        with VideoStream(path) as video:
            assert sum(1 for _ in video) == video.info.frames
        assert not AudioStream(path).has_audio


@pytest.mark.parametrize("name", ["flipping_a_pancake.mkv", "sintel_2s.mp4", "big_buck_bunny_432_433.webm"])
def test_an_overlay_keeps_time_and_sound(real_data: Path, tmp_path: Path, name: str) -> None:
    source, out = real_data / "media" / name, tmp_path / "out.mp4"
    heat = np.outer(np.hanning(28), np.hanning(50))
    with VideoStream(source) as video:
        size = (video.info.height, video.info.width)
        with VideoWriter(out, video.info.fps, size, audio_from=source) as writer:
            for frame in video:
                writer.write(overlay(frame.image, heat), frame.time)
    np.testing.assert_allclose(VideoReader(out).times, VideoReader(source).times, atol=1e-5)
    before, after = load_audio(source)[0], load_audio(out)[0]
    count = min(len(before), len(after))
    spectra = [torch.fft.rfft(x[:count], 2 * count) for x in (before, after)]
    lag = int(torch.fft.irfft(spectra[0].conj() * spectra[1]).argmax())
    assert min(lag, 2 * count - lag) <= 48  # a millisecond, the unit of Matroska's timestamps
