"""S3D over the sliding windows of one video: what two windows share is computed once.

A time slice of a layer is a function of the frames in its receptive field alone, unless that field touches the
zeros before or after the window. So the slice's frames are its name: a slice with the same frames in another
window is the same slice, and is taken over. Nothing is approximated. How much is shared falls with depth, since
the window's borders reach further in: of 32 frames half of the stem and a third of the second stage are
shared, of 16 frames a quarter of the first stage; the third and fourth stages never are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.s3d import SepInceptionBlock3D

from avsal.nn.s3d import TAPS, S3DFeatures

#: Windows whose slices are kept: S3D's shared layers repeat at the latest after four frames.
_REMEMBERED = 4

Combine = Callable[[list[tuple[int, Tensor]]], Tensor]


@dataclass
class _Slices:
    """A layer's output for several windows, slice by slice.

    Attributes:
        fields: first and last (exclusive) frame of each slice's receptive field, None where it touches padding.
        values: (C, h, w) of each window and slice.
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


class S3DWindows:
    """S3D and the frame-wise layers on its taps for successive windows of one video, in eval mode.

    Args:
        encoder: the network.
        heads: for each of the four taps, a module without temporal extent: (B, C, T, h, w) to the same T.
    """

    def __init__(self, encoder: S3DFeatures, heads: Sequence[nn.Module]) -> None:
        self.encoder, self.heads = encoder, list(heads)
        self._cache: dict[Hashable, Tensor] = {}
        self._recent: deque[set[Hashable]] = deque(maxlen=_REMEMBERED)
        self._ids: list[list[int]] = []
        self._used: list[set[Hashable]] = []
        self._folded: dict[nn.Module, tuple[list[Tensor], Tensor]] = {}
        #: Slices asked for and slices computed, by layer: for tests and benchmarks.
        self.asked: dict[str, int] = {}
        self.computed: dict[str, int] = {}

    def __call__(self, video: Tensor, frame_ids: Tensor) -> list[Tensor]:
        """Return the heads' outputs (B, C, T_i, h_i, w_i) of the four taps.

        Args:
            video: (B, 3, T, H, W) windows.
            frame_ids: (B, T) int64; equal ids mean equal frames.
        """
        self._ids = frame_ids.tolist()
        self._used = [set() for _ in self._ids]
        try:
            return self._run(video)
        finally:
            self._recent.extend(self._used)
            kept = set().union(*self._recent)
            self._cache = {key: value for key, value in self._cache.items() if key in kept}

    def _run(self, video: Tensor) -> list[Tensor]:
        layers = self.encoder.features
        steps = video.shape[2]
        slices = _Slices([(t, t + 1) for t in range(steps)], [list(w.unbind(1)) for w in video])

        # Frame by frame; then over time, and on with what follows frame by frame.
        stem, second = cast(nn.Sequential, layers[0]), cast(nn.Sequential, layers[3])
        slices = self._each("stem", slices, stem[0])
        after_stem = nn.Sequential(layers[1], layers[2], second[0])
        slices = self._over_time("second", slices, 7, 2, 3, self._convolution(stem[1]), after_stem)
        slices = self._over_time("f1", slices, 3, 1, 1, self._convolution(second[1]))
        outputs = [self._each("head1", slices, self.heads[0]).joined()]

        index = TAPS[0] + 1
        while slices.shared and index <= TAPS[1] + 1:
            layer = layers[index]
            if isinstance(layer, SepInceptionBlock3D):
                slices = self._each(f"{index} frames", slices, _FrameParts(layer))
                combine, after = self._inception(layer)
                slices = self._over_time(f"{index}", slices, 3, 1, 1, combine, after)
            elif index == TAPS[0] + 1:
                slices = self._each(f"{index}", slices, layer)
            else:
                slices = self._each(f"{index} frames", slices, nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
                slices = self._over_time(f"{index}", slices, 3, 2, 1, _maximum)
            if index == TAPS[1]:
                outputs.append(self._each("head2", slices, self.heads[1]).joined())
            index += 1

        maps = slices.joined()
        for later in range(index, len(layers)):
            maps = layers[later](maps)
            if later in TAPS:
                outputs.append(self.heads[len(outputs)](maps))
        return outputs

    # -- slices ------------------------------------------------------------------------------------------

    def _each(self, name: str, slices: _Slices, layer: Callable[[Tensor], Tensor]) -> _Slices:
        """Apply a layer without temporal extent to every slice that is not known yet."""
        return self._evaluate(name, slices.fields, lambda b, t: slices.values[b][t], layer)

    def _over_time(
        self,
        name: str,
        slices: _Slices,
        kernel: int,
        stride: int,
        padding: int,
        combine: Combine,
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> _Slices:
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
    ) -> _Slices:
        keys: list[list[Hashable]] = [
            [(name, *ids[f[0] : f[1]]) if f else (name, "border", b, j) for j, f in enumerate(fields)]
            for b, ids in enumerate(self._ids)
        ]
        fresh: dict[Hashable, tuple[int, int]] = {}
        for b, row in enumerate(keys):
            for j, key in enumerate(row):
                if fields[j] is not None:
                    self._used[b].add(key)
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
        return _Slices(fields, [[values[k] if k in values else self._cache[k] for k in row] for row in keys])

    # -- layers with temporal extent ---------------------------------------------------------------------

    def _convolution(self, layer: nn.Module) -> Combine:
        """Return conv (k, 1, 1), batch norm and ReLU as a sum of matrix products."""
        if layer not in self._folded:
            self._folded[layer] = _fold(cast(nn.Sequential, layer))
        weights, bias = self._folded[layer]

        def combine(taps: list[tuple[int, Tensor]]) -> Tensor:
            k, value = taps[0]
            total = torch.addmm(bias.to(value.dtype), weights[k].to(value.dtype), value.flatten(1))
            for k, other in taps[1:]:
                total = total.addmm_(weights[k].to(total.dtype), other.flatten(1).to(total.dtype))
            return total.relu_().unflatten(1, value.shape[1:])

        return combine

    def _inception(self, block: SepInceptionBlock3D) -> tuple[Combine, Callable[[Tensor], Tensor]]:
        """Return how the frame-wise parts of an Inception block join over time, and its last 1x1 convolution."""
        second, third = self._convolution(block.branch1[1][1]), self._convolution(block.branch2[1][1])
        sizes = _part_sizes(block)

        def combine(taps: list[tuple[int, Tensor]]) -> Tensor:
            split = [(k, value.split(sizes)) for k, value in taps]
            centre = next(parts[0] for k, parts in split if k == 1)
            return torch.cat(
                (
                    centre,
                    second([(k, parts[1]) for k, parts in split]),
                    third([(k, parts[2]) for k, parts in split]),
                    _maximum([(k, parts[3]) for k, parts in split]),
                )
            )

        def after(joined: Tensor) -> Tensor:
            done, pooled = joined.split([joined.shape[1] - sizes[3], sizes[3]], dim=1)
            return torch.cat((done, block.branch3[1](pooled)), dim=1)

        return combine, after


class _FrameParts(nn.Module):
    """What an Inception block does within a frame: branch 0, the spatial halves of 1 and 2, the spatial pool."""

    def __init__(self, block: SepInceptionBlock3D) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Tensor) -> Tensor:
        block = self.block
        pooled = F.max_pool3d(maps, (1, 3, 3), 1, (0, 1, 1))
        first = block.branch1[1][0](block.branch1[0](maps))
        second = block.branch2[1][0](block.branch2[0](maps))
        return torch.cat((block.branch0(maps), first, second, pooled.to(first.dtype)), dim=1)


def _part_sizes(block: SepInceptionBlock3D) -> list[int]:
    spatial = (block.branch0[0], block.branch1[1][0][0], block.branch2[1][0][0])
    return [*(conv.out_channels for conv in spatial), block.branch3[1][0].in_channels]


def _maximum(taps: list[tuple[int, Tensor]]) -> Tensor:
    largest = taps[0][1]
    for _, value in taps[1:]:
        largest = torch.maximum(largest, value)
    return largest


def _fold(layer: nn.Sequential) -> tuple[list[Tensor], Tensor]:
    """Return the matrices (C_out, C_in) of each time step and the bias (C_out, 1), batch norm included."""
    conv, norm = cast(nn.Conv3d, layer[0]), cast(nn.BatchNorm3d, layer[1])
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    bias = norm.bias.double() - norm.running_mean.double() * scale  # type: ignore[union-attr]
    weight = conv.weight.double()[..., 0, 0] * scale[:, None, None]
    folded = [weight[:, :, k].to(conv.weight.dtype).contiguous() for k in range(weight.shape[2])]
    return folded, bias.to(conv.weight.dtype)[:, None]
