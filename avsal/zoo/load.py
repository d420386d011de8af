"""The one way to weights: a registry name, a file, or a Hub repository becomes a module."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import avsal
from avsal.checkpoints.fetch import Access
from avsal.checkpoints.file import FORMAT_VERSION, Loaded
from avsal.checkpoints.load import load_source
from avsal.checkpoints.registry import Checkpoint as Checkpoint, entries, register as register
from avsal.errors import ConfigError, MediaError, WeightsError
from avsal.files import cache_folder
from avsal.io.limits import check
from avsal.models import convert as convert, create_model
from avsal.models.base import config_of
from avsal.nn.backbones import convert_backbone as convert_backbone
from avsal.nn.state import check_finite

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

logger = logging.getLogger("avsal.zoo")


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    strict: bool = True,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Any:
    """Return a model with its weights, in eval mode.

    A registry name is looked for in the cache, then in the entry's sources in their order: inside the package, on
    the Hub, and last the authors' own release, which is converted and kept in the cache. Every file is compared
    with its sha256, also the cached ones.

    Args:
        source: a registry name ("stavis-audiovisual-fold1"), the path of a checkpoint (a folder of
            `save_pretrained`, a safetensors file, a Lightning `.ckpt`), or a Hub repository ("user/name").
        revision: branch, tag or commit of a Hub repository.
        cache_dir: in place of AVSAL_CACHE or the user's cache folder.
        local_files_only: fetch nothing. HF_HUB_OFFLINE=1 does the same.
        device: where the module goes; the CPU by default.
        dtype: type of its floating-point entries; float32 by default, whatever the file stores. Batch norms stay in
            float32 with float16 and bfloat16, which are too coarse for their statistics. Prediction casts its input.
        strict: False accepts missing and unexpected entries, with a warning that names them.
        force_download: fetch even what is cached.
        token: access token for the Hub; by default the stored one. It is never printed or written.

    Returns:
        The `SaliencyModule` (for entries of the task "backbone": the backbone's `nn.Module`).

    Raises:
        WeightsError: nothing of that name, no source worked (each is listed with its reason), a checksum differs,
            an entry holds NaN or infinite values, or the entries do not fit the module.
    """
    access = Access(cache_folder(cache_dir), local_files_only, force_download, token)
    from avsal.evaluation.provenance import weights_hash

    loaded = load_checkpoint(source, access, revision)
    module: nn.Module
    if "backbone" in loaded.config:
        module = convert_backbone(str(loaded.config["backbone"]), loaded.state)
    else:
        trusted = isinstance(source, str) and source in entries()
        module = fill(build(loaded.config, loaded.where, trusted=trusted), loaded, strict)
        module.weights_from = (os.fspath(source), loaded.sha256, weights_hash(module))
    if dtype is not None:
        module = _of_type(module, dtype, os.fspath(source))
    return module.to(device=device).eval() if device is not None else module.eval()


def _of_type(module: nn.Module, dtype: torch.dtype, where: str) -> nn.Module:
    """Return a module of another floating-point type; batch norms stay in float32 beside half precision."""
    kept = {
        part: {name: value.clone() for name, value in part.state_dict().items()}
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and dtype.itemsize < 4
    }
    module = module.to(dtype=dtype)
    for part, state in kept.items():
        part.float().load_state_dict(state)
    check_finite(module, f"{where} as {str(dtype).removeprefix('torch.')}")
    return module


def load_state(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> dict[str, Tensor]:
    """Return only the entries of a checkpoint, under our names, in float32, on the CPU.

    Args:
        source: what `from_pretrained` takes.
        revision: branch, tag or commit of a Hub repository.
        cache_dir: in place of AVSAL_CACHE or the user's cache folder.
        local_files_only: fetch nothing.
        token: access token for the Hub.

    Raises:
        WeightsError: as `from_pretrained`.
    """
    loaded = load_checkpoint(source, Access(cache_folder(cache_dir), local_files_only, token=token), revision)
    if "backbone" in loaded.config:
        return dict(convert_backbone(str(loaded.config["backbone"]), loaded.state).state_dict())
    return {name: _single(value) for name, value in loaded.state.items()}


def _single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def fill(module: SaliencyModule, loaded: Loaded, strict: bool = True) -> SaliencyModule:
    """Copy a checkpoint's entries into a module (see `from_pretrained`)."""
    from avsal.nn.state import load_exact, make_room

    state = {name: _single(value) for name, value in loaded.state.items()}
    if strict:
        return load_exact(module, state, what=f"checkpoint {loaded.where}")
    make_room(module, state)
    own = module.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise WeightsError(f"{loaded.where}: no entry fits {type(module).__name__}, also with strict=False.")
    module.load_state_dict(fitting, strict=False)
    check_finite(module, loaded.where)
    for label, names in (
        ("keep their initial values", set(own) - set(fitting)),
        ("not used", set(state) - set(fitting)),
    ):
        if names:
            shown = ", ".join(sorted(names)[:20]) + (", …" if len(names) > 20 else "")
            logger.warning("%s: %d entries %s: %s", loaded.where, len(names), label, shown)
    return module


# -- building and saving ----------------------------------------------------------------------------------


def build(config: Mapping[str, Any], where: str, *, trusted: bool = False) -> SaliencyModule:
    """Return a freshly initialised module from a stored configuration.

    Args:
        config: model and arguments.
        where: how errors call it.
        trusted: it is ours, and its arguments need not be tried before memory is reserved for them.

    Raises:
        WeightsError: the configuration is incomplete, of a newer format, its arguments are not the model's, or they
            describe a network beyond the limits AVSAL_MAX_PARAMETERS and AVSAL_MAX_CLIP_VALUES (`avsal.io.limits`).
    """
    if config.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise WeightsError(
            f"{where} is of checkpoint format {config['format_version']}, this avsal {avsal.__version__} reads "
            f"{FORMAT_VERSION}; install a newer avsal."
        )
    model, arguments = config.get("model"), config.get("arguments", {})
    if not isinstance(model, str) or not isinstance(arguments, Mapping):
        raise WeightsError(f"{where} does not say which model it belongs to; it is not an avsal checkpoint.")
    arguments = {str(key): _tuples(value) for key, value in arguments.items()}
    try:
        if not trusted:
            with torch.device("meta"), _limited(where):
                clip = create_model(model, **arguments).spec
            values = 3 * clip.frames * clip.size[0] * clip.size[1]
            check("AVSAL_MAX_CLIP_VALUES", values, f"{where} asks for clips of {values:,} values")
        return create_model(model, **arguments)
    except MediaError as error:
        raise WeightsError(str(error)) from None
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise WeightsError(
            f"{where}: no {model} can be built from its arguments ({type(error).__name__}: {error})."
        ) from error
    except ConfigError as error:
        raise WeightsError(
            f"{where} (written by avsal {config.get('avsal_version', '?')}) does not fit this avsal "
            f"{avsal.__version__}: {error}"
        ) from error


@contextlib.contextmanager
def _limited(where: str) -> Iterator[None]:
    """Stop the building of a network in this thread when its parameters pass the limit."""
    thread, total, entries = threading.get_ident(), 0, 0

    def count(module: torch.nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal total, entries
        if value is not None and threading.get_ident() == thread:
            total, entries = total + value.numel(), entries + 1
            check(
                "AVSAL_MAX_PARAMETERS", total, f"{where} describes a network of at least {total:,} parameters"
            )
            if entries > 20_000:
                raise MediaError(f"{where} describes a network of more than 20,000 parts; it is damaged.")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _tuples(value: Any) -> Any:
    # JSON has no tuples; constructors take (height, width) and the like as tuples.
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


# -- finding -----------------------------------------------------------------------------------------------


def load_checkpoint(source: str | os.PathLike[str], access: Access, revision: str | None = None) -> Loaded:
    """Return entries and configuration of a checkpoint, before a network is built (see `from_pretrained`)."""
    return load_source(source, access, convert_entries, revision)


def convert_entries(
    format: str, state: dict[str, Tensor], options: Mapping[str, Any], backbone: bool, extra: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert an authors' entries, and return entries and configuration as they are stored."""
    if backbone:
        convert_backbone(format, state)
        # The published names stay: the backbone's own door reads them again.
        return state, {"backbone": format, "avsal_version": avsal.__version__, **extra}
    module = convert(format, state, **options)
    return module.state_dict(), config_of(module, **extra)
