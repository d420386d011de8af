"""The 3D ResNet over the sliding windows of one video, by the same sums in a cheaper order.

Batch norm is part of the convolutions, 1x1x1 convolutions are matrix products, and the max pool is taken over time
first. The stem is shared between windows: it is a sum over seven time steps of convolutions of single frames, so
each frame meets each step's kernel once in the whole video, and the borders of a window, where the sum has fewer
terms, cost additions only. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.nn.resnet3d import Bottleneck, ResNet3D

#: First and last time step of the stem's kernel that meet frames, and those frames' ids: a slice's name.
_Name = tuple[int, tuple[int, ...]]


def fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution that equals `conv` and then `norm` in eval mode."""
    scale = norm.weight.double() / (cast(Tensor, norm.running_var).double() + norm.eps).sqrt()
    bias = norm.bias.double() - cast(Tensor, norm.running_mean).double() * scale
    weight = conv.weight.double() * scale[:, None, None, None, None]
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


class FoldedBottleneck:
    """A `Bottleneck` in eval mode for maps (B, T, H, W, C), channels last."""

    def __init__(self, block: Bottleneck) -> None:
        self.stride = block.conv2.stride[0]
        weight, self.bias1 = fold(block.conv1, block.bn1)
        self.weight1 = weight.flatten(1)
        weight, self.bias2 = fold(block.conv2, block.bn2)
        self.weight2 = weight.contiguous(memory_format=torch.channels_last_3d)
        weight, self.bias3 = fold(block.conv3, block.bn3)
        self.weight3 = weight.flatten(1)
        self.projection: tuple[Tensor, Tensor] | None = None
        if isinstance(block.downsample, nn.Sequential):
            conv, norm = cast(nn.Conv3d, block.downsample[0]), cast(nn.BatchNorm3d, block.downsample[1])
            weight, bias = fold(conv, norm)
            self.projection = weight.flatten(1), bias + self.bias3

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to (B, T / stride, H / stride, W / stride, 4 width); the input's memory is reused."""
        shape, rows = x.shape, x.reshape(-1, x.shape[-1])
        y = F.linear(rows, self.weight1, self.bias1).relu_().view(*shape[:-1], -1)
        y = F.conv3d(y.movedim(-1, 1), self.weight2, self.bias2, stride=self.stride, padding=1)
        y = y.relu_().movedim(1, -1)
        if self.projection is None:
            rows = rows.add_(self.bias3)
        else:
            if self.stride > 1:
                x = x[:, :: self.stride, :: self.stride, :: self.stride]
                rows = x.reshape(-1, x.shape[-1])
            rows = F.linear(rows, *self.projection)
        rows = rows.addmm_(y.reshape(-1, y.shape[-1]), self.weight3.t()).relu_()
        return rows.view(*y.shape[:-1], -1)


