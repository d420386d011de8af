"""From decoded frames to network input: resize, crop and normalise as a `ClipSpec` defines.

Whole-video prediction and training read frames through this one class, so that both see the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from avsal.types import ClipSpec


def resize_frames(
    frames: Tensor, size: tuple[int, int], *, mode: str = "bilinear", antialias: bool = True
) -> Tensor:
    """Resize (n, 3, h, w) uint8 or float frames to `size` (height, width); same dtype.

    Bilinear with antialiasing is the triangle filter that the image libraries of the papers' code apply; "nearest"
    picks the pixels that Pillow picks.
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    if mode == "nearest":
        if (
            frames.dtype == torch.uint8
            and frames.shape[1] == 3
            and frames.permute(0, 2, 3, 1).is_contiguous()
        ):
            return _nearest_rgb(frames, size)
        rows, columns = (
            torch.from_numpy(_nearest_index(n, m)) for n, m in zip(frames.shape[-2:], size, strict=True)
        )
        return frames[..., rows, :][..., columns]
    if frames.dtype == torch.uint8 and antialias:
        return F.interpolate(frames, size=size, mode=mode, antialias=True)
    out = F.interpolate(frames.float(), size=size, mode=mode, antialias=antialias, align_corners=False)
    return out.round_().clamp_(0, 255).to(frames.dtype) if frames.dtype == torch.uint8 else out


@lru_cache(maxsize=64)
def _nearest_index(length: int, wanted: int) -> np.ndarray:
    """Return (wanted,) the indices that Pillow picks: it adds the step up, and its rounding decides at half pixels."""
    step = length / wanted
    return (
        np.add.accumulate(np.r_[step * 0.5, np.full(wanted - 1, step)]).astype(np.int64).clip(max=length - 1)
    )


