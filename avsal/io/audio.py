"""Reading sound: one mono waveform on the time axis of the pictures.

Sample i of a waveform belongs to the time i / rate on the axis of `avsal.io.video`; whatever the file has no
sound for (before the track starts, after it ends, in gaps, or everywhere) is zero. Any layout is mixed to
mono as `ffmpeg -ac 1` mixes 16-bit sound: FFmpeg's matrix divided by the sum of its weights, which cannot clip
(stereo: the mean of left and right); layouts that FFmpeg cannot name are averaged.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import torch
from torch import Tensor

from avsal.errors import ConfigError
from avsal.io._container import DECODE_ERRORS, Closing, StrPath, audio_stream, open_media, reason_of
from avsal.io.clock import Clock
from avsal.io.limits import check, limit

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

SILENT_RATE = 16000  #: samples per second that files without sound get if no rate is asked for

# Timestamps may be rounded (1 ms in Matroska), so successive pieces are joined; only a larger difference is
# a gap.
_GAP = 0.05
# A decoder that starts in the middle needs some sound before (80 ms for Opus, a few frames for MP3 and AAC).
_PREROLL = 0.5
# How much sound before the last `read` stays in memory, and how far apart the places are that one can go
# back to.
_KEEP = 4.0
_MARK_EVERY = 2.0
# Samples of so many times full scale are damage.
_WILD = 1e3
# The defaults of torchaudio's resampling filter, and how many resampled blocks of a second are kept.
_FILTER_WIDTH, _ROLLOFF = 6, 0.99
_BLOCKS = 32
# torchaudio tabulates its filter for every phase between two rates; beyond this many values (44,103 Hz has 16,000
# phases against 16 kHz) the filter is evaluated where it is needed.
_TABLE = 2**22


class AudioStream(Closing):
    """The sound of a media file as a mono waveform, in constant memory.

    Made for reading forward, window after window (windows may overlap); jumping back seeks in the file. A
    file without a sound track, or with one that cannot be decoded at all, reads as silence with `has_audio`
    False; the latter also gives a warning that names the file. A track that is silent is a track:
    `has_audio` is True. The track is the first one marked as default, as players choose.

    Args:
        path: any file that FFmpeg can open, with or without video.
        rate: samples per second to resample to with the default filter of `torchaudio.functional.resample`; the
            pieces equal the resampled whole file up to rounding. None keeps the file's own rate.

    Attributes:
        path: the file.
        has_audio: whether there is a sound track of which something can be decoded.
        rate: samples per second of what `read` returns (16000 for files without sound unless `rate` is
            given).

    Raises:
        MediaError: the file is missing, empty or not media, or its rate is beyond the limit (see
            `avsal.io.limits`).
    """

    def __init__(self, path: StrPath, *, rate: int | None = None) -> None:
        if rate is not None and rate < 1:
            raise ConfigError(
                f"rate={rate}: samples per second must be positive, or None for the file's own."
            )
        self.path = Path(path)
        check("AVSAL_MAX_RATE", rate or 0, f"{path}: rate={rate} samples per second are asked for")
        self._track: Track | None = Track.open(self.path)
        self.has_audio = self._track is not None
        self._own_rate = self._track.rate if self._track is not None else rate or SILENT_RATE
        self.rate = rate or self._own_rate
        self._blocks: OrderedDict[int, Tensor] = OrderedDict()

    @property
    def length(self) -> int:
        """Number of samples from time 0 to the end of the sound, 0 without sound.

        Exact once the end has been read; before that it is found from the packets without decoding, which can
        differ by the codec's padding of the last packet (a few hundredths of a second).
        """
        if self._track is None:
            return 0
        return self._scaled(self._track.length)

    def _scaled(self, samples: int) -> int:
        return -(-samples * self.rate // self._own_rate)

    @property
    def message(self) -> str | None:
        """None if all is well so far, else a sentence that names the file and what could not be decoded."""
        return self._track.message if self._track is not None else None

    def read(self, begin: int, end: int) -> Tensor:
        """Return the samples `begin` to `end` (exclusive) at `rate`.

        Args:
            begin: first sample, at begin / rate seconds; may be negative or beyond the end of the sound.
            end: one past the last sample.

        Returns:
            (end - begin,) float32, full scale 1; zeros where there is no sound.

        Raises:
            MediaError: more samples are asked for than the limit on one clip allows (see `avsal.io.limits`).
        """
        count = max(end - begin, 0)
        check("AVSAL_MAX_CLIP_SAMPLES", count, f"{self.path}: one clip spans {count:,} samples of sound")
        if self._track is None or count == 0:
            return torch.zeros(count)
        if self.rate == self._own_rate:
            return torch.from_numpy(self._track.read(begin, end)[0])
        return self._read_resampled(begin, end)

    def _read_resampled(self, begin: int, end: int) -> Tensor:
        """Put together from blocks of about a second, so that overlapping windows are resampled once."""
        new = self.rate // math.gcd(self._own_rate, self.rate)
        size = -(-self.rate // new) * new
        blocks = []
        for number in range(begin // size, -(-end // size)):
            if number not in self._blocks:
                self._blocks[number] = self._block(number * size, size)
                while len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
            blocks.append(self._blocks[number])
        start = begin - begin // size * size
        return torch.cat(blocks)[start : start + end - begin]

    def _block(self, begin: int, size: int) -> Tensor:
        assert self._track is not None
        if begin < 0 or (self._track.finished and begin >= self._scaled(self._track.length)):
            return torch.zeros(size)
        shared = math.gcd(self._own_rate, self.rate)
        old, new = self._own_rate // shared, self.rate // shared
        # The filter repeats every `new` output (`old` input) samples: a piece that begins on that grid, with
        # the filter's reach around it, goes through the same arithmetic as the whole file.
        reach = math.ceil(_FILTER_WIDTH / (min(old, new) * _ROLLOFF)) + 1
        first, last = begin // new - reach, (begin + size) // new + reach
        piece = torch.from_numpy(self._track.read(first * old, last * old)[0])
        if new * old > _TABLE:
            out = _filtered(piece, old, new, reach * new, size)
        else:
            out = _resampler(self._own_rate, self.rate)(piece)[reach * new : reach * new + size].clone()
        if self._track.finished:  # the filter rings past the end; the resampled whole file stops there
            out[max(self._scaled(self._track.length) - begin, 0) :] = 0
        return out

    def close(self) -> None:
        """Close the file; reading afterwards opens it again."""
        if self._track is not None:
            self._track.close()


@lru_cache(maxsize=16)
def _resampler(own: int, rate: int) -> torch.nn.Module:
    """Return `torchaudio.functional.resample` from `own` to `rate` with its filter computed once."""
    from torchaudio.transforms import Resample

    return Resample(
        own, rate, lowpass_filter_width=_FILTER_WIDTH, rolloff=_ROLLOFF, dtype=torch.float32
    ).requires_grad_(False)


def _filtered(piece: Tensor, old: int, new: int, begin: int, count: int) -> Tensor:
    """Return samples `begin` to `begin + count` of `torchaudio.functional.resample(piece, old, new)`."""
    base = min(old, new) * _ROLLOFF
    width = math.ceil(_FILTER_WIDTH * old / base)
    reach = torch.arange(-width, width + 1)
    padded = torch.nn.functional.pad(piece, (width, width + 1)).double()
    pieces = []
    for first in range(begin, begin + count, 2**14):
        place = torch.arange(first, min(first + 2**14, begin + count)) * old
        before, phase = place // new, (place % new).double() / new
        t = ((reach - phase[:, None]) * (base / old)).clamp(-_FILTER_WIDTH, _FILTER_WIDTH)
        kernel = torch.sinc(t) * torch.cos(t * (math.pi / _FILTER_WIDTH / 2)) ** 2 * (base / old)
        pieces.append((padded[before[:, None] + (reach + width)] * kernel).sum(1))
    return torch.cat(pieces).float()


def load_audio(path: StrPath, rate: int | None = None) -> tuple[Tensor, int, bool]:
    """Return the whole sound of a short file.

    Args:
        path: any file that FFmpeg can open (wav, mp4 …).
        rate: samples per second to resample to; None keeps the file's own.

    Returns:
        The waveform (S,) float32 mono from time 0 on, samples per second, and whether there is a sound track
        (S is 0 if not).

    Raises:
        MediaError: the file is missing, empty or not media.
    """
    with AudioStream(path, rate=rate) as stream:
        if not stream.has_audio:
            return torch.zeros(0), stream.rate, False
        check("AVSAL_MAX_SAMPLES", stream.length, f"{path}: the sound has {stream.length:,} samples")
        # Memory that is never written to costs nothing: a sound that begins late may be long and short at once.
        samples, minute, done = torch.from_numpy(np.zeros(stream.length, np.float32)), 60 * stream.rate, 0
        while done < stream.length:
            piece = stream.read(done, done + minute)
            if stream.length > len(samples):  # the packets told too little
                samples = torch.cat([samples, torch.zeros(stream.length - len(samples) + minute)])
            if piece.any():
                samples[done : done + minute] = piece[: len(samples) - done]
            done += minute
        return samples[: stream.length], stream.rate, True


class Track:
    """The decoded track of a file: a window of samples that moves forward through it.

    Args:
        path: the file.
        layout: what the channels are mixed to.
        rate: samples per second; 0 keeps the track's own.
        warn: whether to warn of sound that cannot be decoded.
    """

    def __init__(self, path: Path, layout: str = "mono", rate: int = 0, *, warn: bool = True) -> None:
        self._path, self._layout = path, layout
        self._container: InputContainer | None = None
        self._stream: Any = None
        self._frames: Iterator[tuple[AudioFrame, np.ndarray, bool]] = iter(())
        self._pieces: deque[tuple[int, np.ndarray]] = deque()
        self._marks: list[tuple[int, int]] = []  # (timestamp, sample) of pieces one can go back to
        self._cursor: int | None = None  # sample after the last decoded one
        self._begin = 0  # no sample from here on has been dropped from memory
        self._length: int | None = None
        self._estimate: int | None = None
        self._errors: list[str] = []
        self._wild = 0  # samples that were no sound
        self._warned = not warn
        self.rate = rate

    @classmethod
    def open(cls, path: Path, layout: str = "mono", rate: int = 0, *, warn: bool = True) -> Track | None:
        """Return the track that a player plays, None without one that can be decoded."""
        with open_media(path) as container:
            stream = audio_stream(container)
            if stream is None:
                return None
            if stream.codec_context is None:
                if warn:
                    warnings.warn(
                        f"{path}: FFmpeg has no decoder for the sound; it is silence.", stacklevel=4
                    )
                return None
            check("AVSAL_MAX_RATE", stream.codec_context.sample_rate, _rate_of(path, stream.codec_context))
        track = cls(path, layout, rate, warn=warn)
        track._restart()
        while track._cursor is None and track._decode_next():
            pass
        if track._cursor is None or not track.rate:
            reason = "; ".join(track._errors) or "no samples in it"
            track.close()
            if warn:
                warnings.warn(f"{path}: the sound cannot be decoded ({reason}); it is silence.", stacklevel=4)
            return None
        return track

    # Reading

    def read(self, begin: int, end: int) -> np.ndarray:
        """Return float32 samples [begin, end) as (channels, samples); zeros where there are none."""
        out = np.zeros((2 if self._layout == "stereo" else 1, end - begin), dtype=np.float32)
        begin, offset = max(begin, 0), min(begin, 0)
        if end <= begin or (self._length is not None and begin >= self._length):
            return out
        if begin < self._begin or self._container is None:
            self._seek(begin)
        while (self._cursor is None or self._cursor < end) and self._decode_next(drop_before=begin):
            pass
        for start, piece in self._pieces:
            low, high = max(start, begin), min(start + piece.shape[1], end)
            if low < high:
                out[:, low - begin - offset : high - begin - offset] = piece[:, low - start : high - start]
        return out

    @property
    def finished(self) -> bool:
        """Whether the end of the sound was reached, so that `length` is exact."""
        return self._length is not None

    @property
    def length(self) -> int:
        """Samples up to the end of the sound; from the packets until the end was reached."""
        if self._length is not None:
            return self._length
        if self._estimate is None:
            end = Fraction(0)
            with open_media(self._path) as container:
                stream, clock = audio_stream(container), Clock(container)
                for packet in clock.packets(stream) if stream is not None else ():
                    if packet.pts is not None:
                        end = max(end, clock.seconds(packet.pts + (packet.duration or 0), packet.time_base))
                self._estimate = max(round(end * self.rate), self._cursor or 0)
        return self._estimate

    @property
    def message(self) -> str | None:
        """None if all is well so far, else a sentence that names the file and what was lost."""
        parts = [f"parts of the sound cannot be decoded ({'; '.join(self._errors)})"] if self._errors else []
        if self._wild:
            parts.append(
                f"{self._wild} samples of the sound are not numbers, or far beyond full scale, and were silenced"
            )
        return f"{self._path}: {'; '.join(parts)}." if parts else None

    # Decoding

    def _restart(self) -> None:
        self.close()
        self._container = open_media(self._path)
        self._stream = audio_stream(self._container)
        self._base = Fraction(self._stream.time_base)
        self._clock = Clock(self._container)
        self._pieces.clear()
        self._cursor, self._begin = None, 0
        self._frames = self._decode()

    def _seek(self, begin: int) -> None:
        """Go to a known place before `begin`, or to the start of the file."""
        target = begin - round(_PREROLL * self.rate)
        known = [mark for mark in self._marks if mark[1] <= target]
        self._restart()
        # Where the clock may jump, a timestamp can stand for several places.
        if not known or self._container is None or self._clock.discontinuous or self._clock.notes:
            return
        stamp, sample = known[-1]
        try:
            self._container.seek(stamp - round(_PREROLL / self._base), stream=self._stream)
            for frame, samples, _ in self._frames:
                if frame.pts == stamp:
                    self._pieces.append((sample, samples))
                    self._cursor, self._begin = sample + samples.shape[1], sample
                    return
                if frame.pts is None or frame.pts > stamp:
                    break
        except DECODE_ERRORS:
            pass
        self._restart()  # this format does not seek to where it should: read from the start again

    def _decode_next(self, drop_before: int | None = None) -> bool:
        """Decode one piece; False at the end of the sound."""
        found = next(self._frames, None)
        if found is None:
            self._length = max(self._cursor or 0, 0)
            return False
        frame, samples, broken = found
        if broken and not self._warned:
            warnings.warn(f"{self.message} They are silence.", stacklevel=6)
            self._warned = True
        start = self._place(frame, broken)
        if start < 0:
            samples, start = samples[:, -start:], 0
        self._pieces.append((start, samples))
        self._cursor = start + samples.shape[1]
        if frame.pts is not None and (
            not self._marks or start >= self._marks[-1][1] + _MARK_EVERY * self.rate
        ):
            self._marks.append((frame.pts, start))
        if drop_before is not None:
            oldest = drop_before - round(_KEEP * self.rate)
            while self._pieces and self._pieces[0][0] + self._pieces[0][1].shape[1] <= oldest:
                start, samples = self._pieces.popleft()
                self._begin = max(self._begin, start + samples.shape[1])
        return True

    def _place(self, frame: AudioFrame, broken: bool) -> int:
        """Sample at which a decoded piece begins."""
        expected = self._cursor or 0
        if frame.pts is None:
            return expected
        stamped = round(frame.pts * self._scale - self._shift)
        difference = abs(stamped - expected) / self.rate
        return stamped if self._cursor is None or broken or difference > _GAP else expected

    def _decode(self) -> Iterator[tuple[AudioFrame, np.ndarray, bool]]:
        """Yield decoded frames, their mono samples, and whether something before them was lost."""
        assert self._container is not None
        mixer, broken, flushed = _Mixer(self._layout), False, False
        for packet in self._clock.packets(self._stream):
            flushed = flushed or not packet.size
            try:
                for frame in self._stream.decode(packet):
                    self.rate = self.rate or frame.sample_rate
                    self._scale = float(self._base * self.rate)  # samples in a unit of the timestamps
                    self._shift = float(self._clock.origin * self.rate)
                    yield frame, self._sane(mixer.mix(frame, self.rate)), broken
                    broken = False
            except EOFError:
                continue
            except DECODE_ERRORS as error:
                self._count(error)
                broken = True
        if not flushed:
            try:
                for frame in self._stream.decode(None):
                    yield frame, self._sane(mixer.mix(frame, self.rate)), broken
            except DECODE_ERRORS:
                return

    def _sane(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples with zeros for what damaged floating point sound holds that is no sound."""
        wild = ~(np.abs(samples) < _WILD)  # true for NaN
        if wild.any():
            self._wild += int(wild.sum())
            return np.where(wild, np.float32(0), samples)
        return samples

    def _count(self, error: BaseException) -> None:
        reason = reason_of(error)
        if reason not in self._errors:
            self._errors.append(reason)

    def close(self) -> None:
        """Close the file; the next `read` opens it again."""
        if self._container is not None:
            self._container.close()
            self._container = None


