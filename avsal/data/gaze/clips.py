"""Clips of egocentric segments: frames, observed sound and gaze, from recordings or from the authors' clips.

Frames, sound and gaze of one segment meet on its own clock, whose zero is its first frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avsal.data.frames import FramePreprocessor, crop_geometry, resize_frames
from avsal.data.gaze.aria import AriaRecording
from avsal.data.gaze.segments import EGO4D, SECONDS, Protocol, Segment
from avsal.data.gaze.tables import FIXATION, OUTSIDE, SACCADE, UNTRACKED, known_columns, read_gaze_table
from avsal.data.gaze.targets import gaze_density, offset_range, place_gaze
from avsal.data.items import OpenItem, OpenItems, VideoItem
from avsal.data.loading import Sample, collate, instead
from avsal.data.windows import nearest
from avsal.errors import AvsalError, DataError
from avsal.types import Batch, ClipSpec

FloatArray = NDArray[np.float64]

# -- gaze at every frame -------------------------------------------------------------------------------------


def classify(x: FloatArray, y: FloatArray, tracked: NDArray[np.bool_], protocol: Protocol) -> FloatArray:
    """Return (n, 3) x, y in 0..1 and gaze type of successive frames, as the authors label them.

    Type 3: not tracked; 2: outside the picture, coordinates clipped; 1: moved by more than the protocol's pixels since
    the frame before; else 0. The first frame is no saccade, nor is one after a frame that was not tracked.
    """
    x, y = np.where(tracked, x, protocol.untracked[0]), np.where(tracked, y, protocol.untracked[1])
    outside = (x < 0) | (x > 1) | (y < 0) | (y > 1)
    x, y = x.clip(0, 1), y.clip(0, 1)
    moved = np.hypot(
        np.diff(x, prepend=x[:1]) * protocol.grid[0], np.diff(y, prepend=y[:1]) * protocol.grid[1]
    )
    before = np.concatenate([tracked[:1], tracked[:-1]])
    kind = np.where((moved > protocol.saccade) & before, SACCADE, FIXATION)
    kind = np.where(outside, OUTSIDE, kind)
    return np.stack([x, y, np.where(tracked, kind, UNTRACKED)], 1)


def read_ego4d_gaze(
    path: Path, times: FloatArray, *, max_gap: float = 0.2, released: bool = False
) -> FloatArray:
    """Return (n, 3) x, y and type of the frames at `times` seconds from an Ego4D gaze file.

    Columns are found by name (`canonical_timestamp_s`, `norm_pos_x`, `norm_pos_y`); where a name is not known they are
    read by position, as the authors do: second column time in seconds, sixth and seventh x and y, y from the bottom.
    The sample nearest in time counts; none within `max_gap` seconds is an untracked frame, nor is one at (0, 0). With
    `released` it is as the authors' script counts: (0, 0) is a point like any other, the nearest sample counts however
    far, and the frames after the last sample but two are untracked.
    """
    header, known = known_columns(path)
    place = {"time": 1, "x": 5, "y": 6}
    # What has a known name must stand where the position says: else this is another kind of file, read by its names or
    # refused with the reason.
    if len(known) < 3 and len(header) > 6 and all(place[role] == k for role, k in known.items()):
        names = {role: header[k] for role, k in place.items()}
        options: dict[str, Any] = {
            "columns": names,
            "time_unit": "s",
            "units": "normalised",
            "origin": "bottom",
        }
    else:
        options = {}
    # The authors take samples of any confidence.
    table = read_gaze_table(path, **options, min_confidence=0, zero_is_lost=not released)
    if table.kind != "points":
        raise DataError(f"{path}: expected gaze points, found {table.units}.")
    index = table.nearest(times, max_gap=max_gap)
    if released:
        after = np.searchsorted(table.time, times)
        there = after.clip(max=len(table) - 1)
        before = (there - 1).clip(0)
        index = np.where(
            np.abs(table.time[before] - times) < np.abs(table.time[there] - times), before, there
        )
        # The script ends where its search stood at one of the last two samples after the frame before.
        index[np.concatenate([[0], after[:-1]]) >= len(table) - 2] = -1
    return classify(table.x[index], table.y[index], (index >= 0) & table.tracked[index], EGO4D)


@lru_cache(maxsize=32)
def _frame_labels(path: Path, untracked: tuple[float, float]) -> FloatArray:
    """Return (n, 3) x, y and type from the authors' table of one row per frame; rows that lack are untracked."""
    # (0, 0) is Ego4D's "not tracked", but also where the authors' Aria labels put a point outside (type 2).
    table = read_gaze_table(path, units="normalised", zero_is_lost=False)
    if table.frame is None or table.gaze_type is None:
        raise DataError(f"{path}: expected the columns frame, x, y and gaze_type of the authors' labels.")
    out = np.tile(np.array([*untracked, UNTRACKED], dtype=np.float64), (int(table.frame.max()) + 1, 1))
    seen = table.tracked & (table.gaze_type != UNTRACKED)
    out[table.frame[seen]] = np.stack([table.x, table.y, table.gaze_type], 1)[seen]
    return out


