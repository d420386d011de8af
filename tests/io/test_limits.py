"""What a file announces fills no memory: it is read in bounded memory, or refused with the name of the limit."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from avsal.errors import ConfigError, MediaError
from avsal.io.audio import AudioStream, _filtered, load_audio
from avsal.io.limits import limit
from avsal.io.video import VideoReader, VideoStream, probe
from tests.media import tone, write_clip

MEDIA = Path(__file__).with_name("media")


def write_wav(path: Path, rate: int, seconds: float = 1.0) -> Path:
    count = int(min(rate, 50_000) * seconds)
    sound = (9000 * np.sin(2 * np.pi * 440 * np.arange(count) / rate)).astype("<i2").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(sound), b"WAVE", b"fmt ", 16, 1, 1, rate,
                         min(2 * rate, 2**32 - 1), 2, 16, b"data", len(sound))  # fmt: skip
    path.write_bytes(header + sound)
    return path


def write_png(path: Path, height: int, width: int) -> Path:
    """A black picture of any size in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    coder = zlib.compressobj(9)
    rows = b"".join(coder.compress(bytes(1 + width)) for _ in range(height)) + coder.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.slow
def test_hostile_files_need_little_memory(tmp_path: Path) -> None:
    write_png(tmp_path / "bomb.png", 16000, 16000)
    for rate in (44103, 47999, 2**31 - 1, 96001):
        write_wav(tmp_path / f"{rate}.wav", rate)
    names = [str(path) for folder in (MEDIA, tmp_path) for path in sorted(folder.iterdir())]
    code = """
        import json, resource, sys, warnings
        from avsal.errors import MediaError
        from avsal.io.audio import AudioStream, load_audio
        from avsal.io.video import VideoReader, VideoStream
        from torchaudio.functional import resample
        import torch
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found, before = {}, peak()
        def attempt(work):
            try:
                work()
            except MediaError as error:
                return str(error)
        for name in sys.argv[1:]:
            said = [
                attempt(lambda: [None for _ in VideoStream(name)]),
                attempt(lambda: VideoReader(name).read([0])),
                attempt(lambda: AudioStream(name, rate=16000).read(0, 16000)),
                attempt(lambda: load_audio(name, 16000)),
            ]
            found[name] = (peak() - before, said)
        print(json.dumps(found))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *names], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(names)
    # Everything one after the other; the sound of an hour at 16 kHz is 256 MB that are hardly touched.
    assert max(megabytes for megabytes, _ in found.values()) < 600, found
    for name in ("bomb.gif", "bomb.png"):
        said = next(said for path, (_, said) in found.items() if path.endswith(name))
        assert all("AVSAL_MAX_PIXELS" in text or "no sound" in text for text in said[:2])
    refused = next(said for path, (_, said) in found.items() if path.endswith("2147483647.wav"))
    assert all("AVSAL_MAX_RATE" in text for text in refused[2:])
    odd = next(said for path, (_, said) in found.items() if path.endswith("44103.wav"))
    assert odd[2:] == [None, None]


@pytest.mark.parametrize(("own", "rate"), [(22050, 16000), (16000, 22050), (44100, 48000), (8000, 44100)])
def test_the_filter_without_a_table_is_torchaudios(own: int, rate: int) -> None:
    sound = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, own).astype(np.float32))
    shared = int(np.gcd(own, rate))
    expected = resample(sound.double(), own, rate).float()  # in float32 its table is a little off
    got = _filtered(sound, own // shared, rate // shared, 0, len(expected))
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    part = _filtered(sound, own // shared, rate // shared, 1000, 777)
    torch.testing.assert_close(part, expected[1000:1777], rtol=0, atol=2e-6)


@pytest.mark.parametrize("own", [44103, 16001, 96001, 7919])
def test_odd_rates_keep_pitch_and_time(tmp_path: Path, own: int) -> None:
    path = tmp_path / "odd.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(own)
        sound = tone(3, own)[0]
        out.writeframes((sound * 32767).astype("<i2").tobytes())
    samples, rate, _ = load_audio(path, 16000)
    assert abs(len(samples) - 3 * rate) <= 1
    expected = torch.from_numpy(tone(3, 16000)[0])
    torch.testing.assert_close(samples[500:47500], expected[500:47500], rtol=0, atol=2e-3)
    stream = AudioStream(path, rate=16000)
    torch.testing.assert_close(stream.read(20000, 21000), samples[20000:21000], rtol=0, atol=1e-5)


def test_limits_name_the_variable_that_raises_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3, sound=tone(1))
    monkeypatch.setenv("AVSAL_MAX_PIXELS", "3000")
    for attempt in (probe, VideoStream, lambda p: VideoReader(p).read([0])):
        with pytest.raises(MediaError, match="AVSAL_MAX_PIXELS"):
            attempt(clip)
    monkeypatch.setenv("AVSAL_MAX_PIXELS", "3072")
    assert probe(clip).width == 64
    monkeypatch.setenv("AVSAL_MAX_RATE", "15999")
    with pytest.raises(MediaError, match=r"clip\.mp4.*16,000 samples per second.*AVSAL_MAX_RATE"):
        AudioStream(clip)
    monkeypatch.setenv("AVSAL_MAX_RATE", "16000")
    monkeypatch.setenv("AVSAL_MAX_CLIP_SAMPLES", "999")
    with pytest.raises(MediaError, match="AVSAL_MAX_CLIP_SAMPLES"):
        AudioStream(clip).read(0, 1000)
    monkeypatch.delenv("AVSAL_MAX_CLIP_SAMPLES")
    monkeypatch.setenv("AVSAL_MAX_SAMPLES", "9999")
    with pytest.raises(MediaError, match="AVSAL_MAX_SAMPLES"):
        load_audio(clip)
    for text in ("none", "-1", "0", "1e6"):
        monkeypatch.setenv("AVSAL_MAX_PIXELS", text)
        with pytest.raises(ConfigError, match="AVSAL_MAX_PIXELS"):
            limit("AVSAL_MAX_PIXELS")


def test_pictures_that_grow_in_the_middle_meet_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        write_clip(tmp_path / f"{height}.ts", frames=10, fps=25, height=height, width=width)
        for height, width in ((48, 64), (480, 640))
    ]
    path = tmp_path / "grows.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoStream(path) as video:
        assert len(list(video)) >= 19
    monkeypatch.setenv("AVSAL_MAX_PIXELS", "10000")
    with VideoStream(path) as video:
        assert len(list(video)) <= 10
        assert "could not be decoded" in str(video.report.message)
