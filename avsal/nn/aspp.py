"""Atrous spatial pyramid pooling, frame by frame: four dilated 3x3 convolutions, summed.

Chen et al., "DeepLab" (2018), in the form that CASP-Net and AVRSP cite. The kernels have no temporal extent,
so every time step stands alone, and sliding windows may reuse it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Dilations of the four branches.
RATES = (3, 6, 12, 18)


class ASPP(nn.Module):
    """Sum of dilated (1, 3, 3) convolutions with bias, size preserving, no normalisation or activation.

    In eval mode it runs `trimmed`, which leaves out the multiplications by padding.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        rates: dilation of each branch.
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.rates = tuple(rates)
        self.branches = nn.ModuleList()
        for rate in rates:
            branch = nn.Conv3d(
                in_channels, channels, (1, 3, 3), padding=(0, rate, rate), dilation=(1, rate, rate)
            )
            nn.init.normal_(branch.weight, std=0.01)
            assert branch.bias is not None
            nn.init.zeros_(branch.bias)
            self.branches.append(branch)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, channels, T, h, w) for maps (B, in_channels, T, h, w)."""
        return self.plain(maps) if self.training else self.trimmed(maps)

    def plain(self, maps: Tensor) -> Tensor:
        """Return the sum of the four convolutions as written."""
        total = self.branches[0](maps)
        for branch in self.branches[1:]:
            total = total + branch(maps)
        return total

    def trimmed(self, maps: Tensor) -> Tensor:
        """Return the same sum without the taps that only see padding.

        A tap whose dilation reaches past the map contributes nothing: at CASP-Net's fourth stage (7 x 12)
        the branches of rate 12 and 18 are 1x1 convolutions, and most rows of the outer taps fall outside
        in other branches of stages 2 to 4. Time steps run as a batch of 2-D maps.
        """
        batch, _, steps, height, width = maps.shape
        frames = maps.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        named = dict(self.named_parameters())
        weights = [(named[f"branches.{i}.weight"].squeeze(2), rate) for i, rate in enumerate(self.rates)]
        bias = torch.stack([named[f"branches.{i}.bias"] for i in range(len(self.rates))]).sum(0)
        # All centre taps that stand alone are one 1x1 convolution.
        alone = [w[:, :, 1:2, 1:2] for w, r in weights if r >= height and r >= width]
        total = F.conv2d(frames, sum(alone[1:], alone[0]), bias) if alone else None
        for weight, rate in weights:
            if rate >= height and rate >= width:
                continue
            columns = slice(None) if rate < width else slice(1, 2)
            across = (0, rate if rate < width else 0)
            weight = weight[:, :, :, columns]
            # Splitting into rows pays where the outer taps see padding for half of the rows or more.
            if 2 * rate < height:
                part = F.conv2d(frames, weight, bias if total is None else None, 1, (rate, across[1]), rate)
                total = part if total is None else total.add_(part)
                continue
            middle = weight[:, :, 1:2]
            part = F.conv2d(frames, middle, bias if total is None else None, 1, across, rate)
            total = part if total is None else total.add_(part)
            if rate < height:
                total[:, :, rate:] += F.conv2d(frames[:, :, :-rate], weight[:, :, 0:1], None, 1, across, rate)
                total[:, :, :-rate] += F.conv2d(frames[:, :, rate:], weight[:, :, 2:3], None, 1, across, rate)
        assert total is not None
        return total.unflatten(0, (batch, steps)).transpose(1, 2)
