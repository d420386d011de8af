"""AVRSP: relevance-guided audio-visual fusion for video saliency (arXiv 2411.11454).

S3D sees 32 frames, SoundNet hears them. Each of four stages passes ASPP and local importance pooling. RAVF lets
vision and sound judge their relevance to each other at the deepest stage; the multi-scale synergy (MS) exchanges
visual detail between neighbouring stages; the regulator gate (MRG) hands the fused feature up; a decoder of
four blocks draws the map of the last frame.

Stages are numbered as in the paper: X^0 is the deepest, X^3 the shallowest. The paper has neither code nor
layer sizes in print: widths, blocks and heads are our choices, and constructor arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.losses import kl_divergence
from avsal.models.base import (
    S3DNetwork,
    SaliencyModule,
    check_multiple,
    choice,
    kl_cc_sim,
    plateau_or_cosine,
    trained,
    weighted_mean,
)
from avsal.nn.aspp import ASPP
from avsal.nn.lip import LIP
from avsal.nn.mvit import to_grid, to_tokens
from avsal.nn.s3d import MEAN, STD, S3DFeatures
from avsal.nn.soundnet import SoundNet
from avsal.nn.state import freeze
from avsal.nn.waveform import windowed_excerpt
from avsal.types import AudioSpec, Batch, ClipSpec, SaliencyOutput

Fusion = Literal["ravf", "add", "multiply", "concat", "bilinear", "bilinear_steps", "mbt"]
#: 32 frames at 10 fps and 22050 Hz, as SoundNet's users take it; gives three audio tokens.
AUDIO_SAMPLES = 70560

#: Constructor arguments of the rows of Tables III (modules), IV (pairs of synergy and gate) and V (fusion).
VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"III: {'audio-visual' if sound else 'visual'}, {name}": {
            "audiovisual": sound,
            "synergy": synergy,
            "gate": gate,
        }
        for sound in (False, True)
        for name, synergy, gate in (
            ("neither", False, False),
            ("MS", True, False),
            ("MRG", False, True),
            ("MS and MRG", True, True),
        )
    },
    **{
        f"IV: {'audio-visual' if sound else 'visual'}, {pairs} pairs": {"audiovisual": sound, "pairs": pairs}
        for sound in (False, True)
        for pairs in (4, 3, 2, 1, 0)
    },
    **{f"V: {name}": {"fusion": name} for name in get_args(Fusion)},
}


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="trilinear", align_corners=False)


def _conv(a: int, b: int) -> nn.Conv3d:
    return nn.Conv3d(a, b, 3, padding=1)


# -- relevance-guided fusion ---------------------------------------------------------------------------


class RAVFBlock(nn.Module):
    """One block of relevance-guided fusion (Eq. 1 to 7).

    The retention maps are plain scaled products without a softmax: unbounded, and their sums grow with the
    number of tokens, which `scale_tokens` divides out.

    Args:
        channels: width C of the visual tokens, a multiple of `heads`.
        audio_channels: width of the audio tokens.
        heads: attention heads h.
        scale_tokens: divide each sum over tokens by their number (ours; the paper does not).
        norm_tokens: bring every audio token to mean 0 and variance 1, and queries, keys and values to the length of
            the root of their width (ours; without it sound soon drowns what the visual tokens differ in, see
            docs/models/avrsp.md).
    """

    def __init__(
        self,
        channels: int,
        audio_channels: int,
        heads: int,
        scale_tokens: bool = True,
        norm_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.scale_tokens, self.norm_tokens = heads, scale_tokens, norm_tokens
        self.visual = nn.Linear(channels, 3 * channels)
        self.audio = nn.Linear(audio_channels, 3 * channels)
        size = channels // heads
        self.weigh = nn.Sequential(nn.Linear(2 * size, size), nn.ReLU(inplace=True), nn.Linear(size, 1))
        self.project = nn.Linear(channels, channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.feed = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the visual tokens and both retention maps.

        Args:
            visual: (B, N, C) tokens of X^0.
            audio: (B, T_a, audio_channels) tokens.

        Returns:
            V (B, N, C); Ret_A (B, h, N, T_a), how each visual token relates to each moment of sound; Ret_V
            (B, h, T_a, N), the other way.
        """
        if self.norm_tokens:
            audio = F.layer_norm(audio, audio.shape[-1:])
        vq, vk, vv = self._split(self.visual(visual))
        aq, ak, av = self._split(self.audio(audio))
        scale = 1.0 / math.sqrt(vq.shape[-1])
        if self.norm_tokens:
            vq, vk, vv, aq, ak, av = (F.normalize(x, dim=-1) / scale for x in (vq, vk, vv, aq, ak, av))
        ret_a = vq @ ak.transpose(-1, -2) * scale
        ret_v = aq @ vk.transpose(-1, -2) * scale
        divide = (ak.shape[2], vk.shape[2]) if self.scale_tokens else (1, 1)
        v2a = ret_a @ av / divide[0] + vv
        a2v = ret_v @ vv / divide[1] + av
        # Eq. 6 concatenates tensors of N and T_a tokens; their means can be concatenated. Softmax weights
        # average 1 / h: the factor keeps the branch's size.
        summary = torch.cat((v2a.mean(2), a2v.mean(2)), dim=-1)
        weights = self.weigh(summary).softmax(dim=1) * self.heads
        fused = self.project(rearrange(weights.unsqueeze(-1) * v2a, "b heads n c -> b n (heads c)"))
        visual = self.norm1(visual + fused)
        visual = self.norm2(visual + self.feed(visual))
        return visual, ret_a, ret_v

    def _split(self, tokens: Tensor) -> list[Tensor]:
        """Return query, key and value (B, h, tokens, C / h) from (B, tokens, 3 C)."""
        return list(rearrange(tokens, "b n (qkv heads c) -> qkv b heads n c", qkv=3, heads=self.heads))


