"""X3D-L (Feichtenhofer, CVPR 2020) as motion encoder, on pytorchvideo's network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from avsal.nn.motion import Maps, MotionEncoder

_INNER = {
    "branch1": "branch1_conv",
    "branch1_bn": "branch1_norm",
    "branch2.a": "branch2.conv_a",
    "branch2.a_bn": "branch2.norm_a",
    "branch2.b": "branch2.conv_b",
    "branch2.b_bn": "branch2.norm_b.0",
    "branch2.se.fc1": "branch2.norm_b.1.block.0",
    "branch2.se.fc2": "branch2.norm_b.1.block.2",
    "branch2.c": "branch2.conv_c",
    "branch2.c_bn": "branch2.norm_c",
}


class X3DL(MotionEncoder):
    """Residual stages 2 to 5 of X3D-L; time keeps its 16 steps.

    Args:
        shortcut_norm: batch norm on the shortcut of the very first residual block, as PySlowFast has it.
            pytorchvideo's own Kinetics-400 file was ported without it: load that one with False.
    """

    channels = (24, 48, 96, 192)
    strides = ((1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (r"^head\.", r"^blocks\.5\.")

    def __init__(self, shortcut_norm: bool = True) -> None:
        super().__init__()
        from pytorchvideo.models.hub import x3d_l

        network = x3d_l(pretrained=False)
        self.stem = network.blocks[0]
        # The fifth block is the classifier, whose pooling kernel is fixed to 312 pixels.
        stages: list[Any] = list(network.blocks[1:5])
        if shortcut_norm:
            stages[0].res_blocks[0].branch1_norm = nn.BatchNorm3d(24)
        self.stages = nn.ModuleList(stages)

    def forward(self, video: Tensor) -> Maps:
        """Return the outputs of stages 2 to 5 (see `MotionEncoder.forward`)."""
        x = self.stem(video)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[0], maps[1], maps[2], maps[3]

    @classmethod
    def options_for(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return whether the first shortcut has a norm."""
        return {"shortcut_norm": "stages.0.res_blocks.0.branch1_norm.weight" in state_dict}

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Map PySlowFast's (`s2.pathway0_res0.branch2.a`) or pytorchvideo's (`blocks.1`) names to ours."""
        name = re.sub(r"^blocks\.0\.", "stem.", name)
        name = re.sub(r"^blocks\.([1-4])\.", lambda m: f"stages.{int(m[1]) - 1}.", name)
        # pytorchvideo calls the spatial half of the stem conv_t and the temporal half conv_xy.
        name = name.replace("s1.pathway0_stem.conv_xy.", "stem.conv.conv_t.")
        name = name.replace("s1.pathway0_stem.conv.", "stem.conv.conv_xy.")
        name = name.replace("s1.pathway0_stem.bn.", "stem.norm.")
        found = re.match(r"^s(\d)\.pathway0_res(\d+)\.(.+)\.(\w+)$", name)
        if not found:
            return name
        stage, block, layer, leaf = found.groups()
        inner = _INNER.get(layer)
        return inner and f"stages.{int(stage) - 2}.res_blocks.{block}.{inner}.{leaf}"
