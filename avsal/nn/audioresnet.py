"""ResNet-18 on spectrograms, MSPI's audio encoder (pre-trained on VGGSound)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from avsal.nn.motion import unwrap
from avsal.nn.state import load_exact


class AudioResNet18(nn.Module):
    """torchvision's ResNet-18 with one input channel, without average pool and classifier.

    Args:
        width: channels of the first stage; 64 is ResNet-18.

    Attributes:
        channels: channels of the output, 8 * width.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.channels = 8 * width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Return the last map.

        Args:
            spectrogram: (B, 1, F, N) frequencies by time columns, MSPI: 257 by 111.

        Returns:
            (B, channels, ceil(F / 32), ceil(N / 32)), MSPI: (B, 512, 9, 4).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(spectrogram))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def load_published(self, checkpoint: Mapping[str, Any], *, what: str = "audio checkpoint") -> Self:
        """Load the VGGSound classifier (`model_state_dict`, names under `audnet.`) or its stripped trunk."""
        inner = checkpoint.get("model_state_dict", checkpoint)
        entries = {name.removeprefix("audnet."): value for name, value in unwrap(inner).items()}
        return load_exact(self, entries, unused=(r"^fc", r"^avgpool", r"^pool", r"^netvlad"), what=what)


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
    return nn.Sequential(BasicBlock(before, after, stride, shortcut), BasicBlock(after, after))
