"""Weights: found, verified, converted and published.

    >>> import avsal
    >>> module = avsal.from_pretrained("stavis-audiovisual-fold1")   # doctest: +SKIP
    >>> avsal.list_checkpoints(model="stavis", data="DIEM")          # doctest: +SKIP

`load` turns names, files and repositories into modules, `show` prints the registry, `card` and `publishing` put
checkpoints on the Hugging Face Hub. The registry, the files and how they are fetched are in `avsal.checkpoints`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
