"""Image-saliency encoder and decoder: MSPI's still-image stream, also trained and used alone (ISP).

The encoder is a timm classification network whose last two stages (strides 16 and 32) pass a
"Conv + BN + ReLU" transition (MSPI Fig. 3). The decoder's structure is not published; ours is plain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.nn.motion import unwrap
from avsal.nn.state import load_exact

#: The two encoders of the paper. Any timm network with maps at strides 16 and 32 works.
PAPER_ENCODERS = ("convnext_tiny", "mobilenetv2_100")


def _transition(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class ImageSaliencyEncoder(nn.Module):
    """The last two stages of an image network behind their transitions.

    Args:
        name: a timm model name; the paper's are "convnext_tiny" and "mobilenetv2_100".
        channels: channels after the transitions at strides 16 and 32; (96, 320) in the paper.

    Attributes:
        channels: the same pair.

    Raises:
        ConfigError: timm has no such model, or it has no maps at strides 16 and 32.
    """

    def __init__(self, name: str = "convnext_tiny", channels: tuple[int, int] = (96, 320)) -> None:
        super().__init__()
        import timm

        if name not in timm.list_models():
            raise ConfigError(
                f"image_encoder={name!r} is no timm model; the paper's are {' and '.join(PAPER_ENCODERS)}."
            )
        try:
            network: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=(-2, -1))
            strides = network.feature_info.reduction()
        except (RuntimeError, AttributeError, ValueError, AssertionError) as error:
            raise ConfigError(f"image_encoder={name!r} gives no feature maps: {error}") from error
        if list(strides) != [16, 32]:
            raise ConfigError(
                f"image_encoder={name!r} ends at strides {strides}; MSPI needs 16 and 32, as "
                f"{' and '.join(PAPER_ENCODERS)} have."
            )
        self.encoder = network
        found = network.feature_info.channels()
        self.transition16 = _transition(found[0], channels[0])
        self.transition32 = _transition(found[1], channels[1])
        self.channels = channels

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two maps of each frame.

        Args:
            frames: (N, 3, H, W) normalised, H and W multiples of 32.

        Returns:
            (N, channels[0], H / 16, W / 16) and (N, channels[1], H / 32, W / 32), both non-negative.
        """
        middle, deep = self.encoder(frames)
        return self.transition16(middle), self.transition32(deep)

    def load_published(
        self, checkpoint: Mapping[str, Any], *, what: str = "image-saliency checkpoint"
    ) -> Self:
        """Load a saliency-trained encoder: the authors' release, an ISP or an MSPI checkpoint.

        Raises:
            WeightsError: an entry of the encoder is missing, left over or of another shape.
        """
        entries = unwrap(checkpoint)
        if any(".image_encoder." in f".{name}" for name in entries):
            # A whole MSPI: only its still-image stream is wanted.
            pattern = re.compile(r"^(network\.)?image_encoder\.")
            entries = {pattern.sub("", name): v for name, v in entries.items() if pattern.match(name)}
        elif any(name.startswith("network.encoder.") for name in entries):
            prefix = "network.encoder."
            entries = {n.removeprefix(prefix): v for n, v in entries.items() if n.startswith(prefix)}
        return load_exact(self, entries, rename=rename_image_encoder, unused=(r"^decoder\.",), what=what)

    def load_imagenet(self, checkpoint: Mapping[str, Any], *, what: str = "ImageNet checkpoint") -> Self:
        """Load timm's ImageNet weights into the trunk; the transitions stay as they are.

        Args:
            checkpoint: timm's classifier (`stages.0.…`) or its feature form (`stages_0.…`).
            what: how errors call it.

        Raises:
            WeightsError: an entry of the trunk is missing, left over or of another shape.
        """
        own = set(self.encoder.state_dict())

        def flat(name: str) -> str:
            # timm's feature form joins the first two parts of a name that the classifier keeps apart.
            joined = name.replace(".", "_", 1)
            return name if name in own else joined

        head = (r"^head", r"^classifier", r"^conv_head\.", r"^bn2\.", r"^norm_pre", r"^fc\.")
        load_exact(self.encoder, unwrap(checkpoint), rename=flat, unused=head, what=what)
        return self


def rename_image_encoder(name: str) -> str:
    """Map an entry of the authors' image encoder (`encoder.…`, `smooth_0` deep, `smooth_1`) to ours."""
    return name.replace("smooth_0.", "transition32.").replace("smooth_1.", "transition16.")


class ImageSaliencyDecoder(nn.Module):
    """Both maps to one saliency map: join, then convolve and double the size twice.

    Args:
        channels: channels of the encoder's maps at strides 16 and 32.
    """

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        wide = max(8, channels[1] // 5 * 2)
        self.join = _transition(sum(channels), wide)
        self.halve = _transition(wide, wide // 2)
        self.quarter = _transition(wide // 2, wide // 4)
        self.map = nn.Conv2d(wide // 4, 1, 1)

    def forward(self, middle: Tensor, deep: Tensor) -> Tensor:
        """Return logits (N, 1, H / 4, W / 4) from maps at strides 16 and 32."""
        x = self.join(torch.cat([middle, _double(deep)], 1))
        x = self.halve(_double(x))
        return self.map(self.quarter(_double(x)))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
