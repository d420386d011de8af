"""avsal: audio-visual saliency and gaze anticipation in video.

    >>> import avsal
    >>> module = avsal.from_pretrained("stavis-tiny-synthav")        # doctest: +SKIP
    >>> for frame in module.predict_video("clip.mp4"):               # doctest: +SKIP
    ...     print(frame.index, frame.time, frame.map.shape)

Everything that `__init__.pyi` names is imported on first use, so that `import avsal` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lazy_loader import attach_stub

__version__ = "0.1.0"

_lazy, _, __all__ = attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    try:
        return _lazy(name)
    except AttributeError:
        # A paper's module is found by its file, also before `__init__.pyi` names it.
        if name.endswith("Module") and not name.endswith("DataModule"):
            from avsal.models import list_models

            for model in list_models():
                if hasattr(found := import_module(f"avsal.models.{model}"), name):
                    return getattr(found, name)
        raise AttributeError(f"module 'avsal' has no attribute {name!r}") from None
