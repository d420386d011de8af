"""What `avsal.zoo` offers, with its types; `__init__.py` imports each name on first use."""

from .conversion import convert as convert
from .conversion import convert_backbone as convert_backbone
from .load import Checkpoint as Checkpoint
from .load import from_pretrained as from_pretrained
from .load import load_state as load_state
from .load import register as register
from .load import save_pretrained as save_pretrained
from .publishing import publish as publish
from .tables import list_checkpoints as list_checkpoints
