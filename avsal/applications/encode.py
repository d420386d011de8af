"""Encoding that spends bits where people look: quantiser offsets on blocks, from maps of attention.

At a given rate the distortion weighted by w is smallest where D w is the same everywhere (reverse water-filling). The
squared error doubles about every three quantiser steps, so a block's offset is -3 log2 of its weight against the
picture's geometric mean.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from avsal.applications.attention import Tick, computed, saved, source_of
from avsal.applications.paths import FloatArray
from avsal.errors import ConfigError, DataError, MediaError
from avsal.files import write_json
from avsal.io.regions import regions_of
from avsal.io.render import VideoWriter
from avsal.io.video import VideoStream

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

Codec = Literal["libx264", "libx265"]
Equal = Literal["quality", "size"]
#: Seconds for which one map of offsets holds; blocks along the picture's longer side, and their least side in pixels.
HOLD, BLOCKS, LEAST = 0.25, 40, 16
#: Least seconds between two frames that are compared with the source.
APART = 0.5
#: What one step of the rate factor changes, about: dB, and octaves of the size; and how near is near enough.
SLOPE = {"quality": -0.6, "size": -1 / 6}
NEAR = {"quality": 0.05, "size": math.log2(1.01)}
#: Share of attention that is spread evenly: what maps call worthless is seen from the corner of the eye.
FLOOR = 0.3


@dataclass(frozen=True)
class Quality:
    """How near an encoded film is to its source.

    Attributes:
        bytes: of the file.
        psnr: of luma, dB, mean over the measured frames.
        eye_psnr: the same with every pixel's error weighted by attention.
        ssim, eye_ssim: the structural similarity of luma, and weighted by attention.
    """

    bytes: int
    psnr: float
    eye_psnr: float
    ssim: float
    eye_ssim: float


@dataclass
class Encoded:
    """A weighted encode beside the plain one.

    Attributes:
        film, out: source and result.
        codec: FFmpeg's name of the encoder.
        plain_crf, crf: constant rate factors of the plain and the weighted encode.
        strength: largest offset in quantiser steps.
        plain, weighted: what came out.
        notes: what was lost or repaired.
    """

    film: Path
    out: Path
    codec: str
    plain_crf: float
    crf: float
    strength: int
    plain: Quality
    weighted: Quality
    notes: list[str] = field(default_factory=list)

    @property
    def saving(self) -> float:
        """The share of the plain file's bytes that the weighted file does without; negative if it is larger."""
        return 1 - self.weighted.bytes / self.plain.bytes

    def summary(self) -> dict[str, Any]:
        """Return all numbers as plain JSON."""
        return {
            "film": self.film.name, "codec": self.codec, "plain_crf": self.plain_crf, "crf": self.crf,
            "strength": self.strength, "saving": round(self.saving, 4), "plain": vars(self.plain),
            "weighted": vars(self.weighted), "notes": self.notes,
        }  # fmt: skip


