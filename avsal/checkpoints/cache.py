"""What of the registry is on this machine, and whether anything may be fetched."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from avsal.checkpoints.registry import Checkpoint, HubSource, Origin, PackagedSource
from avsal.files import cache_folder, read_json


@dataclass(frozen=True)
class Fetched:
    """A verified local file and where it came from."""

    path: Path
    origin: str
    sha256: str
    size: int
    #: Whether the file was already there.
    cached: bool = False


def offline(local_files_only: bool = False) -> bool:
    """Return whether nothing may be fetched: by argument, or by HF_HUB_OFFLINE."""
    value = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return local_files_only or value in {"1", "ON", "YES", "TRUE"}


def conversion_folder(entry: Checkpoint, cache: Path) -> Path:
    """Return where the conversion of an entry's original is kept."""
    return cache / "converted" / entry.name


def fingerprint(entry: Checkpoint) -> str:
    """Identify what a conversion depends on, so that a changed entry is converted anew."""
    parts = {
        "model": entry.model,
        "arguments": entry.arguments,
        "origins": [
            source.model_dump(exclude={"how", "page", "licence", "size"})
            for source in entry.sources
            if isinstance(source, Origin)
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def packaged_path(source: PackagedSource) -> Path:
    """Return a packaged source's file in the installed package."""
    return Path(str(files("avsal"))) / source.file


def is_cached(entry: Checkpoint, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Return whether an entry can be loaded without fetching anything (checksums are not compared here)."""
    cache = cache_folder(cache_dir)
    for source in entry.sources:
        if isinstance(source, PackagedSource) and packaged_path(source).is_file():
            return True
        if isinstance(source, HubSource):
            folder = (
                cache / "hub" / f"models--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
            )
            if (folder / source.file).is_file():
                return True
    return read_json(conversion_folder(entry, cache) / "record.json").get("entry") == fingerprint(entry)