class ResNet3DWindows:
    """The stem and the stages of a `ResNet3D` in eval mode, for successive windows of one video.

    The weights are copied; later changes of the network do not reach it.

    Args:
        network: a network in eval mode.
    """

    def __init__(self, network: ResNet3D) -> None:
        weight, self._bias = fold(network.conv1, network.bn1)
        self.steps, self.width = weight.shape[2], weight.shape[0]
        # Each step's kernel in turn: (7 width, 3, 7, 7).
        by_step = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
        self._kernels = by_step.contiguous(memory_format=torch.channels_last)
        self.stages = [
            [FoldedBottleneck(cast(Bottleneck, block)) for block in getattr(network, f"layer{number}")]
            for number in range(1, network.depth + 1)
        ]
        # Where each frame's products lie: a block (frames, h, w, 7 width) and the row in it.
        self._frames: dict[int, tuple[Tensor, int]] = {}
        self._slices: dict[_Name, Tensor] = {}
        #: Frames convolved and slices of the stem computed and asked for: for tests and benchmarks.
        self.convolved = self.computed = self.asked = 0

    @property
    def placed(self) -> tuple[torch.device, torch.dtype]:
        """Device and number type of the weights."""
        return self._bias.device, self._bias.dtype

    def stem(self, video: Tensor, frame_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what follows from the stem: its mean and its maximum over time.

        Args:
            video: (B, 3, T, H, W) windows.
            frame_ids: (B, T) int64; equal ids mean equal frames.

        Returns:
            The stem's mean over time (B, 1, h, w, width), and its maximum over the three steps of the max pool
            (B, T', h, w, width): the max pool without its space.
        """
        windows = [[int(i) for i in row] for row in frame_ids.tolist()]
        count, half = video.shape[2], self.steps // 2
        names: list[list[_Name]] = [
            [(max(half - t, 0), tuple(ids[max(t - half, 0) : t + half + 1])) for t in range(count)]
            for ids in windows
        ]
        table, place = self._evaluate(video, windows, {name for row in names for name in row})
        self.asked += sum(map(len, names))
        places = [[place[name] for name in row] for row in names]

        share = torch.zeros(len(places), len(table), dtype=torch.float64)
        for b, row in enumerate(places):
            for p in row:
                share[b, p] += 1 / count
        mean = (share.to(table) @ table.flatten(1)).view(-1, 1, *table.shape[1:])
        pooled = table.new_empty(len(places), (count - 1) // 2 + 1, *table.shape[1:])
        for b, row in enumerate(places):
            for j, target in enumerate(pooled[b]):
                first, *others = (table[row[t]] for t in range(2 * j - 1, 2 * j + 2) if 0 <= t < count)
                if not others:
                    target.copy_(first)
                for other in others:
                    first = torch.maximum(first, other, out=target)

        kept = set(names[-1])
        self._slices = {name: table[p].clone() for name, p in place.items() if name in kept and not name[0]}
        return mean, pooled

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run stage `number` (1-based) on (B, T, H, W, C); stage 1 begins with the max pool's space."""
        if number == 1:
            frames = x.flatten(0, 1).movedim(-1, 1)
            pooled = F.max_pool2d(frames, 3, stride=2, padding=1).movedim(1, -1)
            x = pooled.unflatten(0, x.shape[:2])
        for block in self.stages[number - 1]:
            x = block(x)
        return x

    def _evaluate(
        self, video: Tensor, windows: list[list[int]], names: Iterable[_Name]
    ) -> tuple[Tensor, dict[_Name, int]]:
        """Return the named slices (N, h, w, width) of the stem, and where each of them is."""
        self._multiply(video, windows)
        known = [name for name in names if name in self._slices]
        fresh = sorted((n for n in names if n not in self._slices), key=lambda n: (n[0], len(n[1]), n[1]))
        self.computed += len(fresh)
        place = {name: p for p, name in enumerate([*fresh, *known])}
        block = self._frames[windows[0][0]][0]
        table = block.new_empty(len(place), *block.shape[1:3], self.width)
        # Slices with the same kernel steps are added up together.
        begin = 0
        for (first, length), group in groupby(fresh, key=lambda n: (n[0], len(n[1]))):
            members = [ids for _, ids in group]
            total = table[begin : begin + len(members)]
            for k in range(length):
                columns = slice((first + k) * self.width, (first + k + 1) * self.width)
                for start, term in self._runs([ids[k] for ids in members]):
                    target, term = total[start : start + len(term)], term[..., columns]
                    if k:
                        target.add_(term)
                    else:
                        torch.add(term, self._bias, out=target)
            total.relu_()
            begin += len(members)
        for name in known:
            table[place[name]] = self._slices[name]
        return table, place

    def _runs(self, frames: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield (first position, products) of the frames, as many at once as lie in one place."""
        begin = 0
        for end in range(1, len(frames) + 1):
            block, row = self._frames[frames[begin]]
            if end < len(frames):
                other, other_row = self._frames[frames[end]]
                if other is block and other_row == row + end - begin:
                    continue
            yield begin, block[row : row + end - begin]
            begin = end

    def _multiply(self, video: Tensor, windows: list[list[int]]) -> None:
        """Convolve each new frame with each step's kernel, and forget the frames that have passed."""
        where = {frame: (b, t) for b, ids in enumerate(windows) for t, frame in enumerate(ids)}
        self._frames = {frame: place for frame, place in self._frames.items() if frame in where}
        fresh = sorted(frame for frame in where if frame not in self._frames)
        if not fresh:
            return
        self.convolved += len(fresh)
        images = torch.stack([video[where[frame][0], :, where[frame][1]] for frame in fresh])
        images = images.contiguous(memory_format=torch.channels_last)
        products = F.conv2d(images, self._kernels, stride=2, padding=3).movedim(1, -1)
        self._frames.update((frame, (products, row)) for row, frame in enumerate(fresh))
