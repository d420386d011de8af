"""RFB-320: a face detector of 0.28 M parameters (Linzaer's Ultra-Light-Fast-Generic-Face-Detector, "version RFB").

A single-shot detector at 320x240 with maps at strides 8 to 64 and three receptive-field branches of dilated
convolutions (Liu et al., "Receptive Field Block Net", ECCV 2018). The layers keep the names of the released weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from avsal.errors import ConfigError
from avsal.nn.motion import unwrap
from avsal.nn.state import load_exact

#: Sides of the square priors in pixels, for each of the four maps.
PRIOR_SIDES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
#: How the box regression is scaled: offsets of the centre, logarithms of the sides.
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise and pointwise convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _head(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Depthwise convolution, ReLU, pointwise convolution."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
    return nn.Sequential(depthwise, nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, 1))


class _Unit(nn.Module):
    """Convolution, batch norm and, if asked for, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, relu: bool = True) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class _ReceptiveFields(nn.Module):
    """Three branches whose last convolutions are dilated by 2, 3 and 5, joined onto a shortcut."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        narrow = channels // 8

        def branch(dilation: int, *widths: int) -> nn.Sequential:
            units = [_Unit(channels, narrow, 1, relu=False)]
            units += [_Unit(a, b, 3) for a, b in zip((narrow, *widths), widths, strict=False)]
            return nn.Sequential(*units, _Unit(widths[-1], 2 * narrow, 3, dilation, relu=False))

        self.branch0 = branch(2, 2 * narrow)
        self.branch1 = branch(3, 2 * narrow)
        self.branch2 = branch(5, narrow // 2 * 3, 2 * narrow)
        self.ConvLinear = _Unit(6 * narrow, channels, 1, relu=False)
        self.shortcut = _Unit(channels, channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1)
        return F.relu(self.ConvLinear(branches) + self.shortcut(x))


class FaceDetector(nn.Module):
    """Finds faces in pictures: scores and boxes of all priors, or the faces after non-maximum suppression.

    Args:
        side: longer side in pixels that `detect` shrinks a picture to; the weights are made for 320.
        threshold: least score of a face, 0..1.
        overlap: a face is dropped if its intersection over union with a better one exceeds this.
    """

    def __init__(self, side: int = 480, threshold: float = 0.5, overlap: float = 0.3) -> None:
        super().__init__()
        if not 0.0 < threshold < 1.0 or not 0.0 < overlap < 1.0:
            raise ConfigError(f"threshold={threshold} and overlap={overlap} lie between 0 and 1.")
        self.side, self.threshold, self.overlap = side, threshold, overlap
        first = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        widths = [(16, 32, 1), (32, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
        later = [
            (64, 128, 2),
            (128, 128, 1),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
        ]
        self.base_net = nn.Sequential(
            first,
            *(_separable(*one) for one in widths),
            _ReceptiveFields(64),
            *(_separable(*one) for one in later),
        )
        narrow = nn.Sequential(
            nn.Conv2d(256, 64, 1), nn.ReLU(inplace=True), _head(64, 256, 2), nn.ReLU(inplace=True)
        )
        self.extras = nn.ModuleList([narrow])
        counts = [len(sides) for sides in PRIOR_SIDES]
        self.classification_headers = self._heads([2 * count for count in counts])
        self.regression_headers = self._heads([4 * count for count in counts])

    @staticmethod
    def _heads(outputs: list[int]) -> nn.ModuleList:
        heads = [_head(channels, n) for channels, n in zip((64, 128, 256), outputs, strict=False)]
        return nn.ModuleList([*heads, nn.Conv2d(256, outputs[3], 3, padding=1)])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (N, P, 2) "background", "face" and boxes (N, P, 4) of every prior.

        Args:
            images: (N, 3, H, W) float RGB, (value - 127) / 128; 240 x 320 has P = 4420.

        Returns:
            Scores sum to 1; boxes are (left, top, right, bottom) in shares of width and height, 0..1 inside.
        """
        maps, x = [], images
        for index, layer in enumerate(self.base_net):
            x = layer(x)
            if index in (7, 10, 12):
                maps.append(x)
        maps.append(self.extras[0](x))
        scores, offsets = (
            torch.cat(
                [
                    head(m).permute(0, 2, 3, 1).reshape(len(m), -1, width)
                    for head, m in zip(heads, maps, strict=True)
                ],
                1,
            )
            for heads, width in ((self.classification_headers, 2), (self.regression_headers, 4))
        )
        priors = _priors(*images.shape[-2:]).to(offsets)
        centres = offsets[..., :2] * CENTRE_VARIANCE * priors[:, 2:] + priors[:, :2]
        sides = (offsets[..., 2:] * SIZE_VARIANCE).exp() * priors[:, 2:]
        return scores.softmax(-1), torch.cat([centres - sides / 2, centres + sides / 2], -1)

    @torch.no_grad()
    def detect(self, image: Tensor) -> Tensor:
        """Return the faces (n, 5) of one picture, best first: left, top, right, bottom in 0..1, score.

        Args:
            image: (3, H, W) RGB in 0..255, uint8 or float, of any size.
        """
        height, width = image.shape[-2:]
        scale = self.side / max(height, width)
        size = [max(round(height * scale), 16), max(round(width * scale), 16)]
        small = F.interpolate(image[None], size, mode="bilinear", antialias=True)
        # In half precision the faces are found too; boxes and scores are kept in single.
        seen = (small.float() - 127).div(128).to(next(self.parameters()).dtype)
        scores, boxes = (value[0].float() for value in self(seen))
        good = scores[:, 1] > self.threshold
        boxes, scores = boxes[good], scores[good, 1]
        keep = nms(boxes * boxes.new_tensor([size[1], size[0]] * 2), scores, self.overlap)
        return torch.cat([boxes[keep].clamp(0, 1), scores[keep, None]], 1)

    def load_published(self, checkpoint: Mapping[str, Any], *, what: str = "RFB-320 checkpoint") -> Self:
        """Load the released weights.

        Raises:
            WeightsError: an entry is missing, left over or of another shape.
        """
        return load_exact(self, unwrap(checkpoint), what=what)


@lru_cache(maxsize=8)
def _priors(height: int, width: int) -> Tensor:
    """Return the priors (P, 4): centre x, y, width, height in shares of the picture, row by row of each map."""
    parts = []
    rows, columns = height, width
    for halvings, sides in zip((3, 1, 1, 1), PRIOR_SIDES, strict=True):
        for _ in range(halvings):
            rows, columns = -(-rows // 2), -(-columns // 2)
        ranges = (torch.arange(rows), torch.arange(columns), torch.arange(len(sides)))
        y, x, k = torch.meshgrid(*ranges, indexing="ij")
        side = torch.tensor(sides, dtype=torch.float32)[k]
        place = [(x + 0.5) / columns, (y + 0.5) / rows, side / width, side / height]
        parts.append(torch.stack(place, -1).reshape(-1, 4))
    return torch.cat(parts).clamp(0, 1)
