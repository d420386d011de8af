"""SlowFast-R50 4x16 (Feichtenhofer et al., ICCV 2019) as motion encoder, on pytorchvideo's network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.nn.motion import Maps, MotionEncoder

_INNER = {
    "branch1": "branch1_conv",
    "branch1_bn": "branch1_norm",
    "branch2.a": "branch2.conv_a",
    "branch2.a_bn": "branch2.norm_a",
    "branch2.b": "branch2.conv_b",
    "branch2.b_bn": "branch2.norm_b",
    "branch2.c": "branch2.conv_c",
    "branch2.c_bn": "branch2.norm_c",
}
_SLOW_FRAMES = {"published": (0, 4, 12, 15), "even": (0, 5, 10, 15)}


class SlowFast4x16(MotionEncoder):
    """Slow pathway of SlowFast-R50 with four slow and sixteen fast frames (alpha 4, beta 1/8).

    The maps are the slow pathway after the lateral concatenation (stages 2 to 4) and the slow stage 5. The
    fast half of stage 5 feeds only the classifier: its weights are kept, so that every entry of a published
    file has its place, but it is frozen and never run.

    Args:
        slow_frames: which of the 16 frames the slow pathway sees: "published" is 0, 4, 12, 15 (uneven, but
            what MSPI's weights were trained with), "even" is 0, 5, 10, 15, or four indices.
        lateral_kernel: temporal kernel of the lateral convolutions: 5 for the 4x16 model; pytorchvideo's
            Kinetics-400 file is of the 8x8 model with 7.
    """

    channels = (320, 640, 1280, 2048)
    strides = ((4, 4, 4), (4, 8, 8), (4, 16, 16), (4, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (r"^head\.", r"^blocks\.6\.")

    def __init__(
        self, slow_frames: Literal["published", "even"] | Sequence[int] = "published", lateral_kernel: int = 5
    ) -> None:
        super().__init__()
        from pytorchvideo.models.slowfast import create_slowfast

        chosen = _SLOW_FRAMES.get(slow_frames, slow_frames) if isinstance(slow_frames, str) else slow_frames
        if isinstance(chosen, str) or len(chosen) != 4 or not all(0 <= int(i) < 16 for i in chosen):
            raise ConfigError(
                f"slow_frames={slow_frames!r}: give 'published', 'even' or four frame indices in 0..15."
            )
        self.slow_frames = [int(i) for i in chosen]
        network = create_slowfast(slowfast_fusion_conv_kernel_size=(lateral_kernel, 1, 1), head=None)
        blocks: list[Any] = list(network.blocks[:5])
        for block in blocks:
            # Otherwise the library overwrites the caller's list of pathways.
            block.inplace = False
        blocks[4].multipathway_blocks[1].requires_grad_(False)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, video: Tensor) -> Maps:
        """Return the slow pathway's maps (see `MotionEncoder.forward`)."""
        slow = video.index_select(2, torch.tensor(self.slow_frames, device=video.device))
        pathways = self.blocks[0]([slow, video])
        maps = []
        for block in self.blocks[1:4]:
            pathways = block(pathways)
            maps.append(pathways[0])
        last: Any = self.blocks[4]
        return maps[0], maps[1], maps[2], last.multipathway_blocks[0](pathways[0])

    @classmethod
    def options_for(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the lateral kernel."""
        lateral = state_dict.get("blocks.0.multipathway_fusion.conv_fast_to_slow.weight")
        return {} if lateral is None else {"lateral_kernel": lateral.shape[2]}

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Map PySlowFast's names (`s2.pathway0_res0.branch2.a`) to pytorchvideo's, which are ours."""
        name = re.sub(
            r"^s1\.pathway(\d)_stem\.(conv|bn)\.",
            lambda m: f"blocks.0.multipathway_blocks.{m[1]}.{'norm' if m[2] == 'bn' else 'conv'}.",
            name,
        )
        name = re.sub(
            r"^s(\d)_fuse\.(conv_f2s|bn)\.",
            lambda m: (
                f"blocks.{int(m[1]) - 1}.multipathway_fusion."
                + ("norm." if m[2] == "bn" else "conv_fast_to_slow.")
            ),
            name,
        )
        found = re.match(r"^s(\d)\.pathway(\d)_res(\d+)\.(.+)\.(\w+)$", name)
        if not found:
            return name
        stage, pathway, block, layer, leaf = found.groups()
        inner = _INNER.get(layer)
        place = f"blocks.{int(stage) - 1}.multipathway_blocks.{pathway}.res_blocks.{block}"
        return inner and f"{place}.{inner}.{leaf}"
