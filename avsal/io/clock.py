"""The film's time: the one mapping from a container's clock that pictures, sound, overlays and gaze share.

Time 0 is the earlier start of picture and sound where a recording's clock starts late (a cut out of a broadcast);
the distance between sound and picture is never changed. Where the clock jumps although the film goes on (the parts
of concatenated transport streams each have their own), the parts follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from av.format import Flags

from avsal.io._container import DECODE_ERRORS, audio_stream, reason_of, video_stream

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

# Timestamps of a stream that step back by more than this, or forward by more than that where the format allows
# discontinuities, are a jump of the clock (FFmpeg's own thresholds).
_BACK, _FORWARD = 0.1, 10.0
# Formats without discontinuities have other reasons to step back a little (rounding, damage).
_BACK_ELSEWHERE = 1.0
# The counter of MPEG streams has 33 bits; an encoder's delay before time 0 appears at its far end.
_WRAP = 2**33 / 90000
# A track that is so many seconds further has gone on.
_GOES_ON = 0.5
# So many packets are read ahead at most to find the other track's next one.
_HELD = 2000


class Clock:
    """Corrects the timestamps of a container's packets, read in order from the beginning.

    Every reader of a file feeds the packets of the same streams, so all of them see the same jumps.

    Attributes:
        origin: seconds of the container's clock that are the film's time 0.
        notes: what was repaired so far.
    """

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self._watched = [s for s in (video_stream(container), audio_stream(container)) if s is not None]
        self.origin = _origin(self._watched)
        self.discontinuous = _has(container, Flags.ts_discont)
        self.notes: list[str] = []
        self._start = float(self.origin)
        self._latest = 0.0  # the offset that the newest jump asked for
        self._offset: dict[int, float] = {}
        self._next: dict[int, float] = {}  # film's time at which each stream goes on
        self._now: float | None = None
        self._joins: set[int] = set()  # tracks that begin with a new part

    def packets(self, *wanted: Stream, errors: list[str] | None = None) -> Iterator[Packet]:
        """Yield the packets of some streams (all, without any named) with corrected timestamps.

        A broken file ends the iteration like the end of the file does; the reason is appended to `errors`.
        """
        chosen = {stream.index for stream in wanted}
        read = [*wanted, *(s for s in self._watched if s.index not in chosen)] if wanted else []
        try:
            for packet in self._looking_ahead(self._container.demux(*read)):
                if not packet.size and packet.dts is not None:
                    continue  # "show the last picture again", which a decoder would take for the end
                self._correct(packet)
                if not chosen or packet.stream_index in chosen:
                    yield packet
        except IndexError:
            return  # PyAV at the end of a file in which a track appeared half-way, which it does not support
        except DECODE_ERRORS as error:
            if errors is not None:
                errors.append(reason_of(error))

    def seconds(self, stamp: int, base: Fraction) -> Fraction:
        """Return the film's time of a corrected timestamp."""
        return stamp * base - self.origin

    def _looking_ahead(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        """Yield packets; decide about a track that begins before what was read already.

        Either it lags behind in the file, or it is the first of a part whose clock begins anew: the other
        track decides it by stepping back or going on (its last picture may still be in the parser).
        """
        for packet in packets:
            self._unwrap(packet)
            held = [packet]
            if self._begins_early(packet):
                for later in packets:
                    self._unwrap(later)
                    held.append(later)
                    expected = self._next.get(later.stream_index)
                    if expected is not None and later.dts is not None and later.time_base is not None:
                        time = float(later.dts * later.time_base) + self._offset[later.stream_index]
                        if time < expected - _BACK:
                            self._joins.add(packet.stream_index)
                        if time < expected - _BACK or time > expected + _GOES_ON:
                            break
                    if len(held) > _HELD:
                        break
            yield from held

    def _begins_early(self, packet: Packet) -> bool:
        index = packet.stream_index
        if not self.discontinuous or self._now is None or index in self._next or packet.dts is None:
            return False
        watched = any(index == stream.index for stream in self._watched)
        base = float(packet.time_base or 0)
        return watched and packet.dts * base + self._latest < self._now - _BACK_ELSEWHERE

    def _unwrap(self, packet: Packet) -> None:
        if not self.discontinuous or packet.time_base is None:
            return
        base = float(packet.time_base)
        far = round((self._start + _WRAP / 2) / base)
        if packet.pts is not None and packet.pts > far:
            packet.pts -= round(_WRAP / base)
        if packet.dts is not None and packet.dts > far:
            packet.dts -= round(_WRAP / base)

    def _correct(self, packet: Packet) -> None:
        if not any(packet.stream_index == stream.index for stream in self._watched):
            return
        index = packet.stream_index
        if packet.time_base is None or not packet.size:
            return
        base = float(packet.time_base)
        offset = self._offset.setdefault(index, self._latest)
        if packet.dts is not None:
            stamp = packet.dts * base
            if self._jumps(index, stamp + offset):
                offset = self._offset[index] = self._rejoin(index, stamp)
            self._now = stamp + offset
            self._next[index] = self._now + (packet.duration or 0) * base
        if offset:
            shift = round(offset / base)
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift

    def _jumps(self, index: int, time: float) -> bool:
        expected = self._next.get(index)
        if expected is None:
            return index in self._joins
        if time < expected - (_BACK if self.discontinuous else _BACK_ELSEWHERE):
            return True
        # A track may pause; the clock has jumped only if the other track is not there already.
        ahead = time - expected > _FORWARD
        return self.discontinuous and ahead and self._now is not None and time - self._now > _FORWARD

    def _rejoin(self, index: int, stamp: float) -> float:
        """Return the offset with which a stream goes on where it, or the film, has ended."""
        expected = self._next.get(index, self._now or 0.0)
        before = self._offset[index]
        if before != self._latest and -0.5 <= stamp + self._latest - expected <= _FORWARD:
            return self._latest  # another stream has jumped before, to the same part
        # A stream that has ended earlier waits for the others.
        end = max(self._next.values())
        expected = end if end - expected > 0.25 else expected
        self._latest = expected - stamp
        self.notes.append(
            f"the clock jumps by {before - self._latest:+.2f} s at {expected - self._start:.2f} s; "
            "the parts follow each other"
        )
        return self._latest


def _origin(streams: Sequence[Stream]) -> Fraction:
    """The earlier start of picture and sound if both are positive; otherwise the container's own zero.

    Unless the picture itself starts before it. (Sound often starts a few milliseconds early: encoder delay, not
    content.)
    """
    starts = {
        stream.type: stream.start_time * stream.time_base
        for stream in streams
        if stream.start_time is not None and stream.time_base is not None
    }
    if not starts:
        return Fraction(0)
    earliest = min(starts.values())
    return earliest if earliest >= 0 else min(starts.get("video", Fraction(0)), Fraction(0))


class FrameTimes:
    """Times of successive decoded frames in seconds, strictly increasing; missing ones are filled in by the rate."""

    def __init__(self, container: InputContainer, stream: VideoStream, clock: Clock) -> None:
        self._base = stream.time_base or Fraction(1, 1000)
        self._clock = clock
        self._step = 1.0 / frame_rate(container, stream)
        self._last: float | None = None
        self._avi = container.format.name == "avi"
        self._invented = _no_timestamps(container)

    def stamp(self, frame: VideoFrame) -> int | None:
        """Return the timestamp that FFmpeg goes by, in the stream's unit; None if there is none."""
        if self._invented:
            return None  # made up by the demuxer at its default rate
        if self._avi:
            return (
                frame.dts
            )  # the format has only these; what is derived from them is wrong for packed B-frames
        return frame.pts if frame.pts is not None else frame.dts

    def time(self, stamp: int | None) -> float:
        """Return the film's time of the next frame."""
        value = None if stamp is None else float(self._clock.seconds(stamp, self._base))
        if self._last is None:
            value = 0.0 if value is None else value
        elif value is None or value < self._last - self._step:
            value = self._last + self._step
        elif value <= self._last:  # the same time twice: the frames after it keep theirs
            value = self._last + min(self._step / 2, 1e-3)
        self._last = value
        return value


def _has(container: InputContainer, flag: Flags) -> bool:
    return bool(container.format.flags & int(flag.value))  # type: ignore[call-overload]


def _no_timestamps(container: InputContainer) -> bool:
    return _has(container, Flags.no_timestamps)


def frame_rate(container: InputContainer, stream: VideoStream) -> float:
    """Return the average frames per second: measured by the container, else what the codec says.

    A format without timestamps has measured nothing: its demuxer's default (25) counts after the codec's rate.
    """
    rates = [stream.average_rate, stream.guessed_rate, stream.base_rate, stream.codec_context.framerate]
    return float(
        next((rate for rate in (reversed(rates) if _no_timestamps(container) else rates) if rate), 25.0)
    )
