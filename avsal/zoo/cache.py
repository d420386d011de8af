"""The cache on this machine: where it is, locks, checksums, and small record files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from avsal.zoo.registry import Checkpoint, HubSource, Origin, PackagedSource

logger = logging.getLogger("avsal.zoo")


@dataclass(frozen=True)
class Fetched:
    """A verified local file and where it came from."""

    path: Path
    origin: str
    sha256: str
    size: int
    #: Whether the file was already there.
    cached: bool = False


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache: the argument, else AVSAL_CACHE, else the user's cache folder of this system."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if os.environ.get("AVSAL_CACHE"):
        return Path(os.environ["AVSAL_CACHE"]).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("avsal", appauthor=False)


def offline(local_files_only: bool = False) -> bool:
    """Return whether nothing may be fetched: by argument, or by HF_HUB_OFFLINE."""
    value = os.environ.get("HF_HUB_OFFLINE", "").upper()
    return local_files_only or value in {"1", "ON", "YES", "TRUE"}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def redact(text: str) -> str:
    """Return a text without access tokens, passwords in addresses, and signed query strings."""
    text = re.sub(r"\b(hf|ghp|gho|github_pat)_[A-Za-z0-9_]{6,}", r"\1_…", text)
    text = re.sub(r"(?i)(bearer|token|authorization)([=:]?\s+|=)\S+", r"\1\2…", text)
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1…@", text)
    return re.sub(r"(https?://[^\s?]+)\?[^\s'\")]+", r"\1?…", text)


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the cache's lock for a name; other processes that want the same file wait."""
    from filelock import FileLock, Timeout

    folder = cache / "locks"
    lock = FileLock(folder / (re.sub(r"[^\w.-]+", "--", name) + ".lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("Another process is fetching %s; waiting for it.", name)
        lock.acquire()
    except OSError as error:
        # A cache that cannot be written, such as a shared one, still serves what is in it.
        logger.info("The cache %s cannot be locked (%s).", cache, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def safe_name(url: str) -> str:
    """Return a harmless file name from the last part of an address."""
    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).path).rsplit("/", 1)[-1]).lstrip(".")
    return name[-100:] or "file"


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a small record file; a missing or damaged one counts as empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a small record file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


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
