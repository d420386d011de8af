"""Saliency and gaze metrics that agree with the field's reference codes."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
