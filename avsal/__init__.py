"""avsal: audio-visual saliency and gaze anticipation in video.

    >>> import avsal
    >>> module = avsal.from_pretrained("stavis-tiny-synthav")        # doctest: +SKIP
    >>> for frame in module.predict_video("clip.mp4"):               # doctest: +SKIP
    ...     print(frame.index, frame.time, frame.map.shape)

Everything is imported on first use, so that `import avsal` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "AvsalError": "avsal.errors",
    "ClipSpec": "avsal.types",
    "AudioSpec": "avsal.types",
    "Batch": "avsal.types",
    "SaliencyOutput": "avsal.types",
    "create_model": "avsal.models",
    "list_models": "avsal.models",
    "SaliencyModule": "avsal.models.base",
    "STAViSModule": "avsal.models.stavis",
    "CASPNetModule": "avsal.models.caspnet",
    "MSPIModule": "avsal.models.mspi",
    "ISPModule": "avsal.models.isp",
    "AVRSPModule": "avsal.models.avrsp",
    "CSTSModule": "avsal.models.csts",
    "from_pretrained": "avsal.zoo",
    "list_checkpoints": "avsal.zoo",
    "register": "avsal.zoo",
    "predict_video": "avsal.inference",
    "SaliencyMetrics": "avsal.metrics",
    "GazeMetrics": "avsal.metrics",
}
_ROOMS = {"io", "data", "nn", "models", "metrics", "zoo", "report", "inference", "losses", "types", "errors"}

__all__ = [*_WHERE, *sorted(_ROOMS), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return import_module(f"avsal.{name}")
    if name.endswith("DataModule"):
        return getattr(import_module("avsal.data"), name)
    if name.endswith("Module"):
        from avsal.models import list_models

        for model in list_models():
            found = getattr(import_module(f"avsal.models.{model}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module 'avsal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
