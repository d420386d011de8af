"""CASP-Net: a consistency-aware audio-visual saliency network (Xiong et al., CVPR 2023).

S3D sees 16 frames, VGGish hears 0.96 s around them. At each of four stages ASPP widens the view, the
audio-visual interaction (AVIM) adds what is heard, predictive coding (CPC) corrects the deepest stage
towards the sound, and SalDecoder joins the stages to one map, that of the clip's ninth frame.

The paper gives no code, and three of its formulas cannot be meant as printed; each stays available:

* Equation 1 puts a softmax over keys that are all alike. The module is then blind to the sound
  (`softmax=True`). The default leaves the softmax out.
* Equation 7 divides the squared error by its number of values and moves the wrong state; predictive coding then
  changes nothing (`cpc_error="mean"`, `cpc_gradient="above"`). The default moves each state by its own error;
  `cpc_gradient="total"` makes the iterations lower the error, which the default does not promise.
* The loss subtracts a negative correlation, which rewards anticorrelation (`loss="printed"`). The
  default is KL - 0.1 CC - 0.1 SIM.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.models.base import (
    S3DNetwork,
    SaliencyModule,
    check_multiple,
    choice,
    kl_cc_sim,
    plateau_or_cosine,
    trained,
)
from avsal.nn.aspp import ASPP
from avsal.nn.avim import AVIM
from avsal.nn.cpc import PredictiveCoding
from avsal.nn.s3d import MEAN, STD, S3DFeatures
from avsal.nn.state import freeze
from avsal.nn.vggish import PATCH_SAMPLES, SAMPLE_RATE, LogMel, SmallAudioNet, VGGish
from avsal.types import AudioSpec, Batch, ClipSpec, SaliencyOutput

Fusion = Literal["linear", "quadratic", "bilinear"]
Decoder = Literal["sal", "fcn", "unet"]
AudioEncoder = Literal["vggish", "small"]

#: Constructor arguments of the rows of Tables 1 to 3 and of Figure 5.
VARIANTS: dict[str, dict[str, Any]] = {
    "V (visual-only), Sal decoder": {"audiovisual": False},
    "V, FCN decoder": {"audiovisual": False, "decoder": "fcn"},
    "V, UNet decoder": {"audiovisual": False, "decoder": "unet"},
    "V+A+Bilinear": {"fusion": "bilinear", "iterations": 0},
    "V+A+I_Quadratic": {"fusion": "quadratic", "iterations": 0},
    "V+A+I_Linear": {"iterations": 0},
    **{
        f"V+A+I_Linear, AVIM at stage {' '.join(map(str, stages))}": {"iterations": 0, "stages": stages}
        for stages in ((1,), (2,), (3,), (4,), (2, 3, 4))
    },
    **{f"V+A+I_Linear+C, N = {n}": {"iterations": n} for n in (1, 2, 3, 4, 5)},
}


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="trilinear", align_corners=False)


def _norm_conv(
    a: int, b: int, kernel: int | tuple[int, int, int], stride: int | tuple[int, int, int] = 1
) -> nn.Module:
    padding = 1 if kernel == 3 else 0
    return nn.Sequential(
        nn.BatchNorm3d(a), nn.ReLU(inplace=True), nn.Conv3d(a, b, kernel, stride, padding, bias=False)
    )


class DenseAlign(nn.Module):
    """A dense block that ends in a convolution over time, which brings every stage to T_4 time steps.

    Args:
        channels: channels of the stage.
        width: channels of the result.
        ratio: time steps of the stage per time step of the deepest one.
        growth: channels that each layer adds; its bottleneck has four times as many.
        layers: layers of the block.
    """

    def __init__(self, channels: int, width: int, ratio: int, growth: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(layers):
            bottleneck = _norm_conv(channels, 4 * growth, 1)
            self.layers.append(nn.Sequential(bottleneck, _norm_conv(4 * growth, growth, 3)))
            channels += growth
        self.align = _norm_conv(channels, width, (ratio, 1, 1), (ratio, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, width, T / ratio, h, w) for maps (B, channels, T, h, w)."""
        for layer in self.layers:
            maps = torch.cat((maps, layer(maps)), dim=1)
        return self.align(maps)


