"""Reading pictures: what a file holds, its frames in order, and frames at chosen places.

The time axis is the container's own, in seconds, shared with `avsal.io.audio`: a video that starts half a
second after its sound has its first frame at 0.5. Rotation is applied; the pixel aspect ratio is reported,
not applied. The picture is the first video stream marked as default, as players choose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from av.codec.context import ThreadType
from av.video.reformatter import Interpolation, VideoReformatter

from avsal.errors import MediaError
from avsal.io._container import (
    DECODE_ERRORS,
    StrPath,
    audio_stream,
    container_family,
    open_media,
    origin,
    packets,
    require_video,
)

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream as AVVideoStream

Backend = Literal["pyav", "decord", "auto"]


@dataclass(frozen=True)
class MediaInfo:
    """What a video file says about itself, checked by decoding its first frame.

    Attributes:
        path: the file.
        width: pixels across, after rotation.
        height: pixels down, after rotation.
        fps: average frames per second; the nominal rate where the container does not know the average.
        frames: number of frames that the container announces, None if it does not. Not always exact.
        duration: seconds of the video stream, else of the whole file; None if the container does not know.
        rotation: degrees, counter-clockwise, by which the stored picture is turned for display.
        pixel_aspect: width of a pixel over its height.
        has_audio: whether the file has an audio stream (see `AudioStream` for whether it can be decoded).
        audio_rate: samples per second of the sound, None without sound.
        audio_channels: channels of the sound, None without sound.
        codec: name of the video codec.
        start: time of the first frame in seconds.
    """

    path: Path
    width: int
    height: int
    fps: float
    frames: int | None
    duration: float | None
    rotation: int
    pixel_aspect: float
    has_audio: bool
    audio_rate: int | None
    audio_channels: int | None
    codec: str
    start: float


@dataclass(slots=True)
class Frame:
    """One decoded picture.

    Attributes:
        index: 0-based number in order of presentation.
        time: seconds on the axis shared with the sound.
        duration: seconds that the picture is shown, None if the container does not say.
        image: (H, W, 3) uint8 RGB, C-contiguous, rotated for display.
        corrupt: the decoder met damaged data in this picture or in one that it depends on.
    """

    index: int
    time: float
    duration: float | None
    image: np.ndarray
    corrupt: bool


@dataclass(frozen=True)
class DecodeReport:
    """How the decoding of a video went.

    Attributes:
        decoded: frames that were decoded.
        expected: frames that the file announces, None if unknown.
        corrupt: decoded frames that contain damaged data.
        truncated: the file ends before what it announces.
        message: None if all is well, else a sentence that names the file and the loss.
        lost: pieces of the stream that gave no picture because they could not be decoded.
    """

    decoded: int
    expected: int | None
    corrupt: int
    truncated: bool
    message: str | None
    lost: int = 0


class _Clock:
    """Times of successive frames in seconds: strictly increasing; missing ones are filled in by the rate."""

    def __init__(self, stream: AVVideoStream, start: Fraction) -> None:
        self._base = stream.time_base or Fraction(1, 1000)
        self._start = start
        self._step = 1.0 / _fps(stream)
        self._last: float | None = None

    def time(self, pts: int | None) -> float:
        value = None if pts is None else float(pts * self._base - self._start)
        if self._last is None:
            value = 0.0 if value is None else value
        elif value is None or value <= self._last:
            value = self._last + self._step
        self._last = value
        return value


def _fps(stream: AVVideoStream) -> float:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate:
            return float(rate)
    return 25.0


class _Painter:
    """Turns decoded frames into upright RGB arrays of one size."""

    def __init__(self) -> None:
        self._reformatter = (
            VideoReformatter()
        )  # keeps the scaler: making one per frame costs more than its use
        self._size: tuple[int, int] | None = None

    def paint(self, frame: VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB; `size` (H, W) is the upright picture's, None keeps the first frame's."""
        turns = frame.rotation // 90 % 4
        if size is None:
            # A stream may change its size half-way; the picture keeps the size that it had first.
            self._size = self._size or (frame.height, frame.width)
            height, width = self._size
        else:
            height, width = size if turns % 2 == 0 else size[::-1]
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR
        )
        image = rgb.to_ndarray()
        return np.ascontiguousarray(np.rot90(image, turns))


