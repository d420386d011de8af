"""CSTS: egocentric gaze anticipation and estimation from video and sound.

Lai, Ryan, Jia, Liu, Rehg: "Listen to Look into the Future: Audio-Visual Egocentric Gaze Anticipation",
ECCV 2024. Where the paper and the released code differ, this follows the code, which gave the published
numbers; docs/models/csts.md lists the differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avsal.errors import ConfigError, WeightsError
from avsal.losses import contrastive, gather_with_gradient, reverse_kl
from avsal.models.base import (
    SaliencyModule,
    SaliencyNetwork,
    check_multiple,
    choice,
    trained,
    training_steps,
)
from avsal.nn.mvit import (
    Grid,
    MultiscaleBlock,
    PatchEmbed,
    encoder_blocks,
    init_weights,
    published_encoder,
    resize_positions,
    resize_times,
    to_grid,
    to_tokens,
    with_positions,
)
from avsal.nn.spectrogram import SpectrogramWindows
from avsal.nn.state import freeze, load_exact, strip_prefix
from avsal.types import AudioSpec, Batch, ClipSpec, SaliencyOutput

if TYPE_CHECKING:
    from avsal.metrics.gaze import GazeMetrics

Task = Literal["anticipation", "estimation"]
Timing = Literal["ego4d", "aria"]

#: Video frame rate, spacing of the eight frames, and frames observed before "now" per data set (code).
TIMING: dict[str, dict[str, int]] = {
    "ego4d": {"fps": 30, "spacing": 9, "observed": 86, "lead": 1},
    "aria": {"fps": 20, "spacing": 5, "observed": 60, "lead": 5},
}

#: Fusion strategies (Tables 1 and 2) and the contrastive losses (Tables 3 and 8) that each can have.
FUSIONS: dict[str, tuple[str, ...]] = {
    "vision-only": ("none",),
    "s-fusion": ("none", "vanilla"),
    "t-fusion": ("none", "vanilla"),
    "sts": ("none", "vanilla", "s", "t", "cross", "post"),
    "linear": ("none", "vanilla"),
    "bilinear": ("none", "vanilla"),
    "concat": ("none", "vanilla"),
    "vanilla-sa": ("none", "vanilla", "post"),
}

#: Every row of Tables 1, 2, 3 and 8 that is this paper's own, as constructor arguments.
VARIANTS: dict[str, dict[str, str]] = {
    "Vision only": {"fusion": "vision-only", "contrast": "none"},
    "S-fusion": {"fusion": "s-fusion", "contrast": "none"},
    "T-fusion": {"fusion": "t-fusion", "contrast": "none"},
    "STS": {"fusion": "sts", "contrast": "none"},
    "CSTS": {"fusion": "sts", "contrast": "post"},
    "Linear": {"fusion": "linear", "contrast": "none"},
    "Bilinear": {"fusion": "bilinear", "contrast": "none"},
    "Concat.": {"fusion": "concat", "contrast": "none"},
    "Vanilla SA": {"fusion": "vanilla-sa", "contrast": "none"},
    "SA + Vanilla Contr": {"fusion": "vanilla-sa", "contrast": "vanilla"},
    "SA + Post Contr": {"fusion": "vanilla-sa", "contrast": "post"},
    "STS + Vanilla Contr": {"fusion": "sts", "contrast": "vanilla"},
    "STS + S-Contr": {"fusion": "sts", "contrast": "s"},
    "STS + T-Contr": {"fusion": "sts", "contrast": "t"},
    "STS + Cross Contr": {"fusion": "sts", "contrast": "cross"},
    "STS + Post Contr": {"fusion": "sts", "contrast": "post"},
}

#: Reduction of height and width by the encoders: 4 in the stem, then three times 2.
REDUCTION = 32


def clip_spec(
    task: Task, timing: Timing, size: tuple[int, int], frames: int, sample_rate: int | None
) -> ClipSpec:
    """Return the clip that CSTS expects (table of frame sampling in the released loader).

    Args:
        task: "anticipation" predicts as many frames after the clip as the clip has; "estimation" the clip's own.
        timing: "ego4d" (frames 9/30 s apart, first map 1/30 s after now) or "aria" (5/20 s, 5/20 s).
        size: (height, width) of the frames.
        frames: frames per clip; 8 in the paper. Fewer frames keep their distance.
        sample_rate: Hz of the waveform, None for a network that does not hear.

    Raises:
        ConfigError: the clip is longer than what may be seen of a segment of five seconds.
    """
    rate = TIMING[timing]
    step = rate["spacing"] / rate["fps"]
    seen = rate["observed"] if task == "anticipation" else 5 * rate["fps"]
    most = (seen - 1) // rate["spacing"] + 1
    if frames > most:
        raise ConfigError(
            f"frames={frames}: frames {rate['spacing']} apart do not fit into the {seen} that {task} with timing "
            f"{timing!r} sees; allowed: 2, 4, … {most - most % 2}."
        )
    if task == "anticipation":
        target = tuple((rate["lead"] + rate["spacing"] * i) / rate["fps"] for i in range(frames))
        # The sound reaches back to the start of the observed part and ends with the frame shown now.
        before = (rate["observed"] - 1 - rate["spacing"] * (frames - 1)) / rate["fps"]
    else:
        target = tuple((i - frames + 1) * step for i in range(frames))
        before = 5.0 - (rate["spacing"] * (frames - 1) + 1) / rate["fps"]
    audio = None
    if sample_rate is not None:
        audio = AudioSpec(sample_rate, before=before, after=1 / rate["fps"], unit="seconds", window="hann")
    return ClipSpec(
        frames=frames,
        size=size,
        step=step,
        step_unit="seconds",
        mean=(0.45 * 255,) * 3,
        std=(0.225 * 255,) * 3,
        target=target,
        resize="short_side_crop",
        antialias=False,
        audio=audio,
    )


class CSTS(SaliencyNetwork):
    """Contrastive spatial-temporal separable fusion network (parameter names are the released code's).

    Logits are (B, T, H/4, W/4) for a clip of T frames of (H, W): map t belongs to the t-th target time.

    Args:
        task: "anticipation" or "estimation"; the network is the same, the clip's target differs.
        timing: "ego4d" or "aria": distance of frames and targets in time.
        fusion: a key of `FUSIONS` (Tables 1 and 2).
        contrast: which features the contrastive loss compares (Tables 3 and 8).
        size: (height, width) of the frames, multiples of 32. Position embeddings and the three pooling
            convolutions are made for it; other sizes work at run time by interpolation.
        frames: frames of a clip, even.
        embed_dim: channels after the stems.
        heads: attention heads in the first stage.
        depths: video blocks per stage, four stages.
        audio_depths: audio blocks per stage.
        drop_path: stochastic depth of the last video block.
        contrast_dim: length of the compared embeddings.
        spectrogram: (frequency bins, columns) of the sound around each frame, multiples of 32.
        sample_rate: Hz of the waveform.
        window: samples of the STFT's window.
        hop: samples between columns.
        pool_eps: epsilon of the q, k, v norms (see `avsal.nn.mvit.published_encoder`).
        init_std: standard deviation of fresh linear layers and positions. The released 0.02 is made for widths of
            some hundreds; a narrow network needs about one over the root of its width.
        freeze_encoders: leave both encoders as they were loaded (ours: for small networks and few clips).

    Raises:
        ConfigError: sizes that do not divide, or a contrastive loss that the fusion cannot have.
    """

    activation = "softmax"
    temperature = 2.0

    def __init__(
        self,
        *,
        task: Task = "anticipation",
        timing: Timing = "ego4d",
        fusion: str = "sts",
        contrast: str = "post",
        size: tuple[int, int] = (256, 256),
        frames: int = 8,
        embed_dim: int = 96,
        heads: int = 1,
        depths: Sequence[int] = (1, 2, 11, 2),
        audio_depths: Sequence[int] = (1, 1, 1, 1),
        drop_path: float = 0.2,
        contrast_dim: int = 256,
        spectrogram: tuple[int, int] = (256, 256),
        sample_rate: int = 24000,
        window: int = 240,
        hop: int = 120,
        pool_eps: float = 1e-5,
        init_std: float = 0.02,
        freeze_encoders: bool = False,
    ) -> None:
        super().__init__()
        choice("task", task, ("anticipation", "estimation"))
        choice("timing", timing, tuple(TIMING))
        choice("fusion", fusion, tuple(FUSIONS))
        if contrast not in FUSIONS[fusion]:
            raise ConfigError(
                f"contrast={contrast!r} is not defined for fusion={fusion!r}; allowed: {', '.join(FUSIONS[fusion])}."
            )
        if len(depths) != 4 or len(audio_depths) != 4 or min(*depths, *audio_depths) < 1:
            raise ConfigError(
                f"depths={tuple(depths)}, audio_depths={tuple(audio_depths)}: four stages of at least one block each."
            )
        for name, value in (("size", size), ("spectrogram", spectrogram)):
            for side in value:
                check_multiple(name, side, REDUCTION)
        check_multiple("frames", frames, 2)
        check_multiple("embed_dim", embed_dim, heads)
        self.task, self.fusion, self.contrast = task, fusion, contrast
        self.hears = fusion != "vision-only"
        self.spec = clip_spec(task, timing, (size[0], size[1]), frames, sample_rate if self.hears else None)
        #: Set it to have the fusion's attention in `aux` ("spatial_attention", "spatial_correlation",
        #: "temporal_attention"): the maps of Figure 5.
        self.attention_maps = False
        #: Whether `attention_maps` brings a "spatial_correlation".
        self.gives_correlation = fusion in ("s-fusion", "sts")

        dim, top = embed_dim, embed_dim * 8
        grid = (1, size[0] // REDUCTION, size[1] // REDUCTION)
        audio_grid = (1, spectrogram[0] // REDUCTION, spectrogram[1] // REDUCTION)
        self.stem_grid = (size[0] // 4, size[1] // 4)
        self.audio_stem_grid = (spectrogram[0] // 4, spectrogram[1] // 4)
        self.patch_embed = PatchEmbed(3, dim)
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, math.prod(self.stem_grid), dim))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, frames // 2, dim))
        self.blocks = encoder_blocks(dim, depths, heads, drop_path=drop_path, pool_eps=pool_eps)
        ends = [sum(depths[: stage + 1]) - 1 for stage in range(3)]
        self.skip_blocks = (ends[2], ends[1], ends[0])
        positions = [self.pos_embed_spatial, self.pos_embed_temporal]
        if self.hears:
            self.windows = SpectrogramWindows(*spectrogram, sample_rate, window, hop)
            self.patch_embed_audio = PatchEmbed(1, dim)
            self.pos_embed_spatial_audio = nn.Parameter(torch.zeros(1, math.prod(self.audio_stem_grid), dim))
            self.pos_embed_temporal_audio = nn.Parameter(torch.zeros(1, frames // 2, dim))
            self.blocks_audio = encoder_blocks(dim, audio_depths, heads, pool_eps=pool_eps)
            positions += [self.pos_embed_spatial_audio, self.pos_embed_temporal_audio]
        if fusion in ("s-fusion", "sts"):
            self.audio_pool = nn.Conv3d(top, top, audio_grid)
            self.spatial_fusion = MultiscaleBlock(top, top, 8 * heads)
        if fusion in ("t-fusion", "sts"):
            self.vision_pool = nn.Conv3d(top, top, grid)
            self.audio_pool2 = nn.Conv3d(top, top, audio_grid)
            self.temporal_fusion = MultiscaleBlock(top, top, 8 * heads)
        if fusion == "linear":
            # The paper leaves hidden size and activation open: D and GELU here.
            self.linear_fusion = nn.Sequential(nn.Linear(2 * top, top), nn.GELU(), nn.Linear(top, top))
        if fusion == "bilinear":
            # "Reduce the length of tokens to 256": read as channels, D / 3 of them, because the video already
            # has 256 tokens and a bilinear layer of full width would have D^3 weights.
            self.vision_reduce, self.audio_reduce = nn.Linear(top, top // 3), nn.Linear(top, top // 3)
            self.bilinear_fusion = nn.Bilinear(top // 3, top // 3, top)
        if fusion == "vanilla-sa":
            self.joint_fusion = MultiscaleBlock(top, top, 8 * heads)
        if contrast != "none":
            self.vision_proj, self.audio_proj = nn.Linear(top, contrast_dim), nn.Linear(top, contrast_dim)

        decoder_in = 2 * top if fusion == "concat" else top
        self.decode_block1 = self._decoder(decoder_in, top, 8 * heads, 2, pool_eps)
        self.decode_block2 = self._decoder(top, top // 2, 4 * heads, 4, pool_eps)
        self.decode_block3 = self._decoder(top // 2, top // 4, 4 * heads, 8, pool_eps)
        self.decode_block4 = MultiscaleBlock(
            top // 4, dim, 2 * heads, (2, 1, 1), (1, 16, 16), upsample=True, pool_eps=pool_eps
        )
        self.classifier = nn.Conv3d(dim, 1, 1)
        self.apply(partial(init_weights, std=init_std))
        for position in positions:
            nn.init.trunc_normal_(position, std=init_std)
        if freeze_encoders:
            encoders = ("patch_embed", "blocks", "patch_embed_audio", "blocks_audio")
            self.frozen = [freeze(part) for name, part in self.named_children() if name in encoders]
            for position in positions:
                position.requires_grad_(False)
            self.train()

    @staticmethod
    def _decoder(dim: int, dim_out: int, heads: int, kv: int, pool_eps: float) -> MultiscaleBlock:
        return MultiscaleBlock(dim, dim_out, heads, (1, 2, 2), (1, kv, kv), upsample=True, pool_eps=pool_eps)

    # -- sound ---------------------------------------------------------------------------------------

    def frontend(
        self,
        waveform: Tensor,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return one log-spectrogram per frame, (B, 1, T, bins, columns).

        Args:
            waveform: (B, S) in [-1, 1] at the spec's rate: the *observed* sound, from the first sample that may
                be used to the end of the frame shown now.
            audio_length: (B,) samples that belong to each clip; None means all.
            has_audio: (B,) bool; missing sound is silence, log(1e-6), as for the authors' two silent videos.
            frame_times: (B, T) seconds of the frames from the first sample; None places them as the spec does.
        """
        if not self.hears:
            return None
        batch, device = len(waveform), waveform.device
        if audio_length is None:
            audio_length = torch.full((batch,), waveform.shape[1], device=device)
        if has_audio is None:
            has_audio = torch.ones(batch, dtype=torch.bool, device=device)
        if frame_times is None:
            assert self.spec.audio is not None
            times = self.spec.audio.before + self.spec.step * torch.arange(
                self.spec.frames, dtype=torch.float64
            )
            frame_times = times.to(device).expand(batch, -1)
        return self.windows(waveform, audio_length, has_audio, frame_times)

    # -- network -------------------------------------------------------------------------------------

    def encode_video(self, video: Tensor) -> tuple[Tensor, Grid, list[Tensor], Grid]:
        """Return the last tokens of (B, 3, T, H, W), their grid, the skips from coarse to fine, and the stem's grid."""
        tokens, grid = self.patch_embed(video)
        tokens = with_positions(tokens, grid, self.pos_embed_spatial, self.pos_embed_temporal, self.stem_grid)
        stem_grid, skips = grid, [tokens]
        for index, block in enumerate(self.blocks):
            tokens, grid, _ = block(tokens, grid)
            if index in self.skip_blocks:
                skips.append(tokens)
        return tokens, grid, skips[::-1], stem_grid

    def encode_audio(self, audio: Tensor) -> tuple[Tensor, Grid]:
        """Return the last tokens of the spectrograms (B, 1, T, bins, columns), and their grid."""
        tokens, grid = self.patch_embed_audio(audio)
        tokens = with_positions(
            tokens, grid, self.pos_embed_spatial_audio, self.pos_embed_temporal_audio, self.audio_stem_grid
        )
        for block in self.blocks_audio:
            tokens, grid, _ = block(tokens, grid)
        return tokens, grid

    @staticmethod
    def _pool(tokens: Tensor, grid: Grid, pool: nn.Conv3d) -> Tensor:
        """Reduce every time step to one token (B, T, C)."""
        volume = to_grid(tokens, grid)
        kernel = pool.kernel_size[1:]
        if grid[1:] != kernel:
            volume = F.interpolate(volume, size=(grid[0], *kernel), mode="trilinear", align_corners=False)
        return to_tokens(pool(volume))

    def _spatial(
        self, video: Tensor, audio: Tensor, grid: Grid, aux: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """In-frame attention, Equations 1-5: the cross-frame mask leaves T independent groups of N + 1 tokens.

        Returns u_{v,s} (B, T*N, C) and u_{a,s} (B, T, C).
        """
        steps = grid[0]
        video = rearrange(video, "b (t n) c -> b t n c", t=steps)
        groups = rearrange(torch.cat([video, audio[:, :, None]], dim=2), "b t n c -> (b t) n c")
        fused, _, weights = self.spatial_fusion(
            groups, (1, 1, groups.shape[1]), attention=self.attention_maps
        )
        fused = rearrange(fused, "(b t) n c -> b t n c", t=steps)
        if weights is not None:
            weights = weights.unflatten(0, (-1, steps))
            aux["spatial_attention"] = weights
            aux["spatial_correlation"] = weights[..., -1, :-1].mean(2).unflatten(-1, grid[1:])
        return rearrange(fused[:, :, :-1], "b t n c -> b (t n) c"), fused[:, :, -1]

    def _temporal(self, video: Tensor, audio: Tensor, aux: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-frame attention among one token per step and modality, Equation 6; (B, T, C) each."""
        tokens = torch.cat([video, audio], dim=1)
        fused, _, weights = self.temporal_fusion(
            tokens, (1, 1, tokens.shape[1]), attention=self.attention_maps
        )
        if weights is not None:
            aux["temporal_attention"] = weights
        return fused[:, : video.shape[1]], fused[:, video.shape[1] :]

    def _fuse(
        self, video: Tensor, grid: Grid, audio: Tensor, audio_grid: Grid, aux: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Return the decoder's input and, per contrastive loss, the tokens of both modalities to compare."""
        pairs = {"vanilla": (video, audio)}
        if self.fusion in ("linear", "bilinear", "concat"):
            if audio_grid != grid:
                audio = to_tokens(F.interpolate(to_grid(audio, audio_grid), size=grid, mode="trilinear"))
            if self.fusion == "bilinear":
                return self.bilinear_fusion(self.vision_reduce(video), self.audio_reduce(audio)), pairs
            both = torch.cat([video, audio], dim=-1)
            return (self.linear_fusion(both) if self.fusion == "linear" else both), pairs
        if self.fusion == "vanilla-sa":
            tokens = torch.cat([video, audio], dim=1)
            fused, _, _ = self.joint_fusion(tokens, (1, 1, tokens.shape[1]))
            seen, heard = fused[:, : video.shape[1]], fused[:, video.shape[1] :]
            return seen, {**pairs, "post": (seen, heard)}
        u_vs, u_v = video, video
        if self.fusion in ("s-fusion", "sts"):
            u_vs, u_as = self._spatial(video, self._pool(audio, audio_grid, self.audio_pool), grid, aux)
            u_v = u_vs
            pairs["s"] = (u_vs, u_as)
        if self.fusion in ("t-fusion", "sts"):
            seen = self._pool(video, grid, self.vision_pool)
            heard = self._pool(audio, audio_grid, self.audio_pool2)
            u_vt, u_at = self._temporal(seen, heard, aux)
            u_v = (u_vs.unflatten(1, (grid[0], -1)) * u_vt[:, :, None]).flatten(1, 2)  # Equation 7
            u_a = (audio.unflatten(1, (grid[0], -1)) * u_at[:, :, None]).flatten(1, 2)  # Equation 8
            pairs |= {"t": (u_vt, u_at), "post": (u_v, u_a)}
            if self.fusion == "sts":
                pairs["cross"] = (u_v, u_as * u_at)
        return u_v, pairs

    def _decode(self, tokens: Tensor, grid: Grid, skips: list[Tensor], stem_grid: Grid) -> Tensor:
        *coarse, stem = skips
        for block, skip in zip(
            (self.decode_block1, self.decode_block2, self.decode_block3), coarse, strict=True
        ):
            tokens, grid, _ = block(tokens, grid)
            tokens = tokens + skip
        tokens, grid, _ = self.decode_block4(tokens, grid)
        skip = F.interpolate(
            to_grid(stem, stem_grid), scale_factor=(2.0, 1.0, 1.0), mode="trilinear", align_corners=False
        )
        return self.classifier(to_grid(tokens, grid) + skip)[:, 0]

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return one raw map per target time.

        Args:
            video: (B, 3, T, H, W) normalised, T even, H and W multiples of 32.
            audio_input: (B, 1, T, bins, columns) log-spectrograms; None for a network that does not hear.

        Returns:
            Logits (B, T, H/4, W/4). `aux` has "vision_embed" and "audio_embed" (B, contrast_dim), projected but
            not normalised, where a contrastive loss was chosen; with `attention_maps` also "spatial_attention"
            (B, T/2, heads, N+1, N+1), "spatial_correlation" (B, T/2, H/32, W/32) (the audio token's attention over
            the frame, mean of heads, Figure 5) and "temporal_attention" (B, heads, T, T).
        """
        check_multiple("frames of the clip", video.shape[2], 2)
        check_multiple("height of the clip", video.shape[3], REDUCTION)
        check_multiple("width of the clip", video.shape[4], REDUCTION)
        tokens, grid, skips, stem_grid = self.encode_video(video)
        aux: dict[str, Tensor] = {}
        if self.hears:
            if audio_input is None:
                raise ConfigError(
                    f"fusion={self.fusion!r} needs audio_input (B, 1, T, bins, columns); pass what frontend() returns."
                )
            if audio_input.shape[2] != video.shape[2]:
                raise ConfigError(
                    f"{audio_input.shape[2]} spectrograms for {video.shape[2]} frames; give one per frame."
                )
            audio, audio_grid = self.encode_audio(audio_input)
            tokens, pairs = self._fuse(tokens, grid, audio, audio_grid, aux)
            if self.contrast != "none":
                seen, heard = pairs[self.contrast]
                aux["vision_embed"] = self.vision_proj(seen.mean(1))
                aux["audio_embed"] = self.audio_proj(heard.mean(1))
        return self.output(self._decode(tokens, grid, skips, stem_grid), aux)

    # -- published weights of the encoder ----------------------------------------------------------------

    def from_published(self, state_dict: Mapping[str, Tensor], *, positions: str = "2-D") -> list[str]:
        """Initialise the video encoder with Kinetics-400 weights of MViT-B (version 1).

        Args:
            state_dict: torchvision's `mvit_v1_b`, PyTorchVideo's `mvit_base_16x4` or PySlowFast's
                `MVIT_B_16x4_CONV`; a "model_state" around it is opened.
            positions: "2-D" resizes the spatial position embedding on its grid; "1-D" as the released code.

        Returns:
            The names of the entries that were set: all of the video encoder's.

        Raises:
            WeightsError: not MViT-B weights, or of another width or depth than this encoder.
        """
        inner = state_dict.get("model_state", state_dict)
        theirs = published_encoder(strip_prefix(inner))  # type: ignore[arg-type]
        if "pos_embed_spatial" in theirs:
            theirs["pos_embed_spatial"] = resize_positions(
                theirs["pos_embed_spatial"], self.stem_grid, mode=positions
            )
        if "pos_embed_temporal" in theirs:
            theirs["pos_embed_temporal"] = resize_times(
                theirs["pos_embed_temporal"], self.pos_embed_temporal.shape[1]
            )
        own = {
            name: value
            for name, value in self.state_dict().items()
            if name in ("pos_embed_spatial", "pos_embed_temporal")
            or name.startswith(("patch_embed.", "blocks."))
        }
        wrong = [n for n, v in own.items() if n not in theirs or theirs[n].shape != v.shape] + sorted(
            set(theirs) - set(own)
        )
        if wrong:
            raise WeightsError(
                f"The MViT weights do not fit this video encoder in {len(wrong)} entries: {', '.join(wrong[:8])}. "
                "Kinetics weights exist for embed_dim=96, heads=1, depths=(1, 2, 11, 2)."
            )
        self.load_state_dict(theirs, strict=False)
        return sorted(own)


class CSTSModule(SaliencyModule):
    """CSTS with its loss, its recipe and the gaze metrics.

    Loss: KL of the target from the prediction (`avsal.losses.reverse_kl`), divided by log(h w) and averaged over frames
    and clips, plus alpha times the contrastive loss (Eq. 9) over the batch of all processes. Recipe: AdamW (0.9,
    0.999), 15 epochs, batch 8 in total, rate 1e-4 falling to 1e-6 by a cosine in every iteration, weight decay 0.05
    except for one-dimensional parameters, gradients clipped to norm 1, float32.

    Args:
        contrast: None is "post" for `fusion="sts"` (CSTS itself) and "none" for any other fusion.
        alpha: weight of the contrastive loss; None is 0.05 for anticipation and 0.01 for estimation (released
            configurations).
        loss_frames: which frames train: "all" (released: untracked and outside ones too), "tracked", or "fixations".
            Frames without any annotation never do.
        metric_thresholds: where the adaptive F1 looks for its threshold; None is the list of the data set's authors (of
            `timing` where it has none).
        lr: rate at the start.
        min_lr: rate at the end.
        weight_decay: decay of parameters with two or more dimensions, position embeddings too.
        clip_norm: largest L2 norm of the gradients, unless the Trainer has its own; 0 for none.
        positions: how the Kinetics weights' position embedding is resized, "2-D" or "1-D" (released).
        backbone: registry name or file of MViT-B's Kinetics weights, loaded when training starts.
        allow_random_frozen: train behind frozen parts that were given no weights; refused otherwise.
        init_from: a checkpoint of which every fitting parameter is copied when training starts, after the backbone.
        **network: arguments of `CSTS`.
    """

    paper = "lai2024csts"
    network: CSTS
    network_class = CSTS
    training_arguments = ("drop_path", "init_std", "freeze_encoders")
    sound_arguments = (
        "fusion",
        "contrast",
        "audio_depths",
        "contrast_dim",
        "spectrogram",
        "sample_rate",
        "window",
        "hop",
    )
    small: ClassVar[dict[str, Any]] = {
        "size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1, 1], "contrast_dim": 8, "spectrogram": [32, 32],
        "window": 62, "hop": 750,
    }  # fmt: skip
    weights_of: ClassVar[dict[str, tuple[str, str]]] = {
        name: (weights, "freeze_encoders")
        for names, weights in (
            (("patch_embed", "blocks"), "backbone"),
            (("patch_embed_audio", "blocks_audio"), "init_from"),
        )
        for name in names
    }

    #: A gaze model has no CC: F1 picks the best checkpoint.
    monitor = "val/f1"
    protocol_arguments = ("metric_thresholds",)

    def __init__(
        self,
        *,
        contrast: str | None = None,
        alpha: float | None = None,
        loss_frames: Literal["all", "tracked", "fixations"] = "all",
        metric_thresholds: str | Sequence[float] | None = None,
        lr: float = 1e-4,
        min_lr: float = 1e-6,
        weight_decay: float = 0.05,
        clip_norm: float = 1.0,
        positions: Literal["2-D", "1-D"] = "2-D",
        backbone: str | None = None,
        allow_random_frozen: bool = False,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        choice("loss_frames", loss_frames, ("all", "tracked", "fixations"))
        choice("positions", positions, ("2-D", "1-D"))
        if contrast is None:
            contrast = "post" if {"fusion": "sts", **network}["fusion"] == "sts" else "none"
        self.save_hyperparameters(logger=False)
        self.network = CSTS(contrast=contrast, **network)
        self.alpha = alpha if alpha is not None else (0.05 if self.network.task == "anticipation" else 0.01)

    @classmethod
    def architecture(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that define the network; the contrast "post" is the default and left out."""
        found = super().architecture(arguments)
        return {k: v for k, v in found.items() if (k, v) != ("contrast", "post")}

    @classmethod
    def modality(cls, arguments: Mapping[str, Any]) -> Literal["AV", "V"]:
        """Return "AV", or "V" with `fusion="vision-only"`."""
        return "V" if arguments.get("fusion") == "vision-only" else "AV"

    def forward(self, batch: Batch) -> SaliencyOutput:
        """Return the network's output for a batch of clips, from stored spectrograms where it has them."""
        if "spectrogram" in batch and self.network.hears:
            windows = self.network.windows.cut(
                batch["spectrogram"], batch["columns"], batch["seconds"], batch["frame_times"]
            )
            return self.network.core(batch["video"], windows)
        return super().forward(batch)

    # -- weights -------------------------------------------------------------------------------------

    @classmethod
    def from_authors(cls, state_dict: Mapping[str, Tensor], **options: Any) -> Self:
        """Build the module from the authors' state dict; our parameter names are theirs.

        Sizes follow from the entries: frames, frame size, channels, and whether it was trained with the contrastive
        loss (entries `vision_proj` and `audio_proj`). The same entries serve both tasks and both data sets.

        Args:
            state_dict: entries, perhaps with `module.` before them.
            **options: the module's constructor arguments; `task` and `timing` where not Ego4D anticipation.

        Raises:
            WeightsError: names the entries that are missing, left over or of another shape.
        """
        entries = strip_prefix(state_dict)
        found = {**_sizes(entries), **options}
        if found.get("fusion", "sts") == "sts" and "vision_proj.weight" not in entries:
            found.setdefault("contrast", "none")
        module = cls(**found)
        unused = [] if module.network.contrast != "none" else [r"^vision_proj\.", r"^audio_proj\."]
        load_exact(module.network, entries, unused=unused, what="CSTS checkpoint")
        return module.eval()

    def setup(self, stage: str) -> None:
        """Load the Kinetics weights, then `init_from`, before training starts."""
        source = self.hparams["backbone"]
        if stage == "fit" and source:
            entries = self.read_weights(source)
            loaded = self.network.from_published(entries, positions=self.hparams["positions"])
            self.print(f"Initialised the video encoder ({len(loaded)} entries) from {source}.")
        super().setup(stage)

    # -- training ------------------------------------------------------------------------------------

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return "loss" = "kl" + alpha "contrastive" (Section 3.3), over the frames that train."""
        terms = {"kl": self._kl(output, batch)}
        terms["loss"] = terms["kl"]
        if "vision_embed" in output.aux:
            seen, heard = (gather_with_gradient(output.aux[name]) for name in ("vision_embed", "audio_embed"))
            terms["contrastive"] = contrastive(seen, heard)
            terms["loss"] = terms["loss"] + self.alpha * terms["contrastive"]
        return terms

    def _kl(self, output: SaliencyOutput, batch: Batch) -> Tensor:
        if "density" not in batch:
            raise ConfigError(
                "The batch has no gaze maps (`density`) to train on; give the data module a gaze file."
            )
        prediction = output.saliency()
        target = _on_grid(batch["density"].to(prediction), (prediction.shape[-2], prediction.shape[-1]))
        values = reverse_kl(prediction, target) / math.log(prediction.shape[-2] * prediction.shape[-1])
        weight = self._trains(batch, values)
        return (values * weight).sum() / weight.sum().clamp_min(1)

    def _trains(self, batch: Batch, like: Tensor) -> Tensor:
        """Return (B, T_out) 1 for the frames that train."""
        chosen = batch.get("labelled", torch.ones_like(like, dtype=torch.bool))
        if "gaze_type" in batch:
            kinds, frames = batch["gaze_type"], self.hparams["loss_frames"]
            # Untracked frames are not labelled; the released code trains on their stand-in point all the same.
            chosen = {
                "all": chosen | (kinds == 3),
                "tracked": chosen & (kinds != 3),
                "fixations": chosen & (kinds == 0),
            }[frames]
        return chosen.to(like)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its cosine, stepped in every iteration."""
        parameters = trained(self)
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.hparams["weight_decay"]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, training_steps(self), self.hparams["min_lr"]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the recipe's norm unless the Trainer was given another."""
        limit = gradient_clip_val if gradient_clip_val is not None else self.hparams["clip_norm"]
        self.clip_gradients(optimizer, limit or None, gradient_clip_algorithm or "norm")

    # -- metrics -------------------------------------------------------------------------------------

    def build_metrics(self, stage: str, data: Any = None) -> GazeMetrics:  # type: ignore[override]
        """Return F1, recall and precision at the adaptive threshold, and AUC in test.

        The thresholds are those of the argument `metric_thresholds`, else those of the data set's authors; the
        network's `timing` names them where the data set has none.
        """
        from avsal.metrics.gaze import GazeMetrics

        return GazeMetrics(self._thresholds(data), auc=stage == "test")

    def _thresholds(self, data: Any) -> Any:
        own = self.hparams["metric_thresholds"]
        if own is not None or self.network.task == "estimation":
            return own or "estimation"
        protocol = getattr(data, "protocol", None)
        return getattr(protocol, "thresholds", f"{self.hparams['timing']}_forecast")

    def _metric(self, stage: str) -> Any:
        # Tested on one data set before, on another one now.
        data, known = getattr(self._trainer, "datamodule", None), self._metrics.get(stage)
        theirs = self.hparams["metric_thresholds"] is None and hasattr(data, "protocol")
        if theirs and getattr(known, "grid", None) not in (None, self._thresholds(data)):
            del self._metrics[stage]
        return super()._metric(stage)

    def _update(self, stage: str, output: SaliencyOutput, batch: Batch) -> None:
        if "density" not in batch:
            raise ConfigError("The batch has no gaze maps; use `predict` for data without annotations.")
        # Scored on the grid of the target: the released code's 64x64, whatever the network's own.
        density = batch["density"]
        predicted = output.density()
        if predicted.shape[-2:] != density.shape[-2:]:
            predicted = F.interpolate(
                predicted, size=density.shape[-2:], mode="bilinear", align_corners=False
            )
        gaze = batch.get("gaze")
        metrics = self._metric(stage)
        metrics.update(
            predicted,
            density,
            batch.get("gaze_type"),
            batch["video_id"],
            batch["frame"],
            gaze,
            batch.get("labelled"),
        )


def _on_grid(density: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps that sum to 1 on a network's grid: cells are averaged, or interpolated if it is finer."""
    if density.shape[-2:] != size:
        shrinks = density.shape[-2] >= size[0] and density.shape[-1] >= size[1]
        density = (
            F.adaptive_avg_pool2d(density, size)
            if shrinks
            else F.interpolate(density, size=size, mode="bilinear", align_corners=False)
        )
    total = density.sum((-2, -1), keepdim=True)
    uniform = 1.0 / (size[0] * size[1])
    return torch.where(total > 0, density / total.clamp_min(1e-30), torch.full_like(density, uniform))


def _sizes(entries: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the constructor arguments that follow from the shapes of a state dict of CSTS."""
    found: dict[str, Any] = {}
    if "patch_embed.proj.weight" in entries:
        found["embed_dim"] = entries["patch_embed.proj.weight"].shape[0]
    if "pos_embed_temporal" in entries:
        found["frames"] = 2 * entries["pos_embed_temporal"].shape[1]
    for name, spatial in (("size", "pos_embed_spatial"), ("spectrogram", "pos_embed_spatial_audio")):
        side = math.isqrt(entries[spatial].shape[1]) if spatial in entries else 0
        if side and side * side == entries[spatial].shape[1]:
            found[name] = (4 * side, 4 * side)
    if "vision_proj.weight" in entries:
        found["contrast_dim"] = entries["vision_proj.weight"].shape[0]
    return found


#: What `create_model("csts")` builds.
MODULE = CSTSModule
