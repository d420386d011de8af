"""Image-saliency encoders and decoders: MSPI's still-image stream, also trained and used alone (ISP).

The paper's encoder is a timm classification network whose last two stages (strides 16 and 32) pass a
"Conv + BN + ReLU" transition (MSPI Fig. 3). The decoder's structure is not published; ours is plain.
`PyramidEncoder` and `PyramidDecoder` are a light pair of our own that uses the strides 4 to 32.
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
#: Light encoders by their timm names: those whose padding and norms are the published weights'.
LIGHT_ENCODERS = {f"efficientnet_lite{k}": f"tf_efficientnet_lite{k}" for k in range(5)}
#: RGB mean and standard deviation of their weights, on the 0..255 scale.
LIGHT_MEAN, LIGHT_STD = (127.0,) * 3, (128.0,) * 3
#: (height, width) of the learned map of where people look whatever is shown.
PRIOR = (12, 18)


def _transition(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def build_trunk(name: str, strides: tuple[int, ...]) -> Any:
    """Return timm's network `name` without weights; its maps are those at the given last strides.

    Raises:
        ConfigError: timm has no such model, or it has no maps at these strides.
    """
    import timm

    timm_name = LIGHT_ENCODERS.get(name, name)
    if timm_name not in timm.list_models():
        raise ConfigError(
            f"encoder {name!r} is no timm model; the paper's are {' and '.join(PAPER_ENCODERS)}, and "
            "efficientnet_lite0 is a light one."
        )
    indices = tuple(range(-len(strides), 0))
    try:
        network: Any = timm.create_model(timm_name, pretrained=False, features_only=True, out_indices=indices)
        found = network.feature_info.reduction()
    except (RuntimeError, AttributeError, ValueError, AssertionError) as error:
        raise ConfigError(f"encoder {name!r} gives no feature maps: {error}") from error
    if tuple(found) != strides:
        raise ConfigError(f"encoder {name!r} ends at strides {found}; {list(strides)} are needed.")
    return network


def load_trunk(trunk: nn.Module, checkpoint: Mapping[str, Any], what: str) -> None:
    """Load ImageNet weights into a trunk.

    Args:
        trunk: what `build_trunk` returned.
        checkpoint: timm's classifier (`stages.0.…`), its feature form (`stages_0.…`), or an EfficientNet under
            the names of EfficientNet-PyTorch (`_blocks.0._depthwise_conv.…`).
        what: how errors call it.

    Raises:
        WeightsError: an entry of the trunk is missing, left over or of another shape.
    """
    own = set(trunk.state_dict())
    places = {} if not hasattr(trunk, "blocks") else _block_names(trunk)

    def rename(name: str) -> str:
        name = _efficientnet_name(name, places)
        # timm's feature form joins the first two parts of a name that the classifier keeps apart.
        return name if name in own else name.replace(".", "_", 1)

    head = (r"^head", r"^classifier", r"^_?conv_head\.", r"^bn2\.", r"^_bn1\.", r"^norm_pre", r"^_?fc\.")
    load_exact(trunk, unwrap(checkpoint), rename=rename, unused=head, what=what)


def _block_names(trunk: Any) -> dict[str, tuple[str, bool]]:
    """Return timm's name of each block of an EfficientNet by its number, and whether it begins with an expansion."""
    blocks = [
        (f"blocks.{i}.{j}", hasattr(block, "conv_pwl"))
        for i, stage in enumerate(trunk.blocks)
        for j, block in enumerate(stage)
    ]
    return {str(number): block for number, block in enumerate(blocks)}


def _efficientnet_name(name: str, places: Mapping[str, tuple[str, bool]]) -> str:
    if name.startswith(("_conv_stem.", "_bn0.")):
        return name.replace("_conv_stem", "conv_stem").replace("_bn0", "bn1")
    match = re.match(r"_blocks\.(\d+)\.(_\w+)\.(\w+)$", name)
    if match is None or match[1] not in places:
        return name
    block, expands = places[match[1]]
    parts = {"_depthwise_conv": "conv_dw", "_expand_conv": "conv_pw", "_bn0": "bn1"}
    parts |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"} if expands else {
        "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
    }  # fmt: skip
    return f"{block}.{parts.get(match[2], match[2])}.{match[3]}"


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
        network = build_trunk(name, (16, 32))
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
            checkpoint: see `load_trunk`.
            what: how errors call it.

        Raises:
            WeightsError: an entry of the trunk is missing, left over or of another shape.
        """
        load_trunk(self.encoder, checkpoint, what)
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


class PyramidEncoder(nn.Module):
    """All of an image network's maps at strides 4 to 32. Its batch norms keep their ImageNet statistics in training.

    Args:
        name: a light encoder ("efficientnet_lite0", …) or a timm model with maps at these four strides.

    Attributes:
        channels: of the four maps, shallow to deep.

    Raises:
        ConfigError: timm has no such model, or it has no such maps.
    """

    def __init__(self, name: str = "efficientnet_lite0") -> None:
        super().__init__()
        self.encoder = build_trunk(name, (4, 8, 16, 32))
        self.channels: tuple[int, ...] = tuple(self.encoder.feature_info.channels())
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch modes, except those of the batch norms: pictures of one batch are too alike to tell the statistics."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Return the four maps of normalised frames (N, 3, H, W), each (N, channels[i], ceil(H / s), ceil(W / s))."""
        return tuple(self.encoder(frames.contiguous(memory_format=torch.channels_last)))

    def load_imagenet(self, checkpoint: Mapping[str, Any], *, what: str = "ImageNet checkpoint") -> Self:
        """Load ImageNet weights (see `load_trunk`)."""
        load_trunk(self.encoder, checkpoint, what)
        return self


class _Separable(nn.Sequential):
    """Depthwise 3x3 and pointwise convolution with norm and ReLU, added to the input.

    Group norm does not care which pictures share a batch.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class PyramidDecoder(nn.Module):
    """From deep to shallow: each map joins the enlarged deeper ones; a learned prior is added to the last.

    Args:
        channels: of the encoder's maps, shallow to deep.
        width: channels of the decoder, a multiple of 8.
    """

    def __init__(self, channels: tuple[int, ...], width: int = 64) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.scene = nn.Conv2d(channels[-1], width, 1)
        kernels = [3] * (len(channels) - 1) + [5]
        self.join = nn.ModuleList(nn.Sequential(_Separable(width, k), _Separable(width, k)) for k in kernels)
        self.map = nn.Conv2d(width, 1, 1)
        self.prior = nn.Parameter(torch.zeros(1, 1, *PRIOR))

    def features(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Return (N, width, h, w) features at the shallowest map's size."""
        x = self.join[-1](self.lateral[-1](maps[-1]) + self.scene(maps[-1].mean((2, 3), keepdim=True)))
        for level in reversed(range(len(maps) - 1)):
            enlarged = F.interpolate(x, maps[level].shape[2:], mode="bilinear", align_corners=False)
            x = self.join[level](self.lateral[level](maps[level]) + enlarged)
        return x

    def forward(self, *maps: Tensor) -> Tensor:
        """Return logits (N, 1, h, w) of the shallowest map's size."""
        logits = self.map(self.features(maps))
        return logits + F.interpolate(self.prior, logits.shape[2:], mode="bicubic", align_corners=False)
