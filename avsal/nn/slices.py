"""Layers over the sliding windows of one video: what two windows share is computed once.

A time slice of a layer is a function of the frames in its receptive field alone, unless that field touches the
zeros before or after the window. So the slice's frames are its name: a slice with the same frames in another
window is the same slice, and is taken over. Nothing is approximated. How much is shared falls with depth, since
the window's borders reach further in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

#: Windows whose slices are kept: S3D's shared layers repeat at the latest after four frames.
_REMEMBERED = 4

#: From (step of the kernel, slice) of every neighbour that lies in the window to the output slice.
Combine = Callable[[list[tuple[int, Tensor]]], Tensor]


@dataclass
class Slices:
    """A layer's output for several windows, slice by slice.

    Attributes:
        fields: first and last (exclusive) frame of each slice's receptive field, None where it touches padding.
        values: the slice, such as (C, h, w), of each window and time step.
    """

    fields: list[tuple[int, int] | None]
    values: list[list[Tensor]]

    @property
    def shared(self) -> bool:
        """Whether neighbouring windows have slices in common."""
        return sum(field is not None for field in self.fields) > 1

    def joined(self) -> Tensor:
        """Return (B, C, T, h, w)."""
        return torch.stack([torch.stack(window, dim=1) for window in self.values])


class SharedSlices:
    """The slices of successive windows of one video, by layer; networks subclass it.

    Attributes:
        asked: slices asked for, by layer: for tests and benchmarks.
        computed: slices computed.
    """

    def __init__(self) -> None:
        self._cache: dict[Hashable, Tensor] = {}
        self._recent: deque[set[Hashable]] = deque(maxlen=_REMEMBERED)
        self._ids: list[list[int]] = []
        self.asked: dict[str, int] = {}
        self.computed: dict[str, int] = {}

    def begin(self, video: Tensor, frame_ids: Tensor) -> Slices:
        """Return the frames of a batch of windows.

        Args:
            video: (B, 3, T, H, W) windows.
            frame_ids: (B, T) int64; equal ids mean equal frames.
        """
        self._ids = frame_ids.tolist()
        self._recent.extend(set() for _ in self._ids)
        return Slices([(t, t + 1) for t in range(video.shape[2])], [list(w.unbind(1)) for w in video])

    def forget(self) -> None:
        """Let go of the slices that no later window can use."""
        kept = set().union(*self._recent)
        self._cache = {key: value for key, value in self._cache.items() if key in kept}

    def each(self, name: str, slices: Slices, layer: Callable[[Tensor], Tensor]) -> Slices:
        """Apply a layer without temporal extent to every slice that is not known yet."""
        return self._evaluate(name, slices.fields, lambda b, t: slices.values[b][t], layer)

    def over_time(
        self,
        name: str,
        slices: Slices,
        kernel: int,
        stride: int,
        padding: int,
        combine: Combine,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> Slices:
        """Combine neighbouring slices into each output slice; `after` then works frame by frame."""
        steps = len(slices.fields)
        fields: list[tuple[int, int] | None] = []
        for j in range((steps + 2 * padding - kernel) // stride + 1):
            begin, end = j * stride - padding, j * stride - padding + kernel - 1
            inside = begin >= 0 and end < steps
            first, last = (slices.fields[begin], slices.fields[end]) if inside else (None, None)
            fields.append((first[0], last[1]) if first and last else None)

        def compute(b: int, j: int) -> Tensor:
            begin = j * stride - padding
            taps = [(k, begin + k) for k in range(kernel) if 0 <= begin + k < steps]
            return combine([(k, slices.values[b][i]) for k, i in taps])

        return self._evaluate(name, fields, compute, after)

    def _evaluate(
        self,
        name: str,
        fields: list[tuple[int, int] | None],
        compute: Callable[[int, int], Tensor],
        after: Callable[[Tensor], Tensor] | None,
    ) -> Slices:
        keys: list[list[Hashable]] = [
            [(name, *ids[f[0] : f[1]]) if f else (name, "border", b, j) for j, f in enumerate(fields)]
            for b, ids in enumerate(self._ids)
        ]
        fresh: dict[Hashable, tuple[int, int]] = {}
        for b, row in enumerate(keys):
            for j, key in enumerate(row):
                if fields[j] is not None and b >= len(keys) - _REMEMBERED:
                    self._recent[b - len(keys)].add(key)
                if key not in self._cache:
                    fresh.setdefault(key, (b, j))
        self.asked[name] = self.asked.get(name, 0) + len(keys) * len(fields)
        self.computed[name] = self.computed.get(name, 0) + len(fresh)
        values: dict[Hashable, Tensor] = {}
        if fresh:
            results = [compute(b, j) for b, j in fresh.values()]
            if after is not None:
                # The slices run as the time steps of one clip.
                results = list(after(torch.stack(results, dim=1)[None])[0].unbind(1))
            values = dict(zip(fresh, results, strict=True))
        self._cache.update((key, value) for key, value in values.items() if key[1:2] != ("border",))  # type: ignore[index]
        return Slices(fields, [[values[k] if k in values else self._cache[k] for k in row] for row in keys])


def fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals `conv` and then `norm` in eval mode."""
    scale = norm.weight.double() / (cast(Tensor, norm.running_var).double() + norm.eps).sqrt()
    bias = norm.bias.double() - cast(Tensor, norm.running_mean).double() * scale
    weight = conv.weight.double() * scale[:, None, None, None, None]
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)
