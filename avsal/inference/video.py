"""Whole-video prediction: sliding windows over a stream of frames, in constant memory.

Each frame is decoded once and resized once. A window's frames are taken by index where the video's clock
is steady and by time where it is not, so that a map always belongs to the time of its own frame.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from avsal.data.frames import FramePreprocessor
from avsal.errors import ConfigError, WeightsError
from avsal.io.audio import AudioStream
from avsal.io.limits import check
from avsal.io.video import DecodeReport, Frame, MediaInfo, VideoStream
from avsal.types import ClipSpec, Coverage, SaliencyOutput

if TYPE_CHECKING:
    import numpy as np

    from avsal.models.base import SaliencyModule, SaliencyNetwork


# What the ring of frames and the pictures that wait for their maps may take, and the sound of one batch in samples.
_RING_BYTES, _IMAGE_BYTES, _BATCH_SAMPLES = 2**30, 2**29, 2**24


@dataclass(slots=True)
class FrameMap:
    """The result for one frame of a video.

    Attributes:
        index: 0-based index of the frame in the video.
        time: its time in seconds on the container's clock.
        map: (h, w) float32 on the CPU, the network's activated map; (T_out, h, w) for anticipation.
        target_times: seconds on the container's clock that each map of an anticipation network is for.
        image: the decoded frame, (H, W, 3) uint8 RGB, if it was asked for.
        aux: named extras of the network for this frame, if they were asked for.
    """

    index: int
    time: float
    map: Tensor
    target_times: tuple[float, ...] = ()
    image: np.ndarray | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Kept:
    """A frame in the ring: what the network sees of it, and the original where it is asked for."""

    index: int
    time: float
    pixels: Tensor
    image: np.ndarray | None


@dataclass(slots=True)
class _Window:
    target: _Kept
    frames: list[_Kept]
    times: list[float]  # nominal times of the slots, in the window's own order
    reverse: bool = False
    clip_audio: bool = False


class _Windows:
    """Plans the windows of a video whose frames arrive one by one."""

    def __init__(self, spec: ClipSpec, fps: float, coverage: Coverage, stride: int) -> None:
        self.spec, self.fps, self.stride = spec, fps, stride
        rule = spec.authors_coverage if coverage == "authors" else "clamp"
        self.rule = rule
        # Slots before and after the target, and the distance of neighbouring slots in seconds.
        self.before = spec.target_index
        self.after = spec.frames - 1 - self.before
        self.step_seconds = spec.step if spec.step_unit == "seconds" else spec.step / fps
        self.ring: deque[_Kept] = deque()
        self.capacity = 0  # frames that the ring may hold
        self.shortened = False  # whether it had to let go of frames that windows would have reached
        self.next = 0
        if rule == "cyclic":
            self.next = self.before
        if rule != "clamp" and (spec.step != 1 or spec.step_unit != "frames" or stride != 1):
            raise ConfigError(
                "coverage='authors' scores every frame with neighbouring frames: stride and step are 1."
            )

    def push(self, frame: _Kept) -> Iterator[_Window]:
        self.ring.append(frame)
        if not self.capacity:
            needed = (
                math.ceil(self.spec.frames * (self.spec.step if self.spec.step_unit == "frames" else 1)) + 1
            )
            self.capacity = max(needed, _RING_BYTES // frame.pixels.nbytes)
        yield from self._ready(ended=False)

    def finish(self) -> Iterator[_Window]:
        if self.ring:
            yield from self._ready(ended=True)

    def _ready(self, *, ended: bool) -> Iterator[_Window]:
        while True:
            last = self.ring[-1]
            if self.next > last.index or not (ended or self._looked_ahead(last)):
                return
            if self.rule == "reversed" and last.index + 1 < self.spec.authors_shortest:
                return
            yield self._window(self.next)
            self.next += self.stride
            self._evict()

    def _looked_ahead(self, last: _Kept) -> bool:
        if self.rule == "cyclic":
            return last.index >= self.next - self.before + self.spec.frames - 1
        if self.rule == "reversed":
            return last.index >= (
                self.next + self.spec.frames - 1 if self._reversed(self.next) else self.next
            )
        if (
            len(self.ring) > self.capacity
        ):  # times so dense, or a rate so wrong, that a window holds thousands
            self.shortened = True
            return True
        steady = self.spec.step_unit == "seconds" or last.index >= self.next + self.after * self.spec.step
        return steady and last.time >= self._at(self.next).time + self.after * self.step_seconds - 1e-6

    def _reversed(self, target: int) -> bool:
        return self.rule == "reversed" and target < self.spec.frames - 1

    def _at(self, index: int) -> _Kept:
        first = self.ring[0].index
        return self.ring[min(max(index - first, 0), len(self.ring) - 1)]

    def _window(self, index: int) -> _Window:
        target, length = self._at(index), self.spec.frames
        if self.rule == "cyclic":
            start = index - self.before
            present = min(length, self.ring[-1].index - start + 1)
            frames = [self._at(start + i % present) for i in range(length)]
            return _Window(target, frames, [frame.time for frame in frames], clip_audio=True)
        if self._reversed(index):
            frames = [self._at(index + length - 1 - i) for i in range(length)]
            times = [target.time + (length - 1 - i) / self.fps for i in range(length)]
            return _Window(target, frames, times, reverse=True, clip_audio=True)
        offsets = range(-self.before, self.after + 1)
        times = [target.time + offset * self.step_seconds for offset in offsets]
        if self.spec.step_unit == "frames":
            frames = [self._at(index + round(offset * self.spec.step)) for offset in offsets]
            if self._steady(target, frames, times, index, offsets):
                return _Window(target, frames, times, clip_audio=self.rule == "reversed")
        ring_times = [kept.time for kept in self.ring]
        return _Window(target, [self.ring[_nearest(ring_times, t)] for t in times], times)

    def _steady(
        self, target: _Kept, frames: list[_Kept], times: list[float], index: int, offsets: range
    ) -> bool:
        """Say whether the frames picked by index lie within half a frame of their nominal times."""
        for frame, time, offset in zip(frames, times, offsets, strict=True):
            clamped = frame.index != index + round(offset * self.spec.step)
            # A container's average rate may be a little off: allow 5 % drift per slot.
            if not clamped and abs(frame.time - time) * self.fps > 0.5 + 0.05 * abs(offset):
                return False
        return True

    def _evict(self) -> None:
        if self.rule == "cyclic":
            keep_index, keep_time = self.next - self.before, float("inf")
        elif self.rule == "reversed":
            keep_index, keep_time = self.next - self.spec.frames + 1, float("inf")
        else:
            reach = self.before * self.step_seconds + 2.0 / self.fps
            keep_time = self._at(self.next).time - reach
            steps = self.before * self.spec.step if self.spec.step_unit == "frames" else 0
            keep_index = self.next - int(steps)
        while len(self.ring) > 1 and self.ring[0].index < keep_index and self.ring[0].time < keep_time:
            self.ring.popleft()
        while len(self.ring) > self.capacity and self.ring[0].index < self.next:
            self.ring.popleft()


def _nearest(times: list[float], time: float) -> int:
    after = bisect_left(times, time)
    if after == 0:
        return 0
    if after == len(times):
        return after - 1
    return after if times[after] - time < time - times[after - 1] else after - 1


class VideoPrediction(Iterator[FrameMap]):
    """The maps of one video, produced while it is read; see `predict_video`.

    Attributes:
        info: what the container says about the file.
        report: what was decoded so far, and what was lost (truncated or corrupt frames).
        has_audio: whether a sound track is read (False for visual-only networks).
    """

    def __init__(
        self,
        module: SaliencyModule,
        path: str | Path,
        *,
        batch_size: int = 8,
        coverage: Coverage = "full",
        reuse: bool = True,
        stride: int = 1,
        keep_images: bool = False,
        keep_aux: bool = False,
    ) -> None:
        if batch_size < 1 or stride < 1:
            raise ConfigError(f"batch_size={batch_size} and stride={stride} are at least 1.")
        if coverage not in ("full", "authors"):
            raise ConfigError(f"coverage={coverage!r} is not known; allowed: full, authors.")
        self.module, self.path = module, Path(path)
        self.spec = module.spec
        self.batch_size, self.stride = batch_size, stride
        self.keep_images, self.keep_aux = keep_images, keep_aux
        self._stream = VideoStream(self.path)
        self.info: MediaInfo = self._stream.info
        self.fps = self.info.fps
        self._sound: AudioStream | None = None
        self._preprocess = FramePreprocessor(self.spec)
        self._windows = _Windows(self.spec, self.fps, coverage, stride)
        try:
            self._bound_batch()
        except BaseException:
            self._stream.close()
            raise
        self._reuse = reuse or module.network.follows_film
        self._results = self._run()

    def _bound_batch(self) -> None:
        """Open the sound, and take fewer windows at once where their sound or pictures would fill the memory."""
        if self.keep_images:
            ahead = round(self._windows.after * self.spec.step) if self.spec.step_unit == "frames" else 0
            held = _IMAGE_BYTES // (3 * self.info.width * self.info.height) - ahead
            self.batch_size = max(1, min(self.batch_size, held))
        if self.spec.audio is None:
            return
        self._sound = AudioStream(self.path, rate=self.spec.audio.sample_rate)
        last = (self.spec.frames - 1) * self._windows.step_seconds
        begin, end = self.spec.audio.samples(0.0, last, self.fps, self._sound.rate)
        what = (
            f"{self.path}: at {self.fps:g} frames per second one clip spans {end - begin:,} samples of sound"
        )
        check("AVSAL_MAX_CLIP_SAMPLES", end - begin, what)
        self.batch_size = max(1, min(self.batch_size, _BATCH_SAMPLES // max(end - begin, 1)))

    @property
    def notes(self) -> list[str]:
        """What was lost or repaired so far, in sentences."""
        dense = (
            f"{self.path}: its frames lie so close for {self.fps:g} frames per second that windows were shortened to "
            f"{self._windows.capacity} frames."
        )
        found = (self.report.message, self.audio_message, dense if self._windows.shortened else None)
        return [note for note in found if note]

    @property
    def report(self) -> DecodeReport:
        """What was decoded so far."""
        return self._stream.report

    @property
    def has_audio(self) -> bool:
        """Whether the file's sound reaches the network."""
        return self._sound is not None and self._sound.has_audio

    @property
    def audio_message(self) -> str | None:
        """What went wrong with the sound, None if nothing did."""
        return self._sound.message if self._sound is not None else None

    def __next__(self) -> FrameMap:
        return next(self._results)

    def close(self) -> None:
        """Stop reading; further iteration ends."""
        self._results.close()

    def _run(self) -> Generator[FrameMap]:
        from avsal.models.base import WindowRunner

        network = self._network = _still(self.module.network)
        self._runner = network.window_runner() if self._reuse else WindowRunner(network)
        pending: list[_Window] = []
        try:
            with self._stream:
                for window in self._planned():
                    pending.append(window)
                    if len(pending) == self.batch_size:
                        yield from self._predict(pending)
                        pending = []
                if pending:
                    yield from self._predict(pending)
        finally:
            if self._sound is not None:
                self._sound.close()

    def _planned(self) -> Iterator[_Window]:
        runner = self._runner
        waiting: deque[_Window] = deque()
        runner.begin(self._sound)
        for frame in self._stream:
            runner.watch(frame.index, frame.time, frame.image)
            waiting.extend(self._windows.push(self._kept(frame)))
            while waiting and frame.time >= waiting[0].target.time + runner.delay:
                yield waiting.popleft()
        runner.end()
        waiting.extend(self._windows.finish())
        yield from waiting

    def _kept(self, frame: Frame) -> _Kept:
        pixels = self._preprocess(frame.image[None])[:, 0]
        wanted = self.keep_images and frame.index % self.stride == 0
        return _Kept(frame.index, frame.time, pixels, frame.image if wanted else None)

    def _predict(self, windows: list[_Window]) -> Iterator[FrameMap]:
        device, dtype = self.module.device, _number_type(self._network)
        # Every distinct frame travels to the device once; windows are gathered there.
        distinct = {kept.index: kept for window in windows for kept in window.frames}
        order = {index: place for place, index in enumerate(sorted(distinct))}
        pixels = torch.stack([distinct[index].pixels for index in order], dim=1).to(device, dtype)
        frame_ids = torch.tensor([[kept.index for kept in window.frames] for window in windows])
        places = torch.tensor([[order[kept.index] for kept in window.frames] for window in windows])
        video = pixels[:, places.to(device)].transpose(0, 1)
        with torch.inference_mode():
            sound = self._audio_input(windows, video)
            if sound is not None and dtype != torch.float32:  # what front ends return
                sound = sound.to(dtype)
            output = self._runner(video, frame_ids, sound)
            maps = output.saliency().float().cpu()
        # An infinite logit may hide behind the activation.
        finite = torch.isfinite(output.logits).flatten(1).all(1).cpu() & torch.isfinite(maps).flatten(1).all(
            1
        )
        if not finite.all():
            first = windows[int((~finite).nonzero()[0])].target
            raise WeightsError(
                f"{self.path}: the network's map of frame {first.index} ({first.time:.2f} s) holds NaN or infinite "
                f"values. Its weights are damaged, or {str(dtype).removeprefix('torch.')} is too narrow for it; load "
                "it again, in float32."
            )
        yield from self._results_of(windows, maps, output)

    def _results_of(self, windows: list[_Window], maps: Tensor, output: SaliencyOutput) -> Iterator[FrameMap]:
        future = self.spec.target if isinstance(self.spec.target, tuple) else ()
        for i, window in enumerate(windows):
            target = window.target
            image, target.image = (
                target.image,
                None,
            )  # the ring keeps the frame, but its picture has done its work
            yield FrameMap(
                target.index,
                target.time,
                maps[i] if maps.shape[1] > 1 else maps[i, 0],
                tuple(target.time + seconds for seconds in future),
                image,
                {
                    name: value[i].cpu()
                    for name, value in output.aux.items()
                    if value.ndim and len(value) == len(maps)
                }
                if self.keep_aux
                else {},
            )

    def _audio_input(self, windows: list[_Window], video: Tensor) -> Tensor | None:
        if self._sound is None or self.spec.audio is None:
            return self._network.audio_input(video)
        rate = self._sound.rate
        waves, begins = [], []
        for window in windows:
            first, last = min(window.times), max(window.times)
            begin, end = self.spec.audio.samples(first, last, self.fps, rate)
            if window.clip_audio:
                begin, end = max(begin, 0), min(end, self._sound.length)
            wave = self._sound.read(begin, max(end, begin))
            waves.append(wave.flip(0) if window.reverse else wave)
            begins.append(begin / rate)
        lengths = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        if padded.shape[1] == 0:
            padded = padded.new_zeros((len(waves), 1))
        times = torch.tensor([w.times for w in windows], dtype=torch.float64)
        has_audio = torch.full((len(waves),), self._sound.has_audio)
        device = video.device
        return self._network.audio_input(
            video,
            padded.to(device),
            lengths.to(device),
            has_audio.to(device),
            (times - torch.tensor(begins, dtype=torch.float64)[:, None]).to(device),
        )


