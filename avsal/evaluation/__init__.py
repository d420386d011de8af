"""From maps to scores: maps that any program wrote (`maps`), a checkpoint on data (`testing`), and the results file."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
