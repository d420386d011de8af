"""Sound comes back at the right time and level, in any order of reading, and never crashes a batch."""

from __future__ import annotations

import tracemalloc
import warnings
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from avsal.errors import ConfigError, MediaError
from avsal.io.audio import SILENT_RATE, AudioStream, load_audio
from avsal.io.video import VideoStream
from tests.media import cut, damage, tone, write_clip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Resampling short pieces gains nothing from threads, and loses much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def onset(samples: torch.Tensor, rate: int) -> float:
    """Seconds at which the sound begins."""
    return float((samples.abs() > 0.03).nonzero()[0]) / rate


def write_wav(path: Path, sound: np.ndarray, rate: int) -> Path:
    """Write (channels, samples) float in -1..1 as 16-bit PCM with the standard library."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(len(sound))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(sound.T * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """(1, 5.3 s) of noise at 22050 Hz: every sample is told from its neighbours."""
    random = np.random.default_rng(5)
    return (random.uniform(-0.5, 0.5, (1, 116_865))).astype(np.float32)


def test_a_wav_file_comes_back_to_the_bit(tmp_path: Path, noise: np.ndarray) -> None:
    samples, rate, has_audio = load_audio(write_wav(tmp_path / "noise.wav", noise, 22050))
    assert (rate, has_audio, samples.dtype) == (22050, True, torch.float32)
    np.testing.assert_array_equal(samples.numpy(), np.round(noise[0] * 32767).astype(np.float32) / 32768)


@pytest.mark.parametrize("rate", [None, 16000, 44100, 35280, 22050, 8000])
def test_pieces_equal_the_resampled_whole(tmp_path: Path, noise: np.ndarray, rate: int | None) -> None:
    path = write_wav(tmp_path / "noise.wav", noise, 22050)
    whole = torch.from_numpy(np.round(noise[0] * 32767).astype(np.float32) / 32768)
    expected = resample(whole, 22050, rate or 22050)
    samples, got_rate, _ = load_audio(path, rate)
    assert got_rate == (rate or 22050)
    assert samples.shape == expected.shape
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-6)
    stream = AudioStream(path, rate=rate)
    assert stream.length == len(expected)
    padded = torch.cat([torch.zeros(9000), expected, torch.zeros(9000)])
    for begin in [-9000, -1, 0, 1, 777, 20000, 20100, len(expected) - 5000, 300, len(expected) + 10]:
        end = begin + 4321
        torch.testing.assert_close(
            stream.read(begin, end), padded[begin + 9000 : end + 9000], rtol=0, atol=1e-6
        )
    assert stream.read(5, 5).shape == (0,)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mp4", "aac", 48000),
        ("a.mkv", "libopus", 48000),
        ("a.mkv", "libmp3lame", 44100),
        ("a.mkv", "mp2", 44100),
        ("a.avi", "pcm_s16le", 16000),
        ("a.mov", "pcm_f32le", 16000),
        ("a.mkv", "flac", 16000),
        ("a.ts", "aac", 48000),
    ],
)
def test_reading_in_any_order_gives_the_same_samples(
    tmp_path: Path, name: str, codec: str, rate: int
) -> None:
    video = "mpeg4" if name.endswith("avi") else "libx264"
    late = 1.0 if name.endswith("ts") else 0.0  # like real transport streams, whose clock starts anywhere
    path = write_clip(
        tmp_path / name, codec=video, frames=288, sound=tone(12, rate), rate=rate, audio_codec=codec,
        start=late, sound_start=late,
    )  # fmt: skip
    whole, got_rate, has_audio = load_audio(path)
    assert (got_rate, has_audio) == (rate, True)
    assert abs(len(whole) / rate - 12) < 0.1
    assert float(whole[rate:-rate].pow(2).mean().sqrt()) == pytest.approx(0.25 / 2**0.5, rel=0.06)
    random = np.random.default_rng(1)
    with AudioStream(path) as stream:
        for _ in range(12):
            begin = int(random.integers(0, len(whole) - rate))
            torch.testing.assert_close(
                stream.read(begin, begin + rate), whole[begin : begin + rate], rtol=0, atol=2e-3
            )


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_and_picture_share_one_clock(tmp_path: Path, name: str) -> None:
    late_sound = write_clip(tmp_path / f"s-{name}", sound=tone(0.5), sound_start=0.5)
    late_picture = write_clip(tmp_path / f"p-{name}", sound=tone(1.5), start=0.5)
    both_late = write_clip(tmp_path / f"b-{name}", sound=tone(1), sound_start=3.5, start=3.0)
    for path, distance in ((late_sound, 0.5), (late_picture, -0.5), (both_late, 0.5)):
        samples, rate, _ = load_audio(path)
        with VideoStream(path) as video:
            first = next(video).time
        assert min(first, onset(samples, rate)) < 0.07  # one AAC frame of encoder delay in transport streams
        assert onset(samples, rate) - first == pytest.approx(distance, abs=2e-3)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "pcm_s24le"])
def test_stereo_is_the_mean_of_left_and_right(tmp_path: Path, codec: str) -> None:
    sound = tone(0.5, 48000, 2) * np.array([[1.0], [0.3]], np.float32)
    path = write_clip(tmp_path / "a.mkv", frames=2, sound=sound, rate=48000, audio_codec=codec)
    samples, _, _ = load_audio(path)
    np.testing.assert_allclose(samples.numpy(), (sound[0] + sound[1]) / 2, atol=4e-5)


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad", "5.1", "6.1"])
def test_layouts_are_mixed_as_ffmpeg_mixes_16_bit_sound(tmp_path: Path, layout: str) -> None:
    channels = av.AudioLayout(layout).nb_channels
    sound = np.random.default_rng(0).uniform(-1, 1, (channels, 4096)).astype(np.float32)
    path = write_clip(
        tmp_path / "a.mkv", frames=2, sound=sound, rate=16000, layout=layout, audio_codec="pcm_s16le"
    )
    samples, _, _ = load_audio(path)
    mixer = av.AudioResampler(format="s16", layout="mono", rate=16000)  # the command line's -ac 1
    with av.open(str(path)) as file:
        pieces = [mixed for frame in file.decode(audio=0) for mixed in mixer.resample(frame)]
    expected = np.concatenate([piece.to_ndarray()[0] for piece in [*pieces, *mixer.resample(None)]]) / 32768
    np.testing.assert_allclose(samples.numpy(), expected, atol=1e-4)


def test_channels_without_a_layout_are_averaged(tmp_path: Path) -> None:
    sound = tone(0.5, 16000, 9) / 2  # FFmpeg has no name for nine channels
    samples, _, has_audio = load_audio(write_wav(tmp_path / "array.wav", sound, 16000))
    assert has_audio
    np.testing.assert_allclose(samples.numpy(), sound.mean(0), atol=1e-4)


def test_a_counter_that_overflows_is_not_a_pause_of_a_day(tmp_path: Path) -> None:
    # The encoder's delay comes before time 0, which the 33-bit counter of a transport stream cannot express.
    path = write_clip(tmp_path / "a.ts", frames=48, sound=tone(2, 48000), rate=48000)
    samples, rate, _ = load_audio(path)
    assert len(samples) / rate == pytest.approx(2, abs=0.1)


def test_no_track_is_silence_and_a_silent_track_is_a_track(tmp_path: Path) -> None:
    mute = write_clip(tmp_path / "mute.mp4", frames=4)
    stream = AudioStream(mute)
    assert (stream.has_audio, stream.rate, stream.length) == (False, SILENT_RATE, 0)
    assert torch.equal(stream.read(-5, 95), torch.zeros(100))
    assert AudioStream(mute, rate=44100).rate == 44100
    samples, rate, has_audio = load_audio(mute, 44100)
    assert (len(samples), rate, has_audio) == (0, 44100, False)
    silent = write_clip(tmp_path / "silent.mp4", frames=24, sound=np.zeros((1, 16000), np.float32))
    stream = AudioStream(silent)
    assert stream.has_audio
    assert torch.equal(stream.read(0, 16000), torch.zeros(16000))


def test_sound_longer_and_shorter_than_the_picture(tmp_path: Path) -> None:
    longer = write_clip(tmp_path / "longer.mp4", frames=24, sound=tone(2))
    shorter = write_clip(tmp_path / "shorter.mp4", frames=48, sound=tone(1))
    assert AudioStream(longer).length == pytest.approx(32000, abs=1100)
    stream = AudioStream(shorter)
    estimate = stream.length
    assert estimate == pytest.approx(16000, abs=1100)
    assert torch.equal(stream.read(18000, 32000), torch.zeros(14000))
    assert stream.length == pytest.approx(estimate, abs=1100)


def test_damaged_sound_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=240, sound=tone(10, 48000), rate=48000)
    broken = damage(path, tmp_path / "broken.mp4", 400)
    stream = AudioStream(broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = stream.read(0, 480_000)
    assert stream.has_audio
    assert torch.isfinite(samples).all()
    assert float(samples[:48_000].pow(2).mean().sqrt()) == pytest.approx(0.177, rel=0.05)
    assert stream.message is not None
    assert str(broken) in stream.message
    assert any(str(broken) in str(w.message) for w in caught)
    # What comes after a hole stays in its place: the tail equals that of the whole file.
    whole, _, _ = load_audio(path)
    torch.testing.assert_close(samples[470_000:], whole[470_000:480_000], rtol=0, atol=0.02)


def test_truncated_sound_ends_early(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=240, sound=tone(10))
    part = cut(path, tmp_path / "part.mkv", 0.5)
    samples, rate, has_audio = load_audio(part)
    assert has_audio
    assert 3 < len(samples) / rate < 7
    assert torch.equal(AudioStream(part).read(9 * rate, 10 * rate), torch.zeros(rate))


def test_an_undecodable_track_is_silence_with_a_warning(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=24, sound=tone(1), audio_codec="flac")
    data = bytearray(path.read_bytes())
    import av

    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            if packet.size:
                place = data.index(bytes(packet))
                data[place : place + packet.size] = b"\x55" * packet.size
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"broken\.mkv.*silence"):
        stream = AudioStream(broken)
    assert not stream.has_audio
    assert torch.equal(stream.read(0, 100), torch.zeros(100))


@pytest.mark.parametrize("content", [None, b"", b"not sound at all\n" * 99])
def test_what_is_not_media_is_refused_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    for attempt in (AudioStream, load_audio):
        with pytest.raises(MediaError, match=r"bad\.wav"):
            attempt(path)
    with pytest.raises(ConfigError, match="rate"):
        AudioStream(path, rate=0)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "minutes"), [(None, 30), (8000, 10)])
def test_long_sound_needs_constant_memory(tmp_path: Path, rate: int | None, minutes: int) -> None:
    own = 4000
    path = tmp_path / "film.wav"
    random = np.random.default_rng(0)
    minute = random.integers(-9000, 9000, own * 60).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(own)
        for _ in range(minutes):
            out.writeframes(minute.tobytes())
    stream = AudioStream(path, rate=rate)
    held: list[Any] = []
    tracemalloc.start()
    for second in range(0, minutes * 60, 5):
        window = stream.read((second - 1) * stream.rate, (second + 6) * stream.rate)
        if second % 300 == 0:
            held.append(float(window.abs().max()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.length == minutes * 60 * stream.rate
    assert min(held) > 0.2
    assert peak < 3e6  # the whole takes 29 MB, or resampled 19 MB
    back = stream.read(stream.rate * 60, stream.rate * 61)
    torch.testing.assert_close(back, stream.read(stream.rate * 120, stream.rate * 121), rtol=0, atol=1e-5)