def probe(path: StrPath) -> MediaInfo:
    """Return what a video file holds; its first frame is decoded as a check.

    Raises:
        MediaError: the file is missing, empty, not media, has no video stream, or no frame can be decoded.
    """
    with VideoStream(path) as video:
        return video.info


class VideoStream:
    """The frames of a video, once, in order, in constant memory.

    Iterate over it to get `Frame` objects. Damaged pictures are marked and counted; a file that breaks off
    gives every frame that can be decoded and then ends, with `report.truncated` set.

    Args:
        path: any file that FFmpeg can open.

    Raises:
        MediaError: the file is missing, empty, not media, has no video stream, or no frame can be decoded
            (raised here, not at the first frame).

    Example:
        >>> with VideoStream("clip.mp4") as video:  # doctest: +SKIP
        ...     for frame in video:
        ...         print(frame.index, frame.time, frame.image.shape)
        ...     print(video.report)
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._container: InputContainer | None = open_media(path)
        try:
            self._stream = require_video(self._container, path)
            self._origin = origin(self._container)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        assert self._container is not None
        stream = self._stream
        stream.thread_type = ThreadType.AUTO
        self._family = container_family(self._container)
        self._duration = self._container.duration
        self._announced = stream.frames or None
        self._fps = _fps(stream)
        self._errors: list[str] = []
        self._decoded = self._corrupt = self._lost = self._packets = self._discarded = 0
        self._end = Fraction(0)
        self._finished = False
        self._frames = self._decode()
        self._painter = _Painter()
        self._clock = _Clock(stream, self._origin)
        first = next(self._frames, None)
        if first is None:
            reason = f" ({self._errors[0]})" if self._errors else ""
            raise MediaError(
                f"{self.path}: not one frame of the {stream.codec_context.name} video can be decoded{reason}; "
                "the file is damaged or was cut: copy it again or convert it with ffmpeg."
            )
        self._first: VideoFrame | None = first
        self.info = self._describe(first)

    def _describe(self, first: VideoFrame) -> MediaInfo:
        assert self._container is not None
        stream, sound = self._stream, audio_stream(self._container)
        turned = first.rotation // 90 % 2 == 1
        if stream.duration is not None and stream.time_base is not None:
            duration: float | None = float(stream.duration * stream.time_base)
        else:
            duration = self._duration / 1e6 if self._duration else None
        hears: Any = sound.codec_context if sound is not None else None
        base = stream.time_base or Fraction(1, 1000)
        start = 0.0 if first.pts is None else float(first.pts * base - self._origin)
        return MediaInfo(
            path=self.path,
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            fps=self._fps,
            frames=self._announced,
            duration=duration,
            rotation=first.rotation % 360,
            pixel_aspect=float(stream.sample_aspect_ratio or 1),
            has_audio=hears is not None,
            audio_rate=hears.sample_rate or None if hears is not None else None,
            audio_channels=hears.channels or None if hears is not None else None,
            codec=stream.codec_context.name,
            start=start,
        )

    def _decode(self) -> Iterator[VideoFrame]:
        # All streams are read, not only the picture: where the sound goes on after the last picture, the file
        # was not cut. Packets of other streams are looked at, not decoded.
        assert self._container is not None
        flushed = False
        for packet in packets(self._container, errors=self._errors):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                self._end = max(self._end, (stamp + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index != self._stream.index:
                continue
            if packet.size:
                self._packets += 1
                self._discarded += packet.is_discard
            else:
                flushed = True
            yield from self._decode_packet(packet)
        if not flushed:  # the file broke off: the decoder still holds the frames that it had begun
            yield from self._decode_packet(None)
        self._finished = True

    def _decode_packet(self, packet: Any) -> Iterator[VideoFrame]:
        try:
            yield from self._stream.decode(packet)
        except EOFError:
            return
        except DECODE_ERRORS as error:
            self._lost += 1
            self._errors.append(str(getattr(error, "strerror", error)))

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._container is None:
            raise StopIteration
        frame, self._first = self._first or next(self._frames, None), None
        if frame is None:
            raise StopIteration
        index = self._decoded
        self._decoded += 1
        self._corrupt += frame.is_corrupt
        base = self._stream.time_base
        return Frame(
            index=index,
            time=self._clock.time(frame.pts),
            duration=float(frame.duration * base) if frame.duration and base else None,
            image=self._painter.paint(frame),
            corrupt=frame.is_corrupt,
        )

    @property
    def report(self) -> DecodeReport:
        """How decoding went so far; `truncated` and `lost` are complete once the iteration has ended."""
        expected = self._announced
        if expected is not None:
            expected -= self._discarded
        elif self._duration:
            expected = round(self._duration / 1e6 * self._fps)
        truncated = self._finished and self._is_truncated()
        parts = []
        if truncated:
            until = float(self._end - self._origin)
            of = f" of about {expected}" if expected else ""
            parts.append(f"the file breaks off after {until:.2f} s: {self._decoded}{of} frames could be used")
        if self._corrupt:
            parts.append(f"{self._corrupt} of {self._decoded} frames contain damaged data")
        if self._lost:
            parts.append(f"{self._lost} packets could not be decoded")
        message = f"{self.path}: {'; '.join(parts)}." if parts else None
        return DecodeReport(self._decoded, expected, self._corrupt, truncated, message, self._lost)

    def _is_truncated(self) -> bool:
        if self._family == "mov" and self._announced is not None:
            return self._packets < self._announced
        announced = (self._duration or 0) / 1e6
        if self._family == "avi" and self._announced and self._stream.time_base:
            announced = float(self._announced * self._stream.time_base)  # FFmpeg shortens its duration
        elif self._family == "other":
            return False  # FFmpeg estimates the duration, for example from the bit rate
        # The announced duration is rounded, and includes padding of the sound's last packet.
        missing = announced - float(self._end)
        return missing > 0.25 + 2 / self._fps

    def close(self) -> None:
        """Close the file; the report stays available."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Table:
    """Where the frames of a video are.

    Attributes:
        times: (n,) float64 seconds.
        pts: (n,) int64 timestamps in the stream's unit, None where the file has no usable ones.
        key: (n,) int64, index of the last key frame at or before each frame.
    """

    times: np.ndarray
    pts: np.ndarray | None
    key: np.ndarray


