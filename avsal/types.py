"""What the rooms hand each other: clip specifications, batches and network outputs.

The data side is built from a network's `ClipSpec`, so nobody writes the number of frames twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict

from avsal.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Activation = Literal["sigmoid", "softmax"]
Coverage = Literal["full", "authors"]


@dataclass(frozen=True)
class AudioSpec:
    """The sound that belongs to a clip.

    Attributes:
        sample_rate: Hz of the waveform in the batch; None keeps the file's own rate.
        before: how far the span reaches before the first frame's time, in `unit`.
        after: how far the span reaches past the last frame's time, in `unit`.
        seconds: if given, the span is this long instead and centred on the middle of the clip.
        window: the window function that the network's frontend applies, for information.
        unit: "frames" counts frame durations (1 / fps of the video), "seconds" is independent of the rate.

    A frame k of a video at constant rate has the time k / fps. Sound outside the file is silence.
    """

    sample_rate: int | None
    before: float = 0.0
    after: float = 1.0
    seconds: float | None = None
    window: Literal["hann", "none"] = "none"
    unit: Literal["frames", "seconds"] = "frames"

    def span(self, first: float, last: float, fps: float) -> tuple[float, float]:
        """Return the begin and end in seconds of the sound of a clip.

        Args:
            first: time of the clip's first frame in seconds.
            last: time of the clip's last frame in seconds.
            fps: frames per second of the video.
        """
        if self.seconds is not None:
            middle = (first + last + 1.0 / fps) / 2.0
            return middle - self.seconds / 2.0, middle + self.seconds / 2.0
        scale = 1.0 if self.unit == "seconds" else 1.0 / fps
        return first - self.before * scale, last + self.after * scale

    def samples(self, first: float, last: float, fps: float, rate: int) -> tuple[int, int]:
        """Return the span as sample indices [begin, end) at `rate` Hz; begin may be negative.

        Under a Hann window both ends are truncated and the last sample is included, as STAViS and its
        followers cut (14113 samples for 16 frames at 25 fps and 22050 Hz); otherwise both are rounded.
        """
        begin, end = (round(edge * rate, 6) for edge in self.span(first, last, fps))
        if self.window == "hann":
            return math.floor(begin), math.floor(end) + 1
        return round(begin), round(end)


@dataclass(frozen=True)
class ClipSpec:
    """The input of a network: one clip of frames, and the sound around it.

    Attributes:
        frames: frames per clip T.
        size: (height, width) of the frames in pixels.
        step: distance of neighbouring frames, in frames, or in seconds if `step_unit` says so.
        mean: per-channel RGB mean on the 0..255 scale.
        std: per-channel RGB standard deviation on the 0..255 scale.
        target: which frame the output belongs to: "middle", "last", a 0-based index into the clip,
            or a tuple of seconds after the clip's last frame (anticipation: one map for each).
        resize: "stretch" ignores the aspect ratio; "short_side_crop" scales the short side to the
            size and crops the centre (offset: ceil of half the excess); "keep_aspect" takes the sides, multiples
            of 16, that have the area of `size` and the picture's own aspect ratio (training clips of one batch
            are stretched to `size`).
        via: an intermediate (height, width) that frames are first resized to (STAViS: 240, 320).
        via_filter: filter of that first step ("nearest" or "bicubic").
        antialias: whether the bilinear resize is antialiased when it shrinks.
        authors_coverage: the authors' rule at a video's ends, used by `coverage="authors"`:
            "cyclic" (STAViS: frames 1..target are left out, the last clips repeat cyclically),
            "reversed" (MSPI, AVRSP: windows reversed in time serve the first frames), or "clamp".
        training_targets: whose ground truth a training clip gets: "plain" is that of the frame `target`, its
            fixations moved to the cells of the network's grid; "stavis" does as STAViS's loader: the frame whose
            number is the median of the clip's (counted from 1), rounded to even where it lies between two, and the
            cells that its fixation image reaches when it is resized, by way of `via`, with antialiasing. Its clips
            are drawn as there, too: never at a segment's last position, and a last segment that is too short repeats.
        audio: the sound around the clip, None for networks that do not hear.
    """

    frames: int
    size: tuple[int, int]
    step: float = 1
    step_unit: Literal["frames", "seconds"] = "frames"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)
    target: Literal["middle", "last"] | int | tuple[float, ...] = "last"
    resize: Literal["stretch", "short_side_crop", "keep_aspect"] = "stretch"
    via: tuple[int, int] | None = None
    via_filter: Literal["nearest", "bicubic"] = "nearest"
    antialias: bool = True
    authors_coverage: Literal["cyclic", "reversed", "clamp"] = "clamp"
    training_targets: Literal["plain", "stavis"] = "plain"
    audio: AudioSpec | None = None

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ConfigError(f"frames={self.frames}: a clip has at least one frame.")
        if min(self.size) < 1:
            raise ConfigError(f"size={self.size}: height and width are at least one pixel.")
        if isinstance(self.target, int) and not 0 <= self.target < self.frames:
            raise ConfigError(
                f"target={self.target} lies outside the clip of {self.frames} frames; "
                f"give 0..{self.frames - 1}, 'middle' or 'last'."
            )

    @property
    def target_index(self) -> int:
        """0-based index in the clip of the frame that the output belongs to.

        For anticipation (a tuple of seconds) it is the last frame: the moment "now".
        """
        if isinstance(self.target, int):
            return self.target
        return self.frames // 2 if self.target == "middle" else self.frames - 1

    @property
    def authors_shortest(self) -> int:
        """Fewest frames of a video that gets any map under `coverage="authors"`.

        The scripts with reversed windows skip a video that does not hold both the first frame's reversed window and
        as many frames again: 31 for clips of 16.
        """
        return {"clamp": 1, "cyclic": self.target_index + 1, "reversed": 2 * self.frames - 1}[
            self.authors_coverage
        ]

    @property
    def outputs(self) -> int:
        """Number of maps T_out for one clip."""
        return len(self.target) if isinstance(self.target, tuple) else 1


class Batch(TypedDict, total=False):
    """One batch of clips; B clips, T frames, T_out maps. Keys a data set cannot fill are absent.

    `video` and the ids are always there; `density`, `fixations`, `labelled` where there is ground truth.
    """

    video: Tensor  #: (B, 3, T, H, W) float32, normalised with the spec's mean and std
    audio: Tensor  #: (B, S) float32 mono waveform in [-1, 1], zero-padded at the end
    audio_length: Tensor  #: (B,) int64, samples of `audio` that belong to the clip
    audio_rate: Tensor  #: (B,) int64, Hz
    has_audio: Tensor  #: (B,) bool, False where the file has no sound track
    frame_times: Tensor  #: (B, T) float64, seconds from the first sample of `audio`
    spectrogram: (
        Tensor  #: (B, F, C) float32 stored log-spectrogram, where a data set has it instead of `audio`
    )
    columns: Tensor  #: (B,) int64, columns of `spectrogram` that belong to the clip
    seconds: Tensor  #: (B,) float64, duration that those columns stand for
    density: Tensor  #: (B, T_out, h, w) float32 in [0, 1] as published, not re-normalised
    labelled: Tensor  #: (B, T_out) bool, frames that have ground truth
    fixations: Tensor  #: (B, T_out, N, 2) int64 (row, column), padded with -1, duplicates kept
    observer: Tensor  #: (B, T_out, N) int64, who made each fixation, -1 where unknown or padding
    negatives: Tensor  #: (B, T_out, M, 2) int64 (row, column) for shuffled AUC, padded with -1
    gaze: Tensor  #: (B, T_out, 2) float32 (x, y) in 0..1, origin top left, for gaze sets
    gaze_type: Tensor  #: (B, T_out) int64: 0 fixation, 1 saccade, 2 outside the image, 3 untracked
    video_id: Tensor  #: (B,) int64, equal on all ranks, for averaging per video
    video_name: list[str]  #: B names, `<set>/<video>`
    frame: Tensor  #: (B, T_out) int64, 0-based index in the video of each map's frame


@dataclass
class SaliencyOutput:
    """What a network returns.

    Attributes:
        logits: (B, T_out, h, w) maps before any activation.
        activation: how logits become a map; "softmax" is over the pixels of each map.
        temperature: logits are divided by it before the activation (CSTS: 2).
        aux: named extras in the paper's terms (DSAM maps, localisation maps, Ret_A, embeddings, losses).
    """

    logits: Tensor
    activation: Activation = "sigmoid"
    temperature: float = 1.0
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def saliency(self) -> Tensor:
        """Return the activated maps (B, T_out, h, w): sigmoid in [0, 1], or softmax that sums to 1."""
        scaled = self.logits.float() / self.temperature
        if self.activation == "sigmoid":
            return scaled.sigmoid()
        return scaled.flatten(-2).softmax(-1).view_as(scaled)

    def log_density(self) -> Tensor:
        """Return the logarithm of `density()`, computed without leaving the logarithm."""
        scaled = self.logits.float() / self.temperature
        log = scaled - scaled.logaddexp(scaled.new_zeros(())) if self.activation == "sigmoid" else scaled
        return log - log.logsumexp((-2, -1), keepdim=True)

    def density(self) -> Tensor:
        """Return non-negative float32 maps (B, T_out, h, w), each of which sums to 1."""
        maps = self.saliency()
        return maps / maps.sum((-2, -1), keepdim=True).clamp_min(1e-30)
