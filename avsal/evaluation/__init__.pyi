"""What `avsal.evaluation` offers, with its types; `__init__.py` imports each name on first use."""

from .maps import evaluate_maps as evaluate_maps
from .results import Results as Results
from .testing import evaluate as evaluate
