"""Where attention lies in a film, frame by frame: computed now, or read from a folder that `avsal predict` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.frames import seen_part
from avsal.errors import DataError
from avsal.inference.video import predict_video

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

Tick = Callable[[int, int | None], None]


def source_of(place: Path) -> tuple[Path, Path | None]:
    """Return the film and, if `place` is a folder of `avsal predict`, that folder.

    Raises:
        DataError: the folder holds no complete result, or its film is no longer there.
    """
    if not place.is_dir():
        return place, None
    film = Path(str(_summary(place)["source"].get("path", "")))
    if not film.is_file():
        raise DataError(
            f"{place}: the film of this result is no longer at {film}; give the film and --maps {place}."
        )
    return film, place


def computed(
    module: SaliencyModule, film: Path, *, stride: int = 1, batch_size: int = 8, tick: Tick | None = None
) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Yield (seconds, attention) of a film's frames; see `normalised`.

    Args:
        module: any model; of an anticipation network's maps the mean over its target times counts.
        film: the file.
        stride: every which frame.
        batch_size: windows per forward pass.
        tick: is told the frames done and, where known, how many there are.
    """
    prediction = predict_video(module, film, stride=stride, batch_size=batch_size)
    info = prediction.info
    part = seen_part(info.height, info.width, module.spec)
    total = -(-info.frames // stride) if info.frames else None
    try:
        for done, result in enumerate(prediction, 1):
            yield result.time, normalised(result.map.numpy(), part)
            if tick is not None:
                tick(done, total)
    finally:
        prediction.close()


def saved(folder: Path) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Yield (seconds, attention) from a folder of `avsal predict`.

    Raises:
        DataError: the folder holds no complete result, or the maps cover a crop of the picture only.
    """
    summary = _summary(folder)
    if summary.get("model") == "CSTSModule":
        raise DataError(
            f"{folder}: maps of CSTS cover a square of the picture only; give the film and --checkpoint."
        )
    try:
        maps = np.load(folder / "maps.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: maps.npy cannot be read ({error}); run `avsal predict` again.") from None
    if len(maps) != len(summary["peaks"]):
        raise DataError(
            f"{folder}: {len(maps)} maps but {len(summary['peaks'])} frames; run `avsal predict` again."
        )
    for row, map_ in zip(summary["peaks"], maps, strict=True):
        yield float(row["time"]), normalised(np.asarray(map_), (0.0, 0.0, 1.0, 1.0))


def normalised(map_: np.ndarray, part: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return attention over the whole picture as shares that sum to 1.

    Args:
        map_: (h, w), or (T_out, h, w) of which the mean is taken; non-negative.
        part: (top, left, bottom, right) of the picture that the map covers, 0..1; nothing lies outside it.

    Returns:
        (h', w') float64, the map's own cells where it covers the whole picture; a map of zeros is even.
    """
    values = np.maximum(np.asarray(map_, np.float64), 0)
    values = values.mean(0) if values.ndim == 3 else values
    top, left, bottom, right = part
    if part != (0.0, 0.0, 1.0, 1.0):
        height, width = values.shape
        rows, columns = round(height / (bottom - top)), round(width / (right - left))
        whole = np.zeros((max(rows, height), max(columns, width)))
        row = min(round(top * rows), len(whole) - height)
        column = min(round(left * columns), whole.shape[1] - width)
        whole[row : row + height, column : column + width] = values
        values = whole
    total = values.sum()
    return values / total if total > 0 else np.full(values.shape, 1 / values.size)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return {"peaks": list(found["peaks"]), "source": dict(found["source"]), "model": str(found["model"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder}: no complete result of `avsal predict` (its summary.json is missing or damaged)."
        ) from None
