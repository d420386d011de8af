"""The published backbones: which class or function reads each format of weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from avsal.errors import WeightsError
from avsal.nn.state import tensors_of

#: Backbone formats: the function, or the class with `from_published` or `load_published`, that reads each.
BACKBONES = {
    "s3d-kinetics": "avsal.nn.s3d:S3DFeatures",
    "soundnet8": "avsal.nn.soundnet:from_published",
    "vggish": "avsal.nn.vggish:VGGish",
    "resnet3d50-kinetics": "avsal.nn.resnet3d:from_published",
    "mvit-b": "avsal.nn.mvit:from_published",
    "resnet18-vggsound": "avsal.nn.audioresnet:AudioResNet18",
    "image-saliency-convnext": "avsal.nn.imagesaliency:ImageSaliencyEncoder",
    "mvitv2s": "avsal.nn.mvit2:MViTv2S",
    "videoswins": "avsal.nn.swin3d:VideoSwinS",
    "x3dl": "avsal.nn.x3d:X3DL",
    "slowfast4x16": "avsal.nn.slowfast:SlowFast4x16",
    "uniformerb": "avsal.nn.uniformer:UniFormerB",
    "morphmlps": "avsal.nn.morphmlp:MorphMLPS",
}


def convert_backbone(format: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Return a backbone with published weights, whichever of its published namings the entries use.

    Args:
        format: one of `BACKBONES`, such as "s3d-kinetics", "soundnet8", "vggish", "resnet3d50-kinetics", "mvit-b".
        state_dict: entries under published names, with or without `module.` before them.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        WeightsError: unknown format, or entries that do not fit, each by name.
    """
    if format not in BACKBONES:
        raise WeightsError(
            f"There is no backbone format {format!r}; the formats are: {', '.join(BACKBONES)}."
        )
    where, name = BACKBONES[format].split(":")
    build: Any = getattr(import_module(where), name)
    entries = tensors_of(state_dict)
    network: nn.Module
    if not isinstance(build, type):
        network = build(entries)
    elif hasattr(build, "from_published"):
        network = build.from_published(entries)
    else:
        network = build().load_published(entries)
    return network.to(device="cpu", dtype=torch.float32).eval()
