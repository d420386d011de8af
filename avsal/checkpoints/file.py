"""Our own checkpoint files: safetensors with the configuration that rebuilds the module."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import avsal
from avsal.errors import ConfigError, MediaError, WeightsError
from avsal.files import write_text, writing
from avsal.io.limits import check

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT_VERSION = 1


def config_of(module: SaliencyModule, **extra: Any) -> dict[str, Any]:
    """Return the configuration that rebuilds a module: model name, constructor arguments, avsal's version.

    Args:
        module: the module; its hyper-parameters are its constructor arguments.
        **extra: further entries, such as `source` and `licence`; None values are left out.
    """
    from avsal.models.base import model_name

    arguments = {k: None if k in module.start_arguments else v for k, v in dict(module.hparams).items()}
    return {
        "format_version": FORMAT_VERSION,
        "model": model_name(module),
        "arguments": plain(arguments),
        "avsal_version": avsal.__version__,
        **{key: value for key, value in extra.items() if value is not None},
    }


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: tuples become lists, paths become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"A constructor argument of type {type(value).__name__} cannot be stored; use numbers, text, lists."
    )


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
    from avsal.models import create_model

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
    # JSON knows no tuples; constructors take (height, width) and the like as tuples.
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def write_checkpoint(
    folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> Path:
    """Write `model.safetensors` and `config.json` into a folder, each under a temporary name first.

    Args:
        folder: is created.
        state: entries by name.
        config: goes into both files, so that a single safetensors file rebuilds its module.
        dtype: stores floating-point entries so; an entry whose values would overflow keeps its own type.
    """
    from safetensors.torch import save_file

    tensors = {name: _stored(value, dtype) for name, value in state.items()}
    with writing(folder / WEIGHTS_FILE) as path:
        save_file(tensors, path, metadata={"format": "pt", "avsal": json.dumps(config, sort_keys=True)})
        _order_metadata(path)
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        write_text(folder / CONFIG_FILE, text + "\n")
    return folder


def _order_metadata(path: Path) -> None:
    """Sort the metadata in a safetensors file's header, which its writer leaves in random order.

    Equal modules then give equal files, and publishing one again changes nothing.
    """
    ordered = path.with_suffix(".ordered")
    with path.open("rb") as source, ordered.open("wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the tensors stay aligned
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target)
    os.replace(ordered, path)


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu()
    if dtype is not None and value.is_floating_point():
        cast = value.to(dtype)
        if bool(torch.isfinite(cast).all()) or not bool(torch.isfinite(value).all()):
            value = cast
    # A copy of its own for every entry: the format has no shared memory.
    return value.clone(memory_format=torch.contiguous_format)


def save_pretrained(
    module: SaliencyModule,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    repo_id: str | None = None,
    push_to_hub: bool = False,
    **publish_options: Any,
) -> Path:
    """Write a module as `model.safetensors` and `config.json`; `from_pretrained(folder)` gives it back.

    Args:
        module: the module; its mode and device do not matter.
        folder: is created; files of an earlier save are replaced.
        dtype: storage type of floating-point entries, such as `torch.float16` for half the size. Loading
            gives float32 unless asked otherwise.
        repo_id: Hub repository for `push_to_hub`; the folder's name by default.
        push_to_hub: also publish it (see `avsal.zoo.publish`).
        **publish_options: go to `publish`.

    Returns:
        The folder.
    """
    folder = write_checkpoint(Path(folder), module.state_dict(), config_of(module), dtype)
    if push_to_hub:
        from avsal.zoo.publishing import publish

        publish(module, repo_id or folder.name, dtype=dtype, **publish_options)
    elif publish_options:
        raise ConfigError(f"save_pretrained takes no {', '.join(publish_options)} unless push_to_hub=True.")
    return folder


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the entries of a safetensors file and the configuration inside it, if there is one.

    Raises:
        WeightsError: the file is not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}). Fetch or save it again."
        ) from error
    config = None
    if "avsal" in metadata:
        config = _json(metadata["avsal"], f"the metadata of {path}")
    return state, config


def read_config(path: Path) -> dict[str, Any]:
    """Return a `config.json`.

    Raises:
        WeightsError: it is missing or not JSON.
    """
    try:
        return _json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}); it belongs beside {WEIGHTS_FILE}.") from error


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: expected a JSON object, got {type(value).__name__}.")
    return value


def read_pickle(path: Path) -> Any:
    """Return what a PyTorch file holds, if it holds nothing but tensors and plain values.

    Raises:
        WeightsError: the file is no PyTorch file, is damaged, or asks to run code.
    """
    import pickle

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        # PyTorch's own message is kept away from the reader: it recommends to switch the safety off.
        text = str(error)
        found = re.search(r"(?:GLOBAL|Unsupported global:)\s+(\S+)", text)
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        refused = isinstance(error, pickle.UnpicklingError) and (found is not None or is_pickle)
        if refused or re.search("TorchScript archives|legacy .tar format", text):
            asks = f" It asks for {found.group(1)}." if found else ""
            raise WeightsError(
                f"{path}: refused, the file holds more than tensors and plain values, and loading it could run code."
                f"{asks} Nothing of it was run. Ask its author for a state dict or a safetensors file."
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            reason = "its beginning is no PyTorch file's"
        else:
            reason = text.splitlines()[0] if text else type(error).__name__
        raise WeightsError(_not_whole(path, reason)) from None


def _not_whole(path: Path, reason: str) -> str:
    return f"{path}: not a whole PyTorch file ({reason}). Check that the download is complete and is no web page."


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return entries and configuration of one of our checkpoints: a folder, a safetensors or a Lightning file.

    Raises:
        WeightsError: the file is missing, damaged, or not one of ours.
    """
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            found = sorted(entry.name for entry in path.glob("*"))[:8]
            raise WeightsError(
                f"{path}: no {WEIGHTS_FILE} in this folder"
                + (f" (it holds {', '.join(found)})" if found else " (it is empty)")
                + "; give the checkpoint file itself, or a folder that save_pretrained wrote."
            )
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    if path.suffix == ".safetensors":
        state, config = read_safetensors(path)
        if config is None and (path.parent / CONFIG_FILE).is_file():
            config = read_config(path.parent / CONFIG_FILE)
        if config is None:
            raise WeightsError(
                f"{path}: the file does not say which model it belongs to (no avsal metadata, no {CONFIG_FILE} "
                "beside it). A file of a paper's authors: `avsal convert FORMAT FILE --out DIR`."
            )
        return state, config
    content = read_pickle(path)
    if not (isinstance(content, Mapping) and "avsal" in content and "state_dict" in content):
        raise WeightsError(
            f"{path}: not a checkpoint of avsal. A file of a paper's authors becomes one with "
            "`avsal convert FORMAT FILE --out DIR` (formats: `avsal convert --help`)."
        )
    ours = content["avsal"]
    config = {
        "format_version": FORMAT_VERSION,
        "model": ours["model"],
        "arguments": ours["arguments"],
        "avsal_version": ours.get("version"),
    }
    return dict(content["state_dict"]), config