class SalDecoder(nn.Module):
    """The paper's decoder: from the deepest stage up, each stage is aligned, added and refined.

    Args:
        channels: channels of every stage.
        steps: time steps of the four stages, shallow to deep.
        growth: growth of the dense blocks.
        width: channels after alignment.
    """

    def __init__(
        self, channels: int = 256, steps: Sequence[int] = (8, 8, 4, 2), growth: int = 32, width: int = 64
    ) -> None:
        super().__init__()
        self.dense = nn.ModuleList(DenseAlign(channels, width, step // steps[-1], growth) for step in steps)
        self.generate = nn.ModuleList(_norm_conv(width, width, 3) for _ in steps)
        half = max(1, width // 2)
        self.collapse = nn.Conv3d(width, half, (steps[-1], 3, 3), padding=(0, 1, 1), bias=False)
        self.last = nn.Conv2d(half, 1, 3, padding=1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 1, 4 h_1, 4 w_1) for the four stages (B, C, T_i, h_i, w_i), shallow to deep."""
        below: Tensor | None = None
        for index in reversed(range(len(stages))):
            aligned = self.dense[index](stages[index])
            if below is not None:
                aligned = aligned + _resize(below, aligned.shape[2:])
            below = self.generate[index](aligned)
        assert below is not None
        maps = F.relu(self.collapse(below)).squeeze(2)
        maps = self.last(F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False))
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


class FCNDecoder(nn.Module):
    """Table 1's FCN: five transposed convolutions on the deepest stage alone."""

    def __init__(self, channels: int = 256, steps: Sequence[int] = (8, 8, 4, 2)) -> None:
        super().__init__()
        widths = [channels, channels] + [max(1, channels // 2**n) for n in (1, 2, 3, 4)]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            up = nn.ConvTranspose3d(a, b, (1, 4, 4), (1, 2, 2), (0, 1, 1), bias=False)
            layers += [up, nn.ReLU(inplace=True), nn.BatchNorm3d(b)]
        self.up = nn.Sequential(*layers)
        self.last = nn.Conv3d(widths[-1], 1, (steps[-1], 3, 3), padding=(0, 1, 1))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 1, 32 h_4, 32 w_4); only the last of the four stages is used."""
        return self.last(self.up(stages[-1])).squeeze(2)


class UNetDecoder(nn.Module):
    """Table 1's UNet: convolution, trilinear resize, concatenation with the next shallower stage."""

    def __init__(self, channels: int = 256, steps: Sequence[int] = (8, 8, 4, 2)) -> None:
        super().__init__()
        wide, slim = max(1, channels // 2), max(1, channels // 8)

        def conv(a: int, b: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv3d(a, b, 3, padding=1, bias=False), nn.BatchNorm3d(b), nn.ReLU(inplace=True)
            )

        self.first = conv(channels, wide)
        self.joined = nn.ModuleList(conv(channels + wide, out) for out in (wide, wide, slim))
        self.refine = conv(slim, slim)
        self.collapse = nn.Conv3d(slim, slim, (steps[0], 1, 1), bias=False)
        self.last = nn.Conv2d(slim, 1, 3, padding=1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return logits (B, 1, 4 h_1, 4 w_1) for the four stages, shallow to deep."""
        maps = self.first(stages[-1])
        for conv, stage in zip(self.joined, reversed(stages[:-1]), strict=True):
            maps = conv(torch.cat((_resize(maps, stage.shape[2:]), stage), dim=1))
        maps = F.interpolate(maps, scale_factor=(1, 2, 2), mode="trilinear", align_corners=False)
        maps = F.relu(self.collapse(self.refine(maps))).squeeze(2)
        return self.last(F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False))


class BilinearFusion(nn.Module):
    """Table 2's baseline: every token of the deepest stage times the audio embedding, bilinearly."""

    def __init__(self, channels: int = 256, audio_channels: int = 128) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(channels, audio_channels, channels)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Return (B, C, T, h, w) in place of `visual`; `audio` is (B, audio_channels)."""
        # One embedding for all tokens: contract it first.
        mixing = torch.einsum("oia,ba->boi", self.bilinear.weight, audio)
        return torch.einsum("boi,bithw->bothw", mixing, visual) + self.bilinear.bias[:, None, None, None]


class CASPNet(S3DNetwork):
    """CASP-Net; the defaults are the paper's full model, V+A+I_Linear+C.

    Args:
        audiovisual: False is the visual-only network (Table 2's V): S3D, ASPP and the decoder.
        frames: frames per clip, a multiple of 8; the output belongs to frame `frames // 2` (0-based).
        size: (height, width) of the frames. Sizes that are no multiple of 32 are padded inside.
        fusion: "linear" or "quadratic" AVIM, or "bilinear" fusion at stage 4.
        softmax: quadratic AVIM with the softmax of Equation 1, as printed: deaf.
        stages: the stages 1 to 4 that AVIM joins (Table 3).
        decoder: "sal", "fcn" or "unet" (Table 1).
        iterations: iterations of predictive coding; 0 leaves it out (Figure 5).
        cpc_layers, alpha, alpha_top, learnable_alpha, cpc_gradient, cpc_error: see `PredictiveCoding`.
        channels: channels after ASPP.
        growth, decoder_width: sizes of SalDecoder.
        width: multiplier of S3D's widths, for small networks.
        bn_momentum: momentum of S3D's batch norms; 0.1 suits training from random weights.
        freeze_bn: keep S3D's batch norms at their statistics.
        audio_encoder: "vggish", or "small" for a small one that is trained with the network.
        audio_width: width of the small audio encoder.
        audio_relu: VGGish's last ReLU, as its PyTorch ports have it.
        freeze_audio: keep the audio encoder as it is; None freezes VGGish and trains the small one.
        context: hear 0.975 s around the clip's centre; False hears the clip's own span, in the middle of silence.
    """

    encoder: S3DFeatures

    def __init__(
        self,
        audiovisual: bool = True,
        frames: int = 16,
        size: tuple[int, int] = (224, 384),
        *,
        fusion: Fusion = "linear",
        softmax: bool = False,
        stages: Sequence[int] = (1, 2, 3, 4),
        decoder: Decoder = "sal",
        iterations: int = 3,
        cpc_layers: int = 2,
        alpha: float = 0.1,
        alpha_top: float = 0.5,
        learnable_alpha: bool = False,
        cpc_gradient: Literal["own", "above", "total"] = "own",
        cpc_error: Literal["sum", "mean"] = "sum",
        channels: int = 256,
        growth: int = 32,
        decoder_width: int = 64,
        width: float = 1.0,
        bn_momentum: float = 0.001,
        freeze_bn: bool = False,
        audio_encoder: AudioEncoder = "vggish",
        audio_width: int = 16,
        audio_relu: bool = True,
        freeze_audio: bool | None = None,
        context: bool = False,
    ) -> None:
        super().__init__()
        choice("fusion", fusion, get_args(Fusion))
        choice("decoder", decoder, get_args(Decoder))
        choice("audio_encoder", audio_encoder, get_args(AudioEncoder))
        check_multiple("frames", frames, 8)
        if min(size) < 32:
            raise ConfigError(f"size={tuple(size)}: height and width must be at least 32 pixels.")
        wrong = [stage for stage in stages if stage not in (1, 2, 3, 4)]
        if wrong or len(set(stages)) != len(stages):
            raise ConfigError(f"stages={tuple(stages)}: give each of 1, 2, 3, 4 at most once.")
        if audiovisual and decoder == "fcn" and fusion != "bilinear" and tuple(stages) != (4,):
            raise ConfigError("decoder='fcn' reads the fourth stage only: with sound it needs stages=(4,).")
        if iterations < 0:
            raise ConfigError(f"iterations={iterations}: predictive coding runs 0, 1, 2, … times.")
        if channels < 1 or growth < 1 or decoder_width < 1:
            raise ConfigError("channels, growth and decoder_width must be at least 1.")

        audio = AudioSpec(SAMPLE_RATE, before=0.0, after=1.0, seconds=0.975 if context else None)
        self.spec = ClipSpec(
            frames=frames,
            size=(size[0], size[1]),
            mean=MEAN,
            std=STD,
            target=frames // 2,
            authors_coverage="cyclic",
            audio=audio if audiovisual else None,
        )
        self.audiovisual, self.freeze_bn, self.fusion = audiovisual, freeze_bn, fusion
        self.encoder = S3DFeatures(width=width, bn_momentum=bn_momentum)
        # The FCN decoder looks at the deepest stage alone.
        used = (4,) if decoder == "fcn" else (1, 2, 3, 4)
        self.aspp = nn.ModuleList(
            ASPP(c, channels) if number in used else nn.Identity()
            for number, c in enumerate(self.encoder.channels, 1)
        )
        steps = (frames // 2, frames // 2, frames // 4, frames // 8)
        self.decoder = _decoder(decoder, channels, steps, growth, decoder_width)
        if not audiovisual:
            return
        self.log_mel = LogMel(PATCH_SAMPLES)
        self.audio_encoder: VGGish | SmallAudioNet = (
            VGGish(audio_relu) if audio_encoder == "vggish" else SmallAudioNet(audio_width)
        )
        if audio_encoder == "vggish" if freeze_audio is None else freeze_audio:
            self.frozen = [freeze(self.audio_encoder)]
        heard = self.audio_encoder.out_features
        if fusion == "bilinear":
            self.bilinear = BilinearFusion(channels, heard)
        else:
            self.avim = nn.ModuleDict(
                {str(stage): AVIM(channels, heard, fusion, softmax) for stage in sorted(stages)}
            )
        if iterations:
            self.cpc = PredictiveCoding(
                channels,
                heard,
                cpc_layers,
                iterations,
                alpha,
                alpha_top,
                learnable_alpha,
                cpc_gradient,
                cpc_error,
            )

    def train(self, mode: bool = True) -> CASPNet:
        """Set the mode; frozen parts stay in eval mode."""
        super().train(mode)
        if self.freeze_bn:
            self.encoder.eval()
        for part in self.frozen:
            part.eval()
        return self

    def frontend(
        self,
        waveform: Tensor,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return log-mel patches (B, 1, 96, 64); a clip without sound gets that of 15600 zeros."""
        if not self.audiovisual:
            return None
        return self.log_mel(self.log_mel.excerpt(waveform.float(), audio_length, has_audio))

    @property
    def heads(self) -> Sequence[nn.Module]:
        """ASPP of each map."""
        return list(self.aspp)

    def decode(
        self, stages: list[Tensor], audio_input: Tensor | None, size: tuple[int, int]
    ) -> SaliencyOutput:
        """Return logits (B, 1, H, W) of frame `frames // 2` (see `S3DNetwork.decode`).

        `audio_input` is a log-mel patch (B, 1, 96, 64). `aux["cpc_error"]` (B, iterations, layers + 1) holds the
        prediction errors of predictive coding at each iteration, level 0 first, the comparison with the sound last.
        """
        aux: dict[str, Tensor] = {}
        if self.audiovisual:
            heard = self.hear(audio_input, stages[0])
            if self.fusion == "bilinear":
                stages = [*stages[:3], self.bilinear(stages[3], heard)]
            else:
                stages = [
                    self.avim[str(number)](stage, heard) if str(number) in self.avim else stage
                    for number, stage in enumerate(stages, 1)
                ]
            if hasattr(self, "cpc"):
                deepest, aux["cpc_error"] = self.cpc(stages[3], heard)
                stages = [*stages[:3], deepest]
        logits = self.decoder(stages)
        return self.output(logits[..., : size[0], : size[1]], aux)

    def hear(self, audio_input: Tensor | None, like: Tensor) -> Tensor:
        """Return the audio embedding (B, 128); silence where there is no audio input."""
        if audio_input is None:
            audio_input = self.log_mel(like.new_zeros(1, PATCH_SAMPLES)).expand(len(like), -1, -1, -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.audio_encoder not in self.frozen):
            return self.audio_encoder(audio_input)


def _decoder(name: str, channels: int, steps: Sequence[int], growth: int, width: int) -> nn.Module:
    if name == "sal":
        return SalDecoder(channels, steps, growth, width)
    return FCNDecoder(channels, steps) if name == "fcn" else UNetDecoder(channels, steps)


# -- training ------------------------------------------------------------------------------------------


class CASPNetModule(SaliencyModule):
    """CASP-Net with its loss, its recipe and its metrics.

    Strategy 1 trains the audio-visual network on the six sets; strategy 2 first trains
    `audiovisual=False` on DHF1K and starts from it (`init_from`). Both start from S3D (Kinetics) and VGGish
    (AudioSet). Batches have 8 clips. The number of epochs and the schedule are ours: the rate halves when the
    validation loss stalls for 3 epochs.

    Args:
        loss: "consistent" is KL - 0.1 CC - 0.1 SIM; "printed" is KL + 0.1 CC - 0.1 SIM, the signs as printed.
        loss_weights: weights of CC and SIM (paper: 0.1 each).
        lr: rate of Adam.
        weight_decay: of Adam.
        schedule: "plateau" halves the rate; "cosine" falls to 0 over the training, for short ones.
        backbone: registry name or file of S3D's weights ("s3d-kinetics"), loaded when training starts.
        audio_backbone: the same for VGGish ("vggish").
        allow_random_frozen: train behind frozen parts that were given no weights; refused otherwise.
        init_from: a checkpoint of which every fitting parameter is copied when training starts; it comes
            after the backbones.
        **network: arguments of `CASPNet`.
    """

    paper = (
        "Xiong et al., CASP-Net: Rethinking video saliency prediction from an audio-visual consistency "
        "perceptual perspective, CVPR 2023"
    )
    postprocess = "stavis"  # "the same evaluation"
    weights_of: ClassVar[dict[str, tuple[str, str]]] = {"audio_encoder": ("audio_backbone", "freeze_audio")}
    variants: ClassVar[dict[str, dict[str, Any]]] = VARIANTS
    network: CASPNet
    network_class = CASPNet
    training_arguments = ("bn_momentum", "freeze_bn", "freeze_audio")
    sound_arguments = (
        "audiovisual", "fusion", "softmax", "stages", "iterations", "cpc_layers", "alpha", "alpha_top",
        "learnable_alpha", "cpc_gradient", "cpc_error", "audio_encoder", "audio_width", "audio_relu", "freeze_audio",
        "context",
    )  # fmt: skip
    small: ClassVar[dict[str, Any]] = {
        "size": [32, 32], "frames": 8, "channels": 8, "growth": 4, "decoder_width": 8, "width": 0.0625,
        "audio_encoder": "small", "audio_width": 4,
    }  # fmt: skip

    def __init__(
        self,
        *,
        loss: Literal["consistent", "printed"] = "consistent",
        loss_weights: tuple[float, float] = (0.1, 0.1),
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: Literal["plateau", "cosine"] = "plateau",
        backbone: str | None = None,
        audio_backbone: str | None = None,
        allow_random_frozen: bool = False,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        choice("loss", loss, ("consistent", "printed"))
        choice("schedule", schedule, ("plateau", "cosine"))
        self.save_hyperparameters(logger=False)
        self.network = CASPNet(**network)
        if audio_backbone and not self.network.audiovisual:
            raise ConfigError("audio_backbone is given, but audiovisual=False does not hear; leave it out.")
        if audio_backbone and not isinstance(self.network.audio_encoder, VGGish):
            raise ConfigError("audio_backbone holds VGGish; it needs audio_encoder='vggish'.")

    def setup(self, stage: str) -> None:
        """Load the backbones, then `init_from`, before training starts."""
        if stage == "fit":
            self.load_backbone(self.network.encoder, self.hparams["backbone"])
            if self.network.audiovisual:
                self.load_backbone(self.network.audio_encoder, self.hparams["audio_backbone"])
        super().setup(stage)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its parts `kl`, `cc`, `sim` (CC and SIM positive), over the labelled maps."""
        terms, _, _ = kl_cc_sim(output, batch, "minmax")
        w_cc, w_sim = self.hparams["loss_weights"]
        sign = -1.0 if self.hparams["loss"] == "consistent" else 1.0
        terms["loss"] = terms["kl"] + sign * w_cc * terms["cc"] - w_sim * terms["sim"]
        return terms

    def configure_optimizers(self) -> Any:
        """Return Adam and the learning-rate schedule."""
        hp = self.hparams
        optimizer = torch.optim.Adam(trained(self), hp["lr"], weight_decay=hp["weight_decay"])
        return plateau_or_cosine(self, optimizer, patience=3)


#: What `create_model("caspnet")` builds.
MODULE = CASPNetModule
