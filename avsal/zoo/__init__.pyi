"""What `avsal.zoo` offers, with its types; `__init__.py` imports each name on first use."""

from .load import (
    Checkpoint as Checkpoint,
    convert as convert,
    convert_backbone as convert_backbone,
    from_pretrained as from_pretrained,
    load_state as load_state,
    register as register,
)
from .publishing import publish as publish, save_pretrained as save_pretrained
from .tables import list_checkpoints as list_checkpoints
