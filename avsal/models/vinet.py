"""ViNet: S3D, and a decoder that merges its four maps along time; and ViNet-S, the same with grouped convolutions.

Sizes for a clip of 32 frames of 224x384 (C, T, H, W):

    f4 1024  4   7  12 ─ 1x3x3 ─────────────────── 832  4  14  24
    f3  832  8  14  24 ─ after it in time ─ 3x3x3 ─ 480  4  28  48
    f2  480 16  28  48 ─ after it in time ─ 5x3x3 ─ 192  4  56  96
    f1  192 16  56  96 ─ after it in time ─ 5x3x3 ─  64  4 112 192 ─ 2x3x3 ─ 32 2 224 384 ─ 2x1x1 ─ 32 1 ─ 1x1x1 ─ map

Every kernel strides over its own length in time; a ReLU follows each convolution, a doubling of height and width all
that have 3x3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.losses import correlation, kl_divergence
from avsal.models.base import S3DNetwork, SaliencyModule, choice, cosine_schedule, map_weights, weighted_mean
from avsal.nn.s3d import S3DFeatures, torchvision_name
from avsal.nn.state import load_exact, strip_prefix
from avsal.types import Batch, ClipSpec, SaliencyOutput

#: Groups of ViNet-S's convolutions, deep to shallow.
GROUPS = (32, 16, 8, 4, 2, 1, 1)
#: Kernels over time of the last two convolutions that have one, by frames of a clip; 32 is the published network.
LAST_STEPS = {8: (1, 1), 16: (2, 1), 32: (2, 2)}
_AUTHORS_DECODER = ("tsp1.0", "tsp2.0", "tsp3.0", "tsp4.0", "tsp4.3", "tsp4.6", "tsp4.8")


class ViNet(S3DNetwork):
    """ViNet; the defaults are the published network.

    Args:
        frames: frames per clip: 32 (published), 16 or 8. The output belongs to the last.
        size: (height, width) of the frames, at least 32. Sizes that are no multiple of 32 are padded inside.
        grouped: ViNet-S: grouped convolutions in the decoder (1.6 instead of 23 million weights).
        width: multiplier of all widths, for small networks.
        bn_momentum: momentum of S3D's batch norms; 0.1 suits training from random weights.
    """

    def __init__(
        self,
        frames: int = 32,
        size: tuple[int, int] = (224, 384),
        grouped: bool = False,
        width: float = 1.0,
        bn_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        if frames not in LAST_STEPS:
            raise ConfigError(f"frames={frames} is not known; allowed: {', '.join(map(str, LAST_STEPS))}.")
        if min(size) < 32:
            raise ConfigError(f"size={tuple(size)}: height and width must be at least 32 pixels.")
        self.spec = ClipSpec(
            frames=frames,
            size=(size[0], size[1]),
            mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
            std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
            target="last",
            authors_coverage="reversed",
        )
        self.encoder = S3DFeatures(width=width, bn_momentum=bn_momentum)
        channels = [*reversed(self.encoder.channels), *(max(4, round(c * width)) for c in (64, 32, 32)), 1]
        steps = (1, 3, 5, 5, *LAST_STEPS[frames], 1)
        self.decoder = nn.ModuleList()
        for number, (inside, outside, time) in enumerate(
            zip(channels[:-1], channels[1:], steps, strict=True)
        ):
            space = 3 if number < 5 else 1
            self.decoder.append(
                nn.Conv3d(
                    inside,
                    outside,
                    (time, space, space),
                    (time, 1, 1),
                    (0, space // 2, space // 2),
                    groups=math.gcd(GROUPS[number], inside, outside) if grouped else 1,
                    bias=number == 6,
                )
            )

    def decode(
        self, stages: list[Tensor], audio_input: Tensor | None, size: tuple[int, int]
    ) -> SaliencyOutput:
        """Return logits (B, 1, H, W) of the last frame (see `S3DNetwork.decode`)."""
        *skips, x = stages
        for number, convolution in enumerate(self.decoder):
            x = convolution(x)
            if number < 6:
                x = F.relu(x)
            if number < 5:
                x = F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear", align_corners=False)
            if number < 3:
                x = torch.cat((x, skips.pop()), 2)
        return self.output(x[:, :, 0, : size[0], : size[1]])


def authors_name(name: str) -> str | None:
    """Return this network's name for an entry of the authors' state dict, or None for an unknown one."""
    found = re.fullmatch(r"decoder\.conv(tsp\d\.\d)\.(weight|bias)", name)
    if found:
        return (
            f"decoder.{_AUTHORS_DECODER.index(found[1])}.{found[2]}" if found[1] in _AUTHORS_DECODER else None
        )
    inner = torchvision_name(name)
    return None if inner is None else f"encoder.{inner}"


class ViNetModule(SaliencyModule):
    """ViNet with its loss, its recipe and its metrics.

    Adam, batches of 8 clips, from S3D's Kinetics weights; the epoch with the best validation counts.

    Args:
        loss_weights: weights of KL and -CC. None: (1, 0) for ViNet, (1, 1) for ViNet-S, as released.
        lr: rate of Adam.
        weight_decay: of Adam.
        schedule: "constant", or "cosine", which falls to 0 over the training (ours, for short ones).
        backbone: registry name or file of S3D's weights ("s3d-kinetics"), loaded when training starts.
        init_from: a checkpoint of which every fitting parameter is copied when training starts.
        **network: arguments of `ViNet`.
    """

    paper = (
        "Jain et al., ViNet: Pushing the limits of Visual Modality for Audio-Visual Saliency Prediction, IROS 2021; "
        "ViNet-S: Girmaji et al., Minimalistic Video Saliency Prediction via Efficient Decoder & Spatio Temporal "
        "Action Cues, ICASSP 2025"
    )
    postprocess = "vinet"
    network: ViNet
    network_class = ViNet
    training_arguments = ("bn_momentum",)
    small: ClassVar[dict[str, Any]] = {"size": [32, 32], "frames": 8, "width": 0.0625}
    variants: ClassVar[dict[str, dict[str, Any]]] = {"ViNet": {}, "ViNet-S": {"grouped": True}}

    def __init__(
        self,
        *,
        loss_weights: tuple[float, float] | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
        backbone: str | None = None,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        choice("schedule", schedule, ("constant", "cosine"))
        self.save_hyperparameters(logger=False)
        self.network = ViNet(**network)
        grouped = self.hparams["grouped"]
        self.loss_weights = loss_weights or (1.0, float(grouped))

    @classmethod
    def from_authors(cls, state_dict: Mapping[str, Tensor], **options: Any) -> Self:
        """Build the module from a state dict of the authors' code (`backbone.base1…`, `decoder.convtsp1…`).

        Args:
            state_dict: entries of ViNet or ViNet-S; `grouped` follows from them.
            **options: further constructor arguments.

        Raises:
            WeightsError: an entry is missing, left over or of another shape.
        """
        entries = strip_prefix(state_dict)
        first = entries.get("decoder.convtsp1.0.weight")
        if first is not None and first.ndim == 5:
            options.setdefault("grouped", first.shape[1] == 1024 // GROUPS[0])
        module = cls(**options)
        load_exact(module.network, entries, rename=authors_name, what="ViNet state dict")
        return module.eval()

    def setup(self, stage: str) -> None:
        """Load the backbone, then `init_from`, before training starts."""
        if stage == "fit":
            self.load_backbone(self.network.encoder, self.hparams["backbone"])
        super().setup(stage)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its parts `kl` and `cc` (CC positive), over the labelled maps."""
        maps, density = output.saliency(), batch["density"]
        weights = map_weights(density, batch.get("labelled"))
        # Under mixed precision zeros of the prediction need a regularisation above its rounding.
        eps = 2.0**-52 if output.logits.dtype == torch.float32 else 1e-7
        kl = weighted_mean(kl_divergence(maps, density, eps=eps), weights)
        cc = weighted_mean(correlation(maps, density), weights)
        w_kl, w_cc = self.loss_weights
        return {"loss": w_kl * kl - w_cc * cc, "kl": kl, "cc": cc}

    def configure_optimizers(self) -> Any:
        """Return Adam and the learning-rate schedule."""
        hp = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), hp["lr"], weight_decay=hp["weight_decay"])
        if hp["schedule"] == "constant":
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, steps)}


#: What `create_model("vinet")` builds.
MODULE = ViNetModule
