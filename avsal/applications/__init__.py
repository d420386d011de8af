"""What maps are good for: `reframe` crops a film to another shape around what is looked at."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
