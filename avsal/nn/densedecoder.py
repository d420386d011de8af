"""Parts of MSPI's decoder: lateral blocks, spatial attention and the readout over four dense levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

#: Time steps of every decoder level.
STEPS = 4


class ConvNeXtBlock3D(nn.Module):
    """ConvNeXt block with its depthwise convolution split into time and space (Fig. 2d-3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.time = nn.Conv3d(channels, channels, (7, 1, 1), padding=(3, 0, 0), groups=channels)
        self.space = nn.Conv3d(channels, channels, (1, 7, 7), padding=(0, 3, 3), groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Conv3d(channels, 4 * channels, 1)
        self.reduce = nn.Conv3d(4 * channels, channels, 1)
        for layer in self.children():
            if isinstance(layer, nn.Conv3d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, T, h, w)."""
        y = self.space(self.time(x))
        y = self.norm(y.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        return x + self.reduce(F.gelu(self.expand(y)))


class LateralBlock(nn.Module):
    """T&C block: channels, then time (if `stride` > 1), then a ConvNeXt block (Fig. 2d-2)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.channel = nn.Conv3d(before, after, 1)
        self.time = (
            nn.Conv3d(after, after, (stride, 1, 1), (stride, 1, 1), bias=False) if stride > 1 else None
        )
        self.block = ConvNeXtBlock3D(after)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, T / stride, h, w)."""
        x = self.channel(x)
        return self.block(x if self.time is None else self.time(x))


class SpatialAttention(nn.Module):
    """Mask of a level, made from the saliency volume (Equation 4); `scale` enlarges it to the level."""

    def __init__(self, channels: int, scale: int, bn_momentum: float) -> None:
        super().__init__()
        squeezed = 32
        self.squeeze = nn.Sequential(
            nn.Conv3d(channels, squeezed, 3, padding=1, bias=False),
            nn.BatchNorm3d(squeezed, eps=1e-3, momentum=bn_momentum),
            nn.ReLU(inplace=True),
        )
        self.mask = nn.Conv3d(squeezed, 1, (1, 3, 3), padding=(0, 1, 1))
        self.scale = scale

    def forward(self, saliency: Tensor) -> Tensor:
        """Return the mask (B, 1, T, h, w) in 0..1."""
        return self.mask(enlarge(self.squeeze(saliency), self.scale)).sigmoid()


class Readout(nn.Module):
    """Four decoder levels to one map of logits (Fig. 2d-4).

    The first 1x1x1 convolution runs on each level before its upsampling, and the one over time before the
    last upsampling: linear steps that commute exactly, for less work and memory.
    """

    def __init__(self, channels: int, narrow: int, thin: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(4 * channels, channels, 1)
        self.mix = nn.Conv3d(channels, channels, 3, padding=1)
        self.mix_norm = nn.BatchNorm3d(channels)
        self.narrow = nn.Conv3d(channels, narrow, (1, 3, 3), padding=(0, 1, 1))
        self.narrow_norm = nn.BatchNorm3d(narrow)
        self.collapse = nn.Conv3d(narrow, thin, (STEPS, 1, 1), (STEPS, 1, 1))
        self.refine = nn.Conv3d(thin, thin, (1, 3, 3), padding=(0, 1, 1))
        self.map = nn.Conv3d(thin, 1, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return (B, 1, 4 h, 4 w) from levels (B, C, 4, h / 2^i, w / 2^i), fine to coarse."""
        parts = self.reduce.weight.chunk(4, dim=1)
        x = F.conv3d(levels[0], parts[0], self.reduce.bias)
        for power in (1, 2, 3):
            x = x + enlarge(F.conv3d(levels[power], parts[power]), 2**power)
        x = F.relu(self.mix_norm(self.mix(x)))
        x = F.relu(self.narrow_norm(self.narrow(x)))
        x = F.relu(enlarge(self.collapse(x), 4))
        return self.map(F.relu(self.refine(x)))[:, :, 0]


def enlarge(x: Tensor, scale: int) -> Tensor:
    """Upsample height and width of (B, C, T, h, w) linearly by a whole factor."""
    if scale == 1:
        return x
    return F.interpolate(x, scale_factor=(1, scale, scale), mode="trilinear", align_corners=False)
