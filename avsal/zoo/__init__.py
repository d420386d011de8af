"""Weights: found, verified, converted and published.

    >>> import avsal
    >>> module = avsal.from_pretrained("stavis-audiovisual-fold1")   # doctest: +SKIP
    >>> avsal.list_checkpoints(model="stavis", data="DIEM")          # doctest: +SKIP

`registry` reads `checkpoints.yaml`, `hub` fetches and verifies files, `conversion` turns authors' releases into
our modules, `store` writes and reads our own files, `load` is the way through all of them, `card` and
`publishing` put checkpoints on the Hugging Face Hub.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