def _scan(path: Path) -> _Table:
    """Find all frames from the packets alone where that is safe, else by decoding once."""
    with open_media(path) as container:
        stream = require_video(container, path)
        # VP8 has packets that show nothing; outside these containers a packet need not be a frame.
        trusted = container_family(container) != "other" and stream.codec_context.name != "vp8"
        clock = _Clock(stream, origin(container))
        found: list[tuple[int, bool]] = []
        for packet in packets(container, stream) if trusted else ():
            if not packet.size or (not found and not packet.is_keyframe):
                continue
            if packet.pts is None:
                found.clear()
                break
            if not packet.is_discard:
                found.append((packet.pts, packet.is_keyframe))
        if found:
            found.sort()
            pts = np.array([p for p, _ in found], dtype=np.int64)
            if np.all(np.diff(pts) > 0):
                keys = np.array([k for _, k in found])
                key = np.maximum.accumulate(np.where(keys, np.arange(len(pts)), 0))
                return _Table(np.array([clock.time(int(p)) for p in pts]), pts, key)
    times = []
    with VideoStream(path) as video:
        frame = video._first
        while frame is not None:
            times.append(video._clock.time(frame.pts))
            frame = next(video._frames, None)
    return _Table(np.array(times), None, np.zeros(len(times), dtype=np.int64))


_INHERITED: list[Any] = []


