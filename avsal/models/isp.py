"""ISP: still-image saliency, the pre-training of MSPI's image stream and a model of its own.

Fig. 3 of Xie et al. (Image and Vision Computing, 2024): an ImageNet encoder, a "Conv + BN + ReLU" transition
behind each of its last two stages, a simple decoder. The encoder's layout is that of the released weights;
the decoder, the loss and the learning rate are not published: ours are plain (docs/models/mspi.md).

With `decoder="pyramid"`, the default of the EfficientNet-Lite encoders, maps of strides 4 to 32 meet in a light
top-down decoder of our own: the network of the checkpoints that look at photographs and real video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from avsal.errors import ConfigError
from avsal.losses import fixation_map, scanpath_saliency
from avsal.models.base import (
    SaliencyModule,
    SaliencyNetwork,
    check_multiple,
    choice,
    cosine_schedule,
    stepwise,
    training_steps,
)
from avsal.models.mspi import MEAN, STD, saliency_terms
from avsal.nn.imagesaliency import (
    LIGHT_ENCODERS,
    LIGHT_MEAN,
    LIGHT_STD,
    ImageSaliencyDecoder,
    ImageSaliencyEncoder,
    PyramidDecoder,
    PyramidEncoder,
)
from avsal.types import Batch, ClipSpec, SaliencyOutput

Decoder = Literal["conv", "mean", "pyramid"]


class ISP(SaliencyNetwork):
    """Image-saliency network. Any image size is accepted by `core`.

    Args:
        encoder: a timm model; the paper's are "convnext_tiny" and "mobilenetv2_100". "efficientnet_lite0" to
            "efficientnet_lite4" are light ones with weights under Apache-2.0.
        size: (height, width) of the pictures in training, multiples of 32. The pyramid sees pictures of this area
            in their own aspect ratio.
        channels: channels after the transitions at strides 16 and 32; the pyramid has none.
        decoder: "conv" is trained; "mean" averages the encoder's channels, which already light up where
            people look (Fig. 3): the way to a map from a released encoder without a decoder. "pyramid" is ours;
            None takes it for the light encoders, "conv" for others.
    """

    activation = "softmax"
    encoder: ImageSaliencyEncoder | PyramidEncoder
    decoder: ImageSaliencyDecoder | PyramidDecoder | None

    def __init__(
        self,
        encoder: str = "convnext_tiny",
        size: tuple[int, int] = (224, 224),
        channels: tuple[int, int] = (96, 320),
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        light = encoder in LIGHT_ENCODERS
        decoder = decoder or ("pyramid" if light else "conv")
        choice("decoder", decoder, ("conv", "mean", "pyramid"))
        size = (check_multiple("height", int(size[0]), 32), check_multiple("width", int(size[1]), 32))
        mean, std = (LIGHT_MEAN, LIGHT_STD) if light else (MEAN, STD)
        self.spec = ClipSpec(
            frames=1, size=size, mean=mean, std=std, target="last",
            resize="keep_aspect" if decoder == "pyramid" else "stretch",
        )  # fmt: skip
        if decoder == "pyramid":
            self.encoder = PyramidEncoder(encoder)
            self.decoder = PyramidDecoder(self.encoder.channels)
        else:
            self.encoder = ImageSaliencyEncoder(encoder, (int(channels[0]), int(channels[1])))
            self.decoder = ImageSaliencyDecoder(self.encoder.channels) if decoder == "conv" else None

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return logits of pictures (B, 3, 1, H, W), normalised as `spec` says.

        The pyramid's are (B, 1, ceil(H / 4), ceil(W / 4)), the others' (B, 1, H, W): there, sides that are no
        multiple of 32 are padded with their border and the map is cropped back.
        """
        if video.ndim != 5 or video.shape[2] != 1:
            raise ConfigError(f"ISP sees single pictures, (B, 3, 1, H, W); got {tuple(video.shape)}.")
        image = video[:, :, 0]
        if isinstance(self.decoder, PyramidDecoder):
            return self.output(self.decoder(*self.encoder(image)))
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")
        middle, deep = self.encoder(image)
        coarse = averaged(middle, deep) if self.decoder is None else self.decoder(middle, deep)
        logits = F.interpolate(coarse, size=image.shape[2:], mode="bilinear", align_corners=False)
        return self.output(logits[..., :height, :width])


