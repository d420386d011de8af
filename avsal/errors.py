"""The errors avsal raises: each says what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class AvsalError(Exception):
    """Base of every error that a user of avsal can cause or meet.

    The message names the thing (file, entry, option), what is wrong with it, and the next step.
    """


class MediaError(AvsalError):
    """A video, audio or image file cannot be read (missing, empty, not media, damaged)."""


class DataError(AvsalError):
    """A data set's folder, list, annotation or gaze file is missing or contradicts its video."""


class ConfigError(AvsalError):
    """An option, a configuration file or a combination of arguments is not valid."""


class WeightsError(AvsalError):
    """A checkpoint cannot be found, verified, converted or loaded."""


class DownloadError(WeightsError, DataError):
    """A file cannot be fetched, is not what it must be, or cannot be unpacked."""


class OutputError(AvsalError):
    """A result cannot be written: a read-only folder, a full disk, a name that is taken by something else."""


def plain(name: str) -> str:
    """Return a name as names are compared: without regard to case, hyphens and the like."""
    return re.sub(r"[\W_]", "", name).casefold()


def nearest(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Return the known names that a misspelt one is nearest to, best first; empty where none is near."""
    by_plain: dict[str, list[str]] = {}
    for name in known:
        by_plain.setdefault(plain(name), []).append(name)
    found = difflib.get_close_matches(plain(word), by_plain, most, 0.6)
    return [name for key in found for name in by_plain[key]][:most]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'NAME'?" for the nearest of the known names, or nothing."""
    found = nearest(word, known)
    return f" Did you mean {found[0]!r}?" if found else ""