class VideoReader:
    """Frames at chosen places of a video, for training.

    Opening is cheap: the file is touched at first use, and the object can be pickled and sent to workers
    (each process opens the file itself). Frames are found by seeking to the key frame before them and
    decoding on, so reading forward never decodes a frame twice.

    Args:
        path: any file that FFmpeg can open.
        backend: "pyav"; "decord", which needs the package of that name; or "auto",
            decord where it is installed. Files that decord cannot read with the same pixels (rotated, more
            than 8 bits per channel, AV1, damaged) are read with PyAV in every case.

    Raises:
        MediaError: at first use, if the file is missing, not media, or no frame can be decoded.
    """

    def __init__(self, path: StrPath, *, backend: Backend = "pyav") -> None:
        if backend not in ("pyav", "decord", "auto"):
            raise ValueError(f"backend={backend!r}: choose 'pyav', 'decord' or 'auto'.")
        self.path = Path(path)
        self.backend: Backend = backend
        self._table: _Table | None = None
        self._info: MediaInfo | None = None
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._source: _PyAVSource | _DecordSource | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("path", "backend", "_table", "_info")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _frames(self) -> _Table:
        if self._table is None:
            self._table = _scan(self.path)
        return self._table

    @property
    def info(self) -> MediaInfo:
        """What the file says about itself; `frames` is exact here."""
        if self._info is None:
            self._info = replace(probe(self.path), frames=len(self))
        return self._info

    @property
    def times(self) -> np.ndarray:
        """(n,) float64: time of every frame in seconds, increasing."""
        return self._frames().times

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self.info.fps

    def __len__(self) -> int:
        return len(self._frames().times)

    def read(self, indices: Sequence[int], *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return chosen frames.

        Args:
            indices: 0-based frame numbers in any order, repetitions allowed.
            size: (H, W) to which the decoder's own scaler brings the pictures (swscale's bilinear, which
                averages when it shrinks). It saves the time of handling large pictures in training; it is
                not the resize of the papers' evaluation, and the backends round it differently (by a few
                grey levels) while their pictures at full size are equal.

        Returns:
            (n, H, W, 3) uint8 RGB, upright. A frame that cannot be decoded is replaced by its neighbour.

        Raises:
            IndexError: an index lies outside 0..len-1.
            MediaError: no frame can be decoded.
        """
        table = self._frames()
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(table.times)):
            raise IndexError(
                f"{self.path}: frames {int(wanted.min())}..{int(wanted.max())} asked for, the video has "
                f"0..{len(table.times) - 1}."
            )
        if self._process != os.getpid():
            # Forked: the parent's file position is not ours to move, and freeing its decoder here would wait for
            # threads that only the parent has.
            _INHERITED.append(self._source)
            self._forget()
        order, place = np.unique(wanted, return_inverse=True)
        if self._source is None:
            self._source = self._open(table)
        images = self._source.read([int(i) for i in order], size)
        return images[place]

    def _open(self, table: _Table) -> _PyAVSource | _DecordSource:
        if self.backend != "pyav":
            source = _DecordSource.open(self.path, table)
            if source is not None:
                return source
        return _PyAVSource(self.path, table)

    def close(self) -> None:
        """Close the file; the next `read` opens it again."""
        if self._source is not None and self._process == os.getpid():
            self._source.close()
        elif self._source is not None:
            _INHERITED.append(self._source)
        self._forget()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _PyAVSource:
    def __init__(self, path: Path, table: _Table) -> None:
        self._path, self._table = path, table
        self._painter = _Painter()
        self._container: InputContainer | None = None
        self._seekable = True
        self._rewind()

    def _rewind(self) -> None:
        self.close()
        self._container = open_media(self._path)
        self._stream = require_video(self._container, self._path)
        # Workers run side by side, and a decoder with threads runs ahead of the few frames that are wanted:
        # alone it takes a third less time of the processor.
        self._stream.thread_type = ThreadType.NONE
        self._stream.codec_context.thread_count = 1
        self._start()

    def _start(self) -> None:
        self._decoder = self._decode()
        self._position = -1  # index of the frame in hand
        self._hand: VideoFrame | None = None
        self._ahead: VideoFrame | None = None

    def _decode(self) -> Iterator[VideoFrame]:
        assert self._container is not None
        for packet in packets(self._container, self._stream):
            try:
                yield from self._stream.decode(packet)
            except DECODE_ERRORS:
                continue
        try:
            yield from self._stream.decode(None)
        except DECODE_ERRORS:
            return

    def read(self, indices: list[int], size: tuple[int, int] | None) -> np.ndarray:
        images = []
        for index in indices:
            frame = self._find(index)
            if frame is None:
                raise MediaError(
                    f"{self._path}: frame {index} and the frames before it cannot be decoded; the file is "
                    "damaged: copy it again."
                )
            images.append(self._painter.paint(frame, size))
        return np.stack(images) if images else np.zeros((0, *(size or (0, 0)), 3), dtype=np.uint8)

    def _find(self, index: int) -> VideoFrame | None:
        if self._table.pts is None:
            return self._find_by_count(index)
        key = int(self._table.key[index])
        if self._hand is None or index < self._position or (key > self._position and self._seekable):
            self._seek(key if self._seekable else 0)
            if self._hand is None or self._position > index:
                self._rewind()  # the seek went too far, or nowhere: go the long way
            elif key > 0 and self._position == key and self._hand.is_corrupt:
                # A key frame that needs what came before it: in 4:4:4 files of older x264 releases the decoder
                # must have seen the encoder's version at the very beginning. Such a file is read in order.
                self._seekable = False
                self._rewind()
        self._advance(index)
        return self._hand

    def _seek(self, key: int) -> None:
        assert self._table.pts is not None
        assert self._container is not None
        if key == 0:
            self._rewind()
        else:
            try:
                self._container.seek(int(self._table.pts[key]), stream=self._stream)
                self._start()
            except DECODE_ERRORS:
                self._rewind()
        self._advance(key)

    def _number(self, frame: VideoFrame) -> int:
        """Index of the last frame in the table that is not after this one."""
        assert self._table.pts is not None
        pts = frame.pts if frame.pts is not None else int(self._table.pts[max(self._position, 0)])
        return int(np.searchsorted(self._table.pts, pts, side="right")) - 1

    def _advance(self, index: int) -> None:
        """Decode on until the frame in hand is `index`, or the last one before it that can be decoded."""
        while self._hand is None or self._position < index:
            frame, self._ahead = self._ahead or next(self._decoder, None), None
            if frame is None:
                return
            number = self._number(frame)
            if self._hand is not None and number > index:
                self._ahead = frame
                return
            self._hand, self._position = frame, number

    def _find_by_count(self, index: int) -> VideoFrame | None:
        if self._hand is not None and index < self._position:
            self._rewind()
        while self._position < index:
            frame = next(self._decoder, None)
            if frame is None:
                break
            self._hand, self._position = frame, self._position + 1
        return self._hand

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None


class _DecordSource:
    def __init__(self, module: Any, path: Path) -> None:
        self._module, self._path = module, path
        self._readers: dict[tuple[int, int] | None, Any] = {}

    @classmethod
    def open(cls, path: Path, table: _Table) -> _DecordSource | None:
        """Return a source, or None if decord is missing or would not give the same frames."""
        try:
            import decord
        except ImportError:
            return None
        with VideoStream(path) as video:
            stored = video._first
            if stored is None or stored.rotation or stored.format.components[0].bits != 8:
                return None
            shape = (stored.height, stored.width, 3)
        source = cls(decord, path)
        try:
            reader = source._reader(None)
            if len(reader) != len(table.times) or reader[0].shape != shape:
                return None
        except Exception:  # decord raises its own error type, or RuntimeError, for whatever is wrong
            return None
        return source

    def _reader(self, size: tuple[int, int] | None) -> Any:
        if size not in self._readers:
            height, width = size or (-1, -1)
            self._readers[size] = self._module.VideoReader(
                str(self._path), ctx=self._module.cpu(0), width=width, height=height, num_threads=1
            )
        return self._readers[size]

    def read(self, indices: list[int], size: tuple[int, int] | None) -> np.ndarray:
        if not indices:
            return np.zeros((0, *(size or (0, 0)), 3), dtype=np.uint8)
        return self._reader(size).get_batch(indices).asnumpy()

    def close(self) -> None:
        self._readers.clear()
