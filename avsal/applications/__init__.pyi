"""What `avsal.applications` offers, with its types; `__init__.py` imports each name on first use."""

from .encode import Encoded as Encoded
from .encode import encode as encode
from .reframe import Reframed as Reframed
from .reframe import reframe as reframe
from .viewing import Viewing as Viewing
from .viewing import view as view
from .viewing import write_page as write_page
