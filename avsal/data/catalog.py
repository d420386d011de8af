"""What each data set is, under which terms, and how to get it: `avsal data list|info|fetch`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from avsal.errors import DataError, did_you_mean, plain


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        name: the name in commands.
        title: its name in papers.
        module: the DataModule that reads it.
        content: what it holds.
        sound: "yes", "no" or "silent in practice".
        licence: as stated by the owners; "not stated" where nothing was found.
        page: where it is described.
        steps: how to get it.
        tree: what the folder looks like.
        cite: the publication to cite.
        urls: (address, folder of the layout that it belongs in) of archives that may be fetched directly.
        hub: repository on the Hugging Face Hub, if it is there.
        size: download size as far as it is known.
    """

    name: str
    title: str
    module: str
    content: str
    sound: str
    licence: str
    page: str
    steps: tuple[str, ...]
    tree: str
    cite: str
    urls: tuple[tuple[str, str], ...] = ()
    hub: str | None = None
    size: str = "not stated"


def _read(name: str, fields: dict[str, Any]) -> Entry:
    urls = tuple(fields.pop("urls", {}).items())
    return Entry(name, steps=tuple(fields.pop("steps")), urls=urls, **fields)


_LISTED = yaml.safe_load((files("avsal.data") / "catalog.yaml").read_text(encoding="utf-8"))
#: All data sets, in the order in which they are listed.
ENTRIES = tuple(_read(name, fields) for name, fields in _LISTED.items())


def entry(name: str) -> Entry:
    """Return a data set by name.

    Raises:
        DataError: there is none of this name; the nearest one is named.
    """
    by_name = {plain(known): e for e in ENTRIES for known in (e.title, e.name)}
    if plain(name) not in by_name:
        known = [e.name for e in ENTRIES]
        raise DataError(f"{name!r} is no data set.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return by_name[plain(name)]
