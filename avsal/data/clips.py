"""From videos to batches: the frames, the sound and the ground truth of every clip.

Training draws one random clip from each segment of a video in every epoch, flipped at random together with its maps
and fixations. Validation and test take every frame (or every `stride`-th), one video at a time. Which frames make a
clip is decided in `avsal.data.windows`; an index is a few sums over the number of frames of each video, and nothing
is opened for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avsal.data.frames import (
    FramePreprocessor,
    crop_geometry,
    resize_fixations,
    resize_map,
    resize_map_as_frames,
    spread_fixations,
)
from avsal.data.gaze.tables import UNTRACKED
from avsal.data.gaze.targets import crop_gaze, gaze_density
from avsal.data.items import Annotation, OpenItem, OpenItems, VideoItem
from avsal.data.loading import Sample, collate, instead
from avsal.data.windows import SEGMENT, Window, nearest, reach, scored_frames, segments, window_at
from avsal.errors import AvsalError, DataError
from avsal.types import Batch, ClipSpec, Coverage

#: How often a training clip is drawn anew when its target frame has no ground truth (MSPI).
REDRAWS = 8


class Sampling:
    """How a clip of an open video becomes tensors; one for all modes."""

    def __init__(
        self,
        spec: ClipSpec,
        *,
        native: bool = False,
        negatives: bool = False,
        training: bool = False,
        empty: bool = False,
    ) -> None:
        self.spec, self.native, self.negatives, self.empty = spec, native, negatives, empty
        self.stavis = training and spec.training_targets == "stavis"
        self._preprocess = FramePreprocessor(spec)

    def pixels(self, opened: OpenItem, frames: NDArray[np.int64]) -> Tensor:
        """Return the normalised frames (3, n, H, W)."""
        order, place = np.unique(frames, return_inverse=True)
        wanted = [int(k) for k in order]
        resized = getattr(opened.frames, "resized", None)  # a pack holds frames of the network's size
        if resized is not None:
            pixels = self._preprocess.normalised(torch.from_numpy(resized(wanted)))
        else:
            pixels = self._preprocess(opened.frames.read(wanted))
        return (
            pixels
            if len(order) == len(frames) and (order == frames).all()
            else pixels[:, torch.from_numpy(place)]
        )

    def sound(self, opened: OpenItem, window: Window, fps: float) -> Sample:
        """Return the waveform of a window's span, its rate, and the frames' times in it."""
        audio = self.spec.audio
        if audio is None:
            return {}
        stream = opened.audio or _Silence(audio.sample_rate or 16000)
        wave, begin = window.sound(stream, audio, fps)
        return {
            "audio": wave,
            "audio_rate": stream.rate,
            "has_audio": stream.has_audio,
            "frame_times": torch.from_numpy(window.times - begin),
        }

    def targets(self, window: Window, times: NDArray[np.float64]) -> tuple[NDArray[np.int64], bool]:
        """Return the frames of the T_out maps, and whether all lie inside the video of frames at `times`."""
        if self.stavis:  # numbers count from 1, and Python rounds halves to even
            return np.array([round(float(np.median(window.frames + 1))) - 1]), True
        if not isinstance(self.spec.target, tuple):
            return np.array([window.target]), True
        wanted = times[window.target] + np.array(self.spec.target)
        end = times[-1] + 0.5 * (times[-1] - times[max(len(times) - 2, 0)])
        return nearest(times, wanted), bool((wanted <= end).all())

    def truth(self, opened: OpenItem, frames: NDArray[np.int64], flip: bool = False) -> Sample:
        """Return density, fixations, observers, negatives and gaze of the given frames.

        Args:
            opened: the video.
            frames: (T_out,) 0-based frames.
            flip: mirror left and right.
        """
        out: Sample = {"frame": torch.from_numpy(np.asarray(frames, dtype=np.int64))}
        if opened.gaze is not None:
            out |= self._gaze(opened, frames, flip)
            if isinstance(self.spec.target, tuple):
                # A gaze network learns one Gaussian at the wearer's gaze, not a map of fixations.
                return out | {"density": gaze_density(out["gaze"]), "labelled": out["gaze_type"] != UNTRACKED}
        if opened.annotation is None:
            return out
        annotation = opened.annotation
        size = annotation.size
        place = _Placement(size, self.spec, self.native, by_way=self.stavis)
        densities, points, observers, negatives, labelled = [], [], [], [], []
        for k in frames.tolist():
            density, fixations = place.density(annotation, k), annotation.fixations(k)
            where, who = (
                fixations if fixations is not None else (np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
            )
            listed = self.empty and getattr(annotation, "listed", lambda _: False)(k)
            labelled.append(density is not None or len(where) > 0 or listed)
            densities.append(density if density is not None else torch.zeros(place.out))
            kept, mask = place.points(torch.from_numpy(where))
            if self.stavis:
                kept = spread_fixations(torch.from_numpy(where), size, self.spec.size, self.spec.via)
                who, mask = np.full(len(kept), -1), torch.ones(len(kept), dtype=torch.bool)
            points.append(kept)
            observers.append(torch.from_numpy(who)[mask])
            if self.negatives:
                rest, _ = place.points(torch.from_numpy(opened.union))
                negatives.append(_without(rest, kept, place.out))
        stacked = torch.stack(densities)
        if flip:
            stacked = stacked.flip(-1)
            points = [mirror(p, place.out[1]) for p in points]
            negatives = [mirror(p, place.out[1]) for p in negatives]
        out |= {
            "density": stacked,
            "labelled": torch.tensor(labelled),
            "fixations": points,
            "observer": observers,
        }
        if self.negatives:
            out["negatives"] = negatives
        return out

    def _gaze(self, opened: OpenItem, frames: NDArray[np.int64], flip: bool) -> Sample:
        table = opened.gaze
        assert table is not None
        rows = table[np.clip(frames, 0, len(table) - 1)]
        if opened.annotation is not None:
            size = (opened.annotation.size[0], opened.annotation.size[1])
        else:
            size = opened.frames.read([0]).shape[1:3]
        xy = crop_gaze(torch.from_numpy(rows[:, 1:3]).float(), size, self.spec)
        if flip:
            xy[:, 0] = 1 - xy[:, 0]
        kinds = torch.from_numpy(rows[:, 3]).long()
        return {
            "gaze": xy,
            "gaze_type": torch.where(torch.from_numpy(frames >= len(table)), UNTRACKED, kinds),
        }


@dataclass(frozen=True)
class _Silence:
    """The sound of a video without any."""

    rate: int
    length: int = 2**62
    has_audio: bool = False

    def read(self, begin: int, end: int) -> Tensor:
        return torch.zeros(end - begin)


def mirror(points: Tensor, width: int) -> Tensor:
    """Return (N, 2) row and column points mirrored left to right on a grid of `width` columns."""
    return torch.stack([points[:, 0], width - 1 - points[:, 1]], 1)


class _Placement:
    """Where the annotation's grid lies on the network's: resized, and cropped where the frames are."""

    def __init__(self, size: tuple[int, int], spec: ClipSpec, native: bool, by_way: bool = False) -> None:
        self.size = size
        self.by_way = spec if by_way else None
        self.out = size if native else spec.size
        self._crop: tuple[tuple[int, int], tuple[int, int]] | None = None
        if spec.resize == "short_side_crop":
            # The map of a cropped clip covers the crop; in test it is that part of the original grid.
            resized, offset = crop_geometry(*size, spec.size)
            if native:
                scale = size[0] / resized[0], size[1] / resized[1]
                offset = (round(offset[0] * scale[0]), round(offset[1] * scale[1]))
                self.out = (
                    min(round(spec.size[0] * scale[0]), size[0] - offset[0]),
                    min(round(spec.size[1] * scale[1]), size[1] - offset[1]),
                )
                resized = size
            self._crop = (resized, offset)

    def density(self, annotation: Annotation, frame: int) -> Tensor | None:
        """Return the map of a frame on the output grid, None where there is none."""
        draw = getattr(annotation, "density_at", None)
        if draw is not None and self._crop is None:
            drawn = draw(frame, self.out)
            return None if drawn is None else torch.from_numpy(drawn)
        density = annotation.density(frame)
        if density is None:
            return None
        if density.shape != self.size:
            raise DataError(
                f"frame {frame}: a map of {density.shape[0]}x{density.shape[1]} among maps of "
                f"{self.size[0]}x{self.size[1]}."
            )
        tensor = torch.from_numpy(np.ascontiguousarray(density))
        if self.by_way is not None:
            return resize_map_as_frames(tensor, self.by_way)
        if self._crop is None:
            return resize_map(tensor, self.out)
        (height, width), (top, left) = self._crop
        return resize_map(tensor, (height, width))[
            top : top + self.out[0], left : left + self.out[1]
        ].contiguous()

    def points(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points on the output grid and which of them lie on it."""
        if self._crop is None:
            return resize_fixations(points, self.size, self.out), torch.ones(len(points), dtype=torch.bool)
        resized, offset = self._crop
        moved = resize_fixations(points, self.size, resized) - torch.tensor(offset)
        inside = ((moved >= 0) & (moved < torch.tensor(self.out))).all(-1)
        return moved[inside], inside


