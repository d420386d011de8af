"""Motion encoders behind one interface: a clip in, four feature maps with declared channels and strides out.

`build_motion_encoder(name)` builds any of the seven video backbones of MSPI's Table 6 without a class
token, a final norm or a classifier. Networks come from torchvision and pytorchvideo where these have them
(S3D, MViTv2-S, VideoSwin-S; X3D-L, SlowFast), UniFormer-B and MorphMLP-S are written in this folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from avsal.errors import ConfigError, WeightsError
from avsal.nn.state import CAFFE2, load_exact

Maps = tuple[Tensor, Tensor, Tensor, Tensor]

#: Registry name -> module and class. A module is imported only when its encoder is built.
MOTION_ENCODERS: dict[str, str] = {
    "s3d": "avsal.nn.motion:S3DMotion",
    "x3dl": "avsal.nn.x3d:X3DL",
    "slowfast4x16": "avsal.nn.slowfast:SlowFast4x16",
    "morphmlps": "avsal.nn.morphmlp:MorphMLPS",
    "videoswins": "avsal.nn.swin3d:VideoSwinS",
    "uniformerb": "avsal.nn.uniformer:UniFormerB",
    "mvitv2s": "avsal.nn.mvit2:MViTv2S",
}


class MotionEncoder(nn.Module):
    """Base class of the motion encoders.

    Attributes:
        channels: channels of the four maps, fine to coarse.
        strides: (time, height, width) stride of each map; the spatial ones are 4, 8, 16 and 32.
        frames: clips must have a multiple of this many frames.
        unused: patterns of entries in published files that no motion feature needs (classifier, final norm).
        derived: patterns of own entries that the network computes itself.
    """

    channels: tuple[int, int, int, int]
    strides: tuple[tuple[int, int, int], ...]
    frames: ClassVar[int] = 16
    unused: ClassVar[tuple[str, ...]] = ()
    derived: ClassVar[tuple[str, ...]] = ()

    def forward(self, video: Tensor) -> Maps:
        """Return the four feature maps of a clip.

        Args:
            video: (B, 3, T, H, W) float32.

        Returns:
            Four tensors (B, channels[i], T / strides[i][0], H / strides[i][1], W / strides[i][2]).
        """
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise a ConfigError that says which sizes fit, if (height, width) does not."""
        if height < 32 or width < 32 or height % 32 or width % 32:
            raise ConfigError(
                f"{type(self).__name__} cannot take frames of {height}x{width} pixels: height and width must "
                f"be multiples of 32, such as {near32(height)}x{near32(width)}."
            )

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Map an entry's name in a published file to this encoder's name; None if it is not known."""
        return name

    def load_published(self, checkpoint: Mapping[str, Any], *, what: str = "checkpoint") -> Self:
        """Load a backbone checkpoint as its authors (or the library that ships the network) published it.

        Every naming that `rename` maps is recognised; wrappers such as `model_state` or `state_dict` and
        the prefixes `module.` and `backbone.` are taken off.

        Args:
            checkpoint: the file's content, or a plain state dict.
            what: how errors call it.

        Raises:
            WeightsError: entries are missing, left over or of another shape, or it is a caffe2 file.
        """
        entries = unwrap(checkpoint)
        try:
            return load_exact(
                self, entries, rename=self.rename, unused=self.unused, derived=self.derived, what=what
            )
        except WeightsError as error:
            mapped = {self.rename(name) or name: value for name, value in entries.items()}
            if options := self.options_for(mapped):
                # Widths of another size, or a variant that another library's file has.
                raise WeightsError(f"{error} What these entries fit: encoder_options={options}.") from error
            raise

    @classmethod
    def from_published(cls, checkpoint: Mapping[str, Any], **options: Any) -> Self:
        """Build the encoder that fits a published checkpoint, in eval mode with its weights.

        Args:
            checkpoint: the file's content, or a plain state dict.
            **options: constructor arguments; those that the entries tell (`options_for`) are found.

        Raises:
            WeightsError: as `load_published`.
        """
        entries = unwrap(checkpoint)
        mapped = {cls.rename(name) or name: value for name, value in entries.items()}
        return cls(**{**cls.options_for(mapped), **options}).load_published(entries).eval()

    @classmethod
    def options_for(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the constructor arguments that the entries of a state dict (under our names) tell."""
        return {}

    def adapt(self, state_dict: Mapping[str, Tensor]) -> None:
        """Make room for entries whose shape depends on the clip size that they were trained at."""