# -- one file on disk ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GazeVideo(VideoItem):
    """A recording, or one clip of it, with its gaze.

    Attributes:
        start: seconds of the recording at which the file begins.
        gaze_file: the gaze table.
        gaze_kind: "ego4d" raw samples, "ego4d-released" the same as the authors' script reads them, "mps" directions of
            Aria glasses, "labels" one row per frame of the recording.
        as_spectrogram: the sound is given as a log-spectrogram (256, columns) of the whole segment.
        spectrogram: the stored one; without it, it is computed from the sound.
        sound_start: seconds of the sound file at which this file's time 0 lies.
        silent: a recording without any sound.
        protocol: the data set's sampling.
    """

    start: float = 0.0
    gaze_file: Path | None = None
    gaze_kind: str = "labels"
    as_spectrogram: bool = False
    spectrogram: Path | None = None
    sound_start: float = 0.0
    silent: bool = False
    protocol: Protocol = field(default=EGO4D)

    def open(self, rate: int | None = None, *, sound: bool = True) -> OpenGazeVideo:
        """Return the readers; `rate` resamples the sound."""
        return OpenGazeVideo(self, rate, sound)


class OpenGazeVideo(OpenItem):
    """The readers of a `GazeVideo`."""

    item: GazeVideo

    @cached_property
    def labels(self) -> FloatArray:
        """(n, 3) x, y and gaze type at the nominal frames of the recording, from its first frame on.

        Raises:
            DataError: there is no gaze file.
        """
        item, protocol = self.item, self.item.protocol
        if item.gaze_file is None:
            raise DataError(f"{item.name}: there is no gaze file for this recording.")
        if item.gaze_kind == "labels":
            return _frame_labels(item.gaze_file, protocol.untracked)
        times = self.frames.times
        count = round((times[-1] - times[0]) * protocol.fps) + 1
        nominal = np.arange(count) / protocol.fps
        if item.gaze_kind.startswith("ego4d"):
            return read_ego4d_gaze(item.gaze_file, nominal, released=item.gaze_kind == "ego4d-released")
        frames = self.frames
        if not isinstance(frames, AriaRecording):
            raise DataError(
                f"{item.name}: gaze directions need the recording's camera: keep recording.vrs beside them."
            )
        rows = frames.gaze(item.gaze_file)[nearest(times - times[0], nominal)]
        tracked = rows[:, 3] != UNTRACKED
        found = classify(rows[:, 1], rows[:, 2], tracked, protocol)
        found[rows[:, 3] == OUTSIDE, 2] = OUTSIDE
        return found

    @cached_property
    def audio(self) -> Any:
        """The sound of a separate file, of the video, or of a VRS recording; None where there is none."""
        if self._sound and isinstance(self.frames, AriaRecording):
            return self.frames.sound(self._rate)
        return super().audio

    def sound(self, segment: Segment, seconds: float, rate: int) -> tuple[Tensor, int, bool]:
        """Return the first `seconds` of a segment's sound, its samples per second, and whether there is any.

        Without sound it is silence at `rate`.
        """
        stream = self.audio
        if stream is None:
            return torch.zeros(round(seconds * rate)), rate, False
        begin = float(self.frames.times[0]) + segment.start - self.item.start + self.item.sound_start
        first = round(begin * stream.rate)
        return stream.read(first, first + round(seconds * stream.rate)), stream.rate, stream.has_audio


@dataclass(frozen=True)
class OpenVrs:
    """Opens a VRS recording; an instance is an item's `open_frames`."""

    path: Path

    def __call__(self) -> AriaRecording:
        """Return the recording, not yet opened."""
        return AriaRecording(self.path)


# -- clips -----------------------------------------------------------------------------------------------------


