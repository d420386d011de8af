"""Our own checkpoint files: safetensors with the configuration that rebuilds the module."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avsal.errors import ConfigError, DataError, WeightsError
from avsal.files import write_text, writing
from avsal.nn.state import CAFFE2, CONTAINERS, tensors_of
from avsal.npy import read_npy

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Loaded:
    """Entries and configuration of a checkpoint, before a network is built, and the sha256 of the file they are in."""

    state: dict[str, Tensor]
    config: dict[str, Any]
    where: str
    sha256: str | None = None


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


def _nested_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a dictionary of dictionaries in a .npy file, under their joined keys."""
    try:
        content = read_npy(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(content, dict):
        return {}
    return {
        f"{outer}.{name}": torch.from_numpy(np.array(value, dtype=np.float32))
        for outer, inner in content.items()
        if isinstance(inner, dict)
        for name, value in inner.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    }


def read_state_dict(path: Path, prefix: str | None = None) -> dict[str, Tensor]:
    """Return the state dict of an authors' file, wherever in the file it is.

    Args:
        path: a PyTorch file (loaded with `weights_only`), safetensors, or arrays by layer and name in a .npy file.
        prefix: keep the entries whose names begin so, without it.

    Raises:
        WeightsError: the file is damaged, wants to run code, or holds no state dict.
    """
    if path.suffix.lower() == ".safetensors":
        content: Any = read_safetensors(path)[0]
    elif path.suffix.lower() == ".npy":
        content = _nested_arrays(path)
    else:
        try:
            content = read_pickle(path)
        except WeightsError as error:
            if path.suffix.lower() == ".pkl":  # how caffe2 names them; nothing of it is run to find out
                raise WeightsError(f"{error} If it is SlowFast's: {CAFFE2}") from error
            raise
    found = content
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            found = content[container]
            break
    if not isinstance(found, Mapping) or not found or not any(isinstance(v, Tensor) for v in found.values()):
        keys = (
            ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        )
        raise WeightsError(f"{path}: no state dict in this file; it holds: {keys or 'nothing'}.")
    state = tensors_of(found)
    if prefix is not None:
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not state:
            raise WeightsError(
                f"{path}: no entry begins with {prefix!r}; found {', '.join(list(found)[:5])}, …."
            )
    return state