class S3DMotion(MotionEncoder):
    """S3D with a last pool that keeps time, so that the two coarse maps have four steps each.

    Args:
        width: multiplier of every width, for small networks.
        bn_momentum: share of a batch in the running statistics; 0.001 suits fine-tuning, about 0.1 training
            from random weights.
    """

    strides = ((2, 4, 4), (2, 8, 8), (4, 16, 16), (4, 32, 32))
    unused: ClassVar[tuple[str, ...]] = (r"^fc\.", r"^classifier\.")

    def __init__(self, width: float = 1.0, bn_momentum: float = 0.001) -> None:
        super().__init__()
        from avsal.nn.s3d import S3DFeatures

        network = S3DFeatures(last_pool_time_stride=1, width=width, bn_momentum=bn_momentum)
        self.features, self.channels = network.features, network.channels

    def forward(self, video: Tensor) -> Maps:
        """Return the four taps (see `MotionEncoder.forward`)."""
        from avsal.nn.s3d import TAPS

        maps = []
        for index, layer in enumerate(self.features):
            video = layer(video)
            if index in TAPS:
                maps.append(video)
        return maps[0], maps[1], maps[2], maps[3]

    @classmethod
    def options_for(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the width multiplier."""
        last = state_dict.get("features.15.branch0.0.weight")
        return {} if last is None else {"width": len(last) / 384}

    @classmethod
    def rename(cls, name: str) -> str | None:
        """Map the Kinetics port's, ViNet's and torchvision's names to torchvision's, which are ours."""
        from avsal.nn.s3d import torchvision_name

        return torchvision_name(name)


def near32(length: int) -> int:
    """Return the multiple of 32 nearest to a length in pixels, at least 32."""
    return max(32, round(length / 32) * 32)


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the plain state dict inside a published checkpoint, without data-parallel or wrapper prefixes.

    Raises:
        WeightsError: the content is a caffe2 file, or holds no tensors.
    """
    if "blobs" in checkpoint:
        raise WeightsError(CAFFE2)
    for key in ("model_state", "state_dict", "model"):
        if isinstance(checkpoint.get(key), Mapping):
            return unwrap(checkpoint[key])
    found = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not found:
        raise WeightsError("The checkpoint holds no tensors: it is not a state dict.")
    for prefix in ("module.", "backbone."):
        if all(name.startswith(prefix) for name in found if not name.startswith("cls_head.")):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def motion_class(name: str) -> type[MotionEncoder]:
    """Return the class of a motion encoder.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in MOTION_ENCODERS:
        raise ConfigError(
            f"There is no motion encoder {name!r}; the seven are: {', '.join(MOTION_ENCODERS)}."
        )
    module, cls = MOTION_ENCODERS[name].split(":")
    found: type[MotionEncoder] = getattr(import_module(module), cls)
    return found


def build_motion_encoder(name: str, **options: Any) -> MotionEncoder:
    """Build a motion encoder with random weights.

    Args:
        name: a key of `MOTION_ENCODERS`.
        **options: the encoder's own options (`width` of S3D, `shortcut_norm` of X3D-L, `slow_frames` and
            `lateral_kernel` of SlowFast, `patch_norm` of VideoSwin-S, `drop_path` of the transformers).

    Raises:
        ConfigError: unknown name or option.
    """
    cls = motion_class(name)
    known = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"The motion encoder {name} has no option {', '.join(unknown)}; it takes: {', '.join(known)}."
        )
    return cls(**options)