def averaged(middle: Tensor, deep: Tensor) -> Tensor:
    """Return the logarithm of both maps' channel means, each scaled to mean 1: logits (N, 1, H / 16, W / 16)."""
    means = [maps.mean(1, keepdim=True) for maps in (middle, deep)]
    means = [mean / mean.mean((2, 3), keepdim=True).clamp_min(1e-12) for mean in means]
    deep_mean = F.interpolate(means[1], scale_factor=2, mode="bilinear", align_corners=False)
    return torch.log(means[0] + deep_mean + 1e-6)


class ISPModule(SaliencyModule):
    """Image-saliency network with loss and recipe: train on SALICON, then on MIT1003, then plug it into MSPI.

    Args:
        lr: learning rate of AdamW.
        encoder_lr: share of it for the encoder.
        milestones: epochs at which the learning rate falls to a tenth.
        schedule: "steps" follows the milestones, "cosine" rises for a twentieth of the steps, then falls to 0.
        loss_weights: of KL divergence, CC and NSS.
        weight_decay: of AdamW.
        imagenet_weights: file or registry entry with timm's ImageNet weights of the encoder.
        init_from: checkpoint whose fitting parameters start the training (SALICON before MIT1003).
        **network: arguments of `ISP`.
    """

    paper = (
        "Xie et al., Audio-visual saliency prediction with multisensory perception and integration, IVC 2024"
    )
    val_metrics = ("cc", "nss")
    network: ISP
    network_class = ISP
    start_arguments = ("init_from", "imagenet_weights")
    small: ClassVar[dict[str, Any]] = {"size": [32, 32], "encoder": "mobilenetv2_035", "channels": [8, 16]}

    def __init__(
        self,
        *,
        lr: float = 1e-4,
        encoder_lr: float = 1.0,
        milestones: Sequence[int] = (7,),
        schedule: Literal["steps", "cosine"] = "steps",
        loss_weights: tuple[float, float, float] = (1.0, 1.0, 0.0),
        weight_decay: float = 0.0,
        imagenet_weights: str | None = None,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        choice("schedule", schedule, ("steps", "cosine"))
        self.network = ISP(**network)

    @classmethod
    def from_authors(cls, state_dict: Mapping[str, Tensor], **options: Any) -> Self:
        """Build the module around the authors' released encoder, with `decoder="mean"`: they released no other.

        Args:
            state_dict: entries under the authors' names (`encoder.…`, `smooth_0.…`, `smooth_1.…`), alone or
                inside a whole MSPI (`image_encoder.…`).
            **options: constructor arguments; decoder="conv" gives one with random weights, to be trained.

        Raises:
            WeightsError: an entry of the encoder is missing, left over or of another shape.
        """
        module = cls(**{"decoder": "mean", **options})
        if not isinstance(module.network.encoder, ImageSaliencyEncoder):
            raise ConfigError(
                "The authors released no encoder of this kind; take convnext_tiny or mobilenetv2_100."
            )
        module.network.encoder.load_published(state_dict)
        return module.eval()

    def setup(self, stage: str) -> None:
        """Load ImageNet weights, then what `init_from` names, before training starts."""
        source = self.hparams.get("imagenet_weights")
        if stage == "fit" and source:
            self.network.encoder.load_imagenet(self.read_weights(source), what=source)
        super().setup(stage)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of KL, -CC and -NSS, and its parts, means over labelled maps."""
        kl, cc, nss = self.hparams["loss_weights"]
        terms = saliency_terms(output, batch)
        loss = kl * terms["kl"] - cc * terms["cc"]
        if nss and "fixations" in batch:
            maps = output.saliency()
            size = (batch["density"].shape[-2], batch["density"].shape[-1])
            if maps.shape[-2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            terms["nss"] = scanpath_saliency(maps, fixation_map(batch["fixations"], size)).mean()
            loss = loss - nss * terms["nss"]
        return {"loss": loss, **terms}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and the schedule."""
        lr, encoder = self.hparams["lr"], self.network.encoder
        rest = [] if self.network.decoder is None else list(self.network.decoder.parameters())
        groups = [
            {"params": list(encoder.parameters()), "lr": lr * self.hparams["encoder_lr"]},
            {"params": rest},
        ]
        optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=self.hparams["weight_decay"])
        if self.hparams["schedule"] == "cosine":
            steps = training_steps(self)
            return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, steps)}  # type: ignore[return-value]
        return stepwise(optimizer, self.hparams["milestones"])  # type: ignore[return-value]


MODULE = ISPModule
