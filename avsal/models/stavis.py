"""STAViS: spatio-temporal audio-visual saliency (Tsiami, Koutras, Maragos; CVPR 2020, arXiv 2001.03063).

A 3D ResNet sees 16 frames; at four depths a deeply supervised attention module (DSAM) yields saliency
features and an attention map. SoundNet turns the clip's sound into a vector, which is compared with the
visual features at every position (sound source localisation). A fusion of both gives one map, for the
frame at index 8. Where paper and released code differ the defaults follow the code, which the released
weights come from; the paper's variant is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avsal.errors import ConfigError
from avsal.losses import correlation, cross_entropy, fixation_map, scanpath_saliency
from avsal.models.base import (
    SaliencyModule,
    SaliencyNetwork,
    WindowRunner,
    check_multiple,
    choice,
    cosine_schedule,
    stepwise,
    trained,
    training_steps,
)
from avsal.nn.resnet3d import ResNet3D
from avsal.nn.resnet3d_windows import ResNet3DWindows
from avsal.nn.soundnet import SoundNet, one_dimensional, published_name
from avsal.nn.state import load_exact, strip_prefix
from avsal.nn.waveform import windowed_excerpt
from avsal.types import AudioSpec, Batch, ClipSpec, SaliencyOutput

Localisation = Literal["cosine", "weighted", "bilinear"]
Fusion = Literal["audio_only", "weighted_sum", "attention", "multi_attention", "concatenation", "late"]
DeepSupervision = Literal["falling", "constant", "none"]
Targets = Literal["released", "plain"]

#: RGB mean of Kinetics on the 0..255 scale; the network divides by nothing.
MEAN = (114.7748, 107.7354, 99.4750)
#: First bias of every layer that ends in a saliency map, so that its first sigmoid is about 0.0025.
PRIOR_BIAS = -6.0
#: Samples of 16 frames at 22050 Hz and 10 frames per second.
AUDIO_SAMPLES = 35280
#: Sample counts after which SoundNet's last pool leaves exactly one step.
ONE_STEP = (12766, 78301)

#: Constructor arguments of the rows of Table 1 (and of the supplement's Tables 7 and 8).
VARIANTS: dict[str, dict[str, Any]] = {
    "Visual": {"audiovisual": False},
    **{
        f"{level}{name}": {"localisation": localisation, "maps": 1, "fusion": fusion}
        for name, fusion in (
            (" AudioOnly", "audio_only"),
            (" + S1av", "weighted_sum"),
            (" + S2av", "attention"),
        )
        for level, localisation in (("L1", "cosine"), ("L2", "weighted"), ("L3", "bilinear"))
    },
    "L3mul + S~2av": {"fusion": "multi_attention"},
    "L3mul + S3av": {},
    "L3mul + Sfusav": {"fusion": "late"},
}


def bilinear_kernel(size: int) -> Tensor:
    """Return the (size, size) kernel with which a transposed convolution interpolates bilinearly."""
    factor = (size + 1) // 2
    centre = factor - 0.5 if size % 2 == 0 else factor - 1.0
    line = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    return line[:, None] * line[None, :]


def centre_crop(maps: Tensor, height: int, width: int) -> Tensor:
    """Crop (..., h, w) to the centre; an odd surplus loses one more row or column at the end."""
    top, left = (maps.shape[-2] - height) // 2, (maps.shape[-1] - width) // 2
    return maps[..., top : top + height, left : left + width]


def gaussian_logits(rows: int, columns: int, sigma: float = 0.2) -> Tensor:
    """Return the (rows, columns) logarithm of a centred Gaussian of `sigma` of the height and of the width."""
    y, x = (((torch.arange(n) + 0.5) / n - 0.5).square() for n in (rows, columns))
    return -(y[:, None] + x[None, :]) / (2 * sigma**2)


class DSAM(nn.Module):
    """Deeply Supervised Attention Module at one level of the trunk (Eq. 1 and 2, Figure 3).

    Args:
        channels: channels of the trunk's features at this level.
        maps: saliency features S^m.
        level: m in 1..4; the features are 2^m times smaller than the clip.
    """

    def __init__(self, channels: int, maps: int, level: int) -> None:
        super().__init__()
        kernel, stride = 2 ** (level + 1), 2**level
        self.side_prep = nn.Conv2d(channels, maps, 3, padding=1)
        self.score = nn.Conv2d(maps, 1, 1)
        self.upscale_features = nn.ConvTranspose2d(maps, maps, kernel, stride=stride, bias=False)
        self.upscale_map = nn.ConvTranspose2d(1, 1, kernel, stride=stride, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Look at features (B, C, T, h, w) of a clip of the given height and width.

        Returns:
            The saliency features S^m (B, maps, H, W), the activation map A^m (B, 1, H, W), both
            up-sampled, and the attention M^m (B, 1, 1, h, w), which sums to 1 over the positions.
        """
        side = self.side_prep(x.mean(2))
        activation = self.score(side)
        attention = activation.flatten(-2).softmax(-1).view_as(activation).unsqueeze(2)
        features = centre_crop(self.upscale_features(side), height, width)
        return features, centre_crop(self.upscale_map(activation), height, width), attention


