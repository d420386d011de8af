"""Saliency and gaze metrics that agree with the field's reference codes."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "conventions": ("CARD", "METRICS", "Conventions"),
    "egocentric": (
        "GazeCounts",
        "GazeScore",
        "adaptive_f1",
        "best_f1",
        "gaze_auc",
        "gaze_counts",
        "gaze_thresholds",
        "rescale_gaze",
    ),
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
    "gaze": ("GazeMetrics",),
    "inputs": ("MetricInputError", "fixation_points"),
    "negatives": ("random_frames_negatives", "video_negatives"),
    "resize": ("postprocess", "resize_maps"),
    "saliency": (
        "AUCBorji",
        "AUCJudd",
        "CC",
        "InformationGain",
        "KLDiv",
        "NSS",
        "SIM",
        "SaliencyMetrics",
        "ShuffledAUC",
        "fold_mean",
    ),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_HOMES, "crowdsal", "roc", "sampling"]
