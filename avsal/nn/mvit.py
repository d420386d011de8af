"""Blocks of multiscale vision transformers, version 1 (Fan et al., ICCV 2021), as CSTS uses them.

Tokens are (B, T*H*W, C), T slowest and W fastest, and travel with their grid (T, H, W). There is no class
token. An encoder block pools its queries to a coarser grid, a decoder block up-samples them to a finer one;
keys and values are pooled in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from avsal.errors import ConfigError, WeightsError
from avsal.nn.state import load_exact, strip_prefix

Grid = tuple[int, int, int]

#: Epsilon of the two norms of a block; the norms of pooled queries, keys and values have their own.
BLOCK_EPS = 1e-6
#: CSTS's released code (and PySlowFast) leave PyTorch's default there; torchvision's MViT has 1e-6.
POOL_EPS = 1e-5


def to_grid(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Return tokens (B, T*H*W, C) as a volume (B, C, T, H, W)."""
    # Not by einops: its reshape may change the strides at batch 1, and with them the layout that convolutions take.
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(volume: Tensor) -> Tensor:
    """Return a volume (B, C, T, H, W) as tokens (B, T*H*W, C)."""
    return rearrange(volume, "b c t h w -> b (t h w) c")


def conv_kernel(stride: Grid) -> Grid:
    """Return the kernel of MaxPool3d on the skip path: 3 where the stride is above 1, else 1."""
    return tuple(s + 1 if s > 1 else s for s in stride)  # type: ignore[return-value]


class PooledAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are resampled by depth-wise convolutions.

    Args:
        dim: channels C, a multiple of `heads`.
        heads: attention heads; one resampling convolution serves all of them.
        q_stride: stride of the queries' pooling, or of their up-sampling if `upsample`. (1, 1, 1) without
            `upsample` leaves queries alone: no convolution, no norm.
        kv_stride: stride of keys and values; None leaves them alone.
        upsample: resample queries by transposed convolution to a finer grid.
        pool_eps: epsilon of the norms after the convolutions.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        q_stride: Grid = (1, 1, 1),
        kv_stride: Grid | None = None,
        *,
        upsample: bool = False,
        pool_eps: float = POOL_EPS,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"dim={dim} is not a multiple of heads={heads}.")
        self.heads = heads
        width = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.pool_q: nn.Module | None = None
        self.upsample_q: nn.Module | None = None
        self.pool_k: nn.Module | None = None
        self.pool_v: nn.Module | None = None
        if upsample:
            self.upsample_q = nn.ConvTranspose3d(
                width,
                width,
                3,
                q_stride,
                padding=1,
                output_padding=(q_stride[0] - 1, q_stride[1] - 1, q_stride[2] - 1),
                groups=width,
                bias=False,
            )
        elif math.prod(q_stride) > 1:
            self.pool_q = nn.Conv3d(width, width, 3, q_stride, padding=1, groups=width, bias=False)
        if upsample or math.prod(q_stride) > 1:
            self.norm_q = nn.LayerNorm(width, eps=pool_eps)
        if kv_stride is not None:
            self.pool_k = nn.Conv3d(width, width, 3, kv_stride, padding=1, groups=width, bias=False)
            self.norm_k = nn.LayerNorm(width, eps=pool_eps)
            self.pool_v = nn.Conv3d(width, width, 3, kv_stride, padding=1, groups=width, bias=False)
            self.norm_v = nn.LayerNorm(width, eps=pool_eps)

    def _resample(self, tokens: Tensor, grid: Grid, conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Grid]:
        """Resample (B, heads, N, width) tokens; all heads share the convolution."""
        batch, heads = tokens.shape[:2]
        volume = conv(to_grid(tokens.flatten(0, 1), grid))
        new = (volume.shape[2], volume.shape[3], volume.shape[4])
        return norm(to_tokens(volume)).unflatten(0, (batch, heads)), new

    def forward(
        self, tokens: Tensor, grid: Grid, *, attention: bool = False
    ) -> tuple[Tensor, Grid, Tensor | None]:
        """Attend among all tokens.

        Args:
            tokens: (B, N, C), N the product of `grid` unless nothing is resampled.
            grid: (T, H, W) of the tokens.
            attention: also return the softmax weights.

        Returns:
            Tokens (B, N', C), their grid, and the weights (B, heads, N', N_kv) or None.
        """
        q, k, v = rearrange(self.qkv(tokens), "b n (qkv heads c) -> qkv b heads n c", qkv=3, heads=self.heads)
        q_grid = grid
        resample_q = self.upsample_q or self.pool_q
        if resample_q is not None:
            q, q_grid = self._resample(q, grid, resample_q, self.norm_q)
        if self.pool_k is not None and self.pool_v is not None:
            k, _ = self._resample(k, grid, self.pool_k, self.norm_k)
            v, _ = self._resample(v, grid, self.pool_v, self.norm_v)
        weights = None
        if attention:
            weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(mixed, "b heads n c -> b n (heads c)")), q_grid, weights


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim_out)."""
        return self.fc2(F.gelu(self.fc1(x)))


class MultiscaleBlock(nn.Module):
    """Pre-norm transformer block on a token grid: encoder block, decoder block or plain self-attention.

    Where `dim_out` differs from `dim` the channels change in the MLP, and the residual is a linear map of the
    *normalised* tokens.

    Args:
        dim: channels in.
        dim_out: channels out.
        heads: attention heads.
        q_stride: pooling stride of the queries, or up-sampling factor if `upsample`.
        kv_stride: pooling stride of keys and values, None for none.
        upsample: decoder block: queries and skip path go to a finer grid; the MLP's hidden size is then
            4 * dim_out instead of 4 * dim.
        drop_path: probability that a sample skips a residual branch in training.
        pool_eps: epsilon of the q, k, v norms.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        q_stride: Grid = (1, 1, 1),
        kv_stride: Grid | None = None,
        *,
        upsample: bool = False,
        drop_path: float = 0.0,
        pool_eps: float = POOL_EPS,
    ) -> None:
        super().__init__()
        self.q_stride = q_stride
        self.upsample = upsample
        self.norm1 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.attn = PooledAttention(dim, heads, q_stride, kv_stride, upsample=upsample, pool_eps=pool_eps)
        self.norm2 = nn.LayerNorm(dim, eps=BLOCK_EPS)
        self.mlp = Mlp(dim, 4 * (dim_out if upsample else dim), dim_out)
        self.proj = nn.Linear(dim, dim_out) if dim_out != dim else None
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path > 0 else nn.Identity()

    def _skip(self, tokens: Tensor, grid: Grid) -> Tensor:
        if math.prod(self.q_stride) == 1:
            return tokens
        volume = to_grid(tokens, grid)
        if self.upsample:
            scale = tuple(float(s) for s in self.q_stride)
            return to_tokens(F.interpolate(volume, scale_factor=scale, mode="trilinear", align_corners=False))
        kernel = conv_kernel(self.q_stride)
        return to_tokens(F.max_pool3d(volume, kernel, self.q_stride, tuple(k // 2 for k in kernel)))

    def forward(
        self, tokens: Tensor, grid: Grid, *, attention: bool = False
    ) -> tuple[Tensor, Grid, Tensor | None]:
        """Return tokens (B, N', dim_out), their grid, and the attention weights if asked for."""
        mixed, new, weights = self.attn(self.norm1(tokens), grid, attention=attention)
        tokens = self._skip(tokens, grid) + self.drop_path(mixed)
        normalised = self.norm2(tokens)
        residual = tokens if self.proj is None else self.proj(normalised)
        return residual + self.drop_path(self.mlp(normalised)), new, weights


class PatchEmbed(nn.Module):
    """Convolutional stem: kernel (3, 7, 7), stride (2, 4, 4), padding (1, 3, 3)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, (3, 7, 7), (2, 4, 4), (1, 3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Map (B, channels, T, H, W) to tokens (B, T/2 * H/4 * W/4, dim) and their grid."""
        volume = self.proj(x)
        return to_tokens(volume), (volume.shape[2], volume.shape[3], volume.shape[4])


def encoder_blocks(
    dim: int, depths: Sequence[int], heads: int = 1, *, drop_path: float = 0.0, pool_eps: float = POOL_EPS
) -> nn.ModuleList:
    """Return the blocks of a multiscale encoder.

    Each stage after the first halves height and width in its first block and doubles the heads; channels
    double in the MLP of the last block before that. Keys and values of stage s are pooled by 2^(S-1-s), S
    the number of stages.

    Args:
        dim: channels after the stem.
        depths: blocks per stage; MViT-B has (1, 2, 11, 2).
        heads: heads in the first stage.
        drop_path: rate of the last block; it grows linearly from 0 at the first.
        pool_eps: epsilon of the q, k, v norms.
    """
    count = sum(depths)
    rates = [drop_path * index / max(count - 1, 1) for index in range(count)]
    blocks = nn.ModuleList()
    for stage, depth in enumerate(depths):
        for position in range(depth):
            first, last = stage > 0 and position == 0, stage < len(depths) - 1 and position == depth - 1
            stride = 2 ** (len(depths) - 1 - stage)
            width = dim * 2**stage
            blocks.append(
                MultiscaleBlock(
                    width,
                    2 * width if last else width,
                    heads * 2**stage,
                    (1, 2, 2) if first else (1, 1, 1),
                    (1, stride, stride),
                    drop_path=rates[len(blocks)],
                    pool_eps=pool_eps,
                )
            )
    return blocks


def resize_positions(
    spatial: Tensor, size: tuple[int, int], *, source: tuple[int, int] | None = None, mode: str = "2-D"
) -> Tensor:
    """Resize a learned spatial position embedding.

    Args:
        spatial: (1, h*w, C).
        size: the new (H, W).
        source: the old (h, w); None takes a square.
        mode: "2-D" interpolates bilinearly on the grid; "1-D" stretches the flattened list of positions, as
            CSTS's released code does (it shears rows, because a row of the source is not a row of the result).

    Returns:
        (1, H*W, C).

    Raises:
        ConfigError: `mode` is not known, or `source` is needed because h*w is not a square.
    """
    count = spatial.shape[1]
    if source is None:
        side = math.isqrt(count)
        if side * side != count:
            raise ConfigError(f"{count} positions do not form a square; pass source=(h, w).")
        source = (side, side)
    if source == tuple(size):
        return spatial
    if mode == "1-D":
        return F.interpolate(spatial.transpose(1, 2), size=size[0] * size[1], mode="linear").transpose(1, 2)
    if mode != "2-D":
        raise ConfigError(f"mode={mode!r} is not known; allowed: '2-D', '1-D'.")
    volume = rearrange(spatial, "b (h w) c -> b c h w", h=source[0], w=source[1])
    volume = F.interpolate(volume, size=size, mode="bilinear", align_corners=False)
    return rearrange(volume, "b c h w -> b (h w) c")


def resize_times(temporal: Tensor, frames: int) -> Tensor:
    """Resize a temporal position embedding (1, t, C) linearly to (1, frames, C)."""
    if temporal.shape[1] == frames:
        return temporal
    return F.interpolate(temporal.transpose(1, 2), size=frames, mode="linear", align_corners=False).transpose(
        1, 2
    )


def with_positions(
    tokens: Tensor, grid: Grid, spatial: Tensor, temporal: Tensor, source: tuple[int, int]
) -> Tensor:
    """Add separable position embeddings to tokens, resized where the grid is not theirs.

    Args:
        tokens: (B, T*H*W, C).
        grid: (T, H, W) of the tokens.
        spatial: (1, h*w, C), repeated over time.
        temporal: (1, t, C), repeated over space.
        source: (h, w) of `spatial`.
    """
    spatial = resize_positions(spatial, grid[1:], source=source)
    position = resize_times(temporal, grid[0])[:, :, None] + spatial[:, None]
    return tokens + position.flatten(1, 2)


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initialise linear layers and norms as the authors do; convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class MViT(nn.Module):
    """MViT-B (version 1) without class token, last norm and head: the video encoder of CSTS by itself.

    Args:
        size: (height, width) of the frames that the position embeddings are for, multiples of 32.
        frames: frames of a clip, even.
        dim: channels after the stem.
        heads: attention heads in the first stage.
        depths: blocks per stage.
        drop_path: rate of the last block.
        pool_eps: epsilon of the q, k, v norms.
    """

    def __init__(
        self,
        size: tuple[int, int] = (224, 224),
        frames: int = 16,
        dim: int = 96,
        heads: int = 1,
        depths: Sequence[int] = (1, 2, 11, 2),
        drop_path: float = 0.0,
        pool_eps: float = POOL_EPS,
    ) -> None:
        super().__init__()
        self.stem_grid = (size[0] // 4, size[1] // 4)
        self.patch_embed = PatchEmbed(3, dim)
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, math.prod(self.stem_grid), dim))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, frames // 2, dim))
        self.blocks = encoder_blocks(dim, depths, heads, drop_path=drop_path, pool_eps=pool_eps)
        self.apply(init_weights)
        for position in (self.pos_embed_spatial, self.pos_embed_temporal):
            nn.init.trunc_normal_(position, std=0.02)

    def forward(self, video: Tensor) -> tuple[Tensor, Grid]:
        """Map (B, 3, T, H, W) to tokens (B, T/2 * H/32 * W/32, 8 * dim) and their grid."""
        tokens, grid = self.patch_embed(video)
        tokens = with_positions(tokens, grid, self.pos_embed_spatial, self.pos_embed_temporal, self.stem_grid)
        for block in self.blocks:
            tokens, grid, _ = block(tokens, grid)
        return tokens, grid


# -- published Kinetics-400 weights ------------------------------------------------------------------------

Published = Literal["torchvision", "pytorchvideo", "pyslowfast"]

#: Entries of published MViT-B weights that a network without class token and head does not have.
_DROPPED = (
    "pos_encoding.class_token",
    "cls_token",
    "pos_encoding.class_pos",
    "pos_embed_class",
    "cls_positional_encoding.cls_token",
    "cls_positional_encoding.pos_embed_class",
    "norm.",
    "norm_embed.",
    "head.",
)
_TORCHVISION = (
    (".attn.project.0.", ".attn.proj."),
    (".pool.weight", ".weight"),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    (".project.", ".proj."),
    ("conv_proj.", "patch_embed.proj."),
    ("pos_encoding.spatial_pos", "pos_embed_spatial"),
    ("pos_encoding.temporal_pos", "pos_embed_temporal"),
)


def published_format(state_dict: Mapping[str, Tensor]) -> Published:
    """Recognise whose MViT-B (version 1) state dict this is.

    Raises:
        WeightsError: none of the three known ones.
    """
    if "conv_proj.weight" in state_dict:
        return "torchvision"
    if "patch_embed.patch_model.weight" in state_dict:
        return "pytorchvideo"
    if "patch_embed.proj.weight" in state_dict:
        return "pyslowfast"
    raise WeightsError(
        "These are no MViT-B weights of torchvision (conv_proj.weight), PyTorchVideo "
        "(patch_embed.patch_model.weight) or PySlowFast (patch_embed.proj.weight). "
        f"First entries: {', '.join(list(state_dict)[:4])}."
    )


def published_encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate published MViT-B weights into the names of a CSTS video encoder.

    Args:
        state_dict: entries of torchvision's `mvit_v1_b`, PyTorchVideo's `mvit_base_16x4` or PySlowFast's
            `MVIT_B_16x4_CONV`.

    Returns:
        `patch_embed.proj.*`, `blocks.i.*` and `pos_embed_spatial` (1, h*w, C) and `pos_embed_temporal`
        (1, t, C) in the file's own sizes. Class token, last norm and head are left out. torchvision uses
        epsilon 1e-6 in the q, k, v norms where PySlowFast, PyTorchVideo and CSTS use 1e-5: not an entry, so
        a network that shall repeat torchvision's numbers is built with `pool_eps=1e-6`.
    """
    kind = published_format(state_dict)
    entries = {name: value for name, value in state_dict.items() if not name.startswith(_DROPPED)}
    mapped: dict[str, Tensor] = {}
    if kind == "torchvision":
        for name, value in entries.items():
            for old, new in _TORCHVISION:
                name = name.replace(old, new)
            if ".norm_act.0." in name:
                name = name.replace(".pool_", ".norm_").replace(".norm_act.0.", ".")
            mapped[name] = value[None] if name.startswith("pos_embed") and value.ndim == 2 else value
        return mapped
    if kind == "pytorchvideo":
        for name, value in entries.items():
            name = name.replace("patch_embed.patch_model.", "patch_embed.proj.")
            mapped[name.replace("cls_positional_encoding.", "")] = value
    else:
        mapped = dict(entries)
    for name in [n for n in mapped if ".attn.q." in n]:
        parts = [mapped.pop(name.replace(".attn.q.", f".attn.{letter}.")) for letter in "qkv"]
        mapped[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return mapped


def from_published(state_dict: Mapping[str, Tensor]) -> MViT:
    """Return the encoder with published Kinetics-400 weights, at their own size (224x224, 16 frames).

    The q, k, v norms have torchvision's epsilon where the weights are torchvision's.

    Args:
        state_dict: see `published_encoder`; a leading `module.` is removed.

    Raises:
        WeightsError: entries that do not fit, by name.
    """
    state_dict = strip_prefix(state_dict)
    entries = published_encoder(state_dict)
    missing = [
        n for n in ("pos_embed_spatial", "pos_embed_temporal", "patch_embed.proj.weight") if n not in entries
    ]
    if missing:
        raise WeightsError(
            f"MViT weights without {', '.join(missing)}: only separable position embeddings are known."
        )
    side = math.isqrt(entries["pos_embed_spatial"].shape[1])
    network = MViT(
        (4 * side, 4 * side),
        2 * entries["pos_embed_temporal"].shape[1],
        entries["patch_embed.proj.weight"].shape[0],
        pool_eps=BLOCK_EPS if published_format(state_dict) == "torchvision" else POOL_EPS,
    )
    return load_exact(network, entries, what="MViT checkpoint").eval()
