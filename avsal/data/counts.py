"""How many frames a video has, remembered from run to run: opening thousands of files takes minutes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path

from avsal.data.items import VideoItem
from avsal.errors import OutputError
from avsal.files import cache_folder, write_text


class Counts:
    """Numbers of frames and rates of the videos of one data set, kept in the cache.

    An entry holds as long as its file has the same size and time of change.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: Path | None) -> None:
        name = hashlib.sha256(str(root.absolute() if root else "").encode()).hexdigest()[:16]
        self.path = cache_folder() / "index" / f"{name}.json"
        self._new = False
        try:
            self._known: dict[str, list[float]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}  # nothing remembered, or not readable: it is only a cache

    def counted(self, item: VideoItem) -> VideoItem:
        """Return the item with its number of frames and rate; opens its file if it is new or changed.

        Raises:
            AvsalError: the file cannot be read.
        """
        if (item.frames is not None and item.fps is not None) or not item.files:
            return item.counted()
        source = item.files[0]
        try:
            stat = source.stat()
        except OSError:
            return item.counted()  # says what is wrong with it
        found = self._known.get(str(source))
        if found is None or found[:2] != [stat.st_size, stat.st_mtime_ns]:
            opened = item.counted()
            assert opened.frames is not None
            assert opened.fps is not None
            found = [stat.st_size, stat.st_mtime_ns, opened.frames, opened.fps]
            self._known[str(source)] = found
            self._new = True
        return replace(item, frames=item.frames or int(found[2]), fps=item.fps or float(found[3]))

    def save(self) -> None:
        """Write the cache, if there is anything new and it can be written."""
        if not self._new:
            return
        with contextlib.suppress(OutputError):  # a read-only cache costs time, nothing else
            write_text(self.path, json.dumps(self._known))
