"""The public door for authors' weights: a state dict under their names becomes our module.

Each model file holds its own map from the authors' names; this file only finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from avsal.checkpoints.file import read_pickle, read_safetensors
from avsal.errors import DataError, WeightsError
from avsal.nn.motion import CAFFE2
from avsal.npy import read_npy

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

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

#: Where research code keeps the state dict inside a checkpoint.
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module")


def formats() -> list[str]:
    """Return the formats that `convert` takes: the models whose authors published weights."""
    from avsal.models import list_models

    return [name for name in list_models() if _converts(name)]


def _converts(name: str) -> bool:
    """Return whether a model's class defines `from_authors` itself; the base's only says that there is nothing."""
    from avsal.models.base import SaliencyModule

    # The baselines have no MODULE of their own, and no weights.
    cls = getattr(import_module(f"avsal.models.{name}"), "MODULE", SaliencyModule)
    return any("from_authors" in vars(part) for part in cls.__mro__[: cls.__mro__.index(SaliencyModule)])


def convert(format: str, state_dict: Mapping[str, Tensor], **options: Any) -> SaliencyModule:
    """Return our module with the authors' weights.

    Args:
        format: the model's name: "stavis", "mspi", "csts".
        state_dict: entries under the authors' names, with or without `module.` before them.
        **options: constructor arguments where the entries alone do not tell, such as `audiovisual=`, `frames=`,
            `size=`, `encoder=`.

    Returns:
        The module in eval mode, float32, on the CPU.

    Raises:
        WeightsError: unknown format, an option the model does not take, or entries that are missing, unexpected
            or mis-shaped, each by name.
    """
    from avsal.models import list_models, model_class

    if format not in list_models() or not _converts(format):
        raise WeightsError(
            f"There is no format {format!r} to convert; the formats are: {', '.join(formats())}."
        )
    cls = model_class(format)
    known = cls.arguments()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise WeightsError(f"{format} takes no option {', '.join(unknown)}; it takes: {', '.join(known)}.")
    module = cls.from_authors(_tensors(state_dict), **options)
    return module.to(device="cpu", dtype=torch.float32).eval()


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
    entries = _tensors(state_dict)
    network: nn.Module
    if not isinstance(build, type):
        network = build(entries)
    elif hasattr(build, "from_published"):
        network = build.from_published(entries)
    else:
        network = build().load_published(entries)
    return network.to(device="cpu", dtype=torch.float32).eval()


def _tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "blobs" in state_dict:
        raise WeightsError(CAFFE2)
    strange = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(
            f"Not a state dict: {', '.join(map(str, strange[:5]))} are no tensors. Pass the mapping from names to "
            f"tensors, which research code often keeps under one of {', '.join(_CONTAINERS)}."
        )
    return dict(state_dict)


def _nested_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a dictionary of dictionaries in a .npy file, under their joined keys."""
    try:
        content = read_npy(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(content, dict):
        return {}
    return {
        f"{outer}.{name}": torch.from_numpy(np.array(value, dtype=np.float32))
        for outer, inner in content.items()
        if isinstance(inner, dict)
        for name, value in inner.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }


def read_state_dict(path: Path, prefix: str | None = None) -> dict[str, Tensor]:
    """Return the state dict of an authors' file, wherever in the file it is.

    Args:
        path: a PyTorch file (loaded with `weights_only`), safetensors, or arrays by layer and name in a .npy file.
        prefix: keep the entries whose names begin so, without it.

    Raises:
        WeightsError: the file is damaged, wants to run code, or holds no state dict.
    """
    if path.suffix.lower() == ".safetensors":
        content: Any = read_safetensors(path)[0]
    elif path.suffix.lower() == ".npy":
        content = _nested_arrays(path)
    else:
        try:
            content = read_pickle(path)
        except WeightsError as error:
            if path.suffix.lower() == ".pkl":  # how caffe2 names them; nothing of it is run to find out
                raise WeightsError(f"{error} If it is SlowFast's: {CAFFE2}") from error
            raise
    found = content
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            found = content[container]
            break
    if not isinstance(found, Mapping) or not found or not any(isinstance(v, Tensor) for v in found.values()):
        keys = (
            ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        )
        raise WeightsError(f"{path}: no state dict in this file; it holds: {keys or 'nothing'}.")
    state = _tensors(found)
    if prefix is not None:
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not state:
            raise WeightsError(
                f"{path}: no entry begins with {prefix!r}; found {', '.join(list(found)[:5])}, …."
            )
    return state
