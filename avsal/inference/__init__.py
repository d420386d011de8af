"""From files to maps: one video as a stream of maps (`video`), many files with their results (`files`), the overlay."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
