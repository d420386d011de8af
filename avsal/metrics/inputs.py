"""What every metric needs of its inputs: checked maps with their range, and fixations as pixel indices.

A map keeps what several metrics share (range, moments), computed once and only on demand, so that the whole
set of metrics costs little more than the dearest of them. Passes over the pixels go through a few maps at a
time in buffers that are used again: fresh memory for every step would cost more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from avsal.errors import AvsalError

Constant = Literal["chance", "nan", "mit"]
Empty = Literal["nan", "mit", "uniform"]

#: A map counts as constant when its range is at most this share of its largest magnitude.
CONSTANT_TOLERANCE = 1e-12
#: Pixels that a pass handles at once: what a core's cache holds, or a modest share of a GPU's memory.
_PASS = {"cpu": 1 << 18, "cuda": 1 << 25}


class MetricInputError(AvsalError, ValueError):
    """Maps, fixations or options that a metric cannot score."""


def as_tensor(value: Any, name: str, *, whole: bool = False) -> Tensor:
    """Return a tensor, or a NumPy array, a number or lists of numbers as one.

    Args:
        value: what was given.
        name: how error messages call it.
        whole: whether it must hold whole numbers, such as those of videos and frames.

    Raises:
        MetricInputError: it holds no (whole) numbers.
    """
    if not isinstance(value, Tensor):
        import numpy as np

        try:
            array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
            native = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
            value = torch.from_numpy(native) if native.dtype.kind in "biuf" else None
        except (TypeError, ValueError):
            value = None
    if value is None or (
        whole and (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    ):
        raise MetricInputError(
            f"{name} holds no numbers; give a tensor or a NumPy array."
            if not whole
            else f"{name} holds no whole numbers; number the videos and frames (names go to per_video(names=…))."
        )
    return cast("Tensor", value)


def ascending(values: Tensor) -> Tensor:
    """Sort the last axis; on the CPU by NumPy, whose vector instructions are 20 to 30 times faster than torch."""
    if values.device.type == "cpu":
        import numpy as np

        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(-1).values


class Maps:
    """A batch of maps (B, P) on the pixels of the ground truth's grid, and what metrics derive from them.

    Args:
        maps: (..., H, W) of any real dtype; float64 stays, everything else is computed in float32
            (integers beyond 16 bits in float64).
        name: how error messages call the maps.
        check: whether to raise on values that are not finite; otherwise see `finite`.

    Raises:
        MetricInputError: for fewer than two dimensions, empty maps, or values that are not finite.
    """

    def __init__(self, maps: Tensor, name: str = "pred", *, check: bool = True) -> None:
        maps = as_tensor(maps, name)
        if maps.ndim < 2 or 0 in maps.shape[-2:]:
            raise MetricInputError(
                f"{name} has the shape {tuple(maps.shape)}; maps are (..., H, W) with at least one pixel."
            )
        if maps.is_complex():
            raise MetricInputError(f"{name} is complex; a saliency map is real.")
        if maps.dtype in (torch.int32, torch.int64):
            maps = maps.double()
        elif maps.dtype != torch.float64:
            maps = maps.float()
        self.name = name
        self.lead = maps.shape[:-2]
        self.size = (int(maps.shape[-2]), int(maps.shape[-1]))
        self.raw = maps.detach().reshape(-1, self.size[0] * self.size[1])
        self.low = self.raw.amin(-1, keepdim=True)
        self.high = self.raw.amax(-1, keepdim=True)
        if check and not bool(self.finite.all()):
            bad = (~self.finite).nonzero().flatten().tolist()
            raise MetricInputError(
                f"{name} holds NaN or infinite values in map(s) {bad[:8]} of {len(self)};"
                " a frame without a valid map has no score. Find where the network diverged, or leave these"
                " frames out and say so."
            )

    def __len__(self) -> int:
        return int(self.raw.shape[0])

    @property
    def pixels(self) -> int:
        """Number of pixels P of a map."""
        return self.size[0] * self.size[1]

    @cached_property
    def finite(self) -> Tensor:
        """(B,) bool, whether every value is finite (NaN and infinity reach the extremes)."""
        return (self.low.isfinite() & self.high.isfinite()).squeeze(-1)

    @cached_property
    def constant(self) -> Tensor:
        """(B,) bool, whether the map has one value up to rounding (the standard deviation would not tell)."""
        largest = torch.maximum(self.low.abs(), self.high.abs())
        return ((self.high - self.low) <= CONSTANT_TOLERANCE * largest).squeeze(-1)

    @cached_property
    def zero(self) -> Tensor:
        """(B,) bool, whether every value is exactly 0."""
        return ((self.low == 0) & (self.high == 0)).squeeze(-1)

    @cached_property
    def any_constant(self) -> bool:
        """Whether one of the maps is constant."""
        return bool(self.constant.any())

    @cached_property
    def unit(self) -> Tensor:
        """(B, P) maps scaled to [0, 1] by their extremes; a constant map becomes 0."""
        return (self.raw - self.low).div_(self.span)

    @cached_property
    def unit_density(self) -> Tensor:
        """(B, P) min-max scaled maps that sum to 1; a constant map becomes uniform."""
        return self._distribution(self.unit, self.unit_sum)

    @cached_property
    def density(self) -> Tensor:
        """(B, P) maps divided by their sum; a constant map becomes uniform.

        Raises:
            MetricInputError: for maps that are largely negative, such as logits.
        """
        if bool((self.low < 0).any()):
            negative = self.raw.clamp(max=0).sum(-1).abs()
            wrong = (negative > 0.05 * self.raw.clamp(min=0).sum(-1)) & ~self.constant
            if bool(wrong.any()):
                raise MetricInputError(
                    f"{self.name} is largely negative in map(s) {wrong.nonzero().flatten().tolist()[:8]} and"
                    " cannot be divided by its sum; give activated maps (sigmoid or softmax), not logits."
                )
        return self._distribution(self.raw, self.raw.sum(-1, keepdim=True))

    def shifted_density(self, floor: float = 0.0) -> Tensor:
        """Return (B, P) maps as pysaliency makes densities: negative minimum removed, `floor` added."""
        shifted = self.raw - self.low.clamp(max=0) + floor
        return self._distribution(shifted, shifted.sum(-1, keepdim=True))

    def rows(self) -> list[slice]:
        """Return the ranges of maps that one pass over the pixels handles together."""
        step = max(1, _PASS.get(self.raw.device.type, _PASS["cpu"]) // self.pixels)
        return [slice(begin, begin + step) for begin in range(0, len(self), step)]

    def parts(self) -> Iterator[Maps]:
        """Yield the same maps a few at a time (`rows`)."""
        for rows in self.rows():
            part = object.__new__(Maps)
            part.name, part.lead, part.size = self.name, self.low[rows].shape[:1], self.size
            part.raw, part.low, part.high = self.raw[rows], self.low[rows], self.high[rows]
            yield part

    @cached_property
    def span(self) -> Tensor:
        """(B, 1) ranges of the values; infinite for a constant map, which scales to 0."""
        return torch.where(self.constant.unsqueeze(-1), torch.inf, self.high - self.low)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """(B, 1) sums of the scaled maps, and (B,) sums of the squares of the scaled maps less their mean."""
        total, power = torch.empty_like(self.low), torch.empty_like(self.low[:, 0])
        scratch: Tensor | None = None
        for rows in self.rows():
            scratch = scratch if scratch is not None else torch.empty_like(self.raw[rows])
            unit = scratch[: len(self.raw[rows])]
            torch.sub(self.raw[rows], self.low[rows], out=unit).div_(self.span[rows])
            total[rows] = unit.sum(-1, keepdim=True)
            power[rows] = unit.sub_(total[rows] / self.pixels).square_().sum(-1)
        return total, power

    @property
    def unit_sum(self) -> Tensor:
        """(B, 1) sums of the scaled maps."""
        return self.moments[0]

    @property
    def power(self) -> Tensor:
        """(B,) sums of the squares of the scaled maps less their mean."""
        return self.moments[1]

    def unit_at(self, points: Points) -> Tensor:
        """Return the scaled values (B, N) at the points; see `Points.values` for padding."""
        return (points.values(self.raw) - self.low) / self.span

    def positions(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many pixels lie below each of the values (B, N) and how many at or below it, int64."""

        # Whether tensors are made under inference mode is each thread's own matter, and such tensors can only be
        # written under it: workers return what they found, and write nothing.
        def count(rows: slice) -> tuple[Tensor, Tensor]:
            pixels, wanted = ascending(self.raw[rows]), values[rows]
            return torch.searchsorted(pixels, wanted), torch.searchsorted(pixels, wanted, right=True)

        workers = min(torch.get_num_threads(), len(self))
        if self.raw.device.type != "cpu" or workers < 2 or self.raw.numel() < _PASS["cpu"]:
            found = [count(rows) for rows in self.rows() or [slice(0)]]
        else:
            # NumPy sorts on one thread but lets others run.
            with ThreadPoolExecutor(workers) as pool:
                found = list(pool.map(count, (slice(i, i + 1) for i in range(len(self)))))
        below, up_to = (torch.cat(part) for part in zip(*found, strict=True))
        return below, up_to

    @cached_property
    def sorted(self) -> Tensor:
        """(B, P) raw values in ascending order."""
        return ascending(self.raw)

    def _distribution(self, values: Tensor, total: Tensor) -> Tensor:
        if not self.any_constant:
            return values / total
        uniform = self.constant.unsqueeze(-1)
        return (values / total.masked_fill(uniform, 1)).masked_fill_(uniform, 1.0 / self.pixels)

    def check_same(self, other: Maps) -> None:
        """Raise `MetricInputError` unless `other` has the same grid and number of maps."""
        if self.size != other.size or len(self) != len(other):
            raise MetricInputError(
                f"{self.name} is {len(self)} map(s) of {self.size[0]}x{self.size[1]}, {other.name} is"
                f" {len(other)} of {other.size[0]}x{other.size[1]}; resize the prediction to the ground truth's grid"
                " (avsal.metrics.resize_maps), never the ground truth."
            )


