"""Saliency and gaze metrics that agree with the field's reference codes."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "functional": (
        "auc_borji",
        "auc_judd",
        "cc",
        "information_gain",
        "kl_div",
        "nss",
        "sauc",
        "sim",
    ),
    "inputs": ("MetricInputError", "fixation_points"),
    "negatives": ("random_frames_negatives", "video_negatives"),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "functional", "gaze", "inputs", "negatives", "saliency", "sampling"]
