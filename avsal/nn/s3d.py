"""S3D, the separable 3-D Inception network that CASP-Net, AVRSP and MSPI see with.

The layers are torchvision's; this file adds the four taps, narrower variants and the names under which
other projects publish the same network. torchvision's `s3d`, the Kinetics port and the encoders of TASED-Net
and ViNet are one network, entry for entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.s3d import SepInceptionBlock3D, TemporalSeparableConv
from torchvision.ops.misc import Conv3dNormActivation

from avsal.errors import ConfigError
from avsal.nn.state import load_exact

#: Index in `features` of each tap f1..f4, as torchvision counts the layers.
TAPS = (3, 6, 12, 15)
#: Input pixels per output position of the taps, over (time, height, width).
STRIDES = ((2, 4, 4), (2, 8, 8), (4, 16, 16), (8, 32, 32))
#: RGB mean and standard deviation on the 0..255 scale that torchvision's Kinetics weights were trained with.
MEAN = (0.43216 * 255, 0.394666 * 255, 0.37645 * 255)
STD = (0.22803 * 255, 0.22145 * 255, 0.216989 * 255)

# Inception widths: branch 0; branch 1 middle, out; branch 2 middle, out; branch 3. None is a max pool.
_MIXED: tuple[tuple[int, int, int, int, int, int], ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
# The Kinetics port names the halves of a layer; torchvision numbers them.
_HALVES = {
    "conv_s": "0.0",
    "bn_s": "0.1",
    "conv_t": "1.0",
    "bn_t": "1.1",
    "conv": "0",
    "bn": "1",
}
_STAGE_OFFSET = {"1": 0, "2": 5, "3": 8, "4": 14}


def torchvision_name(name: str) -> str | None:
    """Return torchvision's name of an S3D entry, or None for an entry that is no S3D feature layer.

    Known are torchvision (`features.5…`), the Kinetics port (`base.5…`) and TASED-Net / ViNet
    (`base2.0…`), each also behind `module.` or `backbone.`.
    """
    name = re.sub(r"^(module\.|backbone\.)+", "", name)
    if name.startswith("features."):
        return name
    staged = re.fullmatch(r"base([1-4])\.(\d+)\.(.+)", name)
    flat = re.fullmatch(r"base\.(\d+)\.(.+)", name)
    if staged:
        index, rest = _STAGE_OFFSET[staged[1]] + int(staged[2]), staged[3]
    elif flat:
        index, rest = int(flat[1]), flat[2]
    else:
        return None
    rest = rest.replace("branch0.0.", "branch0.")
    parts = [_HALVES.get(part, part) for part in rest.split(".")]
    return ".".join(["features", str(index), *parts])


def pad_to_stride(video: Tensor, stride: int = STRIDES[-1][1]) -> Tensor:
    """Return (B, 3, T, H', W') with zeros (the mean colour) below and right, up to multiples of `stride`."""
    height, width = video.shape[-2:]
    below, right = -height % stride, -width % stride
    return F.pad(video, (0, right, 0, below)) if below or right else video


class S3DFeatures(nn.Module):
    """S3D without its classifier, returning the maps of four stages (torchvision's `features`).

    Args:
        last_pool_time_stride: 2 is S3D; 1 keeps the time steps in the last pool, as MSPI does.
        width: multiplier of every width; 1 is S3D, smaller ones are for small networks.
        bn_momentum: share of a batch in the running statistics. 0.001 is S3D's and suits fine-tuning;
            training from random weights in a few thousand steps needs about 0.1.

    Attributes:
        channels: channels (C1, C2, C3, C4) of the four maps: 192, 480, 832, 1024 at width 1.
    """

    def __init__(
        self, last_pool_time_stride: int = 2, width: float = 1.0, bn_momentum: float = 0.001
    ) -> None:
        super().__init__()
        if last_pool_time_stride not in (1, 2):
            raise ConfigError(f"last_pool_time_stride={last_pool_time_stride}; allowed: 1, 2.")
        if width <= 0:
            raise ConfigError(f"width={width} must be positive; 1 is S3D as published.")

        def scaled(channels: int) -> int:
            return channels if width == 1 else max(4, round(channels * width))

        norm = partial(nn.BatchNorm3d, eps=0.001, momentum=bn_momentum)
        stem, second = scaled(64), scaled(192)
        last = (last_pool_time_stride, 2, 2)
        pools: dict[int, nn.Module] = {
            7: nn.MaxPool3d(3, 2, 1),
            13: nn.MaxPool3d(last, last),
        }
        layers: list[nn.Module] = [
            TemporalSeparableConv(3, stem, 7, 2, 3, norm),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            Conv3dNormActivation(stem, stem, kernel_size=1, stride=1, norm_layer=norm),
            TemporalSeparableConv(stem, second, 3, 1, 1, norm),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ]
        outputs, channels = [second], second
        for widths in _MIXED:
            if len(layers) in pools:
                outputs.append(channels)
                layers.append(pools[len(layers)])
            b0, m1, b1, m2, b2, b3 = map(scaled, widths)
            layers.append(SepInceptionBlock3D(channels, b0, m1, b1, m2, b2, b3, norm))
            channels = b0 + b1 + b2 + b3
        self.features = nn.Sequential(*layers)
        self.channels: tuple[int, int, int, int] = (outputs[0], outputs[1], outputs[2], channels)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four maps of a clip, shallow to deep.

        Args:
            video: (B, 3, T, H, W) normalised; H and W at least 32, T at least 8.

        Returns:
            f1 (B, C1, T/2, H/4, W/4), f2 (B, C2, T/2, H/8, W/8), f3 (B, C3, T/4, H/16, W/16) and
            f4 (B, C4, T/8, H/32, W/32); odd sizes round up, except in the last pool, which drops a rest.
        """
        maps = []
        for index, layer in enumerate(self.features):
            video = layer(video)
            if index in TAPS:
                maps.append(video)
        return maps[0], maps[1], maps[2], maps[3]

    def load_published(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Load published weights under any of the names that `torchvision_name` maps; returns self.

        Raises:
            WeightsError: an entry is missing, left over or of another shape.
        """
        return load_exact(
            self,
            state_dict,
            rename=torchvision_name,
            unused=(r"^(module\.)?(fc|classifier)\.",),
            what="S3D state dict",
        )

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """Return S3D in eval mode with published weights (Kinetics port, torchvision, TASED-Net, ViNet).

        Raises:
            WeightsError: an entry is missing, left over or of another shape.
        """
        return cls().load_published(state_dict).eval()
