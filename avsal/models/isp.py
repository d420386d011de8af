"""ISP: still-image saliency, the pre-training of MSPI's image stream and a model of its own.

Fig. 3 of Xie et al. (Image and Vision Computing, 2024): an ImageNet encoder, a "Conv + BN + ReLU" transition
behind each of its last two stages, a simple decoder. The encoder's layout is that of the released weights;
the decoder, the loss and the learning rate are not published: ours are plain (docs/models/mspi.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from avsal.errors import ConfigError
from avsal.models.base import SaliencyModule, SaliencyNetwork, check_multiple, choice
from avsal.models.mspi import MEAN, STD, saliency_terms
from avsal.nn.imagesaliency import ImageSaliencyDecoder, ImageSaliencyEncoder
from avsal.types import Batch, ClipSpec, SaliencyOutput

Decoder = Literal["conv", "mean"]


class ISP(SaliencyNetwork):
    """Image-saliency network; see `ISPModule` for the arguments. Any image size is accepted by `core`."""

    activation = "softmax"

    def __init__(
        self,
        image_encoder: str = "convnext_tiny",
        size: tuple[int, int] = (224, 224),
        channels: tuple[int, int] = (96, 320),
        decoder: Decoder = "conv",
    ) -> None:
        super().__init__()
        choice("decoder", decoder, ("conv", "mean"))
        size = (check_multiple("height", int(size[0]), 32), check_multiple("width", int(size[1]), 32))
        self.spec = ClipSpec(frames=1, size=size, mean=MEAN, std=STD, target="last")
        self.encoder = ImageSaliencyEncoder(image_encoder, (int(channels[0]), int(channels[1])))
        self.decoder = ImageSaliencyDecoder(self.encoder.channels) if decoder == "conv" else None

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return logits (B, 1, H, W) of pictures (B, 3, 1, H, W), normalised with ImageNet's statistics.

        Sides that are no multiple of 32 are padded with their border and the map is cropped back.
        """
        if video.ndim != 5 or video.shape[2] != 1:
            raise ConfigError(f"ISP sees single pictures, (B, 3, 1, H, W); got {tuple(video.shape)}.")
        image = video[:, :, 0]
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % 32, 0, -height % 32), mode="replicate")
        maps = self.encoder(image)
        coarse = averaged(*maps) if self.decoder is None else self.decoder(*maps)
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
        image_encoder: a timm model; the paper's are "convnext_tiny" and "mobilenetv2_100".
        size: (height, width) of the pictures in training, multiples of 32.
        channels: channels after the transitions at strides 16 and 32.
        decoder: "conv" is trained; "mean" averages the encoder's channels, which already light up where
            people look (Fig. 3): the way to a map from a released encoder without a decoder.
        lr: learning rate of AdamW.
        milestones: epochs at which the learning rate falls to a tenth.
        weight_decay: of AdamW.
        imagenet_weights: file or registry entry with timm's ImageNet weights of the encoder.
        init_from: checkpoint whose fitting parameters start the training (SALICON before MIT1003).
    """

    paper = (
        "Xie et al., Audio-visual saliency prediction with multisensory perception and integration, IVC 2024"
    )
    val_metrics = ("cc", "nss")
    network: ISP

    def __init__(
        self,
        image_encoder: str = "convnext_tiny",
        size: tuple[int, int] = (224, 224),
        channels: tuple[int, int] = (96, 320),
        decoder: Decoder = "conv",
        lr: float = 1e-4,
        milestones: Sequence[int] = (7,),
        weight_decay: float = 0.0,
        imagenet_weights: str | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.network = ISP(image_encoder, size, channels, decoder)

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
        module.network.encoder.load_published(state_dict)
        return module.eval()

    def setup(self, stage: str) -> None:
        """Load ImageNet weights, then what `init_from` names, before training starts."""
        source = self.hparams.get("imagenet_weights")
        if stage == "fit" and source:
            self.network.encoder.load_imagenet(self.read_weights(source), what=source)
        super().setup(stage)

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return KL - CC and both parts, means over labelled maps."""
        terms = saliency_terms(output, batch)
        return {"loss": terms["kl"] - terms["cc"], **terms}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and the stepwise schedule."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, list(self.hparams["milestones"]), gamma=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


MODULE = ISPModule