def _without(union: Tensor, current: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the distinct pixels of `union` that are not among `current`, as the authors' shuffled map."""
    flat = torch.unique(union[:, 0] * size[1] + union[:, 1])
    flat = flat[~torch.isin(flat, current[:, 0] * size[1] + current[:, 1])]
    return torch.stack([flat // size[1], flat % size[1]], 1)


class TrainingClips(Dataset[Sample]):
    """Random clips of a list of videos, one for each segment and epoch.

    An item is addressed by (epoch, index), which `EpochSampler` yields; the clip follows from the seed, the epoch
    and the index alone, whatever the number of workers. An item is a sample for `collate`.

    Args:
        items: the videos, with known numbers of frames and rates.
        spec: the network's clip.
        seed: seed of all draws.
        segment: frames of a segment; None takes one clip from each video and epoch (MSPI).
        flip: probability of mirroring left to right.
        keep_open: videos that a worker keeps open.
        first_id: `video_id` of the first item.
        strict: raise for a video that cannot be read; otherwise another clip takes its place, and the sample
            says so under `skipped`.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        spec: ClipSpec,
        *,
        seed: int = 0,
        segment: int | None = SEGMENT,
        flip: float = 0.5,
        keep_open: int = 16,
        first_id: int = 0,
        strict: bool = False,
    ) -> None:
        self.strict = strict
        if spec.resize == "keep_aspect":  # the clips of a batch have one size
            spec = replace(spec, resize="stretch")
        self.items, self.spec, self.seed, self.flip, self.first_id = list(items), spec, seed, flip, first_id
        self.segment = segment
        self._sampling = Sampling(spec, training=True)
        numbers = [len(self._segments(item)) for item in self.items]
        self._ends = np.cumsum(numbers, dtype=np.int64)
        self._open = OpenItems(self.items, keep=keep_open, rate=_rate(spec), sound=spec.audio is not None)

    def _segments(self, item: VideoItem) -> list[tuple[int, int]]:
        assert item.frames is not None
        assert item.fps is not None
        before, _, ahead = reach(self.spec, item.fps)
        return segments(item.frames, before + ahead + 1, self.segment, short=self._sampling.stavis)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return instead(lambda k: self._clip(epoch, k), index, len(self), self.strict)

    def _clip(self, epoch: int, index: int) -> Sample:
        which = int(np.searchsorted(self._ends, index, side="right"))
        item = self.items[which]
        number = index - (int(self._ends[which - 1]) if which else 0)
        opened = self._open[which]
        begin, end = self._segments(item)[number]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch, index))))
        flip = bool(random.random() < self.flip)
        with named(item.name):
            return self._sample(opened, which, begin, min(end, opened.count), random, flip)

    def _sample(
        self, opened: OpenItem, which: int, begin: int, end: int, random: np.random.Generator, flip: bool
    ) -> Sample:
        spec, fps, count = self.spec, opened.frames.fps, opened.count
        times = opened.frames.times[:count]
        before, _, ahead = reach(spec, fps)
        # STAViS's loader never draws a segment's last position, and repeats the frames of a segment that is too short.
        stavis = self._sampling.stavis
        low, high = begin + before, max(end - ahead - (1 if stavis else 0), begin + before + 1)
        window, truth = None, {}
        for _ in range(REDRAWS):
            target = int(random.integers(low, high))
            if stavis:
                window = window_at(spec, min(target, count - 1 + before), times[:end], fps, "authors")
            else:
                window = window_at(spec, min(target, count - 1), times, fps)
            # Loaders that cut the sound at the file's ends in test do so in training.
            window = replace(window, clip_sound=spec.authors_coverage != "clamp")
            frames, inside = self._sampling.targets(window, times)
            truth = self._sampling.truth(opened, frames, flip)
            if inside and (_any(truth.get("labelled")) or "labelled" not in truth):
                break
        assert window is not None
        video = self._sampling.pixels(opened, window.frames)
        return {
            "video": video.flip(-1) if flip else video,
            **self._sampling.sound(opened, window, fps),
            **truth,
            "video_id": self.first_id + which,
            "video_name": opened.item.name,
        }


def _any(labelled: Tensor | None) -> bool:
    return labelled is not None and bool(labelled.any())


def _rate(spec: ClipSpec) -> int | None:
    return spec.audio.sample_rate if spec.audio is not None else None


class named:
    """Put a video's name in front of the errors raised inside."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, AvsalError):
            raise DataError(f"{self.name}: {error}") from error


class VideoBatches(Dataset[Batch]):
    """Consecutive windows of one video, already a batch; for validation and test.

    Frames that several windows share are decoded and resized once.

    Args:
        items: the videos.
        spec: the network's clip.
        batch_size: windows at once.
        stride: distance of the scored frames.
        coverage: see `avsal.inference.video.predict_video`.
        native: maps of the annotation's own size (test) instead of the network's (validation).
        negatives: also give the negatives of shuffled AUC.
        keep_open: videos that a worker keeps open.
        first_id: `video_id` of the first item.
        strict: raise for a video that cannot be read; otherwise another batch, which metrics then see twice and
            count once, takes its place, and says so under `skipped`.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        spec: ClipSpec,
        *,
        batch_size: int = 16,
        stride: int = 1,
        coverage: Coverage = "full",
        native: bool = True,
        negatives: bool = True,
        keep_open: int = 2,
        first_id: int = 0,
        strict: bool = False,
    ) -> None:
        self.strict = strict
        self.items, self.spec, self.batch_size, self.stride = list(items), spec, batch_size, stride
        self.coverage, self.first_id = coverage, first_id
        numbers = [-(-len(self._scored(item)) // batch_size) for item in self.items]
        self._ends = np.cumsum(numbers, dtype=np.int64)
        self._open = OpenItems(self.items, keep=keep_open, rate=_rate(spec), sound=spec.audio is not None)
        # The authors' averages count a frame with an empty map, where a metric has a value for it.
        self._sampling = Sampling(spec, native=native, negatives=negatives, empty=coverage == "authors")

    def _scored(self, item: VideoItem) -> range:
        assert item.frames is not None
        return scored_frames(self.spec, item.frames, self.coverage, self.stride)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Batch:
        return instead(self._chunk, index, len(self), self.strict)

    def _chunk(self, index: int) -> Batch:
        which = int(np.searchsorted(self._ends, index, side="right"))
        item, opened = self.items[which], self._open[which]
        number = index - (int(self._ends[which - 1]) if which else 0)
        with named(item.name):
            count = opened.count
            targets = self._scored(item)[number * self.batch_size : (number + 1) * self.batch_size]
            # A file that is shorter than its list says: the last frame stands in, and is not labelled.
            return self._batch(
                opened, which, [min(t, count - 1) for t in targets], [t < count for t in targets]
            )

    def _batch(self, opened: OpenItem, which: int, targets: list[int], present: list[bool]) -> Batch:
        fps, times = opened.frames.fps, opened.frames.times[: opened.count]
        windows = [window_at(self.spec, t, times, fps, self.coverage) for t in targets]
        order, place = np.unique(np.concatenate([w.frames for w in windows]), return_inverse=True)
        pixels = self._sampling.pixels(opened, order)
        samples = []
        for k, window in enumerate(windows):
            frames, inside = self._sampling.targets(window, times)
            truth = self._sampling.truth(opened, frames)
            if "labelled" in truth and not (present[k] and inside):
                truth["labelled"] = torch.zeros_like(truth["labelled"])
            span = slice(k * self.spec.frames, (k + 1) * self.spec.frames)
            samples.append({
                "video": pixels[:, torch.from_numpy(place.reshape(-1)[span])],
                **self._sampling.sound(opened, window, fps),
                **truth,
                "video_id": self.first_id + which,
                "video_name": opened.item.name,
            })  # fmt: skip
        return collate(samples)
