"""Audio-visual fusion of MSPI: its Transformer block, and the alternatives of its Table 5.

Every fusion takes the coarsest motion map and the audio map, and returns a volume of the motion map's extent
that the decoder concatenates to it. Only the Transformer block (AVFB) also returns the two embeddings that
the self-supervised loss aligns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.nn.avim import AVIM
from avsal.nn.cpc import PredictiveCoding
from avsal.nn.mvit import to_grid, to_tokens

#: Table 5, top to bottom. "bilinear_avg" fuses along channels, "bilinear_max" along positions.
FUSIONS = ("bilinear_avg", "bilinear_max", "avim", "avim_cpc", "avfb")


class Fused(NamedTuple):
    """What a fusion returns.

    `volume` (B, D, T, h, w); `visual` and `audio` (B, D) embeddings, or None where the fusion has none.
    """

    volume: Tensor
    visual: Tensor | None = None
    audio: Tensor | None = None


def build_fusion(name: str, visual: int, audio: int, grid: tuple[int, int], audio_tokens: int) -> nn.Module:
    """Build a fusion of `FUSIONS`.

    Args:
        name: which one.
        visual: channels of the motion map.
        audio: channels D of the audio map, also those of the result.
        grid: (h, w) of the motion map; only "bilinear_max" depends on it.
        audio_tokens: positions of the audio map; only "bilinear_max" depends on it.
    """
    if name not in FUSIONS:
        raise ConfigError(f"fusion={name!r} is not known; allowed: {', '.join(FUSIONS)}.")
    if name == "avfb":
        return AVFusionBlock(visual, audio)
    if name == "bilinear_avg":
        return ChannelBilinear(visual, audio)
    if name == "bilinear_max":
        return SpatialBilinear(visual, audio, grid, audio_tokens)
    return InteractionFusion(visual, audio, coding=name == "avim_cpc")


def position_codes(count: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return sine (even) and cosine (odd) position codes (count, dim), base 10000, of token indices 0, 1, …"""
    position = torch.arange(count, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-9.210340371976184 / dim))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], -1).flatten(1)


class AVFusionBlock(nn.Module):
    """Joint self-attention of visual and audio tokens (MSPI Eq. 5, Fig. 2b).

    Layer norm on both token sets before the position codes follows the authors' code, not the equation.

    Args:
        visual: channels of the motion map.
        dim: channels of the audio map and of all tokens; a multiple of `heads`.
        depth: Transformer blocks.
        heads: attention heads.
    """

    def __init__(self, visual: int, dim: int = 512, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.vis_proj = nn.Linear(visual, dim)
        self.vis_norm = nn.LayerNorm(dim)
        self.aud_norm = nn.LayerNorm(dim)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, mlp_ratio=4, qkv_bias=False, norm_layer=nn.LayerNorm) for _ in range(depth))
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, visual: Tensor, audio: Tensor) -> Fused:
        """Fuse (B, C, T, h, w) motion and (B, D, F, N) audio maps; embeddings are the tokens' means."""
        seen = self.vis_norm(self.vis_proj(to_tokens(visual)))
        heard = self.aud_norm(rearrange(audio, "b c f n -> b (f n) c"))
        count = seen.shape[1]
        codes = position_codes(max(count, heard.shape[1]), seen.shape[2], seen.device).to(seen.dtype)
        tokens = torch.cat([seen + codes[:count], heard + codes[: heard.shape[1]]], 1)
        tokens = self.blocks(tokens)
        seen, heard = tokens[:, :count], tokens[:, count:]
        volume = to_grid(seen, visual.shape[2:])
        return Fused(volume, seen.mean(1), heard.mean(1))


class ChannelBilinear(nn.Module):
    """Bilinear fusion along channels after average pooling over time, as in STAViS (Table 5, row 1).

    A full bilinear map of 512 x 512 channels would have 134 M weights; both sides are reduced to 64 first,
    which is our reading: the paper gives no sizes.
    """

    def __init__(self, visual: int, dim: int, rank: int = 64) -> None:
        super().__init__()
        self.visual = nn.Linear(visual, rank)
        self.audio = nn.Linear(dim, rank)
        self.bilinear = nn.Bilinear(rank, rank, dim)

    def forward(self, visual: Tensor, audio: Tensor) -> Fused:
        """Fuse (B, C, T, h, w) and (B, D, F, N); every time step gets the same map."""
        seen = self.visual(rearrange(visual.mean(2), "b c h w -> b (h w) c"))
        heard = self.audio(audio.flatten(2).mean(2))[:, None].expand(-1, seen.shape[1], -1)
        fused = rearrange(self.bilinear(seen, heard.contiguous()), "b (h w) c -> b c h w", h=visual.shape[3])
        return Fused(fused[:, :, None].expand(-1, -1, visual.shape[2], -1, -1))


class SpatialBilinear(nn.Module):
    """Bilinear fusion along positions after max pooling over time, as in AViNet (Table 5, row 2).

    For every channel, the visual positions and the audio positions give the fused positions; the frame size
    is therefore fixed at construction.
    """

    def __init__(self, visual: int, dim: int, grid: tuple[int, int], audio_tokens: int) -> None:
        super().__init__()
        self.visual = nn.Linear(visual, dim)
        positions = grid[0] * grid[1]
        self.grid, self.audio_tokens = grid, audio_tokens
        self.bilinear = nn.Bilinear(positions, audio_tokens, positions)

    def forward(self, visual: Tensor, audio: Tensor) -> Fused:
        """Fuse (B, C, T, h, w) and (B, D, F, N); every time step gets the same map."""
        if visual.shape[3:] != self.grid or audio.shape[2:].numel() != self.audio_tokens:
            raise ConfigError(
                f"fusion='bilinear_max' was built for frames of {self.grid[0] * 32}x{self.grid[1] * 32} pixels and "
                f"{self.audio_tokens} audio positions; it got {visual.shape[3] * 32}x{visual.shape[4] * 32} and "
                f"{audio.shape[2:].numel()}. Build the model with that size."
            )
        seen = self.visual(rearrange(visual.amax(2), "b c h w -> b (h w) c")).transpose(1, 2).contiguous()
        fused = self.bilinear(seen, audio.flatten(2).contiguous()).unflatten(2, self.grid)
        return Fused(fused[:, :, None].expand(-1, -1, visual.shape[2], -1, -1))


class InteractionFusion(nn.Module):
    """CASP-Net's AVIM, optionally followed by its predictive coding (Table 5, rows 3 and 4)."""

    def __init__(self, visual: int, dim: int, coding: bool) -> None:
        super().__init__()
        self.visual = nn.Conv3d(visual, dim, 1)
        self.interaction = AVIM(dim, dim)
        self.coding = PredictiveCoding(dim, dim) if coding else None

    def forward(self, visual: Tensor, audio: Tensor) -> Fused:
        """Fuse (B, C, T, h, w) and (B, D, F, N)."""
        heard = audio.flatten(2).mean(2)
        volume = self.interaction(self.visual(visual), heard)
        if self.coding is not None:
            volume, _ = self.coding(volume, heard)
        return Fused(volume)
