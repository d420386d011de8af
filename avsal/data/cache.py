"""Where generated and fetched data is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return avsal's cache folder: AVSAL_CACHE, else the platform's user cache."""
    chosen = os.environ.get("AVSAL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("avsal")
