"""From a gaze point to the map a network learns, and from a picture's coordinates to its crop's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsal.data.frames import crop_geometry
from avsal.types import ClipSpec

#: CSTS's target: 64x64 cells, a window of 19x19 with the standard deviation that OpenCV gives such a window.
TARGET_SIZE = (64, 64)
KERNEL, SIGMA = 19, 3.2


def gaze_density(
    gaze: Tensor, size: tuple[int, int] = TARGET_SIZE, *, kernel: int = KERNEL, sigma: float = SIGMA
) -> Tensor:
    """Return one Gaussian for each gaze point, cut at the window and at the border, with sum 1 (CSTS).

    The centre is (round(w x), round(h y)), halves to the even cell, and may lie just off the map. A window that lies
    wholly off the map gives the uniform map, which has no cell above 0.001.

    Args:
        gaze: (..., 2) x and y in shares of the picture, origin top left; NaN gives the uniform map.
        size: (h, w) of the maps.
        kernel: width of the square window, odd.
        sigma: standard deviation in cells.

    Returns:
        (..., h, w) float32.
    """

    def axis(values: Tensor, count: int) -> Tensor:
        offset = torch.arange(count, dtype=torch.float64) - (values.double() * count).round()[..., None]
        weights = torch.exp(-0.5 * (offset / sigma) ** 2)
        return torch.where(offset.abs() <= kernel // 2, weights, torch.zeros_like(weights))

    maps = axis(gaze[..., 1], size[0])[..., :, None] * axis(gaze[..., 0], size[1])[..., None, :]
    total = maps.sum((-2, -1), keepdim=True)
    uniform = torch.full_like(maps, 1 / (size[0] * size[1]))
    return torch.where(total > 0, maps / total.clamp_min(1e-300), uniform).float()


def crop_gaze(gaze: Tensor, size: tuple[int, int], spec: ClipSpec) -> Tensor:
    """Move gaze from the whole picture to what the network sees of it.

    Args:
        gaze: (..., 2) x and y in shares of the picture.
        size: (H, W) of the picture in pixels.
        spec: with "short_side_crop" the sides are cut off, and points beyond them go to the border.

    Returns:
        (..., 2) in 0..1.
    """
    if spec.resize != "short_side_crop":
        return gaze.clamp(0, 1)
    (height, width), (top, left) = crop_geometry(*size, spec.size)
    return place_gaze(gaze, (height, width), (top, left), spec.size)


def place_gaze(
    gaze: Tensor, resized: tuple[int, int], offset: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Return gaze in shares of a crop of `size` at `offset` (top, left) of a picture of `resized` (H, W) pixels."""
    scale = gaze.new_tensor([resized[1], resized[0]])
    corner, extent = gaze.new_tensor([offset[1], offset[0]]), gaze.new_tensor([size[1], size[0]])
    return ((gaze * scale - corner) / extent).clamp(0, 1)


def offset_range(points: Sequence[float] | NDArray[np.float64], length: int, crop: int) -> tuple[int, int]:
    """Return the lowest and highest offset of a crop along one axis that keep the gaze points inside (CSTS).

    Where no crop holds them all, the extreme points are dropped in turn from both ends until one does.

    Args:
        points: positions in pixels of the picture.
        length: pixels of the picture along the axis.
        crop: pixels of the crop.
    """
    kept = sorted(float(p) for p in points if np.isfinite(p))
    from_end = False
    while len(kept) > 1 and kept[-1] - kept[0] > crop:
        kept.pop(-1 if from_end else 0)
        from_end = not from_end
    room = max(length - crop, 0)
    if not kept:
        return 0, room
    low, high = max(0, int(np.ceil(kept[-1] - crop))), min(room, int(np.floor(kept[0])))
    return (low, high) if low <= high else (min(low, room), min(low, room))