def _still(network: SaliencyNetwork) -> SaliencyNetwork:
    """Return the network for inference: itself, or in training mode a twin in eval mode.

    The twin shares the parameters and has buffers of its own. The network itself is left as it is: whoever trains it,
    or predicts with it at the same time, sees nothing of this prediction.
    """
    if not any(part.training for part in network.modules()):
        return network
    return copy.deepcopy(network, {id(value): value for value in network.parameters()}).eval()


def _number_type(network: SaliencyNetwork) -> torch.dtype:
    """Return the type of a network's floating-point weights."""
    sizes: Counter[torch.dtype] = Counter({torch.float32: 0})
    for value in network.parameters():
        if value.is_floating_point():
            sizes[value.dtype] += value.numel()
    return sizes.most_common(1)[0][0]


def predict_video(
    module: SaliencyModule,
    path: str | Path,
    *,
    batch_size: int = 8,
    coverage: Coverage = "full",
    reuse: bool = True,
    stride: int = 1,
    keep_images: bool = False,
    keep_aux: bool = False,
) -> VideoPrediction:
    """Return an iterator over the maps of a video; memory does not grow with its length.

    Args:
        module: any model of the zoo, in any mode, on any device, of any floating-point type. It is not changed: in
            training mode a twin in eval mode predicts, which shares its parameters. So several iterators may run at
            once, in one thread or in several; do not train the module, move it or change its mode meanwhile.
        path: any file that FFmpeg can open; without a sound track the paper's rule for missing sound holds.
        batch_size: windows that go through the network at once.
        coverage: "full" gives every decoded frame exactly one map: windows are clamped at both ends and
            sound outside the file is silence. "authors" gives exactly the frames and the padding that the
            paper's authors scored (STAViS leaves the first 8 frames out and repeats the last clips
            cyclically; MSPI and AVRSP serve the first frames with windows reversed in time, and skip a video of
            fewer than twice the clip's frames less one).
        reuse: take the exact reuse of work between windows where the network offers it.
        stride: predict for every `stride`-th frame only ("full" coverage).
        keep_images: also hand out each frame as decoded.
        keep_aux: also hand out the network's named extras.

    Returns:
        An iterator of `FrameMap`; its `report` says what was lost of a damaged file.

    Raises:
        MediaError: the file cannot be read at all.
        ConfigError: an option is not valid.
        WeightsError: a map has NaN or infinite values (raised by the iterator).
    """
    return VideoPrediction(
        module,
        path,
        batch_size=batch_size,
        coverage=coverage,
        reuse=reuse,
        stride=stride,
        keep_images=keep_images,
        keep_aux=keep_aux,
    )
