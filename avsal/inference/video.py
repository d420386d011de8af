"""Whole-video prediction: sliding windows over a stream of frames, in constant memory.

Each frame is decoded once and resized once; which frames make a window is decided in `avsal.data.windows`.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from avsal.data.frames import FramePreprocessor
from avsal.data.windows import Window, WindowPlanner, reach
from avsal.errors import ConfigError, WeightsError
from avsal.io.audio import AudioStream
from avsal.io.limits import check
from avsal.io.video import DecodeReport, Frame, MediaInfo, VideoStream
from avsal.types import Coverage, SaliencyOutput

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
    """A decoded frame: the network's input, and the picture where it is asked for."""

    index: int
    time: float
    pixels: Tensor
    image: np.ndarray | None


@dataclass(slots=True)
class _Clip:
    """A window and its frames."""

    window: Window
    target: _Kept
    frames: list[_Kept]


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
        begin: int = 0,
        keep_images: bool = False,
        keep_aux: bool = False,
    ) -> None:
        from avsal.models.base import WindowRunner

        if batch_size < 1 or stride < 1:
            raise ConfigError(f"batch_size={batch_size} and stride={stride} are at least 1.")
        if begin < 0:
            raise ConfigError(f"begin={begin}: frames are counted from 0.")
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
        self._ring: deque[_Kept] = deque()
        try:
            self._planner = WindowPlanner(self.spec, self.fps, coverage, stride, begin)
            network = self._network = _still(module.network)
            plain = not (reuse or network.follows_film)
            self._runner = WindowRunner(network) if plain else network.window_runner()
            self._bound_batch()
        except BaseException:
            self._stream.close()
            raise
        self._results = self._run()

    def _bound_batch(self) -> None:
        """Open the sound, and take fewer windows at once where their sound or pictures would fill the memory."""
        # Frames that arrive between a frame and its window's turn.
        late = max(reach(self.spec, self.fps)[1], math.ceil(self._runner.delay * self.fps))
        if self.keep_images:
            held = _IMAGE_BYTES // (3 * self.info.width * self.info.height) - late
            self.batch_size = max(1, min(self.batch_size, held))
        if self.spec.audio is None:
            return
        self._sound = AudioStream(self.path, rate=self.spec.audio.sample_rate)
        step = self.spec.step if self.spec.step_unit == "seconds" else self.spec.step / self.fps
        begin, end = self.spec.audio.samples(0.0, (self.spec.frames - 1) * step, self.fps, self._sound.rate)
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
            f"{self._planner.capacity} frames."
        )
        found = (self.report.message, self.audio_message, dense if self._planner.shortened else None)
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
        pending: list[_Clip] = []
        try:
            with self._stream:
                for clip in self._clips():
                    pending.append(clip)
                    if len(pending) == self.batch_size:
                        yield from self._predict(pending)
                        pending = []
                if pending:
                    yield from self._predict(pending)
        finally:
            if self._sound is not None:
                self._sound.close()

    def _clips(self) -> Iterator[_Clip]:
        runner, planner, ring = self._runner, self._planner, self._ring
        waiting: deque[_Clip] = deque()

        def take(windows: list[Window]) -> None:
            first = ring[0].index
            waiting.extend(
                _Clip(window, ring[window.target - first], [ring[i - first] for i in window.frames])
                for window in windows
            )
            while ring[0].index < planner.first:
                ring.popleft()

        runner.begin(self._sound)
        for frame in self._stream:
            runner.watch(frame.index, frame.time, frame.image)
            ring.append(self._kept(frame))
            if planner.capacity is None:
                window = math.ceil(
                    self.spec.frames * (self.spec.step if self.spec.step_unit == "frames" else 1)
                )
                planner.capacity = max(window + 1, _RING_BYTES // ring[0].pixels.nbytes)
            take(planner.push(frame.time))
            while waiting and frame.time >= waiting[0].target.time + runner.delay:
                yield waiting.popleft()
            while len(waiting) > planner.capacity:
                planner.shortened = True
                yield waiting.popleft()
        runner.end()
        take(planner.finish())
        yield from waiting

    def _kept(self, frame: Frame) -> _Kept:
        pixels = self._preprocess(frame.image[None])[:, 0]
        wanted = self.keep_images and (frame.index - self._planner.start) % self.stride == 0
        return _Kept(frame.index, frame.time, pixels, frame.image if wanted else None)

    def _predict(self, clips: list[_Clip]) -> Iterator[FrameMap]:
        device, dtype = self.module.device, _number_type(self._network)
        # Every distinct frame travels to the device once; windows are gathered there.
        distinct = {kept.index: kept for clip in clips for kept in clip.frames}
        order = {index: place for place, index in enumerate(sorted(distinct))}
        pixels = torch.stack([distinct[index].pixels for index in order], dim=1).to(device, dtype)
        frame_ids = torch.tensor([[kept.index for kept in clip.frames] for clip in clips])
        places = torch.tensor([[order[kept.index] for kept in clip.frames] for clip in clips])
        video = pixels[:, places.to(device)].transpose(0, 1)
        with torch.inference_mode():
            sound = self._audio_input(clips, video)
            if sound is not None and dtype != torch.float32:  # what front ends return
                sound = sound.to(dtype)
            output = self._runner(video, frame_ids, sound)
            maps = output.saliency().float().cpu()
        # An infinite logit may hide behind the activation.
        finite = torch.isfinite(output.logits).flatten(1).all(1).cpu() & torch.isfinite(maps).flatten(1).all(
            1
        )
        if not finite.all():
            first = clips[int((~finite).nonzero()[0])].target
            raise WeightsError(
                f"{self.path}: the network's map of frame {first.index} ({first.time:.2f} s) holds NaN or infinite "
                f"values. Its weights are damaged, or {str(dtype).removeprefix('torch.')} is too narrow for it; load "
                "it again, in float32."
            )
        yield from self._results_of(clips, maps, output)

    def _results_of(self, clips: list[_Clip], maps: Tensor, output: SaliencyOutput) -> Iterator[FrameMap]:
        future = self.spec.target if isinstance(self.spec.target, tuple) else ()
        for i, target in enumerate(clip.target for clip in clips):
            image, target.image = target.image, None  # the ring keeps the frame, but needs no picture
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

    def _audio_input(self, clips: list[_Clip], video: Tensor) -> Tensor | None:
        if self._sound is None or self.spec.audio is None:
            return self._network.audio_input(video)
        waves, times = [], []
        for window in (clip.window for clip in clips):
            wave, begin = window.sound(self._sound, self.spec.audio, self.fps)
            waves.append(wave)
            times.append(torch.from_numpy(window.times - begin))
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        if padded.shape[1] == 0:
            padded = padded.new_zeros((len(waves), 1))
        device = video.device
        return self._network.audio_input(
            video,
            padded.to(device),
            torch.tensor([len(wave) for wave in waves], device=device),
            torch.full((len(waves),), self._sound.has_audio, device=device),
            torch.stack(times).to(device),
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
    begin: int = 0,
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
        stride: predict for every `stride`-th frame only.
        begin: index of the first frame to predict for; those before it are decoded, and windows reach back to them.
        keep_images: also return each frame as decoded.
        keep_aux: also return the network's named extras.

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
        begin=begin,
        keep_images=keep_images,
        keep_aux=keep_aux,
    )
