"""What `avsal.applications` offers, with its types; `__init__.py` imports each name on first use."""

from .reframe import Reframed as Reframed
from .reframe import reframe as reframe