class GazeClips(Dataset[Sample]):
    """Clips of segments: one random clip of each segment and epoch in training, one fixed clip in test.

    Training clips are scaled at random, cropped so that the gaze stays inside, and mirrored at random; test clips are
    scaled to the short side and cropped in the middle. The sound is not changed.

    Args:
        segments: the segments.
        items: the files, by their place in `which`.
        which: the file of each segment.
        spec: the network's clip; frame numbers, task and size count, distances in time are the data set's.
        protocol: the data set's sampling.
        train: random clips.
        seed: seed of all draws.
        flip: probability of mirroring.
        heard: place of the segment whose sound each segment has; its own by default.
        video_ids: id of each segment's recording.
        set_name: name that stands before the recording's.
        keep_open: files that a worker keeps open.
        strict: raise for a segment that cannot be read instead of taking another.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        items: Sequence[GazeVideo],
        which: Sequence[int],
        spec: ClipSpec,
        protocol: Protocol,
        *,
        train: bool,
        seed: int = 0,
        flip: float = 0.5,
        heard: Sequence[int] | None = None,
        video_ids: Sequence[int] | None = None,
        set_name: str = "gaze",
        keep_open: int = 8,
        strict: bool = False,
    ) -> None:
        self.segments, self.which, self.spec, self.protocol = list(segments), list(which), spec, protocol
        self.train, self.seed, self.flip, self.set_name, self.strict = train, seed, flip, set_name, strict
        self.video_ids = list(video_ids) if video_ids is not None else list(which)
        self.heard = list(heard) if heard is not None else None
        self.anticipation = isinstance(spec.target, tuple) and max(spec.target) > 0
        self.starts = protocol.starts(spec.frames, self.anticipation)
        rate = spec.audio.sample_rate if spec.audio is not None else None
        self._open = OpenItems(list(items), keep=keep_open, rate=rate, sound=spec.audio is not None)
        self._preprocess = FramePreprocessor(spec)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return instead(lambda k: self._clip(epoch, k), index, len(self), self.strict)

    def _clip(self, epoch: int, index: int) -> Sample:
        segment = self.segments[index]
        opened = self._open[self.which[index]]
        assert isinstance(opened, OpenGazeVideo)
        try:
            return self._sample(opened, segment, epoch, index)
        except AvsalError as error:
            raise DataError(f"{self.set_name}/{segment.clip}: {error}") from error

    def _sample(self, opened: OpenGazeVideo, segment: Segment, epoch: int, index: int) -> Sample:
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch, index))))
        protocol, length = self.protocol, self.spec.frames
        start = int(random.integers(0, self.starts[0] + 1)) if self.train else self.starts[1]
        seen = start + protocol.spacing * np.arange(length)
        labels = protocol.labels(start, length, self.anticipation)

        times = opened.frames.times
        zero = float(times[0]) + segment.start - opened.item.start
        wanted = zero + np.concatenate([seen, labels]) / protocol.fps
        end = float(times[-1]) + 1.0 / protocol.fps
        if wanted.max() >= end or zero < times[0] - 1e-6:
            raise DataError(
                f"the segment from {segment.start} to {segment.start + SECONDS} s is not in the file, which has "
                f"{opened.item.start + end - times[0]:.2f} s."
            )
        rows = self._labels(opened, segment, labels)
        gaze, kinds = torch.from_numpy(rows[:, :2]).float(), torch.from_numpy(rows[:, 2]).long()
        images = opened.frames.read([int(k) for k in nearest(times, wanted[:length])])
        video, gaze = self._augment(images, gaze, random) if self.train else self._centre(images, gaze)
        return {
            "video": video,
            **self._sound(index, seen),
            "gaze": gaze,
            "gaze_type": kinds,
            "density": gaze_density(gaze),
            "labelled": kinds != UNTRACKED,
            "frame": torch.from_numpy(segment.start * protocol.fps + labels),
            "video_id": self.video_ids[index],
            "video_name": f"{self.set_name}/{segment.video}",
        }

    def _labels(self, opened: OpenGazeVideo, segment: Segment, labels: NDArray[np.int64]) -> FloatArray:
        table = opened.labels
        frames = segment.start * self.protocol.fps + labels
        if opened.item.gaze_kind != "labels":
            frames = frames - round(opened.item.start * self.protocol.fps)
        missing = frames >= len(table)
        if missing.all():
            raise DataError(
                f"the gaze ends {frames[0] - len(table) + 1} frames before the first one to predict."
            )
        rows = table[np.minimum(frames, len(table) - 1)].copy()
        rows[missing] = (*self.protocol.untracked, UNTRACKED)
        return rows

    # Pictures

    def _centre(self, images: NDArray[np.uint8], gaze: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[1:3]
        resized, offset = crop_geometry(height, width, self.spec.size)
        return self._preprocess(images), place_gaze(gaze, resized, offset, self.spec.size)

    def _augment(
        self, images: NDArray[np.uint8], gaze: Tensor, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        size = self.spec.size
        # 256 to 288 pixels for anticipation, to 320 for estimation, at the paper's 256.
        most = 1.125 if self.anticipation else 1.25
        short = round(min(size) * float(random.uniform(1.0, most)))
        height, width = images.shape[1:3]
        scale = short / min(height, width)
        resized = (
            (short, max(int(width * scale), size[1]))
            if height <= width
            else (max(int(height * scale), size[0]), short)
        )
        frames = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
        frames = resize_frames(frames, resized, antialias=self.spec.antialias)
        offset = []
        for axis, coordinate in ((0, 1), (1, 0)):
            points = gaze[:, coordinate].numpy() * resized[axis]
            low, high = offset_range(points.astype(np.float64), resized[axis], size[axis])
            offset.append(int(random.uniform(low, high)))
        top, left = offset
        frames = frames[..., top : top + size[0], left : left + size[1]]
        gaze = place_gaze(gaze, resized, (top, left), size)
        if random.random() < self.flip:
            frames = frames.flip(-1)
            gaze = torch.stack([1 - gaze[:, 0], gaze[:, 1]], 1)
        return self._preprocess.normalised(frames), gaze

    # Sound

    def _sound(self, index: int, seen: NDArray[np.int64]) -> Sample:
        """Return the observed sound of a segment, or of the one heard instead, and the frames' times in it."""
        if self.spec.audio is None:
            return {}
        index = self.heard[index] if self.heard is not None else index
        opened, segment = self._open[self.which[index]], self.segments[index]
        assert isinstance(opened, OpenGazeVideo)
        protocol, item = self.protocol, opened.item
        share = protocol.seen(self.anticipation) / protocol.frames
        frame_times = torch.from_numpy(seen / protocol.fps)
        if item.as_spectrogram:
            if item.spectrogram is not None:
                stored = torch.from_numpy(_stored(item.spectrogram).astype(np.float32))
            else:
                wave, rate, _ = opened.sound(segment, SECONDS, STORED_RATE)
                stored = _log_spectrogram(item.name, wave, rate)
            # What is not observed is cut off, so that no sound of the future is heard.
            return {
                "spectrogram": stored[:, : int(stored.shape[1] * share)],
                "seconds": share * SECONDS,
                "has_audio": not item.silent,
                "frame_times": frame_times,
            }
        wave, rate, found = opened.sound(segment, share * SECONDS, self.spec.audio.sample_rate or 24000)
        return {"audio": wave, "audio_rate": rate, "has_audio": found, "frame_times": frame_times}


