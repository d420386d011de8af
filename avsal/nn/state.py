"""Loading a state dict exactly: every difference is an error that names the entries."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from avsal.errors import WeightsError

M = TypeVar("M", bound=nn.Module)

#: Counters that no forward pass reads: accepted present or absent.
DERIVED = (r"(^|\.)num_batches_tracked$",)
#: Where research code keeps the state dict inside a checkpoint.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
#: Why SlowFast's file of its 4x16 model is refused, and what to use.
CAFFE2 = (
    "This is a caffe2 file, as SlowFast's model zoo ships for 4x16 R50; its layout is not read. Use pytorchvideo's "
    "SLOWFAST_8x8_R50.pyth with encoder_options={'lateral_kernel': 7}, or a PySlowFast .pyth file."
)


def tensors_of(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state dict.

    Raises:
        WeightsError: a value is not a tensor, or it is a caffe2 file.
    """
    if "blobs" in state_dict:
        raise WeightsError(CAFFE2)
    strange = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(
            f"Not a state dict: {', '.join(map(str, strange[:5]))} are not tensors. Pass the mapping from names to "
            f"tensors, which research code often keeps under one of {', '.join(CONTAINERS)}."
        )
    return dict(state_dict)


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Return the entries without the leading `prefix` that data-parallel training leaves on names."""
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def make_room(module: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Let every part of `module` that can (it has a method `adapt`) take the shapes that `entries` have.

    Args:
        module: a network, of which some parts have shapes that depend on the clip size of their training.
        entries: a state dict under the network's own names.
    """
    for name, part in module.named_modules():
        if adapt := getattr(part, "adapt", None):
            prefix = f"{name}." if name else ""
            adapt({k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)})


def entries_of(part: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of `part` in the state dict of a whole network, under the part's own names.

    A state dict that holds no such part comes back as it is: it may be the part's, under another project's names.
    """
    own = list(part.state_dict())
    for name in state_dict:
        prefix = name.removesuffix(own[0])
        if name.endswith(f".{own[0]}") and all(prefix + key in state_dict for key in own):
            return {key: state_dict[prefix + key] for key in own}
    return dict(state_dict)


def check_finite(module: nn.Module, what: str) -> None:
    """Refuse NaN and infinite values in a module's entries.

    Raises:
        WeightsError: names the first such entries.
    """
    bad = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not value.is_meta and not bool(torch.isfinite(value).all())
    ]
    if bad:
        shown = ", ".join(bad[:5]) + (", …" if len(bad) > 5 else "")
        raise WeightsError(
            f"{what}: NaN or infinite values in {len(bad)} entries: {shown}. The training diverged, the file is "
            "damaged, or its type too narrow; take an earlier checkpoint or another copy."
        )


def load_exact(
    module: M,
    state_dict: Mapping[str, Tensor],
    *,
    rename: Callable[[str], str | None] | None = None,
    unused: Iterable[str] = (),
    derived: Iterable[str] = (),
    what: str = "state dict",
) -> M:
    """Load `state_dict` into `module`; nothing may be missing, left over or of another shape.

    Args:
        module: the network that receives the values.
        state_dict: entries under their source's names; a leading `module.` is removed.
        rename: maps a source name to this network's name, or to None for an entry that is not known.
        unused: regular expressions (`re.search` on the source name) of entries that this configuration
            does not use: accepted present or absent.
        derived: regular expressions on this network's names of entries that the network computes itself
            (position indices): accepted present or absent. Batch-norm counters always are.
        what: how the error calls the source.

    Returns:
        The same module, in the same mode.

    Raises:
        WeightsError: names every missing, unexpected and mis-shaped entry, or those that are not finite.
    """
    entries = strip_prefix(state_dict)
    make_room(module, {(rename(name) if rename else name) or name: value for name, value in entries.items()})
    own = dict(module.state_dict())
    unused = list(unused)
    derived = [*DERIVED, *derived]
    mapped: dict[str, Tensor] = {}
    unexpected, misshaped = [], []
    for name, value in entries.items():
        target = rename(name) if rename else name
        if target is not None and target in own:
            if own[target].shape != value.shape:
                misshaped.append(f"{name} is {tuple(value.shape)}, expected {tuple(own[target].shape)}")
            else:
                mapped[target] = value
        elif not any(re.search(pattern, name) for pattern in [*unused, *derived]):
            unexpected.append(name)
    missing = [
        name
        for name in own
        if name not in mapped
        and not any(re.search(pattern, name) for pattern in derived)
        and not any(entry.startswith(f"{name} ") for entry in misshaped)
    ]
    if misshaped:
        # An entry that arrived with another shape is not missing; it is told apart under its source name.
        arrived = {rename(line.split(" ")[0]) if rename else line.split(" ")[0] for line in misshaped}
        missing = [name for name in missing if name not in arrived]
    problems = [
        f"{label} ({len(names)}): " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        for label, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    if problems:
        raise WeightsError(
            f"The {what} does not fit {type(module).__name__}: "
            + "; ".join(problems)
            + ". Check that the file belongs to this model and that the constructor arguments are those of the file."
        )
    module.load_state_dict(mapped, strict=False)
    check_finite(module, what)
    return module


def freeze(part: nn.Module) -> nn.Module:
    """Fix the parameters of a part, in eval mode, and note from now on which of its layers are given weights."""
    part.requires_grad_(False).eval()
    for layer in part.modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_load_state_dict_pre_hook(_note_weights)
    return part


def _note_weights(layer: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    if all(prefix + name in state_dict for name, _ in layer.named_parameters(recurse=False)):
        layer.given_weights = True  # type: ignore[assignment]


def random_layers(part: nn.Module) -> list[str]:
    """Return the layers of a part that `freeze` fixed and no state dict has reached since."""
    layers = {n: m for n, m in part.named_modules() if next(m.parameters(recurse=False), None) is not None}
    random = [name for name, layer in layers.items() if not hasattr(layer, "given_weights")]
    return ["all layers"] if len(random) == len(layers) > 1 else random
