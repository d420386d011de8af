"""MorphMLP-S 16x4 (Zhang et al., ECCV 2022) as motion encoder.

Tokens are mixed by fully connected layers over segments: a run of L neighbouring tokens and a group of C / L
channels are flattened together, so that one C x C matrix mixes space (or time) and channels at once. Early
stages use short segments along rows and along columns, the last one looks at all positions of a frame.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from avsal.errors import ConfigError
from avsal.nn.motion import Maps, MotionEncoder

_DIMS = (112, 224, 392, 784)
_DEPTHS = (3, 4, 9, 3)
#: Tokens per segment in each stage; segment i of a stage-i map has dims[i] / length channels per group.
_SEGMENTS = (14, 28, 28, 49)
#: Time steps after the stem: the temporal layer always mixes all of them.
_STEPS = 8


def _mix(tokens: Tensor, length: int, layer: nn.Module) -> Tensor:
    """Mix each run of `length` tokens with a fully connected layer.

    Args:
        tokens: (..., N, C), N a multiple of `length`, which divides C.
        length: tokens per segment L.
        layer: maps C to C.

    Returns:
        (..., N, C). Within a segment, group g of C / L channels of all L tokens makes one vector of length C.
    """
    segments = rearrange(tokens, "... (s l) (g c) -> ... s g (l c)", l=length, g=length)
    return rearrange(layer(segments), "... s g (l c) -> ... (s l) (g c)", l=length)


class _Branches(nn.Module):
    """Softmax-weighted sum of several token mixers, the weights from their pooled sum; then a projection."""

    def __init__(self, dim: int, branches: int) -> None:
        super().__init__()
        self.mlp_h = nn.Linear(dim, dim)
        self.mlp_c = nn.Linear(dim, dim)
        self.reweight = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, dim // 4), act=nn.GELU(), fc2=nn.Linear(dim // 4, dim * branches))
        )
        self.proj = nn.Linear(dim, dim)

    def combine(self, *mixed: Tensor) -> Tensor:
        pooled = torch.stack(mixed).sum(0).mean((1, 2, 3))
        weights = self.reweight(pooled).unflatten(-1, (-1, len(mixed))).softmax(-1)[:, None, None, None]
        return self.proj(sum(branch * weights[..., i] for i, branch in enumerate(mixed)))


class _ShortRange(_Branches):
    """Segments along columns, along rows, and channels alone (stages 1 to 3)."""

    def __init__(self, dim: int, segment: int) -> None:
        super().__init__(dim, 3)
        self.mlp_w = nn.Linear(dim, dim)
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:4]
        columns = _mix(rearrange(x, "b t h w c -> b t (w h) c"), self.segment, self.mlp_h)
        rows = _mix(rearrange(x, "b t h w c -> b t (h w) c"), self.segment, self.mlp_w)
        return self.combine(
            rearrange(columns, "b t (w h) c -> b t h w c", h=height, w=width),
            rearrange(rows, "b t (h w) c -> b t h w c", h=height, w=width),
            self.mlp_c(x),
        )


class _LongRange(_Branches):
    """Segments that reach over the whole frame, and channels alone (stage 4)."""

    def __init__(self, dim: int, segment: int) -> None:
        super().__init__(dim, 2)
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        # Positions that lie N / L apart make one segment, so that larger frames are sampled, not cut.
        tokens = x.flatten(2, 3)
        spread = rearrange(tokens, "b t (l s) c -> b t (s l) c", l=self.segment)
        mixed = rearrange(
            _mix(spread, self.segment, self.mlp_h), "b t (s l) c -> b t (l s) c", l=self.segment
        )
        return self.combine(mixed.unflatten(2, tuple(x.shape[2:4])), self.mlp_c(x))


class _Temporal(nn.Module):
    """All time steps of one position as one segment."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp_t = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = _mix(rearrange(x, "b t h w c -> b h w t c"), _STEPS, self.mlp_t)
        return self.proj(rearrange(mixed, "b h w t c -> b t h w c"))


class _Block(nn.Module):
    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.t_norm1 = nn.LayerNorm(dim)
        self.t_fc = _Temporal(dim)
        self.fc = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, 3 * dim), act=nn.GELU(), fc2=nn.Linear(3 * dim, dim))
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        # As published, the temporal result feeds the spatial mixer only; the residual starts from x.
        timed = x + self.t_fc(self.t_norm1(x))
        x = x + self.drop_path(self.fc(self.norm1(timed)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _Stem(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv3d(3, dim // 2, 3, 2, 1)
        self.norm1 = nn.BatchNorm3d(dim // 2)
        self.act = nn.GELU()
        self.proj2 = nn.Conv3d(dim // 2, dim, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.norm2 = nn.BatchNorm3d(dim)

    def forward(self, video: Tensor) -> Tensor:
        x = self.norm2(self.proj2(self.act(self.norm1(self.proj1(video)))))
        return rearrange(x, "b c t h w -> b t h w c")


class _Downsample(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(before, after, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(rearrange(x, "b t h w c -> b c t h w"))
        return self.norm(rearrange(x, "b c t h w -> b t h w c"))


class MorphMLPS(MotionEncoder):
    """The four stages of MorphMLP-S; names of the entries are those of the published Kinetics-400 file.

    Segment lengths are fixed by the weights, so the frame must cut into whole segments at every stage:
    (H / 32) * (W / 32) must be a multiple of 49, such as 224x224 or 224x448.

    Args:
        drop_path: stochastic depth of the deepest block while training.
    """

    channels = _DIMS
    strides = ((2, 4, 4), (2, 8, 8), (2, 16, 16), (2, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (r"^norm\.", r"^head\.")

    def __init__(self, drop_path: float = 0.1) -> None:
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(_DEPTHS), device="cpu").tolist())
        self.patch_embed1 = _Stem(_DIMS[0])
        self.patch_embed2 = _Downsample(_DIMS[0], _DIMS[1])
        self.patch_embed3 = _Downsample(_DIMS[1], _DIMS[2])
        self.patch_embed4 = _Downsample(_DIMS[2], _DIMS[3])
        stages = []
        for stage, (dim, depth, segment) in enumerate(zip(_DIMS, _DEPTHS, _SEGMENTS, strict=True)):
            mixer = _LongRange if stage == 3 else _ShortRange
            stages.append(
                nn.Sequential(*(_Block(dim, mixer(dim, segment), next(rates)) for _ in range(depth)))
            )
        self.blocks1, self.blocks2, self.blocks3, self.blocks4 = stages
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
                if name.endswith("t_fc.mlp_t"):
                    # The temporal path begins silent, so that a network trained on images is a good start.
                    nn.init.zeros_(layer.weight)

    def check_size(self, height: int, width: int) -> None:
        """Raise a ConfigError that says which sizes fit, if (height, width) does not."""
        super().check_size(height, width)
        if (height // 32) * (width // 32) % 49:
            raise ConfigError(
                f"MorphMLP-S cannot take frames of {height}x{width} pixels: its fully connected layers have fixed "
                "segment lengths, so (height / 32) * (width / 32) must be a multiple of 49, such as 224x224, "
                "224x448 or 448x224."
            )

    def forward(self, video: Tensor) -> Maps:
        """Return the four stages' outputs (see `MotionEncoder.forward`)."""
        first = self.blocks1(self.patch_embed1(video))
        second = self.blocks2(self.patch_embed2(first))
        third = self.blocks3(self.patch_embed3(second))
        fourth = self.blocks4(self.patch_embed4(third))
        maps = [rearrange(x, "b t h w c -> b c t h w") for x in (first, second, third, fourth)]
        return maps[0], maps[1], maps[2], maps[3]
