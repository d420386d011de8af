"""3D ResNet with bottleneck blocks and projection shortcuts (Hara et al., "Can Spatiotemporal 3D CNNs ...").

STAViS uses the 50-layer network, trained on Kinetics-400, without its last stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from avsal.nn.state import load_exact, strip_prefix

#: Channels that leave a bottleneck block, in units of its width.
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions with batch norm, added to the input or its projection.

    Args:
        channels: channels of the input.
        width: channels of the two inner convolutions; the block returns `4 * width`.
        stride: stride of the 3x3x3 convolution on all three axes.
        project: whether the shortcut is a 1x1x1 convolution with batch norm (shortcut type B).
    """

    def __init__(self, channels: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv3d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out)
        self.downsample: nn.Module = nn.Identity()
        if project:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm3d(out)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, 4 width, T / stride, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


class ResNet3D(nn.Module):
    """The trunk: a 7x7x7 stem, a max pool, and up to four stages of bottlenecks.

    Strides from the clip (time, space): stem (1, 2), pool and stage 1 (2, 4), stage 2 (4, 8),
    stage 3 (8, 16), stage 4 (16, 32). The input is RGB minus its mean, on the 0..255 scale, for the
    published weights.

    Args:
        blocks: bottlenecks of each stage, `(3, 4, 6, 3)` for ResNet-50.
        width: channels of the stem; stage n has bottlenecks of width `width * 2**(n - 1)`.
        classes: size of the classifier after a global mean; None for a trunk only.
    """

    def __init__(
        self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, classes: int | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        self.channels = [width]
        for stage, count in enumerate(blocks):
            inner, stride = width * 2**stage, 1 if stage == 0 else 2
            layers = [Bottleneck(self.channels[-1], inner, stride, project=True)]
            layers += [Bottleneck(inner * EXPANSION, inner, 1, project=False) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            self.channels.append(inner * EXPANSION)
        self.depth = len(blocks)
        self.fc = nn.Linear(self.channels[-1], classes) if classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stem(self, clip: Tensor) -> Tensor:
        """Return (B, width, T, H / 2, W / 2) after the first convolution, batch norm and ReLU."""
        return self.relu(self.bn1(self.conv1(clip)))

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run stage `number` (1-based); stage 1 begins with the max pool."""
        layer = cast(nn.Sequential, getattr(self, f"layer{number}"))
        return layer(self.maxpool(x)) if number == 1 else layer(x)

    def features(self, clip: Tensor) -> list[Tensor]:
        """Return the stem's output and each stage's, for a clip (B, 3, T, H, W)."""
        found = [self.stem(clip)]
        for number in range(1, self.depth + 1):
            found.append(self.stage(number, found[-1]))
        return found

    def forward(self, clip: Tensor) -> Tensor:
        """Return the last stage's output, or the class logits (B, classes) if there is a classifier."""
        last = self.features(clip)[-1]
        return last if self.fc is None else self.fc(last.mean((-3, -2, -1)))


def from_published(state_dict: Mapping[str, Tensor]) -> ResNet3D:
    """Build the network of a published Kinetics file (`resnet-50-kinetics.pth`, its `state_dict`).

    Depth, width and classes are read off the entries; the classifier may be absent. Names may begin with
    `module.`.

    Args:
        state_dict: entries `conv1, bn1, layerL.B.conv{1,2,3}, .bn{1,2,3}, .downsample.{0,1}, fc`.

    Returns:
        The network in eval mode.

    Raises:
        WeightsError: names the entries that are missing, left over or of another shape.
    """
    entries = strip_prefix(state_dict)
    blocks = [
        len({name.split(".")[1] for name in entries if name.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    ]
    while blocks and blocks[-1] == 0:
        blocks.pop()
    stem, head = entries.get("conv1.weight"), entries.get("fc.weight")
    network = ResNet3D(
        [max(count, 1) for count in blocks] or (3, 4, 6, 3),
        width=64 if stem is None else len(stem),
        classes=None if head is None else len(head),
    )
    return load_exact(network, entries, what="3D ResNet file").eval()
