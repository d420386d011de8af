"""VideoSwin-S (Liu et al., CVPR 2022) as motion encoder, on torchvision's network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor, nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

from avsal.nn.motion import Maps, MotionEncoder

_INNER = {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}


class VideoSwinS(MotionEncoder):
    """The four stages of VideoSwin-S, each before its patch merging.

    Args:
        patch_norm: layer norm after the patch embedding. The Kinetics-400 weights carry it; MSPI's authors
            built the network without it, so their files need False.
        drop_path: stochastic depth of the deepest block; 0 as MSPI trained.
    """

    channels = (96, 192, 384, 768)
    strides = ((2, 4, 4), (2, 8, 8), (2, 16, 16), (2, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (r"^norm\.", r"^head\.", r"^cls_head\.")
    derived: ClassVar[tuple[str, ...]] = (r"relative_position_index$",)

    def __init__(self, patch_norm: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        network = SwinTransformer3d(
            patch_size=[2, 4, 4],
            embed_dim=96,
            depths=[2, 2, 18, 2],
            num_heads=[3, 6, 12, 24],
            window_size=[8, 7, 7],
            stochastic_depth_prob=drop_path,
        )
        self.patch_embed = network.patch_embed
        if not patch_norm:
            self.patch_embed.norm = nn.Identity()
        self.features = network.features

    def forward(self, video: Tensor) -> Maps:
        """Return the four stages' outputs (see `MotionEncoder.forward`)."""
        x = self.patch_embed(video)
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index % 2 == 0:  # the odd ones merge patches
                maps.append(rearrange(x, "b t h w c -> b c t h w"))
        return maps[0], maps[1], maps[2], maps[3]

    @classmethod
    def options_for(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return whether the patch embedding has a norm."""
        return {"patch_norm": "patch_embed.norm.weight" in state_dict}

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Map the authors' names (`layers.0.blocks.1.mlp.fc1`) to torchvision's, which are ours."""
        name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1]) + 1}.", name)
        name = re.sub(r"^layers\.(\d)\.blocks\.(\d+)\.", lambda m: f"features.{2 * int(m[1])}.{m[2]}.", name)
        for theirs, ours in _INNER.items():
            name = name.replace(theirs, ours)
        return name
