"""UniFormer-B 16x4 (Li et al., ICLR 2022) as motion encoder.

Two stages of local blocks (depthwise 5x5x5 convolution as relation aggregator, Eq. 5), two of global blocks
(joint space-time self-attention, Eq. 6); every block begins with a depthwise 3x3x3 position code (Eq. 2).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from avsal.nn.motion import Maps, MotionEncoder
from avsal.nn.mvit import to_grid, to_tokens

_DIMS = (64, 128, 320, 512)
_DEPTHS = (5, 8, 20, 7)
_HEAD_DIM = 64


class _PatchEmbedding(nn.Module):
    """Strided convolution, then layer norm over channels."""

    def __init__(
        self, before: int, after: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(after)
        self.proj = nn.Conv3d(before, after, kernel, stride, padding=(kernel[0] // 2, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(
            self.norm(rearrange(self.proj(x), "b c t h w -> b t h w c")), "b t h w c -> b c t h w"
        )


class _LocalBlock(nn.Module):
    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm3d(dim)
        self.conv1 = nn.Conv3d(dim, dim, 1)
        self.conv2 = nn.Conv3d(dim, dim, 1)
        self.attn = nn.Conv3d(dim, dim, 5, padding=2, groups=dim)
        self.norm2 = nn.BatchNorm3d(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Conv3d(dim, 4 * dim, 1), act=nn.GELU(), fc2=nn.Conv3d(4 * dim, dim, 1))
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _SelfAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (qkv heads c) -> qkv b heads n c", qkv=3, c=_HEAD_DIM)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)"))


class _GlobalBlock(nn.Module):
    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _SelfAttention(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim))
        )
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        grid = x.shape[2:]
        tokens = to_tokens(x)
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return to_grid(tokens, grid)


class UniFormerB(MotionEncoder):
    """The four stages of UniFormer-B, each before the next patch embedding.

    Names of the entries are those of the published Kinetics-400 file.

    Args:
        drop_path: stochastic depth of the deepest block while training; MSPI trained with 0.1.
    """

    channels = _DIMS
    strides = ((2, 4, 4), (2, 8, 8), (2, 16, 16), (2, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (r"^norm\.", r"^head\.")

    def __init__(self, drop_path: float = 0.1) -> None:
        super().__init__()
        rates = iter(torch.linspace(0, drop_path, sum(_DEPTHS), device="cpu").tolist())
        self.patch_embed1 = _PatchEmbedding(3, _DIMS[0], (3, 4, 4), (2, 4, 4))
        self.patch_embed2 = _PatchEmbedding(_DIMS[0], _DIMS[1], (1, 2, 2), (1, 2, 2))
        self.patch_embed3 = _PatchEmbedding(_DIMS[1], _DIMS[2], (1, 2, 2), (1, 2, 2))
        self.patch_embed4 = _PatchEmbedding(_DIMS[2], _DIMS[3], (1, 2, 2), (1, 2, 2))
        self.blocks1 = nn.Sequential(*(_LocalBlock(_DIMS[0], next(rates)) for _ in range(_DEPTHS[0])))
        self.blocks2 = nn.Sequential(*(_LocalBlock(_DIMS[1], next(rates)) for _ in range(_DEPTHS[1])))
        self.blocks3 = nn.Sequential(*(_GlobalBlock(_DIMS[2], next(rates)) for _ in range(_DEPTHS[2])))
        self.blocks4 = nn.Sequential(*(_GlobalBlock(_DIMS[3], next(rates)) for _ in range(_DEPTHS[3])))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, video: Tensor) -> Maps:
        """Return the four stages' outputs (see `MotionEncoder.forward`)."""
        first = self.blocks1(self.patch_embed1(video))
        second = self.blocks2(self.patch_embed2(first))
        third = self.blocks3(self.patch_embed3(second))
        return first, second, third, self.blocks4(self.patch_embed4(third))
