"""Small media files made on the spot, whose right content is known.

Every frame carries its number as black and white blocks, which survive lossy coding: `frame_number` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

_BITS = 12


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """An (H, W, 3) RGB picture: its number in the left half of the top third, a red right and blue bottom
    part.

    The parts differ so that a picture that was turned, mirrored or has swapped channels is told apart.
    """
    image = np.full((height, width, 3), 90, dtype=np.uint8)
    image[:, width // 2 :] = (200, 40, 40)
    image[2 * height // 3 :] = (40, 40, 200)
    rows, columns = height // 3, width // 2
    for bit in range(_BITS):
        row, column = divmod(bit, 4)
        block = (
            slice(row * rows // 3, (row + 1) * rows // 3),
            slice(column * columns // 4, (column + 1) * columns // 4),
        )
        image[block] = 235 if number >> bit & 1 else 20
    return image


def frame_number(image: np.ndarray) -> int:
    """The number that `picture` wrote into an upright (H, W, 3) or (H, W) picture."""
    grey = image if image.ndim == 2 else image.mean(-1)
    rows, columns = image.shape[0] // 3, image.shape[1] // 2
    number = 0
    for bit in range(_BITS):
        row, column = divmod(bit, 4)
        middle = (int((row + 0.5) * rows / 3), int((column + 0.5) * columns / 4))
        number |= int(grey[middle] > 128) << bit
    return number


def tone(seconds: float, rate: int = 16000, channels: int = 1, frequency: float = 440.0) -> np.ndarray:
    """(channels, samples) float32 sines of amplitude 1/4; each channel has another frequency."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(2 * np.pi * frequency * (1 + 0.37 * c) * t) / 4 for c in range(channels)]).astype(
        np.float32
    )


def write_clip(
    path: Path,
    *,
    frames: int = 24,
    fps: int | Fraction = 24,
    height: int = 48,
    width: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: Sequence[float] | None = None,
    start: float = 0.0,
    gop: int = 12,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    sound: np.ndarray | None = None,
    rate: int = 16000,
    layout: str | None = None,
    audio_codec: str = "aac",
    sound_start: float = 0.0,
    muxer: dict[str, str] | None = None,
    coder: dict[str, str] | None = None,
) -> Path:
    """Write a video (none with frames=0) and, if `sound` (channels, samples) is given, its sound.

    Args:
        times: seconds of each frame (variable frame rate, multiples of 1 ms); else `start` + k / fps.
        rotation: degrees, counter-clockwise, that players turn the picture by.
        muxer: options of the container, for example {"movflags": "+faststart"}.
        coder: options of the video encoder.
    """
    with av.open(str(path), "w", options=muxer or {}) as out:
        video: Any = None
        if frames:
            video = out.add_stream(codec, rate=fps, options=coder or {})
            video.height, video.width, video.pix_fmt = height, width, pix_fmt
            video.gop_size = gop
            if codec == "libx264" and not coder:
                video.options = {"preset": "ultrafast", "crf": "10"}
            if pixel_aspect is not None:
                video.sample_aspect_ratio = pixel_aspect
            if rotation:
                video.set_display_rotation(rotation)
            given = [Fraction(t).limit_denominator(1000) for t in times or [start]]
            base = Fraction(1) / fps if all((t * fps).denominator == 1 for t in given) else Fraction(1, 1000)
            video.codec_context.time_base = base
        audio: Any = None
        if sound is not None:
            names = {1: "mono", 2: "stereo", 6: "5.1"}
            layout = layout or names[len(sound)]
            audio = out.add_stream(audio_codec, rate=rate, layout=layout)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            time = times[number] if times is not None else start + float(number / Fraction(fps))
            frame.time_base = base
            frame.pts = round(time / base)
            out.mux(video.encode(frame))
        if video is not None:
            out.mux(video.encode(None))
        if audio is not None and sound is not None:
            _write_sound(out, audio, sound, rate, str(layout), sound_start)
    return path


def _write_sound(out: Any, audio: Any, sound: np.ndarray, rate: int, layout: str, start: float) -> None:
    fifo = av.AudioResampler(format=audio.format.name, layout=layout, rate=audio.rate, frame_size=1024)
    step = 1024
    for begin in range(0, sound.shape[1], step):
        piece = np.ascontiguousarray(sound[:, begin : begin + step])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = begin + round(start * rate)
        for ready in fifo.resample(frame):
            out.mux(audio.encode(ready))
    for ready in fifo.resample(None):
        out.mux(audio.encode(ready))
    out.mux(audio.encode(None))


def cut(source: Path, target: Path, share: float) -> Path:
    """Write the first `share` of the bytes of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def damage(source: Path, target: Path, count: int, *, seed: int = 0, spare: float = 0.2) -> Path:
    """Write a copy with `count` random bytes changed, none in the first and last `spare` of the file."""
    data = bytearray(source.read_bytes())
    random = np.random.default_rng(seed)
    places = random.integers(int(len(data) * spare), int(len(data) * (1 - spare)), count)
    for place in places:
        data[place] ^= int(random.integers(1, 256))
    target.write_bytes(bytes(data))
    return target