class Comparison:
    """What CC and SIM need of two batches of maps, from one pass over the pixels of both.

    Args:
        p: predictions.
        q: ground truth.
        overlap: whether to compute the overlap too, which CC alone does not need.

    Attributes:
        covariance: (B,) sums of the products of the scaled maps less their means.
        overlap: (B,) sums of the smaller of the two min-max scaled maps that sum to 1, None if not wanted;
            of no meaning where a map is constant.
    """

    def __init__(self, p: Maps, q: Maps, *, overlap: bool) -> None:
        self.covariance = torch.empty_like(p.low[:, 0])
        self.overlap = torch.empty_like(p.low[:, 0]) if overlap else None
        moments = [(torch.empty_like(m.low), torch.empty_like(m.low[:, 0])) for m in (p, q)]
        scratch: Tensor | None = None
        for rows in p.rows():
            if scratch is None:
                scratch = p.raw.new_empty((4, *p.raw[rows].shape))
            s, t, u, v = scratch[:, : len(p.raw[rows])]
            for m, unit, (total, _) in zip((p, q), (s, t), moments, strict=True):
                torch.sub(m.raw[rows], m.low[rows], out=unit).div_(m.span[rows])
                total[rows] = unit.sum(-1, keepdim=True)
            (sum_p, power_p), (sum_q, power_q) = moments
            torch.sub(s, sum_p[rows] / p.pixels, out=u)
            power_p[rows] = torch.mul(u, u, out=v).sum(-1)
            torch.sub(t, sum_q[rows] / q.pixels, out=v)
            self.covariance[rows] = u.mul_(v).sum(-1)
            power_q[rows] = v.square_().sum(-1)
            if self.overlap is not None:
                # sum min(a s, b t) = b sum min(a / b s, t): one pass less over the pixels.
                s.mul_(sum_q[rows] / sum_p[rows])
                self.overlap[rows] = torch.minimum(s, t, out=s).sum(-1) / sum_q[rows].squeeze(-1)
        p.moments, q.moments = moments


