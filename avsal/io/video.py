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
from typing import TYPE_CHECKING, Any

import numpy as np
from av.codec.context import ThreadType

from avsal.errors import MediaError
from avsal.io._container import (
    DECODE_ERRORS,
    Closing,
    StrPath,
    audio_stream,
    container_family,
    open_media,
    reason_of,
    require_video,
)
from avsal.io.clock import Clock, FrameTimes, frame_rate
from avsal.io.picture import Painter, examine_still, is_still

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet

    from avsal.io._random_access import FrameSource, Table

#: Codecs of which, outside AVI, each packet gives exactly one picture.
ONE_TO_ONE = frozenset({"h264", "hevc", "vp9", "av1", "mjpeg", "ffv1", "prores", "dnxhd", "png", "rawvideo"})
# More bytes than this between two packets of a Matroska file belong to packets that could not be read.
_HOLE = 256
# Each thread holds pictures of its own: larger ones than 4K are decoded by one.
_THREADED = 2**23


@dataclass(frozen=True)
class MediaInfo:
    """What a video file says about itself, checked by decoding its first frame.

    Attributes:
        path: the file.
        width: pixels across, after rotation.
        height: pixels down, after rotation.
        fps: average frames per second; the nominal rate where the container does not give the average.
        frames: number of frames that the container announces, None if it does not. Not always exact.
        duration: seconds of the video stream, else of the whole file; None if the container does not give it.
        rotation: degrees, counter-clockwise, by which the stored picture is turned for display.
        mirrored: whether it is mirrored left to right before that.
        pixel_aspect: width over height of a pixel of the upright picture.
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
    mirrored: bool
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
        duration: seconds that the picture is shown, None if the container does not give it.
        image: (H, W, 3) uint8 RGB, C-contiguous, turned and mirrored for display.
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
        message: None if all is well, else a sentence that names the file, the loss, and jumps of its clock that were
            repaired.
        lost: pieces of the stream that gave no picture because they could not be decoded.
    """

    decoded: int
    expected: int | None
    corrupt: int
    truncated: bool
    message: str | None
    lost: int = 0


def probe(path: StrPath) -> MediaInfo:
    """Return what a video file holds; its first frame is decoded as a check.

    Raises:
        MediaError: the file is missing, empty, not media, has no video stream, or no frame can be decoded.
    """
    with VideoStream(path) as video:
        return video.info


