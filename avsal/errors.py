"""The errors avsal raises: each says what is wrong, where, and what to do next."""

from __future__ import annotations


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
