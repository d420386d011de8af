"""S3D over the sliding windows of one video, sharing slices (see `avsal.nn.slices`).

Of 32 frames half of the stem and a third of the second stage are shared, of 16 frames a quarter of the first stage;
the third and fourth stages never are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.s3d import SepInceptionBlock3D

from avsal.nn.s3d import TAPS
from avsal.nn.slices import Combine, SharedSlices, fold


class S3DWindows(SharedSlices):
    """S3D and the frame-wise layers on its taps for successive windows of one video, in eval mode.

    Args:
        encoder: the network, whose layers are `features` (`S3DFeatures`, or MSPI's `S3DMotion`).
        heads: for each of the four taps, a module without temporal extent: (B, C, T, h, w) to the same T.
    """

    def __init__(self, encoder: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.heads = cast(nn.Sequential, encoder.features), list(heads)
        self._folded: dict[nn.Module, tuple[list[Tensor], Tensor]] = {}

    def __call__(self, video: Tensor, frame_ids: Tensor) -> list[Tensor]:
        """Return the heads' outputs (B, C, T_i, h_i, w_i) of the four taps.

        Args:
            video: (B, 3, T, H, W) windows.
            frame_ids: (B, T) int64; equal ids mean equal frames.
        """
        layers, slices = self.layers, self.begin(video, frame_ids)

        # Frame by frame; then over time, and on with what follows frame by frame.
        stem, second = cast(nn.Sequential, layers[0]), cast(nn.Sequential, layers[3])
        slices = self.each("stem", slices, stem[0])
        after_stem = nn.Sequential(layers[1], layers[2], second[0])
        slices = self.over_time("second", slices, 7, 2, 3, self._convolution(stem[1]), after_stem)
        slices = self.over_time("f1", slices, 3, 1, 1, self._convolution(second[1]))
        outputs = [self.each("head1", slices, self.heads[0]).joined()]

        index = TAPS[0] + 1
        while slices.shared and index <= TAPS[1] + 1:
            layer = layers[index]
            if isinstance(layer, SepInceptionBlock3D):
                slices = self.each(f"{index} frames", slices, _FrameParts(layer))
                combine, after = self._inception(layer)
                slices = self.over_time(f"{index}", slices, 3, 1, 1, combine, after)
            elif index == TAPS[0] + 1:
                slices = self.each(f"{index}", slices, layer)
            else:
                slices = self.each(f"{index} frames", slices, nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
                slices = self.over_time(f"{index}", slices, 3, 2, 1, _maximum)
            if index == TAPS[1]:
                outputs.append(self.each("head2", slices, self.heads[1]).joined())
            index += 1

        self.forget()
        maps = slices.joined()
        for later in range(index, len(layers)):
            maps = layers[later](maps)
            if later in TAPS:
                outputs.append(self.heads[len(outputs)](maps))
        return outputs

    # -- layers with temporal extent ---------------------------------------------------------------------

    def _convolution(self, layer: nn.Module) -> Combine:
        """Return conv (k, 1, 1), batch norm and ReLU as a sum of matrix products."""
        if layer not in self._folded:
            conv, norm, *_ = cast(nn.Sequential, layer)
            weight, bias = fold(cast(nn.Conv3d, conv), cast(nn.BatchNorm3d, norm))
            self._folded[layer] = [step.contiguous() for step in weight[..., 0, 0].unbind(2)], bias[:, None]
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
