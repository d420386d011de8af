"""How a gaze file is read: the same options for `FolderDataModule`, `avsal predict` and `avsal data`."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from avsal.errors import ConfigError
from avsal.options import assignments

Units = Literal["auto", "normalised", "pixels", "cm", "norm", "height", "radians", "degrees"]
Origin = Literal["auto", "top", "bottom", "centre"]
Tracker = Literal["auto", "plain", "tobii", "pupil", "neon", "eyelink", "gazepoint", "psychopy", "smi"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
_PLACES = ("fit", "stretch", "centre")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")

#: Types of the options that are not text, in a table of recordings.
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


def _option(name: str, *more: str, metavar: str | None = None) -> Parameter:
    return Parameter(name=[f"--gaze-{name}", f"--{name}", *(f"--gaze-{n}" for n in more)], metavar=metavar)


@Parameter(name="*")
@dataclass(frozen=True)
class Reading:
    """How to read a gaze file; what is not given is taken from the file, or refused.

    On the command line each is `--gaze-NAME` or `--NAME`; `--from` is the tracker.

    Attributes:
        tracker: whose export the file is (auto: by its columns).
        units: of the gaze points (auto: by the columns' names or the values): normalised is in shares of the picture
            (0 to 1); norm (-1 to 1) and height are PsychoPy's.
        time_unit: of the gaze times (auto: by the column's name or the rate).
        origin: where y is 0 (auto: as the tracker counts, else the top); top and bottom are with the left corner,
            centre has y upwards.
        offset: time on the gaze clock at which the video's time is 0 (default: the tracker's own zero, which is the
            onset of the stimulus where the file names stimuli, else the clocks are one).
        screen: size of the screen that the gaze counts, in its pixels (or cm).
        picture: where the video was on that screen: fit, stretch, centre (pixel for pixel), or LEFT,TOP,WIDTH,HEIGHT
            in the screen's pixels (or cm).
        stimulus: name of the video in the file, where it holds several (default: the video's own).
        first_frame: number of the video's first frame in the file (default: 0, or 1 where the numbers run from 1 to
            the number of frames).
        min_confidence: least confidence of a sample, where the file states it.
        columns: name of a column, by what it holds: time, x, y, frame, duration, observer, gaze_type, valid, invalid,
            stimulus or depth; an empty name leaves the column out; repeatable.

    Raises:
        ConfigError: a value is not of its form.
    """

    tracker: Annotated[Tracker, Parameter(name=["--gaze-from", "--from"])] = "auto"
    units: Annotated[Units, _option("units")] = "auto"
    time_unit: Annotated[TimeUnit, _option("time-unit")] = "auto"
    origin: Annotated[Origin, _option("origin")] = "auto"
    offset: Annotated[float | None, _option("offset", metavar="SECONDS")] = None
    screen: Annotated[str | None, _option("screen", "size", metavar="WIDTHxHEIGHT")] = None
    picture: Annotated[str | None, _option("picture", metavar="PLACE")] = None
    stimulus: Annotated[str | None, _option("stimulus", metavar="NAME")] = None
    first_frame: Annotated[int | None, _option("first-frame", metavar="N")] = None
    min_confidence: Annotated[float, _option("min-confidence", metavar="SHARE")] = 0.6
    columns: Annotated[
        tuple[tuple[str, str], ...], assignments("--gaze-column", "--column", metavar="ROLE=NAME")
    ] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(dict(self.columns or ()).items()))
        for name, kind in {
            "tracker": Tracker,
            "units": Units,
            "time_unit": TimeUnit,
            "origin": Origin,
        }.items():
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
        """(left, top, width, height) of `picture`, None where it is a name."""
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
    known = [field.name for field in fields(Reading) if field.name != "columns"]
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
