"""One file per paper. `create_model` finds a model by its file's name."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avsal.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

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


def formats() -> list[str]:
    """Return the formats that `convert` takes: the models whose authors published weights."""
    from avsal.models.base import SaliencyModule

    def converts(cls: type[SaliencyModule]) -> bool:
        # The base's `from_authors` only raises the error that there are none.
        return any("from_authors" in vars(part) for part in cls.__mro__[: cls.__mro__.index(SaliencyModule)])

    return [name for name in list_models() if converts(model_class(name))]


def convert(format: str, state_dict: Mapping[str, Tensor], **options: Any) -> SaliencyModule:
    """Return our module with the authors' weights.

    Args:
        format: the model's name: "stavis", "mspi", "csts".
        state_dict: entries under the authors' names, with or without `module.` before them.
        **options: constructor arguments where the entries alone do not tell, such as `audiovisual=`, `frames=`,
            `size=`, `encoder=`.

    Returns:
        The module in eval mode, float32, on the CPU.

    Raises:
        WeightsError: unknown format, an option the model does not take, or entries that are missing, unexpected
            or mis-shaped, each by name.
    """
    import torch

    from avsal.nn.state import tensors_of

    if format not in formats():
        raise WeightsError(
            f"There is no format {format!r} to convert; the formats are: {', '.join(formats())}."
        )
    cls = model_class(format)
    known = cls.arguments()
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise WeightsError(f"{format} takes no option {', '.join(unknown)}; it takes: {', '.join(known)}.")
    module = cls.from_authors(tensors_of(state_dict), **options)
    return module.to(device="cpu", dtype=torch.float32).eval()
