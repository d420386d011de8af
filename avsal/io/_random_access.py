"""Where the frames of a video are, and how one is reached without decoding all before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from av.codec.context import ThreadType

from avsal.errors import MediaError
from avsal.io._container import DECODE_ERRORS, container_family, open_media, require_video
from avsal.io.clock import Clock, FrameTimes, frame_rate
from avsal.io.picture import Painter, examine_still, is_still, white
from avsal.io.video import ONE_TO_ONE, VideoStream

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

# So many frames are decoded after a seek in search of the key frame before the file is read from its beginning.
_SEARCH = 300


@dataclass(frozen=True)
class Table:
    """Where the frames of a video are.

    Attributes:
        times: (n,) float64 seconds.
        fps: average frames per second.
        stamps: (n,) int64 timestamps in the stream's unit; None where a seek could not go by them.
        key: (n,) int64, index of the last key frame at or before each frame.
        sums: (n,) int64 checksums of the frames if the table was made by decoding, else None.
    """

    times: np.ndarray
    fps: float
    stamps: np.ndarray | None
    key: np.ndarray
    sums: np.ndarray | None = None


def scan(path: Path) -> Table:
    """Find all frames, from the packets alone where that is safe, else by decoding the file once."""
    try:
        state = path.stat()
    except OSError:
        return _scan(path, None, None)
    return _scan(path.absolute(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)  # training opens a file again and again
def _scan(path: Path, size: int | None, changed: int | None) -> Table:
    return _from_packets(path) or _from_frames(path)


def _from_packets(path: Path) -> Table | None:
    with open_media(path) as container:
        stream = require_video(container, path)
        codec = stream.codec_context.codec.canonical_name
        if container_family(container) not in ("mov", "matroska") or codec not in ONE_TO_ONE:
            return None
        clock, errors = Clock(container), list[str]()
        times, fps = FrameTimes(container, stream, clock), frame_rate(container, stream)
        found: list[tuple[int, bool]] = []
        for packet in clock.packets(stream, errors=errors):
            if packet.size:
                if packet.pts is None or packet.is_discard or packet.is_corrupt:
                    return None
                found.append((packet.pts, packet.is_keyframe))
    if not found or errors or clock.notes or not found[0][1] or min(found)[0] < found[0][0]:
        return None  # it begins with frames that need what came before them
    found.sort()
    stamps = np.array([stamp for stamp, _ in found], dtype=np.int64)
    if not np.all(np.diff(stamps) > 0):
        return None
    key = _last_key(np.array([key for _, key in found]))
    return Table(np.array([times.time(int(stamp)) for stamp in stamps]), fps, stamps, key)


def _from_frames(path: Path) -> Table:
    times, stamps, keys, sums = [], [], [], []
    with VideoStream(path) as video:
        frame = video._first
        while frame is not None:
            stamp = video._times.stamp(frame)
            times.append(video._times.time(stamp))
            stamps.append(stamp)
            keys.append(frame.key_frame)
            sums.append(_sum(frame))
            frame = next(video._frames, None)
        seekable = not video._clock.notes and None not in (stamps[i] for i, key in enumerate(keys) if key)
    known = np.array([-1 if stamp is None else stamp for stamp in stamps], dtype=np.int64)
    return Table(
        np.array(times),
        video.info.fps,
        known if seekable else None,
        _last_key(np.array(keys)),
        np.array(sums),
    )


def _last_key(keys: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(np.where(keys, np.arange(len(keys)), 0))


def _sum(frame: VideoFrame) -> int:
    """Return a checksum of every other row."""
    total = 0
    for plane in frame.planes:
        if plane.line_size > 0:
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            total = crc32(rows[::2, : plane.width].tobytes(), total)  # beyond the width lies anything
    return total


class _AnotherFrame(Exception):
    """What follows a seek is not what decoding from the beginning gave."""


class FrameSource:
    """The frames of a table, decoded one by one."""

    def __init__(self, path: Path, table: Table) -> None:
        self._path, self._table = path, table
        self._container: InputContainer | None = None
        self._seekable = table.stamps is not None
        with open_media(path) as container:
            self._painter = Painter(examine_still(path)[0] if is_still(container) else None)
        self._rewind()

    def _rewind(self) -> None:
        self.close()
        self._container = open_media(self._path)
        self._stream = require_video(self._container, self._path)
        # Workers run side by side, and a decoder with threads runs ahead of the few frames that are wanted:
        # alone it takes a third less time of the processor.
        self._stream.thread_type = ThreadType.NONE
        self._stream.codec_context.thread_count = 1
        self._start(from_beginning=True)

    def _start(self, *, from_beginning: bool = False) -> None:
        assert self._container is not None
        clock = Clock(self._container)
        self._times = FrameTimes(self._container, self._stream, clock)
        self._from_beginning = from_beginning
        self._decoder = self._decode(clock)
        self._position = -1  # index of the frame in hand
        self._hand: VideoFrame | None = None
        self._ahead: VideoFrame | None = None

    def _decode(self, clock: Clock) -> Iterator[VideoFrame]:
        for packet in clock.packets(self._stream):
            try:
                yield from self._stream.decode(packet)
            except DECODE_ERRORS:
                continue
        try:
            yield from self._stream.decode(None)
        except DECODE_ERRORS:
            return

    def read(self, indices: list[int]) -> np.ndarray:
        """Return (n, H, W, 3) uint8 RGB of ascending indices."""
        images = [self._painter.paint(self._frame(index)) for index in indices]
        return np.stack(images) if images else np.zeros((0, 0, 0, 3), dtype=np.uint8)

    def grey(self, index: int) -> np.ndarray:
        """Return (H, W) float32 in [0, 1]: a frame as grey, at its bit depth."""
        frame = self._frame(index)
        return self._painter.grey(frame) / np.float32(white(frame))

    def _frame(self, index: int) -> VideoFrame:
        frame = self._find(index)
        if frame is None:
            raise MediaError(
                f"{self._path}: frame {index} and the frames before it cannot be decoded; the file is "
                "damaged: copy it again."
            )
        return frame

    def _find(self, index: int) -> VideoFrame | None:
        key = int(self._table.key[index]) if self._seekable else 0
        try:
            if self._hand is None or index < self._position or key > self._position:
                self._seek(key)
            self._advance(index)
        except _AnotherFrame:
            # Such a file is read in order. (A key frame may need what came before it: in 4:4:4 files of older x264
            # releases the decoder must have seen the encoder's version at the very beginning.)
            self._seekable = False
            self._rewind()
            self._advance(index)
        return self._hand

    def _seek(self, key: int) -> None:
        if key == 0:
            self._rewind()
            return
        assert self._table.stamps is not None
        assert self._container is not None
        # Transport streams are sought by decoding time, which is earlier.
        before = 0 if self._table.sums is None else round(1 / (self._stream.time_base or 1))
        target = int(self._table.stamps[key]) - before
        if target <= self._table.stamps[0]:
            self._rewind()
            return
        try:
            self._container.seek(target, stream=self._stream)
        except DECODE_ERRORS:
            raise _AnotherFrame from None
        self._start()
        if self._table.sums is not None:
            self._search(key)
            return
        self._advance(key)
        if self._position != key or self._hand is None or self._hand.is_corrupt:
            raise _AnotherFrame

    def _search(self, key: int) -> None:
        assert self._table.stamps is not None
        assert self._table.sums is not None
        near = 0.5 / float(
            self._stream.time_base or 1
        )  # a decoder that begins here may go by other timestamps
        for number, frame in enumerate(self._decoder):
            stamp = self._times.stamp(frame)
            close = stamp is None or abs(stamp - int(self._table.stamps[key])) <= near
            if close and _sum(frame) == self._table.sums[key]:
                self._hand, self._position = frame, key
                return
            if number == _SEARCH:
                break
        raise _AnotherFrame

    def _number(self, frame: VideoFrame) -> int:
        """Index of a frame, or of the last frame in the table that is not after it."""
        if self._table.sums is not None:
            number = self._position + 1
            if (
                not self._from_beginning
                and _sum(frame) != self._table.sums[min(number, len(self._table.sums) - 1)]
            ):
                raise _AnotherFrame
            return number
        assert self._table.stamps is not None
        stamp = self._times.stamp(frame)
        known = int(self._table.stamps[max(self._position, 0)]) if stamp is None else stamp
        return int(np.searchsorted(self._table.stamps, known, side="right")) - 1

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

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None
