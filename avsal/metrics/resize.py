"""Bring predictions to the ground truth's grid, and the post-processing that published numbers went through.

Resizing and blurring are linear and separable, so each is one small matrix per axis: the same on every
device, exact at the borders, and differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avsal.metrics.inputs import CONSTANT_TOLERANCE, MetricInputError

Filter = Literal["bicubic", "bilinear"]
Pipeline = Literal["stavis", "vinet", "mspi"]
Border = Literal["mirror", "reflect"]


def resize_maps(maps: Tensor, size: tuple[int, int], *, filter: Filter = "bicubic") -> Tensor:
    """Resize predictions to the ground truth's grid, as the field's scripts do before scoring.

    Args:
        maps: (..., h, w) floating predictions.
        size: (H, W) of the ground truth.
        filter: "bicubic" is MATLAB's imresize: cubic kernel with a = -0.5, widened when it shrinks, borders
            mirrored. It may overshoot a [0, 1] map by some 0.003. "bilinear" is OpenCV's, without
            antialiasing.

    Returns:
        (..., H, W) in the input's precision; a constant map stays exactly constant.

    Raises:
        MetricInputError: for an unknown filter or an empty size.
    """
    if min(size) < 1 or min(maps.shape[-2:]) < 1:
        raise MetricInputError(f"cannot resize maps of {tuple(maps.shape)} to {size}.")
    if filter not in ("bicubic", "bilinear"):
        raise MetricInputError(f"filter={filter!r} is not known; choose 'bicubic' or 'bilinear'.")
    if not maps.dtype.is_floating_point or maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if filter == "bilinear":
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        return F.interpolate(flat, tuple(size), mode="bilinear", align_corners=False).reshape(
            *maps.shape[:-2], *size
        )
    # Torch's antialiased cubic is the same filter but for the border, where it cuts the kernel instead of
    # mirroring.
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    resized = F.interpolate(flat, tuple(size), mode="bicubic", antialias=True, align_corners=False)
    resized = resized.reshape(*maps.shape[:-2], *size)
    rows, columns = (_Cubic.of(n, m) for n, m in zip(maps.shape[-2:], size, strict=True))
    resized[..., rows.border, :] = columns.along_columns(rows.at_border(maps))
    resized[..., columns.border] = rows.along_rows(columns.at_border(maps.mT).mT)
    return _keep_constant(maps, resized)


def postprocess(
    maps: Tensor, pipeline: Pipeline, *, quantise: bool = True, size: tuple[int, int] = (480, 640)
) -> Tensor:
    """Turn network outputs into the maps that a paper's evaluation scores, before the resize to the ground
    truth.

    Args:
        maps: (..., h, w) saliency in [0, 1]; for "mspi", log-densities.
        pipeline: "stavis": stretched to 8 bit (truncated), divided by the maximum, min-max scaled, Gaussian
            of sigma 2 in a 13x13 window with mirrored borders; "vinet": the same without the Gaussian;
            "mspi": 11x11 Gaussian (sigma 2) of the log map, exp, bilinear resize to `size`, stretched to 8
            bit (rounded). The JPEG compression of the papers' files is not imitated.
        quantise: False for maps that come from such 8-bit files already.
        size: (H, W) that MSPI writes.

    Returns:
        (..., h, w) maps in [0, 1]. All-zero maps stay zero, where the STAViS script makes NaN of them.
    """
    if pipeline not in ("stavis", "vinet", "mspi"):
        raise MetricInputError(f"pipeline={pipeline!r} is not known; choose 'stavis', 'vinet' or 'mspi'.")
    if maps.dtype != torch.float64:
        maps = maps.float()
    if pipeline == "mspi":
        if quantise:
            maps = blur_maps(maps, sigma=2.0, radius=5, border="reflect").exp()
            maps = resize_maps(maps, size, filter="bilinear")
            maps = (stretch(maps) * 255).round() / 255
        return maps
    if quantise:
        maps = (stretch(maps) * 255).floor() / 255
    high = maps.amax((-2, -1), keepdim=True)
    maps = stretch(maps / torch.where(high > 0, high, torch.ones_like(high)))
    return blur_maps(maps, sigma=2.0, radius=6, border="mirror") if pipeline == "stavis" else maps


def stretch(maps: Tensor) -> Tensor:
    """Min-max scale each map (..., h, w) to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    return (maps - low) / torch.where(span > 0, span, torch.ones_like(span))


