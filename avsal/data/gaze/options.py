"""How a gaze file is read: the same options for `FolderDataModule`, `avsal predict` and `avsal data`."""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from avsal.errors import ConfigError

Units = Literal["auto", "normalised", "pixels", "cm", "norm", "height", "radians", "degrees"]
Origin = Literal["auto", "top", "bottom", "centre"]
Tracker = Literal["auto", "plain", "tobii", "pupil", "neon", "eyelink", "gazepoint", "psychopy", "smi"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
_PLACES = ("fit", "stretch", "centre")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")

#: What each option is, for the command line.
HELP = {
    "tracker": "whose export the file is (default: told by its columns)",
    "units": "unit of the gaze points (default: from the columns' names or the values)",
    "time_unit": "unit of the gaze times (default: from the column's name or the rate)",
    "origin": "where y is 0 (default: as the tracker counts, else the top)",
    "offset": "time on the gaze clock at which the video's time is 0",
    "screen": "size of the screen that the gaze counts, in its pixels (or cm)",
    "picture": "where the video stood on that screen: fit, stretch, centre (pixel for pixel), or "
    "LEFT,TOP,WIDTH,HEIGHT in the screen's pixels (or cm)",
    "stimulus": "name of the video in the file, where it holds several (default: the video's own)",
    "first_frame": "number of the video's first frame in the file",
    "min_confidence": "least confidence of a sample, where the file states it (default: 0.6)",
    "columns": "own name of a column: time, x, y, frame, duration, observer, gaze_type, valid, invalid or stimulus; "
    "repeatable",
}
_META = {
    "offset": "SECONDS", "screen": "WIDTHxHEIGHT", "picture": "PLACE", "stimulus": "NAME", "first_frame": "N",
    "min_confidence": "SHARE", "columns": "ROLE=NAME",
}  # fmt: skip
_CHOICES = {"tracker": Tracker, "units": Units, "time_unit": TimeUnit, "origin": Origin}
_TYPES = {"offset": float, "first_frame": int, "min_confidence": float}
ROLES = (
    "time",
    "x",
    "y",
    "frame",
    "duration",
    "observer",
    "gaze_type",
    "valid",
    "invalid",
    "stimulus",
    "depth",
)


@dataclass(frozen=True)
class Reading:
    """How to read a gaze file; what is not given is taken from the file, or refused.

    Attributes:
        tracker: whose export it is.
        units: of the coordinates: "normalised" shares of the picture (0..1), "pixels", "cm", PsychoPy's "norm" (-1..1)
            and "height", "degrees", "radians".
        time_unit: of the times.
        origin: where y is 0: "top" and "bottom" are with the left corner, "centre" has y upwards.
        offset: seconds on the gaze clock at which the video's time is 0. None: the tracker's own zero (the onset of
            the stimulus, where the file names stimuli), else the clocks are one.
        screen: "WIDTHxHEIGHT" of the screen that the gaze counts, in its unit (pixels, cm).
        picture: where the video stood on that screen: "fit", "stretch", "centre", or "LEFT,TOP,WIDTH,HEIGHT".
        stimulus: the video's name in the file.
        first_frame: number of the first frame, None: 0, or 1 where the numbers run from 1 to the number of frames.
        min_confidence: least confidence of a sample.
        columns: (role, name) of columns; an empty name leaves a column out.

    Raises:
        ConfigError: a value is not of its form.
    """

    tracker: Tracker = "auto"
    units: Units = "auto"
    time_unit: TimeUnit = "auto"
    origin: Origin = "auto"
    offset: float | None = None
    screen: str | None = None
    picture: str | None = None
    stimulus: str | None = None
    first_frame: int | None = None
    min_confidence: float = 0.6
    columns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(dict(self.columns or ()).items()))
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: choose among {', '.join(get_args(kind))}."
                )
        if self.screen is not None and (_SIZE.fullmatch(self.screen) is None or 0.0 in self.screen_size):
            raise ConfigError(f"screen {self.screen} is not of the form WIDTHxHEIGHT, as 1920x1080.")
        if self.picture is not None and self.picture not in _PLACES and not _rectangle(self.picture):
            raise ConfigError(
                f"picture {self.picture!r} is none of {', '.join(_PLACES)}, LEFT,TOP,WIDTH,HEIGHT."
            )
        unknown = [role for role, _ in self.columns if role not in ROLES]
        if unknown:
            raise ConfigError(f"columns: {unknown[0]!r} is none of {', '.join(ROLES)}.")

    @property
    def screen_size(self) -> tuple[float, float]:
        """(height, width) of `screen`."""
        found = _SIZE.fullmatch(self.screen or "")
        assert found is not None
        return float(found[2]), float(found[1])

    @property
    def rectangle(self) -> tuple[float, float, float, float] | None:
        """(left, top, width, height) of `picture`, None where it is a word."""
        return _rectangle(self.picture or "")

    def changed(self) -> list[str]:
        """Return the names of the options that are not at their default."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


def _rectangle(text: str) -> tuple[float, float, float, float] | None:
    try:
        left, top, width, height = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return (left, top, width, height) if width > 0 and height > 0 else None


def add_arguments(parser: Any, *, short: bool) -> None:
    """Add the options as `--gaze-NAME`, and with `short` as `--NAME` too (`--from` is the tracker)."""
    for name, text in HELP.items():
        word = name.replace("_", "-").removesuffix("s") if name == "columns" else name.replace("_", "-")
        flags = [f"--gaze-{word}", *([f"--{word}"] if short else [])]
        if name == "tracker":
            flags = ["--gaze-from", *(["--from"] if short else [])]
        if name == "screen":
            flags.append("--gaze-size")
        options: dict[str, Any] = {"dest": f"gaze_{name}", "help": text, "metavar": _META.get(name)}
        if name in _CHOICES:
            options |= {"choices": get_args(_CHOICES[name]), "metavar": None, "default": "auto"}
        if name == "columns":
            options |= {"action": "append", "default": []}
        if name == "min_confidence":
            options["default"] = 0.6
        parser.add_argument(*flags, type=_TYPES.get(name, str), **options)


def from_arguments(arguments: argparse.Namespace) -> Reading:
    """Return the options of a command line.

    Raises:
        ConfigError: one is not of its form.
    """
    values = {name: getattr(arguments, f"gaze_{name}") for name in HELP}
    for pair in values["columns"]:
        if "=" not in pair:
            raise ConfigError(f"--gaze-column {pair} is not of the form ROLE=NAME, as x=gazeX.")
    values["columns"] = tuple(tuple(pair.split("=", 1)) for pair in values["columns"])
    try:
        return Reading(**values)
    except ConfigError as error:
        raise ConfigError(f"--gaze-{error}") from None


def read_recordings(path: Path, reading: Reading) -> dict[str, Reading]:
    """Read a CSV file with the column `video` and any options as columns: those of single recordings.

    Args:
        path: the file; an empty cell leaves an option as it is.
        reading: the options of all other recordings.

    Returns:
        Options by the video's name without suffix.

    Raises:
        ConfigError: the file cannot be read, or a column or value is not known.
    """
    found: dict[str, Reading] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from error
    known = [name for name in HELP if name != "columns"]
    for number, row in enumerate(rows, 2):
        wrong = [name for name in row if name is None or name not in (*known, "video")]
        if wrong or not row.get("video"):
            raise ConfigError(
                f"{path}, line {number}: expected the column video and any of {', '.join(known)}; found "
                f"{', '.join(str(name) for name in row)}."
            )
        try:
            given = {
                k: _TYPES.get(k, str)(v.strip()) for k, v in row.items() if k != "video" and v and v.strip()
            }
            found[Path(row["video"]).stem] = replace(reading, **given)
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return found