class _Mixer:
    """Mixes decoded frames to one layout at one rate in float32; a change of parameters half-way is followed."""

    def __init__(self, layout: str) -> None:
        self._layout = layout
        self._format: Any = None
        self._resampler: av.AudioResampler | None = None
        self._weights = np.float32(1)

    def mix(self, frame: AudioFrame, rate: int) -> np.ndarray:
        """Return (channels, samples).

        Raises:
            ValueError: the frame's rate is beyond the limit.
        """
        known = (frame.format.name, frame.layout.name, frame.sample_rate)
        pieces: list[np.ndarray] = []
        if known != self._format:
            if frame.sample_rate > limit("AVSAL_MAX_RATE"):
                raise ValueError(f"{frame.sample_rate} samples per second")
            if self._resampler is not None:  # what the filter still holds of the sound before
                pieces = [piece.to_ndarray() / self._weights for piece in self._resampler.resample(None)]
            self._format = known
            self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=rate)
            self._weights = _sum_of_weights(frame.layout.name, self._layout)
        assert self._resampler is not None
        try:
            pieces += [piece.to_ndarray() / self._weights for piece in self._resampler.resample(frame)]
        except DECODE_ERRORS:  # FFmpeg has no matrix for channels without a name
            self._format = self._resampler = None
            # Interleaved, because PyAV reads beyond its planes when there are more than eight.
            convert = av.AudioResampler(format="flt", layout=frame.layout, rate=rate)
            channels = frame.layout.nb_channels
            averaged = [p.to_ndarray().reshape(-1, channels).mean(1) for p in convert.resample(frame)]
            pieces += [np.stack([mean] * (2 if self._layout == "stereo" else 1)) for mean in averaged]
        return np.concatenate(pieces, 1) if pieces else np.zeros((1, 0), dtype=np.float32)


def _rate_of(path: Path, context: Any) -> str:
    return f"{path}: the sound has {context.sample_rate:,} samples per second"


@lru_cache(maxsize=16)
def _sum_of_weights(layout: str, target: str) -> np.float32:
    """Return the largest sum of FFmpeg's weights for a mix; it divides by it for integer samples only."""
    ones = np.ones((1, 64 * av.AudioLayout(layout).nb_channels), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(ones, format="flt", layout=layout)
    frame.sample_rate = SILENT_RATE
    try:
        mixed = av.AudioResampler(format="fltp", layout=target, rate=SILENT_RATE).resample(frame)
    except DECODE_ERRORS:  # no matrix: `_Mixer` takes the mean
        return np.float32(1)
    return max(np.float32(1), mixed[0].to_ndarray()[:, -1].max())