class RAVF(nn.Module):
    """N blocks of relevance-guided fusion; the sound stays as it is, vision is passed on.

    With `norm_tokens` a batch norm takes out what all visual tokens have in common (see `RAVFBlock` for the rest).
    """

    def __init__(
        self,
        channels: int,
        audio_channels: int,
        blocks: int = 2,
        heads: int = 8,
        scale_tokens: bool = True,
        norm_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels) if norm_tokens else nn.Identity()
        self.blocks = nn.ModuleList(
            RAVFBlock(channels, audio_channels, heads, scale_tokens, norm_tokens) for _ in range(blocks)
        )

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return F_av^0 (B, C, T, h, w) and the retention maps.

        Args:
            visual: X^0 (B, C, T, h, w).
            audio: (B, T_a, audio_channels).

        Returns:
            The fused feature; `Ret_A` (B, blocks, heads, T_a, T, h, w) and `Ret_V` of the same shape.
        """
        tokens = self.norm(visual.flatten(2)).transpose(1, 2)
        ret_a, ret_v = [], []
        for block in self.blocks:
            tokens, a, v = block(tokens, audio)
            ret_a.append(a.transpose(-1, -2))
            ret_v.append(v)
        shape = visual.shape[2:]
        aux = {
            "Ret_A": torch.stack(ret_a, 1).unflatten(-1, shape),
            "Ret_V": torch.stack(ret_v, 1).unflatten(-1, shape),
        }
        return to_grid(tokens, shape), aux


# -- Table V's other fusions ---------------------------------------------------------------------------


class PooledFusion(nn.Module):
    """Add, multiply, concat or bilinear fusion of X^0 with the mean audio token."""

    def __init__(self, kind: str, channels: int, audio_channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.audio = nn.Linear(audio_channels, channels)
        self.join: nn.Module
        if kind == "concat":
            self.join = nn.Conv3d(2 * channels, channels, 1)
        elif kind == "bilinear":
            self.join = nn.Bilinear(channels, channels, channels)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the fused map for X^0 (B, C, T, h, w) and audio tokens (B, T_a, audio_channels)."""
        heard = self.audio(audio.mean(1))
        if self.kind == "bilinear":
            # One vector for all positions: contract it first.
            join = cast(nn.Bilinear, self.join)
            fused = torch.einsum("oia,ba,bithw->bothw", join.weight, heard, visual)
            return fused + cast(Tensor, join.bias)[:, None, None, None], {}
        heard = heard[:, :, None, None, None].expand_as(visual)
        if self.kind == "add":
            return visual + heard, {}
        if self.kind == "multiply":
            return visual * heard, {}
        return self.join(torch.cat((visual, heard), dim=1)), {}


