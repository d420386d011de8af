"""The sound of one file under the pictures of another, on the same time axis: copied where that is safe."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from avsal.errors import MediaError
from avsal.io._container import DECODE_ERRORS, StrPath, audio_stream, open_media, reason_of, video_stream
from avsal.io.audio import Track
from avsal.io.clock import Clock

if TYPE_CHECKING:
    from av import Packet

# Sound that players expect inside these containers and that may therefore be copied bit by bit.
COPIED = {
    ".mp4": frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}),
    ".mov": frozenset({"aac", "mp3", "ac3", "alac", "pcm_s16le"}),
    ".mkv": frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "vorbis", "pcm_s16le"}),
}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_AAC_FRAME = 1024


class _NotWhole(Exception):
    """The sound cannot be copied: a piece is damaged, or its parameters change."""


def join(pictures: Path, source: StrPath) -> str | None:
    """Add the sound of `source` to a video file that has none.

    It is copied if the container takes its codec, every packet can be decoded and the parameters stay the same; else it
    is encoded as AAC; if that fails too, the video stays as it is.

    Args:
        pictures: an .mp4, .mov or .mkv file; replaced by one with the sound.
        source: a media file.

    Returns:
        What went wrong, None if nothing did (or there is no sound).
    """
    with open_media(source) as container:
        stream = audio_stream(container)
        if stream is None or stream.codec_context is None:
            return None
        copies = stream.codec_context.codec.canonical_name in COPIED[pictures.suffix.lower()]
    joined = pictures.with_name(f"{pictures.stem}.sound{pictures.suffix}")
    reasons: list[str] = []
    notes: list[str] = []
    for write in (_copy, _encode) if copies else (_encode,):
        try:
            with av.open(f"file:{joined}", "w") as out, open_media(pictures) as shown:
                _mux(out, shown, write(out, source, notes))
            joined.replace(pictures)
        except (*DECODE_ERRORS, MediaError, _NotWhole) as error:
            joined.unlink(missing_ok=True)
            reasons.append(str(error) if isinstance(error, _NotWhole | MediaError) else reason_of(error))
            continue
        if reasons:
            notes.insert(0, f"{source}: the sound was encoded again ({reasons[0]}).")
        return " ".join(notes) or None
    return f"{source}: the sound cannot be written ({'; '.join(reasons)}); the video has none."


def _mux(out: Any, shown: Any, sound: Iterator[tuple[float, Packet]]) -> None:
    """Write the packets of both in the order of their times."""
    stream: Any = video_stream(shown)
    track = out.add_stream_from_template(stream)

    def pictures() -> Iterator[tuple[float, Packet]]:
        for packet in shown.demux(stream):
            if packet.size:
                time = float(packet.dts * packet.time_base)
                packet.stream = track
                yield time, packet

    for _, packet in merge(pictures(), sound, key=lambda item: item[0]):
        out.mux(packet)


def _copy(out: Any, source: StrPath, notes: list[str]) -> Iterator[tuple[float, Packet]]:
    container = open_media(source)
    stream: Any = audio_stream(container)
    track = out.add_stream_from_template(stream)
    return _copied(container, stream, track)


def _copied(container: Any, stream: Any, track: Any) -> Iterator[tuple[float, Packet]]:
    clock, errors = Clock(container), list[str]()
    last: int | None = None
    kind = None
    with container:
        for packet in clock.packets(stream, errors=errors):
            if packet.is_corrupt:
                raise _NotWhole("a packet of it is damaged")
            try:
                frames = stream.decode(packet)
            except EOFError:
                continue
            except DECODE_ERRORS as error:
                raise _NotWhole(f"a packet of it cannot be decoded: {reason_of(error)}") from error
            for frame in frames:
                now = (frame.format.name, frame.layout.name, frame.sample_rate)
                kind = kind or now
                if now != kind:
                    raise _NotWhole("its parameters change in the middle")
            if not packet.size:
                continue
            if packet.pts is None or packet.dts is None or (last is not None and packet.dts <= last):
                raise _NotWhole("its timestamps are not in order")
            last = packet.dts
            shift = round(clock.origin / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            time = float(packet.dts * packet.time_base)
            packet.stream = track
            yield time, packet
    if errors:
        raise _NotWhole(f"the file breaks off: {errors[0]}")


def _encode(out: Any, source: StrPath, notes: list[str]) -> Iterator[tuple[float, Packet]]:
    with open_media(source) as container:
        context: Any = audio_stream(container).codec_context  # type: ignore[union-attr]
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48000
        layout = "mono" if context.channels == 1 else "stereo"
    track = out.add_stream("aac", rate=rate, layout=layout)
    return _encoded(Path(source), track, rate, layout, notes)


def _encoded(
    source: Path, track: Any, rate: int, layout: str, notes: list[str]
) -> Iterator[tuple[float, Packet]]:
    sound = Track.open(source, layout, rate, warn=False)
    if sound is None:
        raise _NotWhole("it cannot be decoded")
    begin, silent = 0, True
    while not sound.finished or begin < sound.length:
        block = sound.read(begin, begin + _AAC_FRAME)
        silent = silent and not np.any(block)  # nothing is written before the sound begins
        if not silent:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            frame.rate, frame.time_base, frame.pts = rate, Fraction(1, rate), begin
            yield from _timed(track.encode(frame))
        begin += _AAC_FRAME
    yield from _timed(track.encode(None))
    sound.close()
    notes += [sound.message] if sound.message else []


def _timed(packets: list[Packet]) -> Iterator[tuple[float, Packet]]:
    for packet in packets:
        yield float((packet.dts or 0) * packet.time_base), packet
