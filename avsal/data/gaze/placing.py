"""Where gaze lies on the picture: units, origins, screens, and where the video stood on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avsal.data.gaze.importers import SYSTEMS, Dialect, Source
from avsal.data.gaze.options import Units
from avsal.data.gaze.sheets import FloatArray, Record
from avsal.errors import ConfigError, DataError

#: Share of a picture's width or height that coordinates of unknown unit must reach. Gaze stays in the middle, but it
#: does not stay above it and to the left of it: such values count a smaller picture, have another origin, or are
#: degrees.
REACH = 0.45
#: Statistics of fewer samples say nothing.
ENOUGH = 20


def find_origin(record: Record, source: Source, unit: str | None) -> str:
    """Return where 0 is: "top", "bottom" or "centre".

    Raises:
        ConfigError: the option does not go with the unit.
    """
    given = record.reading.origin
    if unit in ("norm", "height"):
        if given not in ("auto", "centre"):
            raise ConfigError(f"units={unit!r} count from the centre; origin={given!r} does not go with it.")
        return "centre"
    if given == "centre" and unit == "normalised":
        raise ConfigError(
            f"{record.path}: origin='centre' does not say where the picture ends: pass units='norm' (-1 to 1) or "
            "'height' (-0.5 to 0.5 of the height) instead of shares of the picture."
        )
    return source.origin if given == "auto" else given


def guess_centred(record: Record, x: FloatArray, y: FloatArray) -> Units:
    """Return "pixels" for centred coordinates that can be nothing else, or raise."""
    values = np.abs(np.concatenate([x, y]))
    if np.isfinite(values).any() and np.nanquantile(values, 0.95) > 30:
        return "pixels"
    raise DataError(
        f"{record.path}: the coordinates count from the centre, as PsychoPy's do, and the file does not name their "
        "unit. Pass units='norm', 'height', 'pixels', 'cm' or 'degrees', as the experiment's window had."
    )


def place(
    record: Record, dialect: Dialect, source: Source, unit: str, origin: str, x: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return shares of the picture from its top left corner, or radians."""
    if unit == "degrees":
        return np.deg2rad(x), np.deg2rad(y)
    if unit == "radians":
        return _plausible(record.path, x, y, unit, np.pi)
    extent, rectangle = find_extent(record, dialect, source, unit)
    if unit in ("pixels", "cm"):
        if extent is None:
            raise DataError(
                f"{record.path}: gaze is in {unit}; pass size=(height, width) of the picture that they count."
            )
        x, y = x / extent[1], y / extent[0]
    elif unit == "norm":
        x, y = x / 2, y / 2
    elif unit == "height":
        if extent is None:
            raise DataError(f"{record.path}: units='height' needs the shape of the screen; pass screen=.")
        x = x * extent[0] / extent[1]
    else:
        x, y = _plausible(record.path, x, y, unit, 1.5)
    if origin == "centre":
        x, y = x + 0.5, 0.5 - y
    elif origin == "bottom":
        y = 1 - y
    if rectangle is not None and extent is not None:
        left, top, width, height = rectangle
        x, y = (x * extent[1] - left) / width, (y * extent[0] - top) / height
    check_inside(record, x, y, unit, origin)
    return x, y


def find_extent(
    record: Record, dialect: Dialect, source: Source, unit: str
) -> tuple[tuple[float, float] | None, tuple[float, float, float, float] | None]:
    """Return (height, width) of what the coordinates count, and where the picture stood on it."""
    reading, size = record.reading, record.size
    media = [constants(record, names) for names in dialect.media]
    stood = next((m for m in media if m is not None and len(m) == 4), None)
    if source.on == "media" and stood is not None and reading.screen is None:
        return (stood[3], stood[2]), None
    on_screen = source.on != "picture"
    screen: tuple[float, float] | None = None
    if reading.screen is not None:
        screen = reading.screen_size
    elif on_screen:
        sizes = [constants(record, names) for names in dialect.screen]
        stated = next((s for s in sizes if s is not None), None)
        screen = (stated[1], stated[0]) if stated is not None else record.sheet.screen
    if screen is None:
        if reading.picture is not None and reading.picture != "stretch":
            raise DataError(
                f"{record.path}: picture= says where the video stood on the screen; pass screen= too."
            )
        if on_screen and unit in ("pixels", "cm") and reading.picture is None:
            raise DataError(
                f"{record.path}: {dialect.tracker} counts the {unit} of the screen, and the file does not state "
                "its size. Pass screen='WIDTHxHEIGHT', and picture= if the video did not fill it."
            )
        if on_screen and unit != "pixels":
            record.notes.append(
                "shares of the screen: the video is taken to have filled it (screen=, picture=)"
            )
        return size, None
    if reading.rectangle is not None:
        return screen, reading.rectangle
    if on_screen and stood is not None and reading.picture is None and reading.screen is None:
        return screen, (stood[0], stood[1], stood[2], stood[3])
    if size is None or reading.picture == "stretch":
        return screen, None
    ratio = (size[1] / size[0]) / (screen[1] / screen[0])
    if reading.picture is None and abs(np.log(ratio)) > 0.01:
        raise DataError(
            f"{record.path}: the screen of {screen[1]:g}x{screen[0]:g} and the video of {size[1]}x{size[0]} have other "
            "shapes. Pass picture='fit' (bars at two sides), 'stretch', 'centre' (pixel for pixel) or "
            "'LEFT,TOP,WIDTH,HEIGHT'."
        )
    scale = 1.0 if reading.picture == "centre" else min(screen[0] / size[0], screen[1] / size[1])
    height, width = size[0] * scale, size[1] * scale
    return screen, ((screen[1] - width) / 2, (screen[0] - height) / 2, width, height)