class StepwiseBilinear(nn.Module):
    """AViNet's bilinear form: per channel, pooled positions of X^0 times the audio steps.

    Pooled means the maximum over time and over pairs of columns: at 4 x 7 x 12 and three audio steps it is
    AViNet's Bilinear(42, 3, 336).

    Args:
        channels: channels of X^0; the audio is brought to as many.
        audio_channels: width of the audio tokens.
        tokens: audio tokens T_a.
        shape: (T, h, w) of X^0.
    """

    def __init__(self, channels: int, audio_channels: int, tokens: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.audio = nn.Linear(audio_channels, channels)
        self.pooled = (1, shape[1], -(-shape[2] // 2))
        self.join = nn.Bilinear(math.prod(self.pooled), tokens, math.prod(shape))

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the fused map for X^0 (B, C, T, h, w) and audio tokens (B, T_a, audio_channels)."""
        seen = F.adaptive_max_pool3d(visual, self.pooled).flatten(2)
        heard = self.audio(audio).transpose(1, 2).contiguous()
        return self.join(seen, heard).unflatten(2, visual.shape[2:]), {}


class BottleneckFusion(nn.Module):
    """Multimodal bottleneck transformer (MBT): the modalities meet in four shared tokens only."""

    def __init__(
        self, channels: int, audio_channels: int, heads: int, layers: int = 2, bottleneck: int = 4
    ) -> None:
        super().__init__()
        self.audio = nn.Linear(audio_channels, channels)
        self.bottleneck = nn.Parameter(torch.randn(bottleneck, channels) * 0.02)

        def stack(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.TransformerEncoderLayer(
                    channels, heads, 4 * channels, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(count)
            )

        # Only visual tokens leave: nothing would read the sound after its last layer.
        self.visual_layers, self.audio_layers = stack(layers), stack(layers - 1)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the fused map for X^0 (B, C, T, h, w) and audio tokens (B, T_a, audio_channels)."""
        seen, heard = to_tokens(visual), self.audio(audio)
        shared = self.bottleneck.expand(len(visual), -1, -1)
        count = shared.shape[1]
        for index, see in enumerate(self.visual_layers):
            both_seen = see(torch.cat((seen, shared), dim=1))
            seen = both_seen[:, :-count]
            if index < len(self.audio_layers):
                both_heard = self.audio_layers[index](torch.cat((heard, shared), dim=1))
                heard = both_heard[:, :-count]
                shared = (both_seen[:, -count:] + both_heard[:, -count:]) / 2
        return to_grid(seen, visual.shape[2:]), {}


# -- synergy, gate, decoder ----------------------------------------------------------------------------


class Synergy(nn.Module):
    """Multi-scale synergy of one stage with its neighbours (Eq. 8 to 12); the shallowest has no higher one.

    Every use of C, U and D has its own 3x3x3 convolution; U resizes trilinearly before it, D averages.

    Args:
        channels: width of all stages.
        members: the triple's roles that exist: "h" (higher resolution), "m", "l" (lower).
    """

    def __init__(self, channels: int, members: str) -> None:
        super().__init__()
        self.members = members
        self.own = nn.ModuleDict({i: _conv(channels, channels) for i in members})
        links = [f"{a}{b}" for a, b in ("hm", "mh", "ml", "lm") if a in members and b in members]
        #: "hm" carries h's first feature to m, and so on; "mm" keeps it.
        self.exchange = nn.ModuleDict(
            {link: _conv(channels, channels) for link in [*(i + i for i in members), *links]}
        )
        self.merge = nn.ModuleDict({i: _conv(channels, channels) for i in members})

    def forward(self, **stages: Tensor) -> Tensor:
        """Return Xhat^m for the members given by role, such as `h=X3, m=X2, l=X1`, each (B, C, T, h, w)."""
        first = {i: self.own[i](stages[i]) for i in self.members}
        second: dict[str, Tensor] = {}
        for link, conv in self.exchange.items():
            source, target = link[0], link[1]
            part = conv(_fit(first[source], stages[target].shape[2:]))
            second[target] = second[target] + part if target in second else part
        merged = stages["m"]
        for i in self.members:
            merged = merged + self.merge[i](_fit(second[i], stages["m"].shape[2:]))
        return merged


def _fit(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bring maps to a size: trilinear where it grows, the mean where it shrinks."""
    if all(have >= want for have, want in zip(maps.shape[2:], size, strict=True)):
        return (
            maps
            if tuple(maps.shape[2:]) == tuple(size)
            else F.adaptive_avg_pool3d(maps, (size[0], size[1], size[2]))
        )
    return _resize(maps, size)


class RegulatorGate(nn.Module):
    """Multi-scale regulator gate of one stage (Eq. 13 to 15): what of the fused feature goes up.

    Args:
        channels: width of all stages.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = _conv(2 * channels, channels)
        self.regulate = _conv(channels, channels)

    def forward(self, fused: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
        """Return F_av^l and X'_l, both of the size of `stage`.

        Args:
            fused: F_av^(l-1) of the stage below, (B, C, t, h, w).
            stage: Xhat^l (B, C, T, H, W).
        """
        up = _resize(fused, stage.shape[2:])
        gate = self.gate(torch.cat((up, stage), dim=1)).sigmoid().mean((2, 3, 4), keepdim=True)
        fused = self.regulate(gate * up)
        return fused, stage + fused


class Decoder(nn.Module):
    """Four blocks of one convolution and one resize, each joined by the next stage; the last draws the map.

    Args:
        channels: width of all stages.
        steps: time steps of X'_3, which the last block collapses.
    """

    def __init__(self, channels: int = 64, steps: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_conv(c, channels) for c in (channels, 2 * channels, 2 * channels))
        half = max(1, channels // 2)
        self.collapse = nn.Conv3d(2 * channels, half, (steps, 3, 3), padding=(0, 1, 1))
        self.last = nn.Conv2d(half, 1, 3, padding=1)

    def forward(self, fused: Tensor, stages: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 1, 4 h_3, 4 w_3) for F_av^0 and X'_1, X'_2, X'_3, each (B, C, T, h, w)."""
        maps = fused
        for conv, stage in zip(self.blocks, stages, strict=True):
            maps = torch.cat((_resize(F.relu(conv(maps)), stage.shape[2:]), stage), dim=1)
        flat = F.relu(self.collapse(maps)).squeeze(2)
        flat = F.interpolate(flat, scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.interpolate(self.last(flat), scale_factor=2.0, mode="bilinear", align_corners=False)


# -- the network ---------------------------------------------------------------------------------------


class AVRSP(S3DNetwork):
    """AVRSP; the defaults are the paper's full model.

    Args:
        audiovisual: False is the visual-only network: F_av^0 = X^0, no SoundNet.
        frames: frames per clip, a multiple of 8; the output belongs to the last.
        size: (height, width) of the frames, at least 64. Sizes that are no multiple of 32 are padded inside.
        fusion: "ravf", or one of Table V: "add", "multiply", "concat", "bilinear" (of each position with
            the sound), "bilinear_steps" (AViNet's form), "mbt".
        synergy: the multi-scale synergy (Table III's MS).
        gate: the regulator gate (Table III's MRG).
        pairs: stages that synergy and gate work at, from the shallowest: 0 to 4 (Table IV).
        channels: width C of all stages, a multiple of `heads`.
        blocks, heads: RAVF's blocks and heads.
        scale_tokens: divide RAVF's sums over tokens by their number.
        norm_tokens: normalise what RAVF compares (see `RAVFBlock`).
        width: multiplier of S3D's widths, for small networks.
        bn_momentum: momentum of S3D's batch norms; 0.1 suits training from random weights.
        freeze_bn: keep S3D's batch norms at their statistics.
        freeze_encoder: leave S3D as it was loaded (ours: for small networks and few clips).
        audio_width: channels of SoundNet's first layer (16 is the published network).
        audio_samples: samples of the buffer in which the Hann-windowed sound lies.
        freeze_audio_bn: keep SoundNet's batch norms at their statistics; False for training from random
            weights.
        coarse_weight: weight of a second KL (ours), of the map that one convolution reads from F_av^0 and the
            densities' means over its cells: small networks learn to listen by it. 0 leaves both out.
    """

    encoder: S3DFeatures

    def __init__(
        self,
        audiovisual: bool = True,
        frames: int = 32,
        size: tuple[int, int] = (224, 384),
        *,
        fusion: Fusion = "ravf",
        synergy: bool = True,
        gate: bool = True,
        pairs: int = 3,
        channels: int = 64,
        blocks: int = 2,
        heads: int = 8,
        scale_tokens: bool = True,
        norm_tokens: bool = False,
        width: float = 1.0,
        bn_momentum: float = 0.001,
        freeze_bn: bool = False,
        freeze_encoder: bool = False,
        audio_width: int = 16,
        audio_samples: int = AUDIO_SAMPLES,
        freeze_audio_bn: bool = True,
        coarse_weight: float = 0.0,
    ) -> None:
        super().__init__()
        choice("fusion", fusion, get_args(Fusion))
        check_multiple("frames", frames, 8)
        if min(size) < 64:
            raise ConfigError(f"size={tuple(size)}: height and width must be at least 64 pixels.")
        if pairs not in range(5):
            raise ConfigError(f"pairs={pairs} is not known; allowed: 0, 1, 2, 3, 4.")
        if coarse_weight < 0:
            raise ConfigError(f"coarse_weight={coarse_weight} must be 0 (none) or more.")
        if heads < 1 or blocks < 1:
            raise ConfigError(f"heads={heads} and blocks={blocks} must be at least 1.")
        check_multiple("channels", channels, heads)

        self.spec = ClipSpec(
            frames=frames,
            size=(size[0], size[1]),
            mean=MEAN,
            std=STD,
            target="last",
            authors_coverage="reversed",
            audio=AudioSpec(None, before=0.5, after=0.5, window="hann") if audiovisual else None,
        )
        self.audiovisual, self.pairs, self.audio_samples = audiovisual, pairs, audio_samples
        self.freeze_bn, self.freeze_audio_bn = freeze_bn or freeze_encoder, freeze_audio_bn
        self.encoder = S3DFeatures(width=width, bn_momentum=bn_momentum)
        if freeze_encoder:
            self.frozen = [freeze(self.encoder)]
        # As S3D gives them: index 0 is the shallowest.
        self.stages = nn.ModuleList(
            nn.Sequential(ASPP(c, channels), LIP(channels)) for c in self.encoder.channels
        )
        levels = range(4 - pairs, 4)
        # X^3 has no higher neighbour, X^0 no lower one.
        members = {0: "hm", 1: "hml", 2: "hml", 3: "ml"}
        self.synergy = nn.ModuleDict(
            {str(level): Synergy(channels, members[level]) for level in levels if synergy}
        )
        self.gates = nn.ModuleDict(
            {str(level): RegulatorGate(channels) for level in levels if gate and level > 0}
        )
        self.decoder = Decoder(channels, frames // 2)
        self.coarse = nn.Conv3d(channels, 1, 1) if coarse_weight else None
        if not audiovisual:
            return
        self.soundnet = SoundNet(audio_width)
        heard = self.soundnet.channels
        self.fusion: nn.Module
        if fusion == "ravf":
            self.fusion = RAVF(channels, heard, blocks, heads, scale_tokens, norm_tokens)
        elif fusion == "mbt":
            self.fusion = BottleneckFusion(channels, heard, heads)
        elif fusion == "bilinear_steps":
            with torch.no_grad(), torch.device("meta"):
                tokens = SoundNet(1).eval()(torch.empty(1, audio_samples)).shape[-1]
            shape = (frames // 8, -(-size[0] // 32), -(-size[1] // 32))
            self.fusion = StepwiseBilinear(channels, heard, tokens, shape)
        else:
            self.fusion = PooledFusion(fusion, channels, heard)

    def train(self, mode: bool = True) -> AVRSP:
        """Set the mode; SoundNet's batch norms, and S3D's if frozen, stay at their statistics."""
        super().train(mode)
        if self.freeze_bn:
            self.encoder.eval()
        if self.audiovisual and self.freeze_audio_bn:
            self.soundnet.eval()
        return self

    def frontend(
        self,
        waveform: Tensor,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return the Hann-windowed sound in the middle of zeros, (B, audio_samples) on a scale of +-256.

        A clip without sound is silence. Reversed windows expect their waveform reversed already.
        """
        if not self.audiovisual:
            return None
        return windowed_excerpt(waveform, audio_length, has_audio, samples=self.audio_samples)

    @property
    def heads(self) -> Sequence[nn.Module]:
        """ASPP and LIP of each map."""
        return list(self.stages)

    def decode(
        self, stages: list[Tensor], audio_input: Tensor | None, size: tuple[int, int]
    ) -> SaliencyOutput:
        """Return logits (B, 1, H, W) of the last frame (see `S3DNetwork.decode`).

        `audio_input` is (B, S), or with axes of length one beside S. With RAVF, `aux["Ret_A"]` and `aux["Ret_V"]`
        (B, blocks, heads, T_a, T, h, w) hold the retention scores of every visual position for every moment of sound,
        unbounded without `norm_tokens`; `aux["coarse"]` (B, 1, h, w) the logits of F_av^0's own map, of a network that
        has one.
        """
        x = list(reversed(stages))
        fused, aux = x[0], {}
        if self.audiovisual:
            if audio_input is None:
                audio_input = x[0].new_zeros(len(x[0]), self.audio_samples)
            tokens = self.soundnet(audio_input).transpose(1, 2)
            fused, aux = self.fusion(x[0], tokens)
        if self.coarse is not None:
            aux["coarse"] = self.coarse(fused).mean(2)
        hats = []
        for level, stage in enumerate(x):
            if str(level) in self.synergy:
                triple = {"h": level + 1, "m": level, "l": level - 1}
                synergy = cast(Synergy, self.synergy[str(level)])
                stage = synergy(**{i: x[triple[i]] for i in synergy.members})
            hats.append(stage)
        chain, outputs = fused, []
        for level in (1, 2, 3):
            if str(level) in self.gates:
                chain, out = self.gates[str(level)](chain, hats[level])
                outputs.append(out)
            else:
                outputs.append(hats[level])
        # Table IV's fourth pair: nothing lies below to gate, X'_0 is the sum.
        logits = self.decoder(hats[0] + fused if self.pairs == 4 else fused, outputs)
        return self.output(logits[..., : size[0], : size[1]], aux)


# -- training ------------------------------------------------------------------------------------------


class AVRSPModule(SaliencyModule):
    """AVRSP with its loss (KL - 0.1 CC - 0.1 SIM), its two-stage recipe and its metrics.

    Stage 1 trains `audiovisual=False` on DHF1K for 80 epochs from S3D's Kinetics weights; stage 2 starts from it
    (`init_from`), adds SoundNet and RAVF, and trains everything on the six sets for 100 epochs. Patience and
    batch size are ours.

    Args:
        loss_weights: weights of CC and SIM (paper: 0.1 each).
        sim_norm: SIM of maps divided by their "sum", or after subtracting the minimum ("minmax").
        lr: rate of AdamW.
        weight_decay: of AdamW.
        schedule: "plateau" halves the rate; "cosine" falls to 0 over the training, for short ones.
        backbone: registry name or file of S3D's weights ("s3d-kinetics"), loaded when training starts.
        audio_backbone: the same for SoundNet ("soundnet8").
        allow_random_frozen: train behind frozen parts that were given no weights; refused otherwise.
        init_from: a checkpoint of which every fitting parameter is copied when training starts; it comes
            after the backbones.
        **network: arguments of `AVRSP`.
    """

    paper = "Relevance-guided audio visual fusion for video saliency prediction (AVRSP), arXiv 2411.11454"
    variants: ClassVar[dict[str, dict[str, Any]]] = VARIANTS
    postprocess = "stavis"  # the paper says nothing; its tables compare with STAViS's numbers
    weights_of: ClassVar[dict[str, tuple[str, str]]] = {"encoder": ("backbone", "freeze_encoder")}
    network: AVRSP
    network_class = AVRSP
    training_arguments = ("bn_momentum", "freeze_bn", "freeze_encoder", "freeze_audio_bn", "coarse_weight")
    sound_arguments = (
        "audiovisual", "fusion", "blocks", "heads", "scale_tokens", "norm_tokens", "audio_width", "audio_samples",
        "freeze_audio_bn", "coarse",
    )  # fmt: skip
    small: ClassVar[dict[str, Any]] = {
        "size": [64, 64], "frames": 8, "channels": 8, "heads": 2, "width": 0.0625, "audio_width": 2,
    }  # fmt: skip

    def __init__(
        self,
        *,
        loss_weights: tuple[float, float] = (0.1, 0.1),
        sim_norm: Literal["sum", "minmax"] = "sum",
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        schedule: Literal["plateau", "cosine"] = "plateau",
        backbone: str | None = None,
        audio_backbone: str | None = None,
        allow_random_frozen: bool = False,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        choice("schedule", schedule, ("plateau", "cosine"))
        choice("sim_norm", sim_norm, ("sum", "minmax"))
        self.save_hyperparameters(logger=False)
        self.network = AVRSP(**network)
        if audio_backbone and not self.network.audiovisual:
            raise ConfigError("audio_backbone is given, but audiovisual=False has no SoundNet; leave it out.")

    def setup(self, stage: str) -> None:
        """Load the backbones, then `init_from`, before training starts."""
        if stage == "fit":
            self.load_backbone(self.network.encoder, self.hparams["backbone"])
            if self.network.audiovisual:
                self.load_backbone(self.network.soundnet, self.hparams["audio_backbone"])
        super().setup(stage)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the loss (Eq. 19) and its parts `kl`, `cc`, `sim` (CC and SIM positive), over labelled maps."""
        terms, weights, eps = kl_cc_sim(output, batch, self.hparams["sim_norm"])
        w_cc, w_sim = self.hparams["loss_weights"]
        terms["loss"] = terms["kl"] - w_cc * terms["cc"] - w_sim * terms["sim"]
        if "coarse" in output.aux:
            coarse, density = output.aux["coarse"], batch["density"]
            # As the frames were: sizes that S3D cannot divide have zeros below and at the right.
            below, right = (32 * c - d for c, d in zip(coarse.shape[-2:], density.shape[-2:], strict=True))
            cells = F.avg_pool2d(F.pad(density, (0, right, 0, below)), 32)
            own = coarse.flatten(1).softmax(1).view_as(coarse)
            terms["coarse"] = weighted_mean(kl_divergence(own, cells, eps=eps), weights)
            terms["loss"] = terms["loss"] + self.hparams["coarse_weight"] * terms["coarse"]
        return terms

    def configure_optimizers(self) -> Any:
        """Return AdamW and the learning-rate schedule."""
        hp = self.hparams
        optimizer = torch.optim.AdamW(trained(self), hp["lr"], weight_decay=hp["weight_decay"])
        return plateau_or_cosine(self, optimizer, patience=5)


#: What `create_model("avrsp")` builds.
MODULE = AVRSPModule
