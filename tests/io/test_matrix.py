"""Every reader gives the frames that FFmpeg's decoder gives from the beginning of the file on.

The containers times what makes them difficult; the files are made here, and decoded here a second time with nothing
but PyAV. What does not exist: a variable rate and a late start in AVI and raw H.264, which store no times; edit lists
outside MP4 and MOV; B-frames and open groups of pictures in VP9 (WebM), whose hidden frames stand in for the former.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avsal.io.audio import load_audio
from avsal.io.video import VideoReader, VideoStream
from tests.media import frame_number, tone, write_clip

COUNT, GOP = 40, 8
CODECS = {
    "mp4": "libx264",
    "mov": "libx264",
    "mkv": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "ts": "libx264",
    "mpg": "mpeg2video",
    "flv": "libx264",
    "h264": "libx264",
}
FEATURES = ["b_frames", "open_gop", "variable_rate", "late_start", "cut", "edit_list", "odd_size"]
NONE = {
    ("webm", "open_gop"), ("avi", "variable_rate"), ("avi", "late_start"), ("h264", "variable_rate"),
    ("h264", "late_start"),
} | {(suffix, "edit_list") for suffix in CODECS if suffix not in ("mp4", "mov")}  # fmt: skip
MATRIX = [(suffix, feature) for suffix in CODECS for feature in FEATURES if (suffix, feature) not in NONE]
#: Seconds of frames at a variable rate, on the 40 ms grid that MPEG streams can express.
VFR = [0.04 * (n + n // 3 + 5 * (n > 20)) for n in range(COUNT)]


def make(folder: Path, suffix: str, feature: str) -> Path:
    """Write the clip of a cell of the matrix."""
    codec, path = CODECS[suffix], folder / f"{feature}.{suffix}"
    opened = feature == "open_gop"
    quality = {
        "bf": "2",
        "qscale": "2",
        "flags": "+qscale" if opened else "+qscale+cgop",
        "sc_threshold": "1000000000",
    }
    coder = {
        "libx264": {"crf": "10", "x264-params": f"keyint={GOP}:bframes=2:open-gop={int(opened)}:scenecut=0"},
        "libvpx-vp9": {"auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "realtime", "crf": "10", "b": "0"},
        "mpeg4": quality,
        "mpeg2video": quality,
    }[codec]  # fmt: skip
    options: dict[str, Any] = {"frames": COUNT, "fps": 25, "codec": codec, "gop": GOP, "coder": coder}
    if suffix != "h264":
        rate = 48000 if suffix == "webm" else 44100
        names = {"webm": "libopus", "avi": "libmp3lame", "mpg": "mp2"}
        options |= {
            "sound": tone((VFR if feature == "variable_rate" else [1.56])[-1] + 0.04, rate),
            "rate": rate,
            "audio_codec": names.get(suffix, "aac"),
        }
    if feature == "variable_rate":
        options["times"] = VFR
    if feature == "late_start":
        options["start"] = 0.48
    if feature == "odd_size":
        options |= {"height": 49, "width": 65}
        if codec == "libx264":  # which halves no odd number
            options["pix_fmt"] = "yuv444p"
    write_clip(path, **options)
    if feature in ("cut", "edit_list"):
        return copied(path, folder / f"{feature}-copy.{suffix}", feature)
    return path


def copied(source: Path, target: Path, feature: str) -> Path:
    """Copy the packets from the 12th picture on, or all but those of the first with times that an edit list hides."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        seen: list[Any] = []
        begin = Fraction(12, 25)
        for packet in old.demux():
            if not packet.size:
                continue
            picture = packet.stream.type == "video"
            seen += [packet] if picture else []
            if feature == "cut" and (len(seen) <= 12 if picture else packet.pts * packet.time_base < begin):
                continue
            shift = round(begin / packet.time_base)
            if feature == "edit_list" and packet.pts is not None:
                if not picture and packet.pts < shift:
                    continue
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = streams[packet.stream_index]
            new.mux(packet)
    return target


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:  # VP9 before the first key frame
            continue


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """All frames and their times through PyAV alone, in the order in which the decoder gives them."""
    images, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        starts = [s.start_time * s.time_base for s in container.streams if s.start_time is not None]
        origin = max(min(starts, default=Fraction(0)), Fraction(0))
        for number, frame in enumerate(_frames(container, stream)):
            images.append(frame.to_ndarray(format="rgb24"))
            stamp = frame.dts if path.suffix == ".avi" else frame.pts
            if path.suffix == ".h264":
                times.append(number / 25)
            else:  # MPEG programs and AVI leave single times out
                times.append(times[-1] + 0.04 if stamp is None else float(stamp * stream.time_base - origin))
    return images, times


@pytest.mark.parametrize(("suffix", "feature"), MATRIX)
def test_all_readers_agree_with_the_decoder(tmp_path: Path, suffix: str, feature: str) -> None:
    path = make(tmp_path, suffix, feature)
    images, times = decoded(path)
    assert len(images) == COUNT if feature not in ("cut", "edit_list") else 16 < len(images) < COUNT
    if feature not in ("cut", "edit_list"):
        assert [frame_number(image) for image in images] == list(range(COUNT))

    with VideoStream(path) as video:
        found = list(video)
    assert len(found) == len(images)
    for frame, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_allclose([frame.time for frame in found], times, atol=1e-6)

    reader = VideoReader(path)
    np.testing.assert_array_equal(reader.times, [frame.time for frame in found])
    order = np.random.default_rng(0).permutation(len(images))
    for piece in np.array_split(order, 6):  # backward and forward, within a group of pictures and beyond it
        for index, image in zip(piece, reader.read(piece), strict=True):
            np.testing.assert_array_equal(image, images[index])
    np.testing.assert_array_equal(reader.read(range(len(images))), images)
    if suffix != "h264":
        samples, rate, has_audio = load_audio(path)
        assert has_audio
        assert len(samples) / rate == pytest.approx(max(times) + 0.04, abs=0.6)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_places_in_a_file_are_found_without_reading_all_before_them(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path, suffix, "b_frames")
    reader = VideoReader(path)
    reader.read([30, 3, 20])
    assert reader._source is not None
    assert reader._source._seekable  # type: ignore[union-attr]