class SoundLocalisation(nn.Module):
    """Where the sound comes from: L_1, L_2 or L_3 of section 3.3 (Eq. 3 to 5).

    Args:
        visual_channels: D_v of the visual features.
        audio_channels: D_a of the audio vector.
        hidden: D_h, into which both are projected.
        method: "cosine" (L_1), "weighted" inner product (L_2, Eq. 4) or "bilinear" (L_3, Eq. 5).
        maps: N_out localisation maps; "cosine" gives one.
        projection_relu: a ReLU after both projections, as released (Eq. 3 is affine only).
    """

    def __init__(
        self,
        visual_channels: int,
        audio_channels: int,
        hidden: int,
        method: Localisation,
        maps: int,
        projection_relu: bool = True,
    ) -> None:
        super().__init__()
        self.method, self.projection_relu = method, projection_relu
        self.visual = nn.Linear(visual_channels, hidden)
        self.audio = nn.Linear(audio_channels, hidden)
        if method == "bilinear":
            # Holds M^j and mu^j; `forward` contracts them in the cheaper order.
            self.product: nn.Module = nn.Bilinear(hidden, hidden, maps)
        elif method == "weighted":
            self.product = nn.Linear(hidden, maps)
        else:
            self.product = nn.Identity()

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Compare features (B, D_v, h, w) at every position with a vector (B, D_a): (B, maps, h, w)."""
        h_v = self.visual(visual.movedim(1, -1))
        h_a = self.audio(audio)
        if self.projection_relu:
            h_v, h_a = h_v.relu(), h_a.relu()
        if self.method == "cosine":
            return F.cosine_similarity(h_v, h_a[:, None, None], dim=-1).unsqueeze(1)
        product = cast("nn.Bilinear | nn.Linear", self.product)
        if isinstance(product, nn.Bilinear):
            # The sound is the same at every position: contracting it first needs 1 / (h w) of the work.
            per_clip = torch.einsum("jvk,bk->bvj", product.weight, h_a)
        else:
            per_clip = h_a.unsqueeze(-1) * product.weight.transpose(0, 1)
        maps = h_v.flatten(1, 2) @ per_clip + product.bias
        return maps.unflatten(1, visual.shape[-2:]).movedim(-1, 1)


class WeightedSum(nn.Module):
    """Learned weighted sum of saliency maps: sum_i w_i sigma(S_i) + beta.

    The paper's formulae have no beta; without it no positive weights give a probability below one half.
    """

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(terms))
        self.bias = nn.Parameter(torch.full((1,), PRIOR_BIAS))

    def forward(self, *logits: Tensor) -> Tensor:
        """Sum maps of one shape."""
        total = sum(w * s.sigmoid() for w, s in zip(self.weight, logits, strict=True))
        return cast(Tensor, total) + self.bias


class STAViS(SaliencyNetwork):
    """The network; the defaults are the released audio-visual one, L_3^mul with S_3^av.

    The rows of the paper's Table 1 (`localisation`, `maps`, `fusion`):

    ===================  =============================================  ====================
    row                  arguments                                      paper
    ===================  =============================================  ====================
    Visual               `audiovisual=False`                            S^v
    L_1..3 AudioOnly     any, 1, "audio_only"                           S^a
    L_1..3 - S_1         any, 1, "weighted_sum"                         w_v σ(S^v) + w_a σ(S^a)
    L_1..3 - S_2         any, 1, "attention"                            σ(S^v) (1 + σ(S^a))
    L_3^mul - S~_2       "bilinear", 64, "multi_attention"              conv of σ(V^j) (1 + σ(L^j))
    L_3^mul - S_3        "bilinear", 64, "concatenation"                conv of (V | L)
    L_3^mul - S_fus      "bilinear", 64, "late"                         weighted sum of σ(S^v), σ(S^a), σ(S_3)
    ===================  =============================================  ====================

    As in Equation 7 the result of every fusion goes through a sigmoid: `logits` is the value before it.

    Args:
        audiovisual: hear, or see only.
        frames: frames T per clip, a multiple of 8.
        size: (height, width) of the frames in pixels, 8 at least.
        localisation: "cosine" (L_1), "weighted" (L_2) or "bilinear" (L_3).
        maps: localisation maps N_out; None: 64 (as many as DSAM features) for the fusions of many maps
            ("multi_attention", "concatenation", "late"), else 1. Cosine gives 1 only.
        fusion: see the table.
        hidden: D_h of the two projections.
        dsam_maps: saliency features of each of the four DSAMs.
        width: channels of the trunk's stem (64 as published; 16 gives a sixteenth of the parameters).
        blocks: bottlenecks of the three stages.
        audio_width: channels of SoundNet's first layer (16 as published).
        audio_samples: length of the buffer in which a clip's sound is centred.
        audio_pool: "fixed" is the released pool of 2, after which one step must be left (12766 to 78301
            samples); "global" is the paper's temporal maximum, for any length. Equal up to 45533 samples.
        visual_pool: time steps of stage 2 that the localisation sees: the "central" two (released) or
            "all" (paper).
        projection_relu: a ReLU after the localisation's projections (released; the paper has none).
        via: (height, width) of the authors' first resize, None to resize in one step.
        targets: what training clips are compared with: "released" as the authors' loader does, that of the two frames
            in the middle whose number, from 1, is even, and fixations that two resizes have spread to dots; "plain"
            is the frame at index 8 of 16, and one cell for each fixated pixel.
        prior: (rows, columns) of a learned map that is added to the logits, enlarged to the clip's size; it
            starts as a centred Gaussian. Not in the paper: data sets of a few dozen videos are too small for the
            convolutions to learn from their padding that people look at the centre. None: no such map.
    """

    def __init__(
        self,
        audiovisual: bool = True,
        frames: int = 16,
        size: tuple[int, int] = (112, 112),
        *,
        localisation: Localisation = "bilinear",
        maps: int | None = None,
        fusion: Fusion = "concatenation",
        hidden: int = 128,
        dsam_maps: int = 16,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6),
        audio_width: int = 16,
        audio_samples: int = AUDIO_SAMPLES,
        audio_pool: Literal["fixed", "global"] = "fixed",
        visual_pool: Literal["central", "all"] = "central",
        projection_relu: bool = True,
        via: tuple[int, int] | None = (240, 320),
        targets: Targets = "released",
        prior: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_multiple("frames", frames, 8)
        if len(size) != 2 or min(size) < 8:
            raise ConfigError(f"size={tuple(size)}: give (height, width) of at least 8 pixels each.")
        if len(blocks) != 3 or min(blocks) < 1:
            raise ConfigError(
                f"blocks={tuple(blocks)}: STAViS's trunk has three stages of at least one block."
            )
        choice("localisation", localisation, get_args(Localisation))
        choice("fusion", fusion, get_args(Fusion))
        choice("targets", targets, get_args(Targets))
        if prior is not None and (len(prior) != 2 or min(prior) < 2):
            raise ConfigError(f"prior={tuple(prior)}: give (rows, columns) of at least 2 each, or None.")
        choice("audio_pool", audio_pool, ("fixed", "global"))
        choice("visual_pool", visual_pool, ("central", "all"))
        if audiovisual and audio_pool == "fixed" and not ONE_STEP[0] <= audio_samples <= ONE_STEP[1]:
            raise ConfigError(
                f"audio_samples={audio_samples}: the fixed pool needs {ONE_STEP[0]} to {ONE_STEP[1]}; "
                "set audio_pool='global' for other lengths."
            )
        self.spec = ClipSpec(
            frames=frames,
            size=(size[0], size[1]),
            mean=MEAN,
            std=(1.0, 1.0, 1.0),
            target=frames // 2,
            via=via if via is None else (via[0], via[1]),
            authors_coverage="cyclic",
            training_targets="stavis" if targets == "released" else "plain",
            audio=AudioSpec(sample_rate=None, before=0.5, after=0.5, window="hann") if audiovisual else None,
        )
        self.audiovisual, self.fusion = audiovisual, fusion
        self.audio_samples, self.audio_pool, self.visual_pool = audio_samples, audio_pool, visual_pool
        visual_maps = 4 * dsam_maps
        self.trunk = ResNet3D(blocks, width)
        self.dsam = nn.ModuleList(
            DSAM(channels, dsam_maps, level) for level, channels in enumerate(self.trunk.channels, 1)
        )
        if not audiovisual or fusion in ("weighted_sum", "attention", "late"):
            self.fuse = nn.Conv2d(visual_maps, 1, 1)
        if audiovisual:
            many = fusion in ("multi_attention", "concatenation", "late")
            if maps is None:
                maps = visual_maps if many and localisation != "cosine" else 1
            if localisation == "cosine" and maps != 1:
                raise ConfigError(
                    f"maps={maps}: localisation='cosine' gives one map; use maps=1 or another method."
                )
            if fusion == "multi_attention" and maps != visual_maps:
                raise ConfigError(
                    f"maps={maps}: fusion='multi_attention' pairs each localisation map with one of the "
                    f"{visual_maps} visual ones (4 * dsam_maps); use localisation='bilinear' or 'weighted' "
                    f"and maps={visual_maps}."
                )
            self.soundnet = SoundNet(audio_width)
            self.localisation = SoundLocalisation(
                self.trunk.channels[2], self.soundnet.channels, hidden, localisation, maps, projection_relu
            )
            if fusion in ("audio_only", "weighted_sum", "attention", "late"):
                self.fuse_audio = nn.Conv2d(maps, 1, 1)
            if fusion in ("concatenation", "late"):
                self.fuse_av = nn.Conv2d(visual_maps + maps, 1, 1)
            elif fusion == "multi_attention":
                self.fuse_av = nn.Conv2d(visual_maps, 1, 1)
            if fusion in ("weighted_sum", "late"):
                self.mix = WeightedSum(2 if fusion == "weighted_sum" else 3)
        self.prior = None if prior is None else nn.Parameter(gaussian_logits(prior[0], prior[1])[None, None])
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Conv1d):
                nn.init.normal_(module.weight, std=0.001)
                nn.init.constant_(cast(Tensor, module.bias), PRIOR_BIAS if _ends_in_map(name) else 0.0)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.zeros_(module.weight)
                diagonal = torch.arange(module.in_channels)
                with torch.no_grad():
                    module.weight[diagonal, diagonal] = bilinear_kernel(module.kernel_size[0])
            elif isinstance(module, nn.Linear | nn.Bilinear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def frontend(
        self,
        waveform: Tensor,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return the windowed, centred waveforms (B, 1, 1, `audio_samples`) on the scale of +-256.

        Missing sound is silence. `frame_times` is not needed: the span around the frames is already cut.
        """
        if not self.audiovisual:
            return None
        excerpt = windowed_excerpt(waveform, audio_length, has_audio, samples=self.audio_samples)
        return excerpt[:, None, None]

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return the map of each clip's frame at index `spec.target`.

        Args:
            video: (B, 3, T, H, W) RGB on the 0..255 scale minus the mean.
            audio_input: (B, 1, 1, S) as `frontend` returns it; not used by a visual-only network.

        Returns:
            `logits` (B, 1, H, W) and in `aux`: `dsam1_logits` … `dsam4_logits`, the activation maps A^m
            (B, 1, H, W); audio-visual also `localisation` (B, maps, H, W), and `visual_logits` S^v and
            `audio_logits` S^a where the fusion has them.

        Raises:
            ConfigError: an audio-visual network without `audio_input`, or sound of a length that leaves
                more or less than one step after the fixed pool.
        """
        height, width = video.shape[-2:]
        aux: dict[str, Tensor] = {}
        features = []
        third = x = video
        for level, dsam in enumerate(self.dsam):
            x = self.trunk.stem(x) if level == 0 else self.trunk.stage(level, x)
            if level == 2:
                third = self._pool_visual(x)
            side, activation, attention = dsam(x, height, width)
            features.append(side)
            aux[f"dsam{level + 1}_logits"] = activation
            if level < 3:  # nothing follows level 4, whose attention is never applied
                x = x * (1 + attention)
        return self.join(features, third, audio_input, aux)

    def join(
        self, features: list[Tensor], third: Tensor, audio_input: Tensor | None, aux: dict[str, Tensor]
    ) -> SaliencyOutput:
        """Return the output for the DSAMs' features and the sound.

        Args:
            features: S^1 to S^4 (B, maps, H, W).
            third: stage 2's output averaged over time (B, C, h, w).
            audio_input: see `core`.
            aux: what the output carries along; the maps made here are added.
        """
        height, width = features[0].shape[-2:]
        visual = torch.cat(features, 1)  # V = (S^1 | ... | S^4)
        if not self.audiovisual:
            return self.output(self._with_prior(self.fuse(visual)), aux)
        if audio_input is None:
            raise ConfigError("An audio-visual STAViS needs audio_input; take it from frontend().")
        maps = self.localisation(third, self._audio_vector(audio_input))
        maps = F.interpolate(maps, scale_factor=8, mode="bilinear", align_corners=False)
        maps = aux["localisation"] = centre_crop(maps, height, width)
        return self.output(self._with_prior(self._fuse(visual, maps, aux)), aux)

    def _with_prior(self, logits: Tensor) -> Tensor:
        """Add the learned map, which multiplies the saliency wherever that is small."""
        if self.prior is None:
            return logits
        return logits + F.interpolate(self.prior, logits.shape[-2:], mode="bilinear", align_corners=False)

    def _pool_visual(self, third: Tensor) -> Tensor:
        """Average stage 2's output over its central two time steps, or over all."""
        steps = third.shape[2]
        if self.visual_pool == "central":
            third = third[:, :, (steps - 1) // 2 : steps // 2 + 1]
        return third.mean(2)

    def _audio_vector(self, audio_input: Tensor) -> Tensor:
        """Return f_a (B, D_a), SoundNet's maximum over time."""
        steps = self.soundnet(audio_input)
        if self.audio_pool == "fixed":
            steps = F.max_pool1d(steps, 2) if steps.shape[-1] >= 2 else steps[..., :0]
            if steps.shape[-1] != 1:
                raise ConfigError(
                    f"{audio_input.shape[-1]} samples leave {steps.shape[-1]} steps after SoundNet's last pool, "
                    f"not one: use {ONE_STEP[0]} to {ONE_STEP[1]} samples or audio_pool='global'."
                )
        return steps.amax(-1)

    def _fuse(self, visual: Tensor, maps: Tensor, aux: dict[str, Tensor]) -> Tensor:
        """Fuse V (B, 4 dsam_maps, H, W) and L (B, maps, H, W) into one map before the sigmoid (section 3.4)."""
        if self.fusion == "concatenation":
            return self.fuse_av(torch.cat([visual, maps], 1))
        if self.fusion == "multi_attention":
            return self.fuse_av(visual.sigmoid() * (1 + maps.sigmoid()))
        s_a = aux["audio_logits"] = self.fuse_audio(maps)
        if self.fusion == "audio_only":
            return s_a
        s_v = aux["visual_logits"] = self.fuse(visual)
        if self.fusion == "attention":
            return s_v.sigmoid() * (1 + s_a.sigmoid())
        if self.fusion == "weighted_sum":
            return self.mix(s_v, s_a)
        return self.mix(s_v, s_a, self.fuse_av(torch.cat([visual, maps], 1)))

    def window_runner(self) -> WindowRunner:
        """Return a runner that shares the stem between the windows of a video and folds batch norm."""
        return STAViSRunner(self)


class STAViSRunner(WindowRunner):
    """Runs STAViS over a video's windows; the trunk does the same sums in a cheaper order."""

    network: STAViS

    def __init__(self, network: STAViS) -> None:
        super().__init__(network)
        self.windows: ResNet3DWindows | None = None

    def __call__(self, video: Tensor, frame_ids: Tensor, audio_input: Tensor | None) -> SaliencyOutput:
        """Return what `network.core` returns, in eval mode from the shared stem."""
        network = self.network
        if network.training or torch.is_grad_enabled() or torch.is_autocast_enabled(video.device.type):
            return network.core(video, audio_input)
        weight = network.trunk.conv1.weight
        if self.windows is None or self.windows.placed != (weight.device, weight.dtype):
            self.windows = ResNet3DWindows(network.trunk)
        height, width = video.shape[-2:]
        aux: dict[str, Tensor] = {}
        features = []
        third = video
        # Maps are (B, T, H, W, C) here; a DSAM only looks at their mean over time.
        mean, x = self.windows.stem(video, frame_ids)
        for level, dsam in enumerate(network.dsam):
            if level:
                x = self.windows.stage(level, x)
                mean = x.mean(1, keepdim=True)
            if level == 2:
                third = network._pool_visual(x.movedim(-1, 1))
            side, activation, attention = dsam(mean.movedim(-1, 1), height, width)
            features.append(side)
            aux[f"dsam{level + 1}_logits"] = activation
            if level < 3:
                # Positive and the same at all times, so that it commutes with a maximum over time.
                x.mul_(1 + attention.movedim(1, -1))
        return network.join(features, third, audio_input, aux)


def _ends_in_map(name: str) -> bool:
    return name.startswith("fuse") or re.fullmatch(r"dsam\.\d\.score", name) is not None


# -- the authors' weights ------------------------------------------------------------------------------

_AUTHORS_DSAM = {
    "side_prep": "side_prep",
    "score_dsn": "score",
    "upscale": "upscale_features",
    "upscale_": "upscale_map",
}
_AUTHORS_LOCALISATION = {"affine_rgb": "visual", "affine_audio": "audio", "w_a_rgb": "product"}


def authors_name(name: str) -> str | None:
    """Return this network's name for an entry of the authors' state dict, or None for an unknown one."""
    if re.match(r"(conv1|bn1|layer[123])\.", name):
        return f"trunk.{name}"
    if name.startswith("soundnet8."):
        inner = published_name(name)
        return None if inner is None else f"soundnet.{inner}"
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "score_dsn" and parts[2] in _AUTHORS_DSAM:
        return f"dsam.{parts[1]}.{_AUTHORS_DSAM[parts[2]]}.{parts[3]}"
    if len(parts) == 3 and parts[0] == "fusion3" and parts[1] in _AUTHORS_LOCALISATION:
        return f"localisation.{_AUTHORS_LOCALISATION[parts[1]]}.{parts[2]}"
    if len(parts) == 2 and parts[0] in ("fuse", "fuseav"):
        return f"{'fuse' if parts[0] == 'fuse' else 'fuse_av'}.{parts[1]}"
    return None


# -- training ------------------------------------------------------------------------------------------


class STAViSModule(SaliencyModule):
    """STAViS with its loss (Eq. 6 to 11), its two-stage recipe and its metrics.

    The recipe: first `audiovisual=False`, from a Kinetics backbone; then `audiovisual=True` with
    `init_from` the first stage's checkpoint and SoundNet's backbone. Everything trains in both stages.
    Batches have 128 clips in the paper, 60 epochs.

    Args:
        loss_weights: w_1, w_2, w_3 of cross-entropy, CC and NSS (Eq. 11).
        deep_supervision: weight of the same loss on the four DSAM maps: "falling" from 1 to 0 at the last
            epoch (released), "constant" 1 (Eq. 6) or "none" (Eq. 7). None: "falling" for a visual-only
            network, "none" for an audio-visual one.
        optimizer: "sgd" with momentum and dampening 0.9 and a rate for each part (released), or "adamw"
            with one rate, for small networks trained from scratch.
        lr: base rate; None: 0.01 for sgd, 0.001 for adamw.
        weight_decay: of every parameter.
        schedule: "multistep" multiplies the rates by 0.1 before each milestone; "cosine" falls to 0 over
            the whole training after a warm-up of 5 %.
        milestones: shares of the training's epochs (below 1), or epochs counted from 1: the defaults are
            30 and 45 of 60.
        keep: which epoch's weights are the training's result, the file `best-….ckpt`: the "best" in validation, or the
            "last" as the authors'.
        backbone: registry name or file of the trunk's Kinetics weights, loaded when training starts.
        audio_backbone: the same for SoundNet.
        init_from: a checkpoint of which every fitting parameter is copied when training starts; it comes
            after the backbones.
        **network: arguments of `STAViS`.
    """

    paper = "tsiami2020stavis"
    variants: ClassVar[dict[str, dict[str, Any]]] = VARIANTS
    network: STAViS
    network_class = STAViS
    postprocess = "stavis"
    training_arguments = ("targets",)
    sound_arguments = (
        "audiovisual", "localisation", "maps", "fusion", "hidden", "audio_width", "audio_samples", "audio_pool",
        "visual_pool", "projection_relu",
    )  # fmt: skip
    small: ClassVar[dict[str, Any]] = {
        "size": [32, 32], "via": None, "frames": 8, "width": 4, "blocks": [1, 1, 1], "dsam_maps": 2, "hidden": 8,
        "audio_width": 2,
    }  # fmt: skip

    def __init__(
        self,
        *,
        loss_weights: tuple[float, float, float] = (0.1, 2.0, 1.0),
        deep_supervision: DeepSupervision | None = None,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float | None = None,
        weight_decay: float = 1e-5,
        schedule: Literal["multistep", "cosine"] = "multistep",
        milestones: Sequence[float] = (0.5, 0.75),
        keep: Literal["best", "last"] = "best",
        backbone: str | None = None,
        audio_backbone: str | None = None,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        choice("optimizer", optimizer, ("sgd", "adamw"))
        choice("schedule", schedule, ("multistep", "cosine"))
        if choice("keep", keep, ("best", "last")) == "last":
            self.monitor = "epoch"
        self.network = STAViS(**network)
        audiovisual = self.network.audiovisual
        if deep_supervision is None:
            deep_supervision = "none" if audiovisual else "falling"
        choice("deep_supervision", deep_supervision, get_args(DeepSupervision))
        if audio_backbone and not audiovisual:
            raise ConfigError("audio_backbone is given, but audiovisual=False has no SoundNet; leave it out.")
        self.save_hyperparameters(logger=False)
        self.deep_supervision: DeepSupervision = deep_supervision
        # What no loss reaches takes no part in training; distributed training would wait for its gradients.
        for name, parameter in self.network.named_parameters():
            if any(re.match(pattern, name) for pattern in self._without_gradient()):
                parameter.requires_grad_(False)

    def _without_gradient(self) -> list[str]:
        patterns = []
        if self.deep_supervision == "none":
            patterns += [r"dsam\.\d\.upscale_map", r"dsam\.3\.score"]
            if self.network.audiovisual and self.network.fusion == "audio_only":
                patterns += [r"dsam\.\d\.upscale_features", r"dsam\.[23]\.", r"trunk\.layer3\."]
        return patterns

    @classmethod
    def from_authors(cls, state_dict: Mapping[str, Tensor], **options: Any) -> Self:
        """Build the module from the authors' state dict (`conv1.weight` … `fusion3.w_a_rgb.bias`).

        Their class holds both modes in one state dict. What the chosen mode does not use may be there or
        not: SoundNet and localisation for `audiovisual=False`; `fuse`, the up-scaling of the activation
        maps and level 4's score for `audiovisual=True`, whose `dsam*_logits` then mean nothing.

        Args:
            state_dict: entries, perhaps with `module.` before them.
            **options: the module's constructor arguments; a single number is taken as a square `size`.

        Raises:
            WeightsError: names the entries that are missing, left over or of another shape.
        """
        if isinstance(options.get("size"), int):
            options["size"] = (options["size"], options["size"])
        module = cls(**options)
        entries = {
            name: one_dimensional(name, value) if name.startswith("soundnet8.") else value
            for name, value in strip_prefix(state_dict).items()
        }
        absent: tuple[str, ...] = ()
        if module.network.audiovisual:
            unused = (r"^fuse\.",)
            absent = (r"^dsam\.\d\.upscale_map\.", r"^dsam\.3\.score\.")
        else:
            unused = (r"^soundnet8\.|^fusion3\.|^fuseav\.",)
        load_exact(
            module.network,
            entries,
            rename=authors_name,
            unused=unused,
            derived=absent,
            what="STAViS checkpoint",
        )
        return module.eval()

    def setup(self, stage: str) -> None:
        """Load the backbones, then `init_from`, before training starts."""
        if stage == "fit":
            source = self.hparams["backbone"]
            entries = self.backbone_weights(self.network.trunk, source)
            if entries is not None:
                # The classifier and the last stage of a Kinetics network have no place in STAViS.
                unused = (r"^layer4\.", r"^fc\.")
                load_exact(self.network.trunk, entries, unused=unused, what=f"backbone {source}")
            if self.network.audiovisual:
                self.load_backbone(self.network.soundnet, self.hparams["audio_backbone"])
        super().setup(stage)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of Equation 6 (with deep supervision) or 7, averaged over the labelled maps.

        Parts: `ce`, `cc` and `nss` of the fused map before their weights (Eq. 8 to 10; CC and NSS
        positive), and `dsam`, the weighted sum of the four DSAM losses.
        """
        fused = self._map_losses(output.logits, batch)
        terms = dict(zip(("ce", "cc", "nss"), fused, strict=True))
        terms["loss"] = self._weighted(fused)
        if self.deep_supervision != "none":
            maps = [output.aux[f"dsam{level}_logits"] for level in (1, 2, 3, 4)]
            losses = [self._weighted(self._map_losses(logits, batch)) for logits in maps]
            terms["dsam"] = self.supervision_weight() * torch.stack(losses).sum()
            terms["loss"] = terms["loss"] + terms["dsam"]
        return terms

    def supervision_weight(self) -> float:
        """Return the weight of the DSAM losses in this epoch: 1 - epoch / epochs, the first epoch being 1."""
        if self.deep_supervision != "falling":
            return float(self.deep_supervision == "constant")
        return max(0.0, 1.0 - (self.current_epoch + 1) / self._epochs())

    def _epochs(self) -> int:
        limit = self._trainer.max_epochs if self._trainer is not None else None
        return limit if limit and limit > 0 else 60

    def _map_losses(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return saliency_losses(logits, batch["density"], batch["fixations"], batch.get("labelled"))

    def _weighted(self, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Combine cross-entropy, CC and NSS (Eq. 11)."""
        w_ce, w_cc, w_nss = self.hparams["loss_weights"]
        return w_ce * parts[0] - w_cc * parts[1] - w_nss * parts[2]

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimiser and learning-rate schedule."""
        hp = self.hparams
        if hp["optimizer"] == "adamw":
            rate = hp["lr"] or 1e-3
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                trained(self), rate, weight_decay=hp["weight_decay"]
            )
        else:
            optimizer = torch.optim.SGD(
                self.parameter_groups(hp["lr"] or 0.01),
                momentum=0.9,
                dampening=0.9,
                weight_decay=hp["weight_decay"],
            )
        if hp["schedule"] == "cosine":
            return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, training_steps(self))}
        # The authors count epochs from 1 and lower the rate before the milestone's epoch.
        epochs = [int(m * self._epochs()) if m < 1 else int(m) for m in hp["milestones"]]
        return stepwise(optimizer, [max(1, e - 1) for e in epochs])

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the authors' parameter groups: each part of the network with its own rate.

        In units of the base rate: trunk 0.1 (visual-only) or 0.01 (audio-visual), SoundNet 0.1,
        localisation and prior 1. In the DSAMs and the fusing convolutions, with b = 0.01: `side_prep` weight b and
        bias 2 b, other weights (the transposed convolutions too) b / 10, other biases b / 5.
        """
        trunk = 0.01 if self.network.audiovisual else 0.1
        groups: dict[tuple[str, float], list[Tensor]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            part, bias = name.split(".")[0], name.endswith("bias")
            if part in ("dsam", "fuse", "fuse_audio", "fuse_av"):
                rate = 0.01 * (2 if bias else 1) * (1 if ".side_prep." in name else 0.1)
                key = ("saliency", rate)
            else:
                rates = {"trunk": trunk, "soundnet": 0.1, "localisation": 1.0, "mix": 1.0, "prior": 1.0}
                key = (part, rates[part])
            groups.setdefault(key, []).append(parameter)
        return [
            {"params": members, "lr": lr * rate, "name": f"{part} x {rate:g}"}
            for (part, rate), members in groups.items()
        ]


def saliency_losses(
    logits: Tensor, density: Tensor, fixations: Tensor, labelled: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy, CC and NSS (Eq. 8, 9, 10), each averaged over the labelled maps.

    Args:
        logits: (B, T_out, h, w) before the sigmoid.
        density: (B, T_out, h, w) in [0, 1].
        fixations: (B, T_out, N, 2) int64 (row, column) on the same grid, padded with -1.
        labelled: (B, T_out) bool; None means all.
    """
    saliency = logits.float().sigmoid()
    fixated = fixation_map(fixations, (density.shape[-2], density.shape[-1]))
    values = (
        cross_entropy(logits, density),
        correlation(saliency, density),
        scanpath_saliency(saliency, fixated),
    )
    weight = torch.ones_like(values[0]) if labelled is None else labelled.to(values[0])
    total = weight.sum().clamp_min(1)
    ce, cc, nss = ((value * weight).sum() / total for value in values)
    return ce, cc, nss


#: What `create_model("stavis")` builds.
MODULE = STAViSModule
