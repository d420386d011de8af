"""What `avsal.zoo` offers, with its types; `__init__.py` imports each name on first use."""

from .conversion import convert as convert
from .conversion import convert_backbone as convert_backbone
from .load import from_pretrained as from_pretrained
from .load import load_state as load_state
from .publishing import publish as publish
from .registry import Checkpoint as Checkpoint
from .registry import list_checkpoints as list_checkpoints
from .registry import register as register
from .store import save_pretrained as save_pretrained
