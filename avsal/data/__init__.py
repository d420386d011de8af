"""Data sets: videos with sound and gaze in, batches out. Everything is imported on first use."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
