"""Ego4D and Aria gaze: five-second segments of egocentric videos, as CSTS trains and tests on them.

A segment is a line of the published lists, `<video>/<video>_t<start>_t<end>.mp4`, seconds from the start of the
recording. It is cut by index from the original download, or read from the clips of the authors' pre-processing;
either way frames, sound and gaze of one segment meet on its own clock, whose zero is its first frame.
"""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avsal.data.aria import AriaRecording
from avsal.data.frames import FramePreprocessor, crop_geometry, resize_frames
from avsal.data.gaze_tables import FIXATION, OUTSIDE, SACCADE, UNTRACKED, read_gaze_table
from avsal.data.gaze_targets import gaze_density, offset_range, place_gaze
from avsal.data.items import OpenItem, OpenItems, OpenVideo, VideoItem
from avsal.data.module import SaliencyDataModule, Split
from avsal.data.windows import EpochSampler, Sample, ShareSampler, _instead, collate, nearest
from avsal.errors import AvsalError, ConfigError, DataError
from avsal.types import Batch, ClipSpec

FloatArray = NDArray[np.float64]

#: Length of every segment in seconds. The lists of Aria name an end one second too early.
SECONDS = 5


@dataclass(frozen=True)
class Protocol:
    """How one data set is sampled (released loader of CSTS).

    Attributes:
        fps: frames per second that frame numbers count.
        spacing: frames from one sampled frame to the next.
        observed: frames of a segment that anticipation may see and hear.
        lead: frames from the last observed one to the first anticipated one.
        estimation_last: estimation is tested on the last frames of a segment instead of the first.
        saccade: movement per frame that is a saccade, in pixels of `grid`.
        grid: (width, height) in pixels that the movement is measured on.
        untracked: (x, y) that stands for gaze that is not known.
    """

    fps: int
    spacing: int
    observed: int
    lead: int
    estimation_last: bool
    saccade: float
    grid: tuple[int, int]
    untracked: tuple[float, float]

    @property
    def frames(self) -> int:
        """Frames of a whole segment."""
        return SECONDS * self.fps

    def seen(self, anticipation: bool) -> int:
        """Frames of a segment whose picture and sound may be used."""
        return self.observed if anticipation else self.frames

    def starts(self, clip: int, anticipation: bool) -> tuple[int, int]:
        """Return the last start of a training clip of `clip` frames (the first is 0), and that of the test clip."""
        last = self.seen(anticipation) - ((clip - 1) * self.spacing + 1)
        if last < 0:
            raise ConfigError(
                f"A clip of {clip} frames {self.spacing} apart is longer than the {self.seen(anticipation)} frames "
                "that may be seen; take fewer."
            )
        return last, last if anticipation or self.estimation_last else 0

    def labels(self, start: int, clip: int, anticipation: bool) -> NDArray[np.int64]:
        """Return the frames (clip,) of a segment that the maps of a clip from `start` on belong to."""
        steps = self.spacing * np.arange(clip)
        return start + steps + ((clip - 1) * self.spacing + self.lead if anticipation else 0)


EGO4D = Protocol(30, 9, 86, 1, False, 40.0, (1088, 1080), (0.0, 0.0))
ARIA = Protocol(20, 5, 60, 5, True, 24.0, (640, 640), (0.5, 0.5))


@dataclass(frozen=True)
class Segment:
    """One line of a list.

    Attributes:
        video: the recording's name.
        start: seconds from its start.
        clip: file name without suffix, as the list has it.
    """

    video: str
    start: int
    clip: str


_CLIP = re.compile(r"^(?P<video>.+)_t(?P<start>\d+)_t(?P<end>\d+)$")


