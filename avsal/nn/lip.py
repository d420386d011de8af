"""Local importance-based pooling (Gao, Wang and Wu, 2019), size preserving, as AVRSP needs it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LIP(nn.Module):
    """A 3x3 mean of each frame, weighted by the importance that the network gives each position.

    importance = exp(12 sigmoid(norm(conv(x)))); out = mean(x * importance) / mean(importance). The
    convolution starts at zero: a new module is a plain 3x3 mean over the positions inside the map.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        nn.init.zeros_(self.conv.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape (B, C, T, h, w); h * w must be at least 2."""
        batch, _, steps = maps.shape[:3]
        frames = maps.transpose(1, 2).flatten(0, 1)
        logit = self.norm(self.conv(frames))
        # exp(12) does not fit half precision: the weighting runs in float32. The factor exp(-6) cancels.
        importance = torch.exp(12.0 * torch.sigmoid(logit.float()) - 6.0)
        total = F.avg_pool2d(frames.float() * importance, 3, 1, 1)
        pooled = total / F.avg_pool2d(importance, 3, 1, 1)
        return pooled.to(maps.dtype).unflatten(0, (batch, steps)).transpose(1, 2)
