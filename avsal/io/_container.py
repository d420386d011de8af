"""Opening media files: FFmpeg's errors become messages here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import av
from av.stream import Disposition

from avsal.errors import MediaError
from avsal.io.limits import check, limit

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

StrPath = str | os.PathLike[str]

# Formats that FFmpeg "plays" although nobody would call such a file a video: plain text drawn as ANSI art.
_NOT_MEDIA = frozenset({"tty", "bin", "xbin", "adf", "idf"})

_PIXELS = "AVSAL_MAX_PIXELS"

# PyAV reports a problem of the file with its own errors, or with built-in ones for system calls.
DECODE_ERRORS = (av.FFmpegError, EOFError, ValueError, OSError)


class Closing(ABC):
    """Closes itself at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_media(path: StrPath) -> InputContainer:
    """Open a media file.

    Raises:
        MediaError: the file is missing, unreadable, empty or not media.
    """
    file = Path(path)
    try:
        if not file.exists():
            raise MediaError(f"{file}: there is no such file; check the path.")
        if file.is_dir():
            raise MediaError(f"{file}: this is a folder; give the media files in it.")
        size = file.stat().st_size
        if file.is_file() and size == 0:
            raise MediaError(f"{file}: the file is empty (0 bytes); copy or download it again.")
        # A name with a colon or a percent sign is the name of this file, not a protocol or a sequence of pictures;
        # a playlist opens no other file. The limit holds for what FFmpeg decodes while it opens the file, too.
        options = {"pattern_type": "none", "protocol_whitelist": "file", "max_pixels": str(limit(_PIXELS))}
        container = av.open(f"file:{file}", options=options, metadata_errors="replace")
    except PermissionError as error:
        raise MediaError(f"{file}: no permission to read this file; change its access rights.") from error
    except DECODE_ERRORS as error:
        raise MediaError(
            f"{file}: FFmpeg cannot open this file ({reason_of(error)}). It is not media, or its header is "
            "missing because the file was cut; copy it again or convert it with ffmpeg."
        ) from error
    if container.format.name in _NOT_MEDIA:
        container.close()
        raise MediaError(f"{file}: this is a text file, not media; give a video file.")
    return container


def reason_of(error: BaseException) -> str:
    """Return FFmpeg's message of an error."""
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
        MediaError: there is none, FFmpeg has no decoder for it, or its pictures are too large.
    """
    stream = video_stream(container)
    if stream is None:
        kinds = sorted({s.type for s in container.streams})
        found = f"only {', '.join(kinds)}" if kinds else "no stream at all"
        raise MediaError(f"{path}: no video stream ({found}); give a file with a picture.")
    if stream.codec_context is None:
        raise MediaError(f"{path}: FFmpeg has no decoder for this video; convert it, for example to H.264.")
    width, height = stream.codec_context.width, stream.codec_context.height
    check(_PIXELS, width * height, f"{path}: a picture has {width:,} x {height:,} pixels")
    if not width * height:
        raise MediaError(
            f"{path}: its pictures have more than {limit(_PIXELS):,} pixels or a size that cannot be told. If the file "
            f"is right, set the environment variable {_PIXELS} to a larger number; else copy it again."
        )
    stream.codec_context.options = {"max_pixels": str(limit(_PIXELS))}  # the size may change in the middle
    return stream


def container_family(container: InputContainer) -> Literal["mov", "matroska", "avi", "other"]:
    """The containers whose headers are reliable enough to draw conclusions from them."""
    name = container.format.name
    for family in ("mov", "matroska", "avi"):
        if family in name.split(","):
            return family
    return "other"