#: The authors' stored spectrograms: samples per second, points of the transform, samples between columns and of the
#: window, columns of a segment.
STORED_RATE, STORED = 24000, (511, 120, 240, 1000)


def _log_spectrogram(name: str, wave: Tensor, rate: int) -> Tensor:
    """Return (256, 1000), what the authors' script stores for a segment's sound."""
    if rate != STORED_RATE:
        raise DataError(
            f"{name}: stored spectrograms are of {STORED_RATE} Hz, the network hears {rate} Hz; pass "
            "stored_spectrograms=False."
        )
    points, hop, window, columns = STORED
    spectrum = torch.stft(
        wave, points, hop, window, torch.hann_window(window), pad_mode="constant", return_complex=True
    )
    return torch.log(spectrum.abs().square() + 1e-6)[:, :columns]


def _stored(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the stored spectrogram cannot be read ({error}).") from error
    if array.ndim != 2:
        raise DataError(f"{path}: expected a spectrogram (bins, columns), found {array.shape}.")
    return array


def collate_gaze(samples: Sequence[Sample]) -> Batch:
    """Stack samples of `GazeClips`; stored spectrograms are padded with their floor."""
    batch: dict[str, Any] = dict(collate(samples))
    if all("spectrogram" in sample for sample in samples):
        stored = [sample["spectrogram"] for sample in samples]
        widest = max(array.shape[1] for array in stored)
        floor = float(np.log(1e-6))
        batch["spectrogram"] = torch.stack(
            [torch.nn.functional.pad(array, (0, widest - array.shape[1]), value=floor) for array in stored]
        )
        batch["columns"] = torch.tensor([array.shape[1] for array in stored])
        batch["seconds"] = torch.tensor([sample["seconds"] for sample in samples], dtype=torch.float64)
        batch["has_audio"] = torch.tensor([sample["has_audio"] for sample in samples])
    return batch  # type: ignore[return-value]
