"""What `avsal.applications` offers, with its types; `__init__.py` imports each name on first use."""

from .encode import Encoded as Encoded, encode as encode
from .reframe import Reframed as Reframed, reframe as reframe
from .viewing import Viewing as Viewing, view as view, write_page as write_page