def constants(record: Record, names: Sequence[str]) -> tuple[float, ...] | None:
    """Return the values of columns that say one thing in all rows; None if one is not there or empty."""
    found = []
    for name in names:
        column = record.sheet.find([name + system for system in SYSTEMS])
        if column is None:
            return None
        values = np.unique(record.sheet.numbers([column])[column])
        values = values[np.isfinite(values)]
        if len(values) != 1:
            if len(values) > 1:
                raise DataError(
                    f"{record.path}, column {record.sheet.header[column]!r}: holds {len(values)} values; pass "
                    "screen= and picture= instead."
                )
            return None
        found.append(float(values[0]))
    return tuple(found)


def check_inside(record: Record, x: FloatArray, y: FloatArray, unit: str, origin: str) -> None:
    """Refuse coordinates most of which cannot lie on the picture."""
    seen = np.isfinite(x)
    if record.size is None or seen.sum() < ENOUGH:
        return
    with np.errstate(invalid="ignore"):
        away = seen & ((x < -0.02) | (x > 1.02) | (y < -0.02) | (y > 1.02))
    if away.sum() <= 0.5 * seen.sum():
        return
    spans = ", ".join(
        f"{name} from {np.nanmin(v):.2f} to {np.nanmax(v):.2f}" for name, v in (("x", x), ("y", y))
    )
    if (x[seen] < 0).mean() > 0.2 or (y[seen] < 0).mean() > 0.2:
        cause = "Is 0 in the centre? Pass units='norm' or 'height', or origin='centre' for pixels."
    else:
        cause = "Pass the screen= that the gaze counts, and picture= where the video did not fill it."
    raise DataError(
        f"{record.path}: {away.sum() / seen.sum():.0%} of the samples lie outside the picture ({spans} of it, "
        f"read as {unit} from the {origin}). {cause}"
    )


def guess_units(path: Path, x: FloatArray, y: FloatArray, size: tuple[float, float] | None) -> Units:
    """Return whether coordinates are normalised or pixels by their values; raise where they may be either."""
    values = np.concatenate([x, y])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "normalised"  # nothing was tracked; no value needs a unit
    low, high = np.quantile(values, (0.05, 0.95))
    right, down = np.nanquantile(x, 0.95), np.nanquantile(y, 0.95)
    tell = f"{path}: the columns do not name the unit of the gaze coordinates, and "
    if low >= -1.5 and high <= 1.5:
        below = float(((x < -0.01) | (y < -0.01)).mean())
        settle = (
            "Pass units='normalised' if they are shares of the picture from its top left corner (with origin='bottom': "
            "from its bottom left), units='norm' or 'height' if 0 is its centre, as in PsychoPy."
        )
        if np.isfinite(x).sum() >= ENOUGH and below > 0.02:
            raise DataError(
                f"{tell}{below:.0%} of the points have a coordinate below zero, which shares of the picture have not. "
                f"{settle}"
            )
        if np.isfinite(x).sum() >= ENOUGH and (right < REACH or down < REACH):
            raise DataError(
                f"{tell}as shares they stay within x={right:.2f}, y={down:.2f}: above or to the left of its "
                f"middle. {settle}"
            )
        if low >= -0.5:
            return "normalised"
    if (values < -1.5).mean() > 0.2:
        raise DataError(
            f"{tell}{(values < -1.5).mean():.0%} of the values are below zero (from {values.min():g} to "
            f"{values.max():g}), as angles are. Pass units='degrees' or 'radians', or units='pixels' if they are (with "
            "origin='centre' if 0 is the centre)."
        )
    if high > 10:
        if size is not None:
            scale = max(np.nanquantile(x, 0.9) / size[1], np.nanquantile(y, 0.9) / size[0])
            if scale > 1.2:
                raise DataError(
                    f"{tell}they reach x={np.nanquantile(x, 0.9):g}, y={np.nanquantile(y, 0.9):g}, far outside a "
                    f"picture of {size[1]:g}x{size[0]:g}. Pass the screen= (WIDTHxHEIGHT) of the recording."
                )
            if right < REACH * size[1] and down < REACH * size[0]:
                raise DataError(
                    f"{tell}as pixels they stay within x={right:g}, y={down:g}, the upper left of a picture of "
                    f"{size[1]:g}x{size[0]:g}. Pass the screen= (WIDTHxHEIGHT) that the gaze was recorded on; or "
                    "units='pixels' if it did stay there, 'degrees' if they are."
                )
        return "pixels"
    raise DataError(
        f"{tell}values from {values.min():g} to {values.max():g} fit neither shares of the picture (0..1) nor pixels. "
        "Pass units='normalised', 'pixels', 'degrees' or 'radians'."
    )


def _plausible(
    path: Path, x: FloatArray, y: FloatArray, unit: str, limit: float
) -> tuple[FloatArray, FloatArray]:
    values = np.abs(np.concatenate([x, y]))
    if np.isfinite(values).any() and np.nanmedian(values) > limit:
        raise DataError(
            f"{path}: {unit} gaze coordinates do not have a median of {np.nanmedian(values):g}; "
            "check the unit: pixels or degrees?"
        )
    return x, y