class VideoStream(Closing):
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
        self._container: InputContainer | None = None
        try:
            self._open(threads=True)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _open(self, *, threads: bool) -> None:
        self.close()
        self._container = open_media(self.path)
        self._stream = require_video(self._container, self.path)
        self._family = container_family(self._container)
        self._steady = self._stream.codec_context.codec.canonical_name in ONE_TO_ONE and self._family != "avi"
        # Threads that each decode a frame drop frames silently where data is damaged; then (and where that
        # cannot be detected) the decoder works frame by frame.
        pixels = self._stream.codec_context.width * self._stream.codec_context.height
        self._threads = threads and self._steady and pixels <= _THREADED
        self._stream.thread_type = ThreadType.AUTO if self._threads else ThreadType.SLICE
        self._clock = Clock(self._container)
        self._errors: list[str] = []
        self._lost = self._packets = self._discarded = self._given = self._holes = 0
        self._end = Fraction(0)

    def _prepare(self) -> None:
        assert self._container is not None
        stream = self._stream
        self._duration = self._container.duration
        self._announced = stream.frames or None
        self._fps = frame_rate(self._container, stream)
        self._decoded = self._corrupt = 0
        self._finished = False
        self._frames = self._decode()
        self._damage: str | None = None
        fixed = None
        if is_still(self._container):
            fixed, self._damage = examine_still(self.path)
        self._painter = Painter(fixed)
        self._times = FrameTimes(self._container, stream, self._clock)
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
        shown = self._painter.orientation(first)
        if stream.duration is not None and stream.time_base is not None:
            duration: float | None = float(stream.duration * stream.time_base)
        else:
            duration = self._duration / 1e6 if self._duration else None
        hears: Any = sound.codec_context if sound is not None else None
        base, stamp = stream.time_base or Fraction(1, 1000), self._times.stamp(first)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return MediaInfo(
            path=self.path,
            width=first.height if shown.swaps else first.width,
            height=first.width if shown.swaps else first.height,
            fps=self._fps,
            frames=self._announced,
            duration=duration,
            rotation=90 * shown.turns,
            mirrored=shown.mirrored,
            pixel_aspect=float(1 / aspect if shown.swaps else aspect),
            has_audio=hears is not None,
            audio_rate=hears.sample_rate or None if hears is not None else None,
            audio_channels=hears.channels or None if hears is not None else None,
            codec=stream.codec_context.name,
            start=0.0 if stamp is None else float(self._clock.seconds(stamp, base)),
        )

    def _decode(self) -> Iterator[VideoFrame]:
        last: int | None = None
        for frame in self._decode_all():
            last = frame.pts if frame.pts is not None else last
            yield frame
        if self._threads and (self._lost or self._without_picture):
            given = self._given
            self._open(threads=False)
            for number, frame in enumerate(self._decode_all()):
                if number >= given if last is None or frame.pts is None else frame.pts > last:
                    yield frame
        self._finished = True

    def _decode_all(self) -> Iterator[VideoFrame]:
        # All streams are read, not only the picture: where the sound goes on after the last picture, the file
        # was not cut. Packets of other streams are looked at, not decoded.
        flushed = False
        self._until: int | None = None  # byte after the last packet
        self._goes_on: dict[int, Fraction] = {}  # time after each stream's last packet
        self._torn: set[int] = set()  # streams of which no packet came since bytes were left out
        for packet in self._clock.packets(errors=self._errors):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                self._end = max(self._end, (stamp + (packet.duration or 0)) * packet.time_base)
            if self._family == "matroska":
                self._look_for_holes(packet)
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

    def _look_for_holes(self, packet: Packet) -> None:
        """Count the places where bytes belong to no packet and a stream's time goes on without it."""
        stamp, index = packet.dts if packet.dts is not None else packet.pts, packet.stream_index
        if packet.pos is None or stamp is None:
            return
        if self._until is not None and packet.pos - self._until > _HOLE:
            self._torn = {*self._goes_on}
        self._until = packet.pos + packet.size
        if index in self._torn:
            self._torn.discard(index)
            length = packet.duration or 1
            if stamp * packet.time_base - self._goes_on[index] > length * packet.time_base / 2:
                self._holes += 1
                self._torn.clear()
        self._goes_on[index] = (stamp + (packet.duration or 0)) * packet.time_base

    def _decode_packet(self, packet: Packet | None) -> Iterator[VideoFrame]:
        try:
            for frame in self._stream.decode(packet):
                self._given += 1
                yield frame
        except EOFError:
            return
        except DECODE_ERRORS as error:
            self._lost += 1
            self._errors.append(reason_of(error))

    @property
    def _without_picture(self) -> int:
        return max(self._packets - self._discarded - self._given, 0) if self._steady else 0

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
            time=self._times.time(self._times.stamp(frame)),
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
        lost = max(self._lost, self._without_picture if self._finished else 0)
        of = f" of about {expected}" if expected and expected >= self._decoded else ""
        parts = [self._damage] if self._damage else []
        if truncated:
            until = float(self._end - self._clock.origin)
            parts.append(f"the file breaks off after {until:.2f} s: {self._decoded}{of} frames could be used")
        if self._corrupt:
            parts.append(f"{self._corrupt} of {self._decoded} frames contain damaged data")
        if lost:
            parts.append(
                f"{lost} of {self._packets} packets gave no picture because they could not be decoded"
            )
        if self._holes:
            parts.append(
                f"the file is damaged in {self._holes} places, whose packets are lost: {self._decoded}{of} frames "
                "could be used"
            )
        parts += self._clock.notes
        message = f"{self.path}: {'; '.join(parts)}." if parts else None
        return DecodeReport(self._decoded, expected, self._corrupt, truncated, message, lost)

    def _is_truncated(self) -> bool:
        missing = (self._duration or 0) / 1e6 - float(self._end)
        if self._family == "mov" and self._announced is not None:
            # What an edit list hides at the beginning is not missing.
            return self._packets < self._announced and missing > 0.5 / self._fps
        if self._family == "avi" and self._announced and self._stream.time_base:
            missing = float(
                self._announced * self._stream.time_base - self._end
            )  # FFmpeg shortens its duration
        elif self._family == "other":
            return False  # FFmpeg estimates the duration, for example from the bit rate
        # The announced duration is rounded, and includes padding of the sound's last packet.
        return missing > 0.25 + 2 / self._fps

    def close(self) -> None:
        """Close the file; the report stays available."""
        if self._container is not None:
            self._container.close()
            self._container = None