def read_segments(path: Path) -> list[Segment]:
    """Read a published list: one clip path on each line, no header.

    Raises:
        DataError: the list is missing or empty, or a line is no clip path.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list of clips cannot be read ({error}). It is published with the code of CSTS (folder data)."
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = Path(line.split(",")[0].strip()).stem
        match = _CLIP.match(name)
        if match is None:
            raise DataError(
                f"{path}, line {number}: expected <video>/<video>_t<start>_t<end>.mp4, found {line.strip()!r}."
            )
        found.append(Segment(match["video"], int(match["start"]), name))
    if not found:
        raise DataError(f"{path}: the list of clips is empty.")
    return found


def read_untracked(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Read intervals without usable gaze: rows `video, hh:mm:ss, hh:mm:ss[, code]`, in seconds per video.

    A row that ends before it begins has no effect, as in the authors' script; twice the same row counts once.
    """
    intervals: dict[str, set[tuple[int, int]]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not any(cell.strip() for cell in row):
                    continue
                try:
                    begin, end = (_clock(cell) for cell in row[1:3])
                except (ValueError, IndexError) as error:
                    raise DataError(
                        f"{path}, line {number}: expected video,hh:mm:ss,hh:mm:ss,code, found {','.join(row)!r}."
                    ) from error
                if end >= begin:
                    intervals.setdefault(row[0].strip(), set()).add((begin, end))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the untracked intervals cannot be read ({error}).") from error
    return {video: sorted(spans) for video, spans in intervals.items()}


def _clock(text: str) -> int:
    hours, minutes, seconds = (int(part) for part in text.strip().split(":"))
    return 3600 * hours + 60 * minutes + seconds


def segments_of(
    video: str, duration: float, stride: int, untracked: Iterable[tuple[int, int]] = ()
) -> list[Segment]:
    """Return the segments of a recording that has no published list.

    Args:
        video: its name.
        duration: its length in seconds.
        stride: seconds from one segment to the next (Ego4D 5, Aria 2).
        untracked: (begin, end) seconds; a segment that touches one is left out.
    """
    spans = list(untracked)
    return [
        Segment(video, start, f"{video}_t{start}_t{start + SECONDS}")
        for start in range(0, int(duration + 1e-6) - SECONDS + 1, stride)
        if not any(begin <= start + SECONDS and end >= start for begin, end in spans)
    ]


def read_names(path: Path) -> dict[str, str]:
    """Read the sheet that matches the old names of Aria recordings to the current ones, both ways.

    Args:
        path: the authors' spreadsheet (.xlsx), or a CSV file of two columns with a header.

    Raises:
        DataError: the file is neither.
    """
    try:
        if path.suffix.lower() == ".xlsx":
            pairs = _sheet(path)
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                pairs = [(row[0].strip(), row[1].strip()) for row in csv.reader(file) if len(row) > 1]
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise DataError(f"{path}: not a sheet of recording names ({error}).") from error
    found: dict[str, str] = {}
    for left, right in pairs[1:]:
        found[left], found[right] = right, left
    return found


def _sheet(path: Path) -> list[tuple[str, str]]:
    """Return columns A and B of the first sheet of a workbook."""
    space = {"m": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    with zipfile.ZipFile(path) as book:
        texts = ElementTree.fromstring(book.read("xl/sharedStrings.xml")).findall("m:si", space)
        strings = ["".join(part.text or "" for part in text.iter(f"{{{space['m']}}}t")) for text in texts]
        rows = ElementTree.fromstring(book.read("xl/worksheets/sheet1.xml")).findall(".//m:row", space)
    pairs = []
    for row in rows:
        cells: dict[str, str] = {}
        for cell in row.findall("m:c", space):
            value = cell.findtext("m:v", default="", namespaces=space)
            cells[cell.get("r", "")[:1]] = strings[int(value)] if cell.get("t") == "s" and value else value
        if cells.get("A") and cells.get("B"):
            pairs.append((cells["A"].strip(), cells["B"].strip()))
    return pairs


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


def read_ego4d_gaze(path: Path, times: FloatArray, *, max_gap: float = 0.2) -> FloatArray:
    """Return (n, 3) x, y and type of the frames at `times` seconds from an Ego4D gaze file.

    Columns are found by name (`canonical_timestamp_s`, `norm_pos_x`, `norm_pos_y`); files with other names are read
    by position, as the authors do: second column time in seconds, sixth and seventh x and y, y from the bottom.
    The sample nearest in time counts; none within `max_gap` seconds is an untracked frame.
    """
    try:
        table = read_gaze_table(path)
    except DataError:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
        if len(header) < 7:
            raise
        names = {"time": header[1], "x": header[5], "y": header[6]}
        table = read_gaze_table(path, columns=names, time_unit="s", units="normalised", origin="bottom")
    if table.kind != "points":
        raise DataError(f"{path}: expected gaze points, found {table.units}.")
    index = table.nearest(times, max_gap=max_gap)
    return classify(table.x[index], table.y[index], (index >= 0) & table.tracked[index], EGO4D)


@lru_cache(maxsize=32)
def _frame_labels(path: Path, untracked: tuple[float, float]) -> FloatArray:
    """Return (n, 3) x, y and type from the authors' table of one row per frame; rows that lack are untracked."""
    table = read_gaze_table(path, units="normalised")
    if table.frame is None or table.gaze_type is None:
        raise DataError(f"{path}: expected the columns frame, x, y and gaze_type of the authors' labels.")
    out = np.tile(np.array([*untracked, UNTRACKED], dtype=np.float64), (int(table.frame.max()) + 1, 1))
    # (0, 0) is how Ego4D's labels say "not tracked", and is read as lost: it goes back to where it was.
    x, y = np.nan_to_num(table.x, nan=untracked[0]), np.nan_to_num(table.y, nan=untracked[1])
    out[table.frame] = np.stack([x, y, table.gaze_type], 1)
    return out


# -- one file on disk ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GazeVideo(VideoItem):
    """A recording, or one clip of it, with its gaze.

    Attributes:
        start: seconds of the recording at which the file begins.
        gaze_file: the gaze table.
        gaze_kind: "ego4d" raw samples, "mps" directions of Aria glasses, "labels" one row per frame of the recording.
        spectrogram: a stored log-spectrogram (256, columns) of the whole segment, where there is no waveform.
        protocol: the data set's sampling.
    """

    start: float = 0.0
    gaze_file: Path | None = None
    gaze_kind: str = "labels"
    spectrogram: Path | None = None
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
        if item.gaze_kind == "ego4d":
            return read_ego4d_gaze(item.gaze_file, nominal)
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
        if not self._sound or self.item.audio is None:
            return None
        from avsal.io.audio import AudioStream

        return AudioStream(self.item.audio, rate=self._rate)


@dataclass(frozen=True)
class OpenVrs:
    """Opens a VRS recording; an instance is the `open_frames` of an item."""

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
        video_ids: Sequence[int] | None = None,
        set_name: str = "gaze",
        keep_open: int = 8,
        strict: bool = False,
    ) -> None:
        self.segments, self.which, self.spec, self.protocol = list(segments), list(which), spec, protocol
        self.train, self.seed, self.flip, self.set_name, self.strict = train, seed, flip, set_name, strict
        self.video_ids = list(video_ids) if video_ids is not None else list(which)
        self.anticipation = isinstance(spec.target, tuple) and max(spec.target) > 0
        self.starts = protocol.starts(spec.frames, self.anticipation)
        rate = spec.audio.sample_rate if spec.audio is not None else None
        self._open = OpenItems(list(items), keep=keep_open, rate=rate, sound=spec.audio is not None)
        self._preprocess = FramePreprocessor(spec)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return _instead(lambda k: self._clip(epoch, k), index, len(self), self.strict)

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
            **self._sound(opened, zero, seen),
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

    def _sound(self, opened: OpenGazeVideo, zero: float, seen: NDArray[np.int64]) -> Sample:
        """Return the observed sound of the segment, and the frames' times in it."""
        if self.spec.audio is None:
            return {}
        protocol = self.protocol
        share = protocol.seen(self.anticipation) / protocol.frames
        frame_times = torch.from_numpy(seen / protocol.fps)
        if opened.item.spectrogram is not None:
            stored = _stored(opened.item.spectrogram)
            # What is not observed is cut off, so that no sound of the future is heard.
            columns = int(stored.shape[1] * share)
            return {
                "spectrogram": torch.from_numpy(stored[:, :columns].astype(np.float32)),
                "seconds": share * SECONDS,
                "has_audio": True,
                "frame_times": frame_times,
            }
        stream = opened.audio
        rate = stream.rate if stream is not None else self.spec.audio.sample_rate or 24000
        begin = round(zero * rate)
        count = round(share * SECONDS * rate)
        return {
            "audio": stream.read(begin, begin + count) if stream is not None else torch.zeros(count),
            "audio_rate": rate,
            "has_audio": stream is not None and stream.has_audio,
            "frame_times": frame_times,
        }


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
        batch["has_audio"] = torch.ones(len(samples), dtype=torch.bool)
    return batch  # type: ignore[return-value]


# -- data modules ----------------------------------------------------------------------------------------------


class GazeDataModule(SaliencyDataModule):
    """Base of the egocentric gaze sets.

    Args:
        root: folder of the data set: the original download or the authors' pre-processed layout.
        lists: folder with the authors' lists of clips; the root by default. Without lists every recording is cut into
            segments, and the last quarter of the recordings, by name, tests.
        val_fraction: share of the training recordings that validates instead; 0 validates on the test list, as the
            authors did, who so chose their checkpoints on it.
        stored_spectrograms: take the authors' stored spectrograms beside the clips instead of the sound.
        batch_size: clips of a training batch.
        eval_batch_size: clips of a validation or test batch.
        options: see `SaliencyDataModule` (`num_workers`, `seed`, `flip`, `strict`, `limit`, `spec`).

    Attributes:
        counts: clips per split and what became of them: "listed", "kept", "no video", "too short", "no gaze".
    """

    protocol: ClassVar[Protocol]
    set_name: ClassVar[str]
    list_names: ClassVar[dict[str, str]]
    clip_folders: ClassVar[tuple[str, ...]]
    stride: ClassVar[int]

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        lists: str | Path | None = None,
        val_fraction: float = 0.0,
        stored_spectrograms: bool = False,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, eval_batch_size=eval_batch_size, **options)
        self.lists = Path(lists).expanduser() if lists is not None else None
        self.val_fraction, self.stored_spectrograms = val_fraction, stored_spectrograms
        self.counts: dict[str, Counter[str]] = {}
        self._split: dict[str, tuple[list[Segment], list[GazeVideo], list[int]]] = {}
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction={val_fraction} must lie in 0..1 (1 excluded).")

    # What a data set defines

    def recording(self, video: str) -> GazeVideo | None:
        """Return the original recording of that name with its gaze, None if it is not there."""
        raise NotImplementedError

    def label_file(self, folder: Path, video: str) -> Path:
        """Return the authors' label table of a recording."""
        raise NotImplementedError

    def recordings(self) -> list[str]:
        """Return the names of all recordings below the root."""
        raise NotImplementedError

    # Segments

    def _list_of(self, split: Split) -> list[Segment]:
        """Return the segments of a split, as listed or cut."""
        folder = self.lists or self.require_root()
        which: Split = "test" if split == "val" and self.val_fraction == 0 else split
        path = folder / self.list_names["test" if which == "test" else "train"]
        if path.is_file():
            segments = read_segments(path)
        elif self.lists is not None:
            raise DataError(
                f"{path}: there is no such list of clips; lists= names the folder of the authors' csv files."
            )
        else:
            names = sorted(self.recordings())
            tested = set(names[len(names) - max(1, len(names) // 4) :]) if len(names) > 1 else set(names)
            chosen = [n for n in names if (n in tested) == (which == "test")] or names
            segments = [segment for name in chosen for segment in self._cut(name)]
        if which != "test" and self.val_fraction > 0:
            from avsal.data.audiovisual import held_out

            held = held_out(sorted({s.video for s in segments}), self.val_fraction)
            segments = [s for s in segments if (s.video in held) == (split == "val")]
        return segments

    def _cut(self, name: str) -> list[Segment]:
        item = self.recording(name)
        if item is None:
            return []
        try:
            duration = _duration(item)
        except AvsalError as error:
            if self.strict:
                raise
            self.report(f"{item.name}: {error}")
            return []
        found = segments_of(name, duration, self.stride, self.untracked().get(name, ()))
        if not found:
            self.report(f"{item.name}: {duration:.2f} s, shorter than a segment of {SECONDS} s.")
        return found

    def untracked(self) -> dict[str, list[tuple[int, int]]]:
        """Return the intervals without usable gaze, by recording."""
        return {}

    def gaze_segments(self, split: Split) -> tuple[list[Segment], list[GazeVideo], list[int]]:
        """Return the usable segments of a split, the files, and the file of each segment; found once.

        Raises:
            DataError: none is usable.
        """
        if split in self._split:
            return self._split[split]
        listed = self._list_of(split)
        counts = self.counts[split] = Counter(listed=len(listed))
        clips = next((f for f in (self.require_root() / n for n in self.clip_folders) if f.is_dir()), None)
        find: Callable[[Segment], GazeVideo | str]
        if clips is not None:
            find = lambda segment: self._clip_file(clips, segment)  # noqa: E731
        else:
            durations: dict[str, float] = {}
            known: dict[str, GazeVideo | None] = {}
            find = lambda segment: self._original(segment, known, durations)  # noqa: E731
        segments: list[Segment] = []
        items: dict[str, tuple[int, GazeVideo]] = {}
        which: list[int] = []
        for segment in listed:
            if (
                self.limit is not None
                and segment.video not in {s.video for s in segments[-1:]}
                and len({s.video for s in segments}) >= self.limit
            ):
                continue
            found = find(segment)
            if isinstance(found, str):
                counts[found] += 1
                self.report(f"{self.set_name}/{segment.video} ({found}): {found}, first at {segment.clip}.")
                continue
            place, _ = items.setdefault(found.name, (len(items), found))
            segments.append(segment)
            which.append(place)
        counts["kept"] = len(segments)
        if not segments:
            raise DataError(
                f"{self.root}: none of the {len(listed)} clips of the {split} split can be used "
                f"({', '.join(f'{n} {reason}' for reason, n in counts.items() if reason not in ('listed', 'kept'))}). "
                f"Expected the original recordings or the folders {', '.join(self.clip_folders)}."
            )
        self._split[split] = segments, [item for _, item in items.values()], which
        return self._split[split]

    def _original(
        self, segment: Segment, known: dict[str, GazeVideo | None], durations: dict[str, float]
    ) -> GazeVideo | str:
        name = segment.video
        if name not in known:
            known[name] = self.recording(name)
        item = known[name]
        if item is None:
            return "no video"
        if item.gaze_file is None:
            return "no gaze"
        if name not in durations:
            try:
                durations[name] = _duration(item)
            except AvsalError as error:
                if self.strict:
                    raise
                self.report(f"{item.name}: {error}")
                durations[name] = 0.0
        # Two frames of tolerance: containers round their duration.
        return item if segment.start + SECONDS <= durations[name] + 0.1 else "too short"

    def _clip_file(self, clips: Path, segment: Segment) -> GazeVideo | str:
        path = clips / segment.video / f"{segment.clip}.mp4"
        if not path.is_file():
            return "no video"
        labels = self.label_file(clips.parent / "gaze_frame_label", segment.video)
        if not labels.is_file():
            return "no gaze"
        wave = clips.parent / "clips.audio_24kHz" / segment.video / f"{segment.clip}.wav"
        stored = None
        if self.stored_spectrograms:
            # The released loader and the released script name this folder differently.
            folders = (clips.parent / "clips.audio_24kHz_stft", clips.with_name(f"{clips.name}.audio_stft"))
            candidates = (f / segment.video / f"{segment.clip}.npy" for f in folders)
            stored = next((c for c in candidates if c.is_file()), None)
            if stored is None:
                return "no stored spectrogram"
        return GazeVideo(
            f"{self.set_name}/{segment.clip}", None, None, OpenVideo(path), audio=wave if wave.is_file() else path,
            start=segment.start, gaze_file=labels, spectrogram=stored, protocol=self.protocol,
        )  # fmt: skip

    # Lightning

    def items(self, split: Split) -> list[GazeVideo]:
        """Return the files of a split."""
        return self.gaze_segments(split)[1]

    def setup(self, stage: str) -> None:
        """Find the segments of a stage, and read one clip of each split, so that errors come before training."""
        splits: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
        }
        for split in splits.get(stage, ("test",)):
            self.gaze_segments(split)
            self._dataset(split, train=split == "train")[0]

    def _dataset(self, split: Split, *, train: bool) -> GazeClips:
        segments, items, which = self.gaze_segments(split)
        ids = {name: k for k, name in enumerate(sorted({s.video for s in segments}))}
        return GazeClips(
            segments,
            items,
            which,
            self.spec,
            self.protocol,
            train=train,
            seed=self.seed,
            flip=self.flip,
            video_ids=[ids[s.video] for s in segments],
            set_name=self.set_name,
            strict=self.strict,
        )

    def train_dataset(self) -> GazeClips:  # type: ignore[override]
        """Return the random clips of the training segments."""
        return self._dataset("train", train=True)

    def eval_dataset(self, split: Split) -> GazeClips:  # type: ignore[override]
        """Return the fixed clips of the validation or test segments."""
        return self._dataset(split, train=False)

    def train_dataloader(self) -> Any:
        """Return the training loader."""
        dataset = self.train_dataset()
        rank, world = self._ranks()
        sampler = EpochSampler(len(dataset), seed=self.seed, rank=rank, world_size=world)
        drop = len(sampler) >= self.batch_size
        return self._loader(
            dataset, sampler=sampler, batch_size=self.batch_size, collate_fn=collate_gaze, drop_last=drop
        )

    def _eval_loader(self, split: Split) -> Any:
        dataset = self.eval_dataset(split)
        rank, world = self._ranks()
        sampler = ShareSampler(len(dataset), rank=rank, world_size=world)
        return self._loader(
            dataset, sampler=sampler, batch_size=self.eval_batch_size, collate_fn=collate_gaze
        )


def _duration(item: GazeVideo) -> float:
    """Return the seconds of a recording from its container, or from its frames where that does not say."""
    if isinstance(item.open_frames, OpenVideo):
        from avsal.io.video import probe

        announced = probe(item.open_frames.path).duration
        if announced is not None:
            return announced
    frames = item.open_frames()
    try:
        return float(frames.times[-1] - frames.times[0]) + 1.0 / item.protocol.fps
    finally:
        frames.close()


class Ego4DGazeDataModule(GazeDataModule):
    """Gaze in Ego4D (27 social videos): 15,310 training and 5,202 test segments.

    Original download below the root: `full_scale.gaze/<uid>.mp4` (or `full_scale/`), `gaze/<uid>.csv`, the separate
    sound of the two silent videos as `missing_audio/<uid>.wav`, and `ego4d_gaze_untracked.csv` (needed only without
    lists). Or the authors' pre-processed `clips.gaze/`, `gaze_frame_label/`, `clips.audio_24kHz/` and
    `clips.audio_24kHz_stft/`. Get it: https://ego4d-data.org/docs/data/gaze/ (licence agreement).
    """

    name = "ego4d"
    protocol = EGO4D
    set_name = "Ego4D"
    list_names: ClassVar[dict[str, str]] = {"train": "train_ego4d_gaze.csv", "test": "test_ego4d_gaze.csv"}
    clip_folders = ("clips.gaze",)
    stride = 5

    def recording(self, video: str) -> GazeVideo | None:
        """Return the full-scale video of that uid with its raw gaze."""
        root = self.require_root()
        folders = (root / name for name in ("full_scale.gaze", "full_scale", "videos"))
        path = next((p for p in (f / f"{video}.mp4" for f in folders) if p.is_file()), None)
        if path is None:
            return None
        gaze = root / "gaze" / f"{video}.csv"
        wave = root / "missing_audio" / f"{video}.wav"
        return GazeVideo(
            f"{self.set_name}/{video}", None, None, OpenVideo(path), audio=wave if wave.is_file() else path,
            gaze_file=gaze if gaze.is_file() else None, gaze_kind="ego4d", protocol=EGO4D,
        )  # fmt: skip

    def label_file(self, folder: Path, video: str) -> Path:
        """Return `<uid>_frame_label.csv`."""
        return folder / f"{video}_frame_label.csv"

    def recordings(self) -> list[str]:
        """Return the uids that have a gaze file."""
        return [p.stem for p in (self.require_root() / "gaze").glob("*.csv") if p.stem != "manifest"]

    def untracked(self) -> dict[str, list[tuple[int, int]]]:
        """Return the intervals of `ego4d_gaze_untracked.csv`."""
        path = (self.lists or self.require_root()) / "ego4d_gaze_untracked.csv"
        return read_untracked(path) if path.is_file() else {}


class AriaGazeDataModule(GazeDataModule):
    """Gaze of Aria Everyday Activities (143 recordings): 10,456 training and 2,901 test segments.

    Original download below the root: `<recording>/recording.vrs` with `mps/eye_gaze/general_eye_gaze.csv` (else
    `personalized_…`; or the file beside the recording); needs the extra `aria`. Or the authors' pre-processed `clips/`,
    `gaze_frame_label/`, `clips.audio_24kHz(_stft)/`. The published lists use the pilot's names: `names` (or
    `aria_video_ids_matching.xlsx` beside the lists) matches them to the current ones.
    Get it: https://www.projectaria.com/datasets/aea/ (licence agreement).

    Args:
        root: folder of the data set.
        names: the authors' sheet of old and new names, or a CSV file of two columns.
        options: see `GazeDataModule`.
    """

    name = "aria"
    protocol = ARIA
    set_name = "Aria"
    list_names: ClassVar[dict[str, str]] = {"train": "train_aria_gaze.csv", "test": "test_aria_gaze.csv"}
    clip_folders = ("clips",)
    stride = 2

    def __init__(
        self, root: str | Path | None = None, *, names: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(root, **options)
        self.names = Path(names).expanduser() if names is not None else None

    @cached_property
    def _other_names(self) -> dict[str, str]:
        path = self.names or (self.lists or self.require_root()) / "aria_video_ids_matching.xlsx"
        if self.names is None and not path.is_file():
            return {}
        return read_names(path)

    def recording(self, video: str) -> GazeVideo | None:
        """Return the recording of that name, old or new, with its directions of gaze."""
        root = self.require_root()
        for name in (video, self._other_names.get(video)):
            if name and (folder := root / name).is_dir() and (vrs := _vrs(folder)) is not None:
                return GazeVideo(
                    f"{self.set_name}/{video}", None, None, OpenVrs(vrs), gaze_file=_mps_gaze(folder),
                    gaze_kind="mps", protocol=ARIA,
                )  # fmt: skip
        return None

    def label_file(self, folder: Path, video: str) -> Path:
        """Return `<recording>.csv`."""
        path = folder / f"{video}.csv"
        return path if path.is_file() else folder / f"{video}_frame_label.csv"

    def recordings(self) -> list[str]:
        """Return the folders that hold a VRS file."""
        return [p.name for p in self.require_root().iterdir() if p.is_dir() and _vrs(p) is not None]


def _vrs(folder: Path) -> Path | None:
    found = folder / "recording.vrs"
    return found if found.is_file() else next(iter(sorted(folder.glob("*.vrs"))), None)


def _mps_gaze(folder: Path) -> Path | None:
    names = ("general_eye_gaze.csv", "personalized_eye_gaze.csv", "generalized_eye_gaze.csv", "eyegaze.csv")
    for place in (folder / "mps" / "eye_gaze", folder / "eye_gaze", folder):
        for name in names:
            if (place / name).is_file():
                return place / name
    return None
