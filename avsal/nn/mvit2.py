"""MViTv2-S 16x4 (Li et al., CVPR 2022) as motion encoder: torchvision's layers, run without class token.

torchvision's own forward pass always runs the class token and fixes the token grid to 224x224. MSPI switches
the token off, so attention and pooling are driven here, over the grid that the clip really has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.video.mvit import MultiscaleAttention, MultiscaleBlock, Pool, mvit_v2_s

from avsal.nn.motion import Maps, MotionEncoder
from avsal.nn.mvit import to_grid, to_tokens

Grid = tuple[int, int, int]
_TAPS = (0, 2, 13, 15)


class MViTv2S(MotionEncoder):
    """Outputs of blocks 0, 2, 13 and 15 of MViTv2-S.

    Relative-position tables belong to 224x224 clips of 16 frames; other sizes interpolate them linearly.

    Args:
        drop_path: stochastic depth of the deepest block while training.
    """

    channels = (96, 192, 384, 768)
    strides = ((2, 4, 4), (2, 8, 8), (2, 16, 16), (2, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (
        r"^norm\.",
        r"^head\.",
        r"^cls_token$",
        r"^pos_encoding\.class_token$",
    )

    def __init__(self, drop_path: float = 0.2) -> None:
        super().__init__()
        network = mvit_v2_s(stochastic_depth_prob=drop_path)
        self.conv_proj = network.conv_proj
        self.blocks = network.blocks

    def forward(self, video: Tensor) -> Maps:
        """Return the four tapped blocks' outputs (see `MotionEncoder.forward`)."""
        x = self.conv_proj(video)
        grid: Grid = (x.shape[2], x.shape[3], x.shape[4])
        x = to_tokens(x)
        maps = []
        for index, block in enumerate(self.blocks):
            x, grid = _block(block, x, grid)
            if index in _TAPS:
                maps.append(to_grid(x, grid))
        return maps[0], maps[1], maps[2], maps[3]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # A file trained at another size carries longer or shorter tables: they are taken as they are.
        self.adapt({k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def adapt(self, state_dict: Mapping[str, Tensor]) -> None:
        """Give the relative-position tables the lengths that they have in a state dict of this network."""
        for name, table in self.named_parameters():
            value = state_dict.get(name)
            if "rel_pos_" in name and value is not None and value.shape[1:] == table.shape[1:]:
                table.data = table.data.new_zeros(value.shape)

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Map PySlowFast's names (`blocks.0.attn.norm_q`) to torchvision's, which are ours."""
        name = name.replace("patch_embed.proj.", "conv_proj.")
        name = re.sub(r"\.attn\.pool_([qkv])\.weight$", r".attn.pool_\1.pool.weight", name)
        name = re.sub(r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0.", name)
        name = name.replace(".attn.proj.", ".attn.project.0.")
        name = re.sub(r"^(blocks\.\d+)\.proj\.", r"\1.project.", name)
        return name.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")


def _pool(pool: nn.Module | None, tokens: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Pool (B, heads, N, C) tokens over their grid with torchvision's `Pool`, class token left out."""
    if pool is None:
        return tokens, grid
    assert isinstance(pool, Pool)
    batch, heads = tokens.shape[:2]
    x = pool.pool(to_grid(tokens.flatten(0, 1), grid))
    size: Grid = (x.shape[2], x.shape[3], x.shape[4])
    tokens = to_tokens(x).unflatten(0, (batch, heads))
    return (tokens if pool.norm_act is None else pool.norm_act(tokens)), size


def _table(table: Tensor, queries: int, keys: int) -> Tensor:
    """Return the relative positions (queries, keys, C) along one axis."""
    length = 2 * max(queries, keys) - 1
    if len(table) != length:
        table = F.interpolate(table.transpose(0, 1)[None], size=length, mode="linear")[0].transpose(0, 1)
    # Query and key grids may differ in resolution: distances count in the finer one.
    query = torch.arange(queries, device=table.device)[:, None] * max(keys / queries, 1.0)
    key = torch.arange(keys, device=table.device)[None, :] * max(queries / keys, 1.0)
    distance = query - key + (keys - 1) * max(queries / keys, 1.0)
    return table[distance.long()]


def _attention(attn: MultiscaleAttention, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    q, k, v = rearrange(attn.qkv(x), "b n (qkv heads c) -> qkv b heads n c", qkv=3, heads=attn.num_heads)
    k, k_grid = _pool(attn.pool_k, k, grid)
    v, _ = _pool(attn.pool_v, v, grid)
    q, q_grid = _pool(attn.pool_q, q, grid)

    scores = torch.matmul(attn.scaler * q, k.transpose(2, 3))
    # Decomposed relative positions (MViTv2 Eq. 4): time, height and width add up.
    assert attn.rel_pos_t is not None
    assert attn.rel_pos_h is not None
    assert attn.rel_pos_w is not None
    cells = q.unflatten(2, q_grid)
    along_t = torch.einsum("bnthwc,tkc->bnthwk", cells, _table(attn.rel_pos_t, q_grid[0], k_grid[0]))
    along_h = torch.einsum("bnthwc,hkc->bnthwk", cells, _table(attn.rel_pos_h, q_grid[1], k_grid[1]))
    along_w = torch.einsum("bnthwc,wkc->bnthwk", cells, _table(attn.rel_pos_w, q_grid[2], k_grid[2]))
    bias = along_t[..., :, None, None] + along_h[..., None, :, None] + along_w[..., None, None, :]
    scores = scores + rearrange(bias, "b n t h w kt kh kw -> b n (t h w) (kt kh kw)")

    out = torch.matmul(scores.softmax(-1), v)
    if attn.residual_pool:
        out = out + q
    return attn.project(rearrange(out, "b heads n c -> b n (heads c)")), q_grid


def _block(block: MultiscaleBlock, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    normed = block.norm1(x)
    attended, new_grid = _attention(block.attn, normed, grid)
    if block.project is not None:
        x = block.project(normed)
    skip = _pool(block.pool_skip, x[:, None], grid)[0][:, 0]
    x = skip + block.stochastic_depth(attended)
    return x + block.stochastic_depth(block.mlp(block.norm2(x))), new_grid