class Held:
    """Attention on blocks of the picture, the mean over every `HOLD` seconds, in constant memory per hour.

    Args:
        attention: (seconds, shares (h, w) that sum to 1), in the film's order.
        size: (H, W) of the film's pictures.

    Raises:
        DataError: there is no map.
    """

    def __init__(self, attention: Iterable[tuple[float, FloatArray]], size: tuple[int, int]) -> None:
        side = max(LEAST, -(-max(size) // BLOCKS))
        self.size, self.grid = size, (-(-size[0] // side), -(-size[1] // side))
        sums: dict[int, tuple[FloatArray, int]] = {}
        for time, map_ in attention:
            blocks = F.interpolate(torch.from_numpy(map_)[None, None], self.grid, mode="area")[0, 0].numpy()
            total, count = sums.get(int(time // HOLD), (0.0, 0))
            sums[int(time // HOLD)] = (total + blocks, count + 1)
        if not sums:
            raise DataError("there is no map of any frame.")
        self._keys = np.array(sorted(sums))
        self._blocks = np.stack([sums[key][0] / sums[key][0].sum() for key in sorted(sums)]).astype(
            np.float32
        )

    def at(self, time: float) -> NDArray[np.float32]:
        """Return the (rows, columns) shares at a time: those of its interval, or of the nearest one that has any."""
        return np.asarray(self._blocks[np.abs(self._keys - time // HOLD).argmin()])

    def offsets(self, time: float, strength: int) -> NDArray[np.int64]:
        """Return each block's quantiser offset, negative where people look, at most `strength` either way."""
        blocks = self.at(time)
        offsets = -3 * np.log2((1 - FLOOR) * blocks / blocks.mean() + FLOOR)
        return (offsets - offsets.mean()).clip(-strength, strength).round().astype(np.int64)

    def weights(self, time: float) -> torch.Tensor:
        """Return the (H, W) weight of every pixel, which sum to 1."""
        blocks = torch.from_numpy(self.at(time))[None, None]
        weights = F.interpolate(blocks, self.size, mode="bilinear", align_corners=False)[0, 0]
        return weights / weights.sum()


def encode(
    film: Path,
    out: Path,
    *,
    module: SaliencyModule | None = None,
    maps: Path | None = None,
    codec: Codec = "libx264",
    crf: float = 26.0,
    equal: Equal = "quality",
    strength: int = 6,
    preset: str = "medium",
    stride: int = 2,
    batch_size: int = 8,
    tick: Tick | None = None,
) -> Encoded:
    """Encode a film with the bits where people look, and compare it with the plain encode of the same encoder.

    The plain encode at `crf` is made first; then the weighted encode's rate factor is searched for, until it has the
    same eye-weighted PSNR (within 0.05 dB), or the same size (within 1 %). The result is written with the film's
    sound and frame times, and the comparison beside it as JSON. Pictures are 8-bit 4:2:0, BT.709.

    Args:
        film: the file, or a folder of `avsal predict` whose film is still in its place.
        out: .mp4, .mov or .mkv.
        module: the model whose maps count; None needs saved maps.
        maps: a folder of `avsal predict` for this film.
        codec: the encoder.
        crf: constant rate factor of the plain encode, 1..51.
        equal: what both encodes have in common: the quality where people look, or the size.
        strength: largest quantiser offset, 0..20.
        preset: the encoder's.
        stride: attention is computed for every which frame.
        batch_size: windows per forward pass.
        tick: is told the frames done and, where known, how many there are.

    Raises:
        ConfigError: an option is out of its range, or this FFmpeg lacks the encoder.
        MediaError, DataError: the film, or the maps, cannot be read.
    """
    film, there = source_of(film)
    if folder := maps or there:
        attention = saved(folder)
    elif module is not None:
        attention = computed(module, film, stride=stride, batch_size=batch_size, tick=tick)
    else:
        raise ConfigError(f"{film}: encode needs a module, or maps of `avsal predict`.")
    found = compare(film, out, attention, codec=codec, crf=crf, equal=equal, strength=strength, preset=preset)
    write_json(out.with_suffix(".json"), found.summary())
    return found


def compare(
    film: Path,
    out: Path,
    attention: Iterable[tuple[float, FloatArray]],
    *,
    codec: Codec = "libx264",
    crf: float = 26.0,
    equal: Equal = "quality",
    strength: int = 6,
    preset: str = "medium",
    judged: Iterable[tuple[float, FloatArray]] | None = None,
) -> Encoded:
    """Write the weighted encode of a film and return it beside the plain one; see `encode`.

    Args:
        film: the file.
        out: .mp4, .mov or .mkv.
        attention: (seconds, shares (h, w) that sum to 1): where the bits go.
        codec, crf, equal, strength, preset: see `encode`.
        judged: attention by which the quality is weighted, such as recorded gaze; None takes `attention`.
    """
    if not 1 <= crf <= 51 or not 0 <= strength <= 20:
        raise ConfigError(
            f"crf={crf} and strength={strength}: expected 1 to 51, and 0 to 20 quantiser steps."
        )
    with VideoStream(film) as stream:
        size = stream.info.height, stream.info.width
    held = Held(attention, size)
    eyes = held if judged is None else Held(judged, size)
    options = {"preset": preset} | ({"x265-params": "log-level=error"} if codec == "libx265" else {})

    def attempt(target: Path, factor: float, strength: int) -> Quality:
        _write(film, target, codec, options | {"crf": f"{factor:.2f}"}, held, strength, sound=False)
        return measure(film, target, eyes)

    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / f"trial{out.suffix}"
        plain = attempt(trial, crf, 0)
        factor = _search(lambda factor: _gap(attempt(trial, factor, strength), plain, equal), crf, equal)
        weighted = attempt(trial, factor, strength)
    note = _write(film, out, codec, options | {"crf": f"{factor:.2f}"}, held, strength, sound=True)
    return Encoded(film, out, codec, crf, factor, strength, plain, weighted, [note] if note else [])


def _gap(found: Quality, plain: Quality, equal: Equal) -> float:
    if equal == "quality":
        return found.eye_psnr - plain.eye_psnr
    return math.log2(found.bytes / plain.bytes)


def _search(gap: Callable[[float], float], start: float, equal: Equal, tries: int = 6) -> float:
    """Return the rate factor at which a gap that falls with it is nearest to 0 (secant steps)."""
    points: list[tuple[float, float]] = []
    factor = start
    for _ in range(tries):
        points.append((factor, gap(factor)))
        if abs(points[-1][1]) < NEAR[equal]:
            break
        slope = SLOPE[equal]
        if len(points) > 1 and (run := points[-1][0] - points[-2][0]):
            slope = min((points[-1][1] - points[-2][1]) / run, slope / 4)
        factor = round(min(max(factor - points[-1][1] / slope, 1), 51), 2)
        if any(factor == known for known, _ in points):
            break
    return min(points, key=lambda point: abs(point[1]))[0]


def _write(
    film: Path, out: Path, codec: str, options: dict[str, str], held: Held, strength: int, *, sound: bool
) -> str | None:
    """Encode a film; returns what became of its sound where that is worth a note."""
    with VideoStream(film) as stream:
        info = stream.info
        audio = film if sound and info.has_audio else None
        writer = VideoWriter(
            out,
            info.fps,
            held.size,
            audio_from=audio,
            pixel_aspect=info.pixel_aspect,
            codec=codec,
            options=options,
        )
        with writer:
            key, regions = -1, []
            for frame in stream:
                if strength and int(frame.time // HOLD) != key:
                    key = int(frame.time // HOLD)
                    regions = regions_of(held.offsets(frame.time, strength), held.size)
                writer.write(frame.image, frame.time, regions)
    return writer.note


def measure(film: Path, encoded: Path, eyes: Held) -> Quality:
    """Compare an encoded film with its source, frame by frame, about every `APART` seconds.

    Args:
        film: the source.
        encoded: a film of the same frames.
        eyes: attention, by which errors are weighted.

    Raises:
        MediaError: no frame could be compared.
    """
    errors, likeness, last = [], [], -math.inf
    with VideoStream(film) as source, VideoStream(encoded) as result:
        for frame, other in zip(source, result, strict=False):
            if frame.time < last + APART:
                continue
            last = frame.time
            one, two = (
                _luma(picture[: eyes.size[0], : eyes.size[1]]) for picture in (frame.image, other.image)
            )
            weights = eyes.weights(frame.time)
            squares = (one - two) ** 2
            errors.append((float(squares.mean()), float((squares * weights).sum())))
            _, similar = structural_similarity_index_measure(
                one[None, None], two[None, None], data_range=255.0, return_full_image=True
            )
            similar = similar[0, 0]
            likeness.append((float(similar.mean()), float((similar * weights).sum())))
    if not errors:
        raise MediaError(f"{encoded}: no frame could be compared with {film}.")
    plain, eye = 10 * np.log10(255**2 / np.maximum(np.array(errors), 1e-4)).mean(0)
    return Quality(encoded.stat().st_size, *(round(float(v), 4) for v in (plain, eye, *np.mean(likeness, 0))))


def _luma(image: np.ndarray) -> torch.Tensor:
    """Return the (H, W) float32 luma of BT.709, 0..255, of an RGB picture."""
    return torch.from_numpy(image).float() @ torch.tensor([0.2126, 0.7152, 0.0722])