_INHERITED: list[Any] = []


class VideoReader(Closing):
    """Frames at chosen places of a video, for training.

    Opening is cheap: the file is touched at first use, and the object can be pickled and sent to workers
    (each process opens the file itself). Frames are found by seeking to the key frame before them and
    decoding on, so reading forward never decodes a frame twice. The frames are those that decoding the file from its
    beginning gives: where the packets do not tell them for certain (outside MP4, MOV and Matroska, in files cut
    between key frames, with codecs whose packets need not be pictures), the file is decoded once at first use, and
    what is found by seeking is compared with that.

    Args:
        path: any file that FFmpeg can open.

    Raises:
        MediaError: at first use, if the file is missing, not media, or no frame can be decoded.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._table: Table | None = None
        self._info: MediaInfo | None = None
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._source: FrameSource | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("path", "_table", "_info")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _frames(self) -> Table:
        if self._table is None:
            from avsal.io._random_access import scan

            self._table = scan(self.path)
        return self._table

    @property
    def info(self) -> MediaInfo:
        """What the file says about itself; `frames` is exact here, and `duration` known."""
        if self._info is None:
            info = probe(self.path)
            if info.duration is None:
                times = self.times
                info = replace(info, duration=float(times[-1] - times[0]) + 1 / info.fps)
            self._info = replace(info, frames=len(self))
        return self._info

    @property
    def times(self) -> np.ndarray:
        """(n,) float64: time of every frame in seconds, increasing."""
        return self._frames().times

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self._frames().fps

    def __len__(self) -> int:
        return len(self._frames().times)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Return chosen frames.

        Args:
            indices: 0-based frame numbers in any order, repetitions allowed.

        Returns:
            (n, H, W, 3) uint8 RGB, upright. A frame that cannot be decoded is replaced by its neighbour.

        Raises:
            IndexError: an index lies outside 0..len-1.
            MediaError: no frame can be decoded.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        order, place = np.unique(wanted, return_inverse=True)
        return self._opened(wanted).read([int(i) for i in order])[place]

    def grey(self, index: int) -> np.ndarray:
        """Return a frame of a grey-scale video, such as a saliency map, at the file's bit depth.

        Args:
            index: 0-based frame number.

        Returns:
            (H, W) float32 in [0, 1], upright; of colour the mean of R, G and B.

        Raises:
            IndexError: the index lies outside 0..len-1.
            MediaError: no frame can be decoded.
        """
        return self._opened(np.array([index])).grey(index)

    def _opened(self, wanted: np.ndarray) -> FrameSource:
        table = self._frames()
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
        if self._source is None:
            from avsal.io._random_access import FrameSource

            self._source = FrameSource(self.path, table)
        return self._source

    def close(self) -> None:
        """Close the file; the next `read` opens it again."""
        if self._source is not None and self._process == os.getpid():
            self._source.close()
        elif self._source is not None:
            _INHERITED.append(self._source)
        self._forget()
