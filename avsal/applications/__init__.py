"""What maps are used for: `reframe` crops a film around what is looked at, `encode` spends its bits there, `view`
is the report."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
