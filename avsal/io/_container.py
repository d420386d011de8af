"""Opening media files: one place that knows how FFmpeg reports what is wrong with a file.

Also one place for the time axis: sound and picture share the seconds of the container. A file whose streams
all start late (a recording cut out of a broadcast) is shifted so that the earliest of the two starts at 0;
the distance between sound and picture is never changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
from av.stream import Disposition

from avsal.errors import MediaError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

StrPath = str | os.PathLike[str]

# Formats that FFmpeg "plays" although nobody would call such a file a video: plain text drawn as ANSI art.
_NOT_MEDIA = frozenset({"tty", "bin", "xbin", "adf", "idf"})

# PyAV reports a problem of the file with its own errors, or with built-in ones for system calls.
DECODE_ERRORS = (av.FFmpegError, EOFError, ValueError, OSError)


def open_media(path: StrPath) -> InputContainer:
    """Open a media file.

    Raises:
        MediaError: the file is missing, unreadable, empty or not media.
    """
    file = Path(path)
    if not file.exists():
        raise MediaError(f"{file}: there is no such file; check the path.")
    if file.is_dir():
        raise MediaError(f"{file}: this is a folder; give the media files in it.")
    try:
        size = file.stat().st_size
        if file.is_file() and size == 0:
            raise MediaError(f"{file}: the file is empty (0 bytes); copy or download it again.")
        container = av.open(str(file), metadata_errors="replace")
    except PermissionError as error:
        raise MediaError(f"{file}: no permission to read this file; change its access rights.") from error
    except DECODE_ERRORS as error:
        raise MediaError(
            f"{file}: FFmpeg cannot open this file ({_reason(error)}). It is not media, or its header is "
            "missing because the file was cut; copy it again or convert it with ffmpeg."
        ) from error
    if container.format.name in _NOT_MEDIA:
        container.close()
        raise MediaError(f"{file}: this is a text file, not media; give a video file.")
    return container


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)


def video_stream(container: InputContainer) -> VideoStream | None:
    """The picture that a player shows: the first video stream marked as default, else the first one.

    Cover pictures of music files are not video.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return _first_default(streams)  # type: ignore[return-value]


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The sound that a player plays: the first audio stream marked as default, else the first one."""
    return _first_default(list(container.streams.audio))  # type: ignore[return-value]


def _first_default(streams: list) -> Stream | None:
    marked = [s for s in streams if s.disposition & Disposition.default]
    return (marked or streams or [None])[0]


def require_video(container: InputContainer, path: StrPath) -> VideoStream:
    """Return the video stream.

    Raises:
        MediaError: there is none, or FFmpeg knows no decoder for it.
    """
    stream = video_stream(container)
    if stream is None:
        kinds = sorted({s.type for s in container.streams})
        found = f"only {', '.join(kinds)}" if kinds else "no stream at all"
        raise MediaError(f"{path}: no video stream ({found}); give a file with a picture.")
    if stream.codec_context is None:
        raise MediaError(f"{path}: FFmpeg has no decoder for this video; convert it, for example to H.264.")
    return stream


def origin(container: InputContainer) -> Fraction:
    """Seconds of the container's clock that are time 0 of avsal's axis.

    The earlier start of picture and sound if both are positive; otherwise the container's own zero, unless
    the picture itself starts before it. (Sound often starts a few milliseconds early: encoder delay, not
    content.)
    """
    starts = {}
    for kind, stream in (("video", video_stream(container)), ("audio", audio_stream(container))):
        if stream is not None and stream.start_time is not None and stream.time_base is not None:
            starts[kind] = stream.start_time * stream.time_base
    if not starts:
        return Fraction(0)
    earliest = min(starts.values())
    return earliest if earliest >= 0 else min(starts.get("video", Fraction(0)), Fraction(0))


def packets(container: InputContainer, *streams: Stream, errors: list[str] | None = None) -> Iterator[Packet]:
    """Yield the packets of some streams (all, without any named) until the file ends or breaks off.

    A broken file ends the iteration like the end of the file does; the reason is appended to `errors`.
    """
    try:
        yield from container.demux(*streams)
    except DECODE_ERRORS as error:
        if errors is not None:
            errors.append(_reason(error))


def container_family(container: InputContainer) -> Literal["mov", "matroska", "avi", "other"]:
    """The containers whose headers are reliable enough to draw conclusions from them."""
    name = container.format.name
    for family in ("mov", "matroska", "avi"):
        if family in name.split(","):
            return family
    return "other"
