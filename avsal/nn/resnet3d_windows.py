"""The 3D ResNet over the sliding windows of one video, by the same sums in a cheaper order.

Batch norm is part of the convolutions, 1x1x1 convolutions are matrix products, and the max pool is taken over time
first. The stem is shared between windows (see `avsal.nn.slices`): it is a sum over seven time steps of convolutions of
single frames, so each frame meets each step's kernel once in the whole video, and the borders of a window, where the
sum has fewer terms, cost additions only. Nothing is approximated.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.nn.resnet3d import Bottleneck, ResNet3D
from avsal.nn.slices import SharedSlices, fold


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


class ResNet3DWindows(SharedSlices):
    """The stem and the stages of a `ResNet3D` in eval mode, for successive windows of one video.

    The weights are copied; later changes of the network do not reach it.

    Args:
        network: a network in eval mode.
    """

    def __init__(self, network: ResNet3D) -> None:
        super().__init__()
        weight, self._bias = fold(network.conv1, network.bn1)
        self.steps, self.width = weight.shape[2], weight.shape[0]
        # Each step's kernel in turn: (7 width, 3, 7, 7).
        by_step = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)
        self._kernels = by_step.contiguous(memory_format=torch.channels_last)
        self.stages = [
            [FoldedBottleneck(cast(Bottleneck, block)) for block in getattr(network, f"layer{number}")]
            for number in range(1, network.depth + 1)
        ]

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
        slices = self.each("products", self.begin(video, frame_ids), self._products)
        windows = self.over_time("stem", slices, self.steps, 1, self.steps // 2, self._sum).values
        self.forget()
        mean = torch.stack([torch.stack(stem).mean(0, keepdim=True) for stem in windows])
        pooled = mean.new_empty(len(windows), (len(windows[0]) + 1) // 2, *mean.shape[2:])
        for stem, targets in zip(windows, pooled, strict=True):
            for j, target in enumerate(targets):
                first, *others = stem[max(2 * j - 1, 0) : 2 * j + 2]
                target.copy_(first)
                for other in others:
                    torch.maximum(target, other, out=target)
        return mean, pooled

    def _products(self, frames: Tensor) -> Tensor:
        """Convolve frames (1, 3, N, H, W) with each step's kernel: (1, h, N, w, 7 width)."""
        images = frames[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)
        products = F.conv2d(images, self._kernels, stride=2, padding=3).movedim(1, -1)
        return products.transpose(0, 1)[None]

    def _sum(self, taps: list[tuple[int, Tensor]]) -> Tensor:
        terms = [value[..., k * self.width : (k + 1) * self.width] for k, value in taps]
        total = terms[0] + self._bias
        for term in terms[1:]:
            total.add_(term)
        return total.relu_()

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run stage `number` (1-based) on (B, T, H, W, C); stage 1 begins with the max pool's space."""
        if number == 1:
            frames = x.flatten(0, 1).movedim(-1, 1)
            pooled = F.max_pool2d(frames, 3, stride=2, padding=1).movedim(1, -1)
            x = pooled.unflatten(0, x.shape[:2])
        for block in self.stages[number - 1]:
            x = block(x)
        return x