class Points:
    """Fixations or negatives of a batch of maps, as indices into the flattened maps.

    Args:
        points: (..., N, 2) integers (row, column), padded with -1; the leading dimensions are those of the
            maps.
        maps: the maps that the points lie on.
        name: how error messages call the points.
        duplicates: whether a pixel named twice counts twice (pysaliency) or once (the binary map of the MIT
            code).

    Raises:
        MetricInputError: for a wrong shape, floating coordinates, or a point outside its map.
    """

    def __init__(
        self, points: Tensor, maps: Maps, name: str = "fixations", *, duplicates: bool = False
    ) -> None:
        points = as_tensor(points, name)
        if points.ndim < 2 or points.shape[-1] != 2 or points.shape[:-2] != maps.lead:
            raise MetricInputError(
                f"{name} has the shape {tuple(points.shape)}; for maps of shape {(*maps.lead, *maps.size)}"
                f" it is {(*maps.lead, 'N', 2)}: (row, column), padded with -1."
            )
        if points.is_floating_point() or points.dtype == torch.bool:
            raise MetricInputError(
                f"{name} has the dtype {points.dtype}; fixations are integer pixel indices (row, column). Use"
                " avsal.metrics.fixation_points for a binary map."
            )
        points = points.to(maps.raw.device, torch.int64).reshape(len(maps), points.shape[-2], 2)
        row, column = points.unbind(-1)
        padding = (row == -1) & (column == -1)
        outside = ~padding & ((row < 0) | (column < 0) | (row >= maps.size[0]) | (column >= maps.size[1]))
        if bool(outside.any()):
            frame, at = outside.nonzero()[0].tolist()
            raise MetricInputError(
                f"{name} {at} of map {frame} lies at (row, column) = {tuple(points[frame, at].tolist())},"
                f" outside the map of {maps.size[0]}x{maps.size[1]}. The order is (row, column), indices start at"
                " 0; drop fixations outside the frame before scoring."
            )
        # Padding sorts to the end under an index that no pixel has.
        self.pixels = maps.pixels
        index = ascending(torch.where(padding, self.pixels, row * maps.size[1] + column))
        self.all = index
        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[:, 1:] = index[:, 1:] == index[:, :-1]
        self.unique = index.masked_fill(repeated, self.pixels)
        self.index = self.all if duplicates else self.unique

    @property
    def valid(self) -> Tensor:
        """(B, N) bool, which entries of `index` are points."""
        return self.index < self.pixels

    @property
    def count(self) -> Tensor:
        """(B,) int64, number of points that count."""
        return self.valid.sum(-1)

    def values(self, maps: Tensor, index: Tensor | None = None) -> Tensor:
        """Return (B, N) values of maps (B, P) at the points, +inf at padding."""
        index = self.index if index is None else index
        if index.shape[-1] == 0:
            return maps.new_zeros(index.shape)
        picked = maps.gather(-1, index.clamp(max=self.pixels - 1))
        return picked.masked_fill_(index >= self.pixels, torch.inf)

    def mean(self, maps: Tensor) -> Tensor:
        """Return (B,) means of maps (B, P) over the points, NaN without a point."""
        return self.mean_of(self.values(maps))

    def mean_of(self, values: Tensor) -> Tensor:
        """Return (B,) means of values (B, N) at the points, padding left out, NaN without a point."""
        return values.masked_fill(~self.valid, 0).sum(-1) / self.count.to(values.dtype)


def fixation_points(maps: Tensor) -> Tensor:
    """Turn binary fixation maps into fixations.

    Args:
        maps: (..., H, W), nonzero where somebody fixated.

    Returns:
        (..., N, 2) int64 (row, column), padded with -1 to the largest number N in the batch.
    """
    maps = as_tensor(maps, "maps")
    flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]) != 0
    most = int(flat.sum(-1).amax()) if flat.numel() else 0
    frame, pixel = flat.nonzero(as_tuple=True)
    rank = flat.cumsum(-1)[frame, pixel] - 1
    points = torch.full((flat.shape[0], most, 2), -1, dtype=torch.int64, device=maps.device)
    points[frame, rank, 0] = pixel // maps.shape[-1]
    points[frame, rank, 1] = pixel % maps.shape[-1]
    return points.reshape(*maps.shape[:-2], most, 2)