def blur_maps(maps: Tensor, *, sigma: float, radius: int, border: Border = "mirror") -> Tensor:
    """Blur maps (..., h, w) with a Gaussian cut at `radius` pixels.

    Args:
        maps: floating maps.
        sigma: standard deviation in pixels.
        radius: half width of the window.
        border: "mirror" repeats the edge pixel (MATLAB symmetric, SciPy reflect), "reflect" does not
            (OpenCV's default).
    """
    rows, columns = (
        gaussian_matrix(n, sigma, radius, border).to(maps.device, maps.dtype) for n in maps.shape[-2:]
    )
    return _keep_constant(maps, rows @ maps @ columns.T)


@lru_cache(maxsize=32)
def gaussian_matrix(size: int, sigma: float, radius: int, border: Border = "mirror") -> Tensor:
    """Return the (size, size) float64 matrix that blurs an axis of `size` cells; see `blur_maps`."""
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    source = torch.arange(size).unsqueeze(-1) + offset
    return _scatter(_fold(source, size, border), (weight / weight.sum()).expand(size, -1), size)


@dataclass(frozen=True)
class _Cubic:
    """The matrix (target, source) of a bicubic resize of one axis (Keys, a = -0.5), and its rows at the
    border.

    Attributes:
        matrix: float64 weights.
        border: targets whose kernel reaches beyond the axis.
    """

    matrix: Tensor
    border: Tensor

    @staticmethod
    @lru_cache(maxsize=32)
    def of(source: int, target: int) -> _Cubic:
        scale = target / source
        stretched = min(scale, 1.0)
        centre = (torch.arange(target, dtype=torch.float64) + 0.5) / scale - 0.5
        reach = 2.0 / stretched
        taps = (centre - reach).floor().long().unsqueeze(-1) + 1 + torch.arange(int(2 * reach) + 2)
        x = ((centre.unsqueeze(-1) - taps) * stretched).abs()
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weight = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
        beyond = ((taps < 0) | (taps >= source)) & (weight != 0)
        matrix = _scatter(_fold(taps, source, "mirror"), weight / weight.sum(-1, keepdim=True), source)
        return _Cubic(matrix, beyond.any(-1).nonzero().flatten())

    def at_border(self, maps: Tensor) -> Tensor:
        """Resize the rows of maps (..., source, n), only the targets at the border."""
        return self.matrix[self.border].to(maps.device, maps.dtype) @ maps

    def along_rows(self, maps: Tensor) -> Tensor:
        """Resize the rows of maps (..., source, n)."""
        return self.matrix.to(maps.device, maps.dtype) @ maps

    def along_columns(self, maps: Tensor) -> Tensor:
        """Resize the columns of maps (..., n, source)."""
        return maps @ self.matrix.to(maps.device, maps.dtype).T


def _fold(index: Tensor, size: int, border: Border) -> Tensor:
    """Bring indices beyond an axis of `size` cells back by mirroring."""
    period = 2 * size if border == "mirror" else max(2 * size - 2, 1)
    index = index % period
    return torch.where(index < size, index, period - index - (1 if border == "mirror" else 0))


def _scatter(index: Tensor, weight: Tensor, size: int) -> Tensor:
    matrix = torch.zeros((index.shape[0], size), dtype=weight.dtype, device=weight.device)
    return matrix.scatter_add_(1, index, weight)


def _keep_constant(before: Tensor, after: Tensor) -> Tensor:
    # Rounding would give a constant map a spread, and a score, that it does not have.
    low, high = before.amin((-2, -1), keepdim=True), before.amax((-2, -1), keepdim=True)
    constant = (high - low) <= CONSTANT_TOLERANCE * torch.maximum(low.abs(), high.abs())
    return torch.where(constant, high, after)
