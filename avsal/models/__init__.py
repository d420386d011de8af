"""One file per paper. `create_model` finds a model by its file's name."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import ConfigError

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

_NOT_PAPERS = {"base"}


def list_models() -> list[str]:
    """Return the names that `create_model` takes: the files of this folder that define a MODULE."""
    found = (entry.name for entry in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if name not in _NOT_PAPERS)


def model_class(name: str) -> type[SaliencyModule]:
    """Return the LightningModule class of a model.

    Raises:
        ConfigError: no model has that name.
    """
    if name not in list_models():
        raise ConfigError(f"There is no model {name!r}; the models are: {', '.join(list_models())}.")
    module: type[SaliencyModule] = import_module(f"avsal.models.{name}").MODULE
    return module


def class_named(name: str | None) -> type[SaliencyModule]:
    """Return the class that results files call `name`, such as "STAViS" for `STAViSModule`.

    For a name that is no model's (a class of the user's own) it is `SaliencyModule` itself.
    """
    from avsal.models.base import SaliencyModule

    found = (cls for cls in map(model_class, list_models()) if cls.__name__.removesuffix("Module") == name)
    return next(found, SaliencyModule)


def create_model(name: str, **options: Any) -> SaliencyModule:
    """Return a freshly initialised model.

    Args:
        name: one of `list_models()`, such as "stavis".
        **options: the module's constructor arguments.

    Raises:
        ConfigError: unknown name, or an argument that the model does not take.
    """
    cls = model_class(name)
    known = cls.arguments()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"{name} takes no argument {', '.join(unknown)}; it takes: {', '.join(known)}.")
    return cls(**options)
