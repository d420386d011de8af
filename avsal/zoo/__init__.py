"""Weights: found, verified, converted and published.

    >>> import avsal
    >>> module = avsal.from_pretrained("stavis-audiovisual-fold1")   # doctest: +SKIP
    >>> avsal.list_checkpoints(model="stavis", data="DIEM")          # doctest: +SKIP

`registry` reads `checkpoints.yaml`, `hub` fetches and verifies files, `conversion` turns authors' releases into
our modules, `store` writes and reads our own files, `load` is the way through all of them, `card` and
`publishing` put checkpoints on the Hugging Face Hub.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "from_pretrained": "avsal.zoo.load",
    "load_state": "avsal.zoo.load",
    "list_checkpoints": "avsal.zoo.registry",
    "register": "avsal.zoo.registry",
    "Checkpoint": "avsal.zoo.registry",
    "save_pretrained": "avsal.zoo.store",
    "convert": "avsal.zoo.conversion",
    "convert_backbone": "avsal.zoo.conversion",
    "publish": "avsal.zoo.publishing",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'avsal.zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