def _nearest_rgb(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a channels-last view of (n, h, w, 3) uint8; picking whole pixels is 3 times as fast as torch."""
    pixels = frames.permute(0, 2, 3, 1).numpy()
    count, height, width = pixels.shape[:3]
    rows = np.ascontiguousarray(pixels[:, _nearest_index(height, size[0])])
    whole = rows.view("V3").reshape(count, size[0], width)
    picked = whole.take(_nearest_index(width, size[1]), axis=2).view(np.uint8).reshape(count, *size, 3)
    return torch.from_numpy(picked).permute(0, 3, 1, 2)


def crop_geometry(height: int, width: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the resized (height, width) and the (top, left) of the centre crop of "short_side_crop".

    The short side becomes the crop's side, the long side keeps the ratio (floor), and the offset is the
    ceil of half the excess.
    """
    target = min(size)
    if height <= width:
        resized = (target, max(int(width * target / height), target))
    else:
        resized = (max(int(height * target / width), target), target)
    return resized, (-(-(resized[0] - size[0]) // 2), -(-(resized[1] - size[1]) // 2))


def fitting_size(height: int, width: int, area: tuple[int, int], multiple: int = 16) -> tuple[int, int]:
    """Return the (H, W) of "keep_aspect": about the picture's aspect ratio and the area of `area`.

    Args:
        height: of the picture.
        width: of the picture.
        area: (h, w) whose product is the area.
        multiple: both sides are multiples of it.
    """
    wanted, scale = height / width, math.sqrt(area[0] * area[1] / (height * width))
    rows = height * scale / multiple
    # The two neighbouring heights, each with the width of the right area: the better shape wins.
    choices = []
    for count in {max(1, math.floor(rows)), max(1, math.ceil(rows))}:
        columns = max(1, round(area[0] * area[1] / multiple**2 / count))
        choices += [
            (abs(math.log(count / c / wanted)), count, c) for c in {max(1, columns - 1), columns, columns + 1}
        ]
    cost = [
        (shape + 0.5 * abs(math.log(count * c * multiple**2 / (area[0] * area[1]))), count, c)
        for shape, count, c in choices
    ]
    _, count, columns = min(cost)
    return count * multiple, columns * multiple


def seen_part(height: int, width: int, spec: ClipSpec) -> tuple[float, float, float, float]:
    """Return (top, left, bottom, right) of what the network sees of a picture, in shares of its height and width."""
    if spec.resize != "short_side_crop":
        return 0.0, 0.0, 1.0, 1.0
    (rows, columns), (top, left) = crop_geometry(height, width, spec.size)
    return top / rows, left / columns, (top + spec.size[0]) / rows, (left + spec.size[1]) / columns


class FramePreprocessor:
    """Turn uint8 RGB frames into a network's float32 input.

    Args:
        spec: the network's clip specification (size, resize policy, mean and std).
    """

    def __init__(self, spec: ClipSpec) -> None:
        self.spec = spec
        self._mean = torch.tensor(spec.mean).view(3, 1, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1, 1)

    def resized(self, frames: np.ndarray | Sequence[np.ndarray] | Tensor) -> Tensor:
        """Return (n, 3, H, W) uint8 frames of the spec's size, before normalisation.

        Args:
            frames: (n, h, w, 3) uint8 RGB of any size.
        """
        array = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
        # A channels-last view: torch resizes it without copying it first.
        images = array.permute(0, 3, 1, 2)
        spec = self.spec
        if spec.via is not None and tuple(images.shape[-2:]) != spec.via:
            images = resize_frames(
                images, spec.via, mode=spec.via_filter, antialias=spec.via_filter != "nearest"
            )
        if spec.resize == "short_side_crop":
            resized, (top, left) = crop_geometry(images.shape[-2], images.shape[-1], spec.size)
            if not spec.antialias:
                images = images.float()
            images = resize_frames(images, resized, antialias=spec.antialias)
            return images[..., top : top + spec.size[0], left : left + spec.size[1]]
        size = spec.size
        if spec.resize == "keep_aspect":
            size = fitting_size(images.shape[-2], images.shape[-1], spec.size)
        return resize_frames(images, size, antialias=spec.antialias)

    def normalised(self, frames: Tensor) -> Tensor:
        """Return (3, n, H, W) float32: (n, 3, H, W) frames minus the mean, divided by the std."""
        return (frames.permute(1, 0, 2, 3).float() - self._mean) / self._std

    def __call__(self, frames: np.ndarray | Sequence[np.ndarray] | Tensor) -> Tensor:
        """Return (3, n, H, W) float32, normalised, for (n, h, w, 3) uint8 RGB frames."""
        return self.normalised(self.resized(frames))


def resize_map(density: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (..., h, w) float ground-truth maps to `size`, bilinear with antialiasing; range is kept."""
    if tuple(density.shape[-2:]) == tuple(size):
        return density
    lead = density.shape[:-2]
    flat = density.reshape(-1, 1, *density.shape[-2:]).float()
    out = F.interpolate(flat, size=size, mode="bilinear", antialias=True, align_corners=False)
    return out.view(*lead, *size)


def resize_map_as_frames(density: Tensor, spec: ClipSpec) -> Tensor:
    """Resize an (h, w) map in [0, 1] in 8 bits and by way of `spec.via`, as its frames are."""
    eight = (density * 255).round().to(torch.uint8)[None, None]
    if spec.via is not None:
        eight = resize_frames(eight, spec.via, mode=spec.via_filter, antialias=spec.via_filter != "nearest")
    return resize_frames(eight, spec.size)[0, 0].float() / 255


def spread_fixations(
    points: Tensor, source: tuple[int, int], size: tuple[int, int], via: tuple[int, int] | None
) -> Tensor:
    """Return the (M, 2) cells of a grid of `size` that a binary image of the fixations reaches, as STAViS trains.

    The image is resized to `via`, everything above 0 is set, and that is resized to `size` in 8 bits, both with
    Pillow's antialiased bilinear filter: a fixation grows into a dot.

    Args:
        points: (N, 2) int64 (row, column) on a grid of `source`.
        source: (height, width) of that grid.
        size: (height, width) wanted.
        via: (height, width) in between; None for none.
    """
    binary = np.zeros(source, dtype=np.float32)
    binary[points[:, 0].numpy(), points[:, 1].numpy()] = 1
    image = Image.fromarray(binary)
    if via is not None:
        image = image.resize(via[::-1], Image.Resampling.BILINEAR)
    eight = Image.fromarray((np.asarray(image) > 0).astype(np.uint8) * 255)
    return torch.from_numpy(np.argwhere(np.asarray(eight.resize(size[::-1], Image.Resampling.BILINEAR)) > 0))


def resize_fixations(points: Tensor, source: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Move (..., N, 2) int64 (row, column) fixations from a grid of `source` to one of `size`; -1 stays."""
    scale = torch.tensor([size[0] / source[0], size[1] / source[1]], device=points.device)
    limit = torch.tensor([size[0] - 1, size[1] - 1], device=points.device)
    moved = torch.minimum(((points + 0.5) * scale).floor().long(), limit)
    return torch.where((points < 0).any(-1, keepdim=True), points, moved)
