"""MSPI: audio-visual saliency prediction with multisensory perception and integration.

Xie, Liu, Li, Song: "Audio-visual saliency prediction with multisensory perception and integration", Image
and Vision Computing, 2024. Three streams (motion, sound, still-image saliency) meet in a dense decoder; the
motion encoder is any of seven video backbones (`avsal.nn.motion`). The map belongs to the last of 16 frames.
With `image_stream="prior"`, which is ours, the image stream's own maps are the prediction, averaged over the
clip's frames with learned weights, and what the other streams see is added to it.

Where the paper and its released code differ, this file follows the code, which made the weights
(docs/models/mspi.md lists the cases).
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchaudio.functional import spectrogram as power_spectrogram
from torchvision.models.video.s3d import SepInceptionBlock3D

from avsal.errors import ConfigError, WeightsError
from avsal.losses import correlation, kl_divergence
from avsal.models.base import (
    SaliencyModule,
    SaliencyNetwork,
    WindowRunner,
    choice,
    map_weights,
    stepwise,
    trained,
    weighted_mean,
)
from avsal.nn.audioresnet import AudioResNet18
from avsal.nn.avfusion import FUSIONS, Fused, build_fusion
from avsal.nn.densedecoder import STEPS, LateralBlock, Readout, SpatialAttention, enlarge
from avsal.nn.imagesaliency import (
    LIGHT_ENCODERS,
    LIGHT_MEAN,
    LIGHT_STD,
    ImageSaliencyDecoder,
    ImageSaliencyEncoder,
    PyramidDecoder,
    PyramidEncoder,
    rename_image_encoder,
)
from avsal.nn.motion import S3DMotion, build_motion_encoder, motion_class, unwrap
from avsal.nn.s3d import torchvision_name
from avsal.nn.s3d_windows import S3DWindows
from avsal.nn.state import CAFFE2, entries_of, freeze, load_exact
from avsal.types import AudioSpec, Batch, ClipSpec, SaliencyOutput

#: RGB mean and standard deviation of ImageNet on the 0..255 scale.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

FRAMES = 16
#: Frequency bins and time columns of the spectrogram canvas, and its value where there is no sound.
CANVAS = (257, 111)
NO_SOUND = 0.02
#: Reflect padding of half a window needs more samples than this.
SHORTEST = 256

ImageStream = Literal["features", "maps", "prior", "none"]
Features = tuple[Tensor, ...]

#: Constructor arguments of Table 2's rows. V6 is V5 whose image encoder saw ImageNet only (`imagenet_weights`
#: instead of `image_weights`; its transitions then have to learn); lambda 0 is "supervised by L_sal".
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"audio": False, "image_stream": "none"},
    "V1": {"image_stream": "none"},
    "V2": {"audio": False, "image_encoder": "mobilenetv2_100"},
    "V3": {"image_encoder": "mobilenetv2_100", "av_weight": 0.0},
    "V4": {"image_encoder": "mobilenetv2_100"},
    "V5": {},
    "V6": {"freeze_image": False},
    "V7": {"image_stream": "maps"},
}
#: Table 6: each motion encoder with the paper's parameters in M and multiply-adds in G.
TABLE6 = {
    "s3d": (88, 122),
    "x3dl": (84, 121),
    "slowfast4x16": (114, 127),
    "morphmlps": (126, 172),
    "videoswins": (129, 188),
    "uniformerb": (129, 202),
    "mvitv2s": (114, 170),
}


def _head(sizes: Sequence[int], norm: str, *, last_norm: bool) -> nn.Sequential:
    """Linear layers of the given sizes with norm and ReLU between them; a projector also ends in a norm."""
    kind = nn.LayerNorm if norm == "layer" else nn.BatchNorm1d
    stack: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        stack.append(nn.Linear(before, after))
        last = index == len(sizes) - 2
        if not last or last_norm:
            stack.append(kind(after))
        if not last:
            stack.append(nn.ReLU(inplace=True))
    return nn.Sequential(*stack)


class MSPI(SaliencyNetwork):
    """Network of MSPI.

    Args:
        encoder: motion encoder, one of the seven of Table 6 (`avsal.nn.motion.MOTION_ENCODERS`).
        size: (height, width) of the frames, multiples of 32; the paper has (224, 224) and (224, 384).
        encoder_options: options of the motion encoder, such as {"slow_frames": "even"} (SlowFast),
            {"patch_norm": True} (VideoSwin-S), {"shortcut_norm": False} (X3D-L).
        audio: False removes the sound: the visual-only network.
        fusion: Table 5: "avfb" (the paper's), "bilinear_avg", "bilinear_max", "avim" or "avim_cpc".
        image_stream: "features" (the paper's), "maps" (V7: the image-saliency maps themselves are the
            masks), "none" (baseline, V1) or "prior" (ours: the maps are also the prediction that motion corrects;
            any ISP with `decoder="pyramid"` fits).
        image_encoder: a timm model; the paper's are "convnext_tiny" and "mobilenetv2_100". The light ones, such as
            "efficientnet_lite0", have a decoder: image_stream "prior" or "maps".
        motion_size: (height, width) that frames are shrunk to for the motion encoder, multiples of 32; with
            image_stream "prior" the image stream then keeps the frames' own aspect ratio.
        step: seconds between the clip's frames; None takes neighbouring frames, as the paper does.
        projector_norm: "layer" (the released code, any batch size) or "batch" (the paper).
        width: multiplier of the network's own widths, of S3D and of the audio encoder, for small networks.
        bn_momentum: share of a batch in the running statistics of S3D, the Sep-Inception block and the
            attention; 0.001 suits fine-tuning, about 0.1 short training from random weights.
        freeze_audio: keep the audio encoder as it was loaded.
        freeze_image: keep the image-saliency encoder as it was loaded.
        freeze_motion: keep the motion encoder as it was loaded (ours: for small networks and few clips).

    Attributes:
        compute_av_loss: whether `core` returns `aux["loss_av"]`.
        frozen: the encoders that training leaves as they are.
    """

    activation = "softmax"

    def __init__(
        self,
        encoder: str = "s3d",
        size: tuple[int, int] = (224, 224),
        *,
        encoder_options: dict[str, Any] | None = None,
        audio: bool = True,
        fusion: str = "avfb",
        image_stream: ImageStream = "features",
        image_encoder: str = "convnext_tiny",
        motion_size: tuple[int, int] | None = None,
        step: float | None = None,
        projector_norm: Literal["layer", "batch"] = "layer",
        width: float = 1.0,
        bn_momentum: float = 1e-3,
        freeze_audio: bool = True,
        freeze_image: bool = True,
        freeze_motion: bool = False,
    ) -> None:
        super().__init__()
        choice("image_stream", image_stream, ("features", "maps", "prior", "none"))
        choice("projector_norm", projector_norm, ("layer", "batch"))
        choice("fusion", fusion, FUSIONS)
        if not isinstance(size, Sequence) or len(size) != 2:
            raise ConfigError(f"size={size!r}: give height and width, such as [224, 384].")
        size = (int(size[0]), int(size[1]))
        light = image_stream == "prior" or (image_stream == "maps" and image_encoder in LIGHT_ENCODERS)
        if image_encoder in LIGHT_ENCODERS and image_stream == "features":
            raise ConfigError(f"image_encoder={image_encoder!r} has image_stream 'prior' or 'maps'.")
        if not 0 < width <= 1:
            raise ConfigError(f"width={width} must lie in (0, 1]; 1 is the paper's network.")

        def scaled(channels: int) -> int:
            return max(8, int(channels * width) // 8 * 8)

        options = dict(encoder_options or {})
        if encoder == "s3d":
            options = {"width": width, "bn_momentum": bn_momentum, **options}
        self.motion_encoder = build_motion_encoder(encoder, **options)
        self.motion_size = None if motion_size is None else (int(motion_size[0]), int(motion_size[1]))
        self.motion_encoder.check_size(*(self.motion_size or size))
        seconds = step is not None
        self.spec = ClipSpec(
            frames=FRAMES,
            size=size,
            step=step if step is not None else 1,
            step_unit="seconds" if seconds else "frames",
            mean=LIGHT_MEAN if image_encoder in LIGHT_ENCODERS else MEAN,
            std=LIGHT_STD if image_encoder in LIGHT_ENCODERS else STD,
            target="last",
            resize="keep_aspect" if light and self.motion_size else "stretch",
            authors_coverage="clamp" if seconds else "reversed",
            audio=AudioSpec(16000, before=0, after=2) if audio else None,
        )
        self.image_stream: ImageStream = image_stream
        self.compute_av_loss = audio and fusion == "avfb"
        motion, channels = self.motion_encoder.channels, scaled(192)

        fused = 0
        self.audio_encoder: AudioResNet18 | None = None
        if audio:
            self.audio_encoder = AudioResNet18(scaled(64))
            fused, wide, narrow = self.audio_encoder.channels, scaled(2048), scaled(512)
            tokens = -(-CANVAS[0] // 32) * -(-CANVAS[1] // 32)
            grid = (size[0] // 32, size[1] // 32)
            self.fusion = build_fusion(fusion, motion[3], fused, grid, tokens)
            if self.compute_av_loss:
                self.visual_projector = _head([fused, wide, wide, wide], projector_norm, last_norm=True)
                self.visual_predictor = _head([wide, narrow, wide], projector_norm, last_norm=False)
                self.audio_projector = _head([fused, wide, wide, wide], projector_norm, last_norm=True)
                self.audio_predictor = _head([wide, narrow, wide], projector_norm, last_norm=False)

        self.image_encoder: ImageSaliencyEncoder | PyramidEncoder | None = None
        self.image_decoder: ImageSaliencyDecoder | PyramidDecoder
        if light:
            self.image_encoder = PyramidEncoder(image_encoder)
            self.image_decoder = PyramidDecoder(self.image_encoder.channels)
        elif image_stream != "none":
            pair = (scaled(96), scaled(320))
            self.image_encoder = ImageSaliencyEncoder(image_encoder, pair)
            if image_stream == "maps":
                self.image_decoder = ImageSaliencyDecoder(pair)
            else:
                branches = [scaled(c) for c in (192, 96, 208, 16, 48, 64)]
                self.adapter = SepInceptionBlock3D(
                    sum(pair), *branches, partial(nn.BatchNorm3d, eps=1e-3, momentum=bn_momentum)
                )
                volume = branches[0] + branches[2] + branches[4] + branches[5]
                self.attention = nn.ModuleList(
                    SpatialAttention(volume, scale, bn_momentum) for scale in (4, 2, 1)
                )

        inputs = (motion[0], motion[1], motion[2], motion[3] + fused)
        self.lateral = nn.ModuleList(
            LateralBlock(before, channels, FRAMES // STEPS // stride[0])
            for before, stride in zip(inputs, self.motion_encoder.strides, strict=True)
        )
        self.readout = Readout(channels, scaled(64), scaled(32))
        if image_stream == "prior":
            # Logits of the frames' weights. At the start a frame counts 1/e as much as the one six later, and motion
            # adds nothing.
            self.history = nn.Parameter(torch.arange(1.0 - FRAMES, 1.0) / 6)
            nn.init.zeros_(self.readout.map.weight)
            nn.init.zeros_(self.readout.map.bias)  # type: ignore[arg-type]

        self.frozen: list[nn.Module] = [self.motion_encoder] if freeze_motion else []
        if freeze_audio and self.audio_encoder is not None:
            self.frozen.append(self.audio_encoder)
        if freeze_image and self.image_encoder is not None:
            self.frozen.append(self.image_encoder)
            if image_stream in ("maps", "prior"):
                self.frozen.append(self.image_decoder)
        for part in self.frozen:
            freeze(part)

    def train(self, mode: bool = True) -> Self:
        """Switch modes; frozen encoders stay in eval mode, so that their batch norms do not drift."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    # -- sound ---------------------------------------------------------------------------------------

    def frontend(
        self,
        waveform: Tensor,
        audio_length: Tensor | None = None,
        has_audio: Tensor | None = None,
        frame_times: Tensor | None = None,
    ) -> Tensor | None:
        """Return the log-power spectrogram canvases (B, 1, 257, 111), each column standardised.

        A clip without sound, or with 256 samples or fewer, gets a canvas of 0.02; silence gives zeros.
        Arguments are those of `SaliencyNetwork.frontend`; the waveform has 16 kHz.
        """
        if self.audio_encoder is None:
            return None
        canvas = waveform.new_full((len(waveform), 1, *CANVAS), NO_SOUND, dtype=torch.float32)
        full = waveform.shape[1]
        if audio_length is None and has_audio is None:
            if full > SHORTEST:
                columns = log_spectrogram(waveform)[..., : CANVAS[1]]
                canvas[:, 0, :, : columns.shape[-1]] = columns
            return canvas
        lengths = torch.full((len(waveform),), full, dtype=torch.int64, device=waveform.device)
        if audio_length is not None:
            lengths = audio_length.to(waveform.device).clamp(max=full)
        if has_audio is not None:
            lengths = lengths * has_audio.to(waveform.device)
        # Reflect padding mirrors at the clip's own last sample: clips of one length go together.
        for length in torch.unique(lengths).tolist():
            if length > SHORTEST:
                chosen = lengths == length
                columns = log_spectrogram(waveform[chosen, :length])[..., : CANVAS[1]]
                canvas[chosen, 0, :, : columns.shape[-1]] = columns
        return canvas

    # -- streams -------------------------------------------------------------------------------------

    def image_features(self, frames: Tensor) -> Features:
        """Return what the still-image stream says of each frame alone: (N, …) maps of (N, 3, H, W)."""
        if self.image_encoder is None:
            return ()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.image_encoder not in self.frozen):
            maps = self.image_encoder(frames)
            if self.image_stream in ("maps", "prior"):
                logits = self.image_decoder(*maps)
                if self.image_stream == "prior":
                    return (logits - logits.logsumexp((-2, -1), keepdim=True),)
                # The decoder learnt under a softmax, which leaves a constant open: the strongest place counts 1.
                return ((logits - logits.amax((-2, -1), keepdim=True)).exp(),)
            return maps

    def audio_features(self, audio_input: Tensor) -> Tensor:
        """Return the audio map (B, D, 9, 4) of spectrogram canvases."""
        assert self.audio_encoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.audio_encoder not in self.frozen):
            return self.audio_encoder(audio_input)

    def masks(self, image: Features, sizes: Sequence[tuple[int, int]]) -> list[Tensor] | None:
        """Return the masks (B, 1, 4, h, w) of levels 1 to 3 from clips of per-frame maps (B, 16, …).

        Args:
            image: the maps.
            sizes: (h, w) of the three levels.
        """
        if not image:
            return None
        # The strongest of every four frames: (B, C, 4, h, w).
        pooled = [maps.unflatten(1, (STEPS, -1)).amax(2).transpose(1, 2) for maps in image]
        if self.image_stream == "maps":
            return [F.avg_pool3d(pooled[0], (1, scale, scale)) for scale in (1, 2, 4)]
        if self.image_stream == "prior":
            relative = (pooled[0] - pooled[0].amax((-2, -1), keepdim=True)).exp()
            return [
                F.interpolate(relative, (STEPS, height, width), mode="trilinear") for height, width in sizes
            ]
        saliency = self.adapter(torch.cat([pooled[0], enlarge(pooled[1], 2)], 1))
        return [attention(saliency) for attention in self.attention]

    def core(self, video: Tensor, audio_input: Tensor | None = None) -> SaliencyOutput:
        """Return log-densities (B, 1, H, W); `aux["loss_av"]` is Equation 7 where the network computes it.

        Args:
            video: (B, 3, 16, H, W) float32 normalised; any size that the motion encoder takes.
            audio_input: (B, 1, 257, 111) spectrogram canvases; None for a visual-only network.
        """
        audio = None
        if self.audio_encoder is not None:
            if audio_input is None:
                raise ConfigError("This MSPI hears: core() needs the spectrograms that frontend() returns.")
            audio = self.audio_features(audio_input)
        frames = video.transpose(1, 2)
        image = tuple(
            maps.unflatten(0, frames.shape[:2]) for maps in self.image_features(frames.flatten(0, 1))
        )
        return self.integrate(video, image, audio, av_loss=self.compute_av_loss)

    def integrate(
        self,
        video: Tensor,
        image: Features,
        audio: Tensor | None,
        *,
        av_loss: bool = False,
        motion: Callable[[Tensor], Sequence[Tensor]] | None = None,
    ) -> SaliencyOutput:
        """Run the motion stream and the decoder on streams that are there already.

        Args:
            video: (B, 3, 16, H, W).
            image: per-frame maps of the still-image stream, each (B, 16, …); empty without that stream.
            audio: (B, D, 9, 4), or None.
            av_loss: also compute `aux["loss_av"]`.
            motion: takes the place of the motion encoder.
        """
        if video.shape[2] != FRAMES:
            raise ConfigError(f"MSPI sees clips of {FRAMES} frames, not {video.shape[2]}.")
        if self.motion_size is not None and video.shape[3:] != self.motion_size:
            small = F.interpolate(video.transpose(1, 2).flatten(0, 1), self.motion_size, mode="area")
            video = small.unflatten(0, (len(video), FRAMES)).transpose(1, 2)
        self.motion_encoder.check_size(*video.shape[3:])
        maps = list((motion or self.motion_encoder)(video))
        aux: dict[str, Tensor] = {}
        if audio is not None:
            fused: Fused = self.fusion(maps[3], audio)
            maps[3] = torch.cat([maps[3], fused.volume], 1)
            if av_loss and fused.visual is not None and fused.audio is not None:
                aux["loss_av"] = self.av_loss(fused.visual, fused.audio)
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        masks = self.masks(image, [(level.shape[3], level.shape[4]) for level in levels[:3]])
        if masks is not None:
            levels[:3] = [level + level * mask for level, mask in zip(levels[:3], masks, strict=True)]
        # Dense connections from deep to shallow: every level gets all deeper ones.
        for target in (2, 1, 0):
            for source in range(target + 1, 4):
                levels[target] = levels[target] + enlarge(levels[source], 2 ** (source - target))
        logits = self.readout(levels)
        # Under mixed precision the sum of exponentials needs all digits.
        logits = logits.float()
        if self.image_stream == "prior":
            weights = self.history.log_softmax(0).view(-1, 1, 1, 1)
            prior = torch.logsumexp(image[0] + weights, 1)
            logits = prior + F.interpolate(logits, prior.shape[2:], mode="bilinear", align_corners=False)
        return self.output(logits - logits.logsumexp((-2, -1), keepdim=True), aux)

    def av_loss(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Return the symmetrised negative cosine similarity of Equations 6 and 7, a scalar in -1..1."""
        if self.training and len(visual) < 2 and isinstance(self.visual_projector[1], nn.BatchNorm1d):
            raise ConfigError(
                "projector_norm='batch' needs at least two clips in a batch; 'layer' takes one."
            )
        seen, heard = self.visual_projector(visual), self.audio_projector(audio)
        expected_seen, expected_heard = self.visual_predictor(seen), self.audio_predictor(heard)
        return audio_visual_loss(expected_seen, heard, expected_heard, seen)

    def window_runner(self) -> WindowRunner:
        """Return a runner that sees every frame once and hears every distinct sound once."""
        return MSPIWindowRunner(self)


def log_spectrogram(waveform: Tensor) -> Tensor:
    """Return the standardised log-power spectrogram (B, 257, S // 160 + 1) of waveforms (B, S) at 16 kHz.

    512-sample periodic Hann windows every 160 samples, centred, reflect padding; log(power + 1e-6); every
    column minus its mean over the 257 bins, divided by its standard deviation + 1e-6; silent columns are 0.
    """
    window = torch.hann_window(512, device=waveform.device)
    power = power_spectrogram(waveform.float(), 0, window, 512, 160, 512, power=2.0, normalized=False)
    log = torch.log(power + 1e-6)
    deviation = log.std(1, keepdim=True)
    standardised = (log - log.mean(1, keepdim=True)) / (deviation + 1e-6)
    # In digital silence mean and deviation are rounding errors, and so would be their quotient.
    return torch.where(deviation > 1e-4, standardised, torch.zeros_like(standardised))


def audio_visual_loss(
    visual_prediction: Tensor, audio: Tensor, audio_prediction: Tensor, visual: Tensor
) -> Tensor:
    """Return the mean negative cosine similarity of both directions (Equation 7); targets get no gradient."""
    one = F.cosine_similarity(visual_prediction, audio.detach(), dim=-1)
    other = F.cosine_similarity(audio_prediction, visual.detach(), dim=-1)
    return -0.5 * (one.mean() + other.mean())


class MSPIWindowRunner(WindowRunner):
    """Exact reuse between windows of one video.

    The still-image stream looks at frames one by one: each frame id passes it once, and its maps (138 kB at
    224x224) are kept while windows may need them. An S3D as motion encoder shares its slices. Equal sounds (a video
    without a sound track has one) pass the audio encoder once. The loss-only projectors do not run.

    Args:
        network: the MSPI.
        keep: frames whose maps are kept; the default covers forward and reversed windows side by side.
    """

    network: MSPI

    def __init__(self, network: MSPI, keep: int = 4 * FRAMES) -> None:
        super().__init__(network)
        self.keep = keep
        self.image_calls = 0
        self._frames: OrderedDict[int, Features] = OrderedDict()
        self._sounds: list[tuple[Tensor, Tensor]] = []
        motion = network.motion_encoder
        self.windows = S3DWindows(motion, [nn.Identity()] * 4) if isinstance(motion, S3DMotion) else None

    def __call__(self, video: Tensor, frame_ids: Tensor, audio_input: Tensor | None) -> SaliencyOutput:
        """Return the output for a batch of windows (see `WindowRunner`)."""
        audio = None if self.network.audio_encoder is None else self._audio(audio_input)
        windows = None if self.network.training or torch.is_grad_enabled() else self.windows
        return self.network.integrate(
            video,
            self._image(video, frame_ids),
            audio,
            motion=None if windows is None else lambda clips: windows(clips, frame_ids),
        )

    def _image(self, video: Tensor, frame_ids: Tensor) -> Features:
        if self.network.image_encoder is None:
            return ()
        ids = frame_ids.tolist()
        fresh = {
            frame: (row, column)
            for row, window in enumerate(ids)
            for column, frame in enumerate(window)
            if frame not in self._frames
        }
        if fresh:
            frames = torch.stack([video[row, :, column] for row, column in fresh.values()])
            self.image_calls += len(frames)
            maps = self.network.image_features(frames)
            for index, frame in enumerate(fresh):
                self._frames[frame] = tuple(part[index] for part in maps)
        needed = [[self._frames[frame] for frame in window] for window in ids]
        for window in ids:
            for frame in window:
                self._frames.move_to_end(frame)
        while len(self._frames) > max(self.keep, FRAMES + len(ids)):
            self._frames.popitem(last=False)
        parts = range(len(needed[0][0]))
        return tuple(
            torch.stack([torch.stack([maps[part] for maps in window]) for window in needed]) for part in parts
        )

    def _audio(self, audio_input: Tensor | None) -> Tensor:
        if audio_input is None:
            raise ConfigError("This MSPI hears: the runner needs the spectrograms that frontend() returns.")
        known: list[Tensor | None] = []
        fresh: list[Tensor] = []
        places: list[int] = []
        for sound in audio_input:
            found = next((maps for heard, maps in self._sounds if torch.equal(heard, sound)), None)
            if found is None:
                twin = next((i for i, other in enumerate(fresh) if torch.equal(other, sound)), None)
                places.append(len(fresh) if twin is None else twin)
                if twin is None:
                    fresh.append(sound)
            else:
                places.append(-1)
            known.append(found)
        maps = self.network.audio_features(torch.stack(fresh)) if fresh else None
        result = []
        for found, place in zip(known, places, strict=True):
            if found is None:
                assert maps is not None
                found = maps[place]
            result.append(found)
        # Neighbours in time are the ones that may be equal.
        self._sounds = [(sound, result[i]) for i, sound in enumerate(audio_input)][-2:]
        return torch.stack(result)


class MSPIModule(SaliencyModule):
    """MSPI with its loss (Equation 11) and recipe.

    Args:
        av_weight: lambda of Equation 11 (Table 4); 0 trains with the saliency loss alone.
        lr: initial learning rate.
        milestones: epochs at which the learning rate falls to a tenth.
        weight_decay: of AdamW; the released code uses 0.
        keep: which epoch's weights are the training's result, the file `best-….ckpt`: the "best" in validation, or the
            "last" as the authors'.
        motion_weights: file or registry entry with the motion encoder's Kinetics-400 weights.
        audio_weights: file or registry entry with the VGGSound ResNet-18.
        image_weights: file or registry entry with the saliency-trained image encoder (an ISP checkpoint or
            the authors' release).
        imagenet_weights: instead, timm's ImageNet weights for the image encoder's trunk (V6); its transitions
            stay random, so it needs `freeze_image=False`.
        allow_random_frozen: train behind frozen encoders that were given no weights; refused otherwise.
        init_from: checkpoint whose fitting parameters start the training.
        **network: arguments of `MSPI`.
    """

    paper = (
        "Xie et al., Audio-visual saliency prediction with multisensory perception and integration, IVC 2024"
    )
    network: MSPI
    network_class = MSPI
    training_arguments = ("bn_momentum", "freeze_audio", "freeze_image", "freeze_motion")
    sound_arguments = ("audio", "fusion", "projector_norm", "freeze_audio")
    start_arguments = ("init_from", "motion_weights", "audio_weights", "image_weights", "imagenet_weights")
    small: ClassVar[dict[str, Any]] = {
        "size": [32, 32], "width": 0.0625, "image_encoder": "mobilenetv2_035", "freeze_motion": True,
        "allow_random_frozen": True,
    }  # fmt: skip
    postprocess = "mspi"
    postprocess_input = "log_density"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        **{f"table 2, {name}": options for name, options in VARIANTS.items()},
        **{
            f"table 6, {name} (paper: {params} M, {macs} G)": {"encoder": name}
            for name, (params, macs) in TABLE6.items()
        },
    }
    weights_of: ClassVar[dict[str, tuple[str, str]]] = {
        "motion_encoder": ("motion_weights", "freeze_motion"),
        "audio_encoder": ("audio_weights", "freeze_audio"),
        "image_encoder": ("image_weights", "freeze_image"),
        "image_decoder": ("image_weights", "freeze_image"),
    }
    variants_note = (
        "Multiply-adds are 2 G below the paper's: its counter adds the norms, and two linear steps of the readout run "
        "before their upsampling here, with the same result."
    )

    def __init__(
        self,
        *,
        av_weight: float = 1.0,
        lr: float = 1e-4,
        milestones: Sequence[int] = (60,),
        weight_decay: float = 0.0,
        keep: Literal["best", "last"] = "best",
        motion_weights: str | None = None,
        audio_weights: str | None = None,
        image_weights: str | None = None,
        imagenet_weights: str | None = None,
        allow_random_frozen: bool = False,
        init_from: str | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        if choice("keep", keep, ("best", "last")) == "last":
            self.monitor = "epoch"
        if av_weight < 0:
            raise ConfigError(f"av_weight={av_weight}: lambda of Equation 11 is not negative.")
        self.network = MSPI(**network)
        if av_weight == 0 and self.network.compute_av_loss:
            # Without their loss the heads never see a gradient, which distributed training does not forgive.
            self.network.compute_av_loss = False
            for name in ("visual_projector", "visual_predictor", "audio_projector", "audio_predictor"):
                self.network.get_submodule(name).requires_grad_(False)

    @classmethod
    def modality(cls, arguments: Mapping[str, Any]) -> Literal["AV", "V"]:
        """Return "AV", or "V" with `audio=False`."""
        return "AV" if arguments.get("audio", True) else "V"

    @classmethod
    def from_authors(
        cls,
        state_dict: Mapping[str, Tensor],
        encoder: str = "s3d",
        size: tuple[int, int] = (224, 224),
        **options: Any,
    ) -> Self:
        """Build the module from a state dict of the authors' code.

        Args:
            state_dict: entries under the authors' names (`visnet.…`, `latlayer_0.…`).
            encoder: its motion encoder; the names alone do not always tell.
            size: (height, width) of the frames.
            **options: further constructor arguments.

        Raises:
            WeightsError: an entry is missing, left over or of another shape.
        """
        motion = motion_class(encoder)
        entries = unwrap(state_dict)
        rename = partial(rename_published, rename_motion=motion.rename)
        prefix = "motion_encoder."
        mapped = {rename(name) or name: value for name, value in entries.items()}
        seen = {name.removeprefix(prefix): v for name, v in mapped.items() if name.startswith(prefix)}
        options["encoder_options"] = {**motion.options_for(seen), **(options.get("encoder_options") or {})}
        module = cls(encoder=encoder, size=size, **options)
        network = module.network
        unused = [pattern.replace("^", r"^visnet\.", 1) for pattern in network.motion_encoder.unused]
        unused += [r"^aud_vis_sync_block\.(vis_|aud_)?pos"]
        if network.audio_encoder is None:
            unused += [r"^audnet\.", r"^aud_", r"^vis_projector\.", r"^mlp_(vis|aud)\."]
        if network.image_encoder is None:
            unused += [r"^image_encoder\.", r"^adapter\.", r"^sa_\d\."]
        derived = [f"^motion_encoder.*{pattern}" for pattern in network.motion_encoder.derived]
        load_exact(network, entries, rename=rename, unused=unused, derived=derived, what="MSPI state dict")
        return module.eval()

    def setup(self, stage: str) -> None:
        """Load the encoders' weights, then what `init_from` names, before training starts."""
        if stage == "fit":
            self.load_encoders()
        super().setup(stage)

    def load_encoders(self) -> None:
        """Load the files that the arguments `*_weights` name into their encoders.

        Raises:
            ConfigError: a file for a stream that this network does not have.
            WeightsError: a file is missing or does not fit, by name.
        """
        network = self.network
        parts: tuple[tuple[str, Any], ...] = (
            ("motion_weights", network.motion_encoder),
            ("audio_weights", network.audio_encoder),
            ("imagenet_weights", network.image_encoder),
            ("image_weights", network.image_encoder),
        )
        for argument, part in parts:
            source = self.hparams.get(argument)
            if not source:
                continue
            if part is None:
                raise ConfigError(f"{argument} is given, but this MSPI has no such stream.")
            if str(source).endswith(".pkl"):
                raise WeightsError(f"{source}: {CAFFE2}")
            content = self.backbone_weights(part, str(source))
            if content is None:
                continue
            if argument == "imagenet_weights":
                part.load_imagenet(content, what=str(source))
                continue
            if isinstance(part, PyramidEncoder):
                inside = {
                    k.removeprefix("network.encoder."): v
                    for k, v in content.items()
                    if k.startswith("network.encoder.")
                }
                load_exact(part, inside, what=f"encoder of {source}")
            else:
                part.load_published(entries_of(part, content), what=str(source))
            if argument == "image_weights" and network.image_stream in ("maps", "prior"):
                prefix = "network.decoder."
                decoder = {k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)}
                load_exact(network.image_decoder, decoder, what=f"decoder of {source}")

    def loss_terms(self, output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
        """Return KL - CC + lambda * L_av (Equation 11) and its parts, means over labelled maps."""
        terms = saliency_terms(output, batch)
        terms["loss"] = terms["kl"] - terms["cc"]
        if "loss_av" in output.aux:
            terms["av"] = output.aux["loss_av"]
            terms["loss"] = terms["loss"] + self.hparams["av_weight"] * terms["av"]
        return terms

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW over everything that is not frozen, and the stepwise schedule."""
        optimizer = torch.optim.AdamW(
            trained(self.network), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        return stepwise(optimizer, self.hparams["milestones"])  # type: ignore[return-value]


def saliency_terms(output: SaliencyOutput, batch: Batch) -> dict[str, Tensor]:
    """Return "kl" (Equation 9) and "cc" (Equation 8), each the mean over the labelled maps of a batch."""
    density = batch["density"]
    maps = output.saliency()
    if maps.shape[-2:] != density.shape[-2:]:
        maps = F.interpolate(maps, size=density.shape[-2:], mode="bilinear", align_corners=False)
    weights = map_weights(density, batch.get("labelled"))
    return {
        "kl": weighted_mean(kl_divergence(maps, density), weights),
        "cc": weighted_mean(correlation(maps, density), weights),
    }


_PARTS = {
    "audnet.": "audio_encoder.",
    "vis_projector.": "visual_projector.",
    "aud_projector.": "audio_projector.",
    "mlp_vis.": "visual_predictor.",
    "mlp_aud.": "audio_predictor.",
    "aud_vis_sync_block.": "fusion.",
}
_READOUT = {
    "0": "reduce",
    "1": "mix",
    "2": "mix_norm",
    "4": "narrow",
    "5": "narrow_norm",
    "8": "collapse",
    "10": "refine",
    "12": "map",
}
_BLOCK = {
    "dwconv_t": "time",
    "dwconv_s": "space",
    "norm.norm": "norm",
    "pwconv1": "expand",
    "pwconv2": "reduce",
}


def rename_published(name: str, rename_motion: Any = torchvision_name) -> str | None:
    """Map an entry's name in the authors' code to this network's; None if it is not known.

    Args:
        name: the authors' name.
        rename_motion: how the motion encoder renames what follows `visnet.`.
    """
    if name.startswith("visnet."):
        inner = rename_motion(name.removeprefix("visnet."))
        return inner and f"motion_encoder.{inner}"
    if name.startswith("image_encoder."):
        return rename_image_encoder(name)
    if name.startswith("adapter.conv."):
        inner = torchvision_name("base.0." + name.removeprefix("adapter.conv."))
        return inner and "adapter." + inner.removeprefix("features.0.")
    for theirs, ours in _PARTS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if found := re.fullmatch(r"sa_(\d)\.conv_mask\.(?:0\.(conv|bn)|(2))\.(\w+)", name):
        level, layer, _, leaf = found.groups()
        place = {"conv": "squeeze.0", "bn": "squeeze.1", None: "mask"}[layer]
        return f"attention.{level}.{place}.{leaf}"
    if found := re.fullmatch(r"readout\.(\d+)\.(\w+)", name):
        place = _READOUT.get(found[1], "")
        return place and f"readout.{place}.{found[2]}"
    if found := re.fullmatch(
        r"latlayer_(\d)\.\d\.(dwconv_t|dwconv_s|norm\.norm|pwconv1|pwconv2)\.(\w+)", name
    ):
        return f"lateral.{found[1]}.block.{_BLOCK[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"latlayer_(\d)\.([01])\.(weight|bias)", name):
        return f"lateral.{found[1]}.{'time' if found[2] == '1' else 'channel'}.{found[3]}"
    return None


MODULE = MSPIModule
