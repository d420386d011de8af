"""A report on a film: when and where attention is concentrated, as one page that needs nothing else, and as tables."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avsal.applications.attention import saved, source_of
from avsal.applications.paths import FloatArray
from avsal.data.gaze.options import Reading
from avsal.errors import DataError
from avsal.files import csv_cells, write_json, write_text, writing
from avsal.inference.files import gaze_points
from avsal.io.render import colourise, overlay
from avsal.io.shots import ShotDetector
from avsal.io.video import VideoStream, probe
from avsal.metrics.functional import nss

#: Largest overlay film that is put into the page, in bytes; a larger one is linked to.
LARGEST_FILM = 60_000_000
#: How many stills, their width in pixels, and how many seconds lie between two of them at least.
STILLS, STILL_WIDTH, STILL_APART = 6, 320, 1.0
COLUMNS = ("time", "entropy", "spread", "x", "y", "steadiness")


@dataclass(frozen=True)
class Area:
    """An area of interest: a box with a name, for the whole film or some of it.

    Attributes:
        name: what it is called.
        left, top, right, bottom: 0..1 of the picture.
        start, end: seconds.
    """

    name: str
    left: float
    top: float
    right: float
    bottom: float
    start: float = -np.inf
    end: float = np.inf


@dataclass
class Viewing:
    """What a film's maps say about its attention.

    Attributes:
        film: its file.
        folder: of the maps.
        rows: (n, 6) of `COLUMNS`: seconds; entropy of the map in 0..1 of the largest possible; spread, the standard
            distance from the centre of attention in picture widths; that centre, 0..1; the correlation of the map
            with the one before (NaN for the first).
        mean: (h, w) mean share of attention; sums to 1.
        cuts: seconds at which new shots begin.
        stills: (seconds, picture) of the most concentrated moments, (H, W, 3) uint8 with the heat map over it.
        areas: (n,) share of attention inside each area at each frame, NaN outside its time.
        against: (n,) correlation with another checkpoint's maps at each frame, if these were given.
        nss: (n,) NSS of the map for the gaze recorded until the next frame, NaN where there is none, if it was given.
    """

    film: Path
    folder: Path
    rows: FloatArray
    mean: FloatArray
    cuts: list[float]
    stills: list[tuple[float, np.ndarray]]
    areas: dict[str, FloatArray]
    against: FloatArray | None = None
    nss: FloatArray | None = None

    @property
    def extra(self) -> dict[str, FloatArray]:
        """What was asked for beyond `rows`, by name: shares of areas, agreement with other maps, NSS of gaze."""
        more = {"agreement": self.against, "nss": self.nss}
        return self.areas | {name: values for name, values in more.items() if values is not None}

    def summary(self) -> dict[str, Any]:
        """Return the film's means as plain JSON; numbers that do not exist are null."""
        means = {name: _mean(self.rows[:, k]) for k, name in enumerate(COLUMNS) if k}
        return {
            "film": self.film.name,
            "frames": len(self.rows),
            "seconds": round(float(np.ptp(self.rows[:, 0])), 3),
            "cuts": len(self.cuts),
            **means,
            "areas": {name: _mean(values) for name, values in self.areas.items()},
            "agreement": None if self.against is None else _mean(self.against),
            "nss": None if self.nss is None else _mean(self.nss),
        }

    def table(self) -> tuple[list[str], FloatArray]:
        """Return the names and the values of all columns, one row for each frame."""
        return [*COLUMNS, *self.extra], np.column_stack([self.rows, *self.extra.values()])


def read_areas(path: Path) -> list[Area]:
    """Return the areas of a CSV table: name, left, top, right, bottom (0..1), and perhaps start and end (seconds).

    Raises:
        DataError: the file cannot be read, a column is missing, or a box is none; with the line.
    """
    areas = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.DictReader(file), 2):
                try:
                    box = [float(row[name]) for name in ("left", "top", "right", "bottom")]
                    span = [float(row[name]) for name in ("start", "end") if row.get(name)]
                    areas.append(Area(row["name"], *box, *span))
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(
                        f"{path}, line {line}: expected columns name, left, top, right, bottom ({error})."
                    ) from None
                if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1 and areas[-1].name):
                    raise DataError(
                        f"{path}, line {line}: expected a name and a box within 0..1 of the picture."
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV table ({error}).") from None
    return areas


def view(
    folder: Path,
    *,
    areas: Sequence[Area] = (),
    against: Path | None = None,
    gaze: Path | None = None,
    reading: Reading | None = None,
) -> Viewing:
    """Return what the maps of a folder of `avsal predict` say.

    Args:
        folder: the result; its film must still be in its place.
        areas: boxes whose share of attention is wanted.
        against: another result of the same film.
        gaze: a gaze table, of any number of viewers.
        reading: how to read it.

    Raises:
        DataError: a result is not complete, or the two are not of the same frames.
    """
    film, place = source_of(folder)
    if place is None:
        raise DataError(f"{folder}: no folder of `avsal predict`; run that first.")
    others = None if against is None else saved(against)
    rows, shares, agreement = [], {area.name: [] for area in areas}, []  # type: ignore[var-annotated]
    mean, last = None, None
    for time, map_ in saved(folder):
        mean = map_ if mean is None else mean + map_
        rows.append((time, *_concentration(map_), _correlation(map_, last)))
        last = map_
        for area in areas:
            inside = area.start <= time <= area.end
            shares[area.name].append(_share(map_, area) if inside else np.nan)
        if others is not None:
            when, other = next(others, (np.nan, map_))
            if abs(when - time) > 1e-3 or np.isnan(when):
                raise DataError(
                    f"{against}: its frames are not those of {folder} (at {time:.3f} s); use one --stride."
                )
            agreement.append(_correlation(map_, other))
    if mean is None:
        raise DataError(f"{folder}: there is no map.")
    found = np.array(rows)
    cuts, stills = _pictures(film, folder, found)
    if gaze is not None:
        points, _ = gaze_points(gaze, reading or Reading(), probe(film))
        scores = _scores(folder, found[:, 0], points)
    return Viewing(
        film, folder, found, mean / mean.sum(), cuts, stills,
        {name: np.array(values) for name, values in shares.items()}, np.array(agreement) if agreement else None,
        None if gaze is None else scores,
    )  # fmt: skip


def write_page(found: Viewing, out: Path) -> Path:
    """Write the page, and beside it all numbers as CSV, JSON and, where pyarrow is installed, Parquet.

    Args:
        found: what to show.
        out: the .html file.
    """
    names, values = found.table()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(csv_cells(names))
    writer.writerows([["" if np.isnan(value) else f"{value:.6g}" for value in row] for row in values])
    write_text(out.with_suffix(".csv"), text.getvalue())
    write_json(out.with_suffix(".json"), found.summary())
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        pass
    else:
        with writing(out.with_suffix(".parquet")) as partial:
            parquet.write_table(arrow.table({name: values[:, k] for k, name in enumerate(names)}), partial)
    film = found.folder / "overlay.mp4"
    size = film.stat().st_size if film.is_file() else None
    page = _environment().get_template("film.html").render(
        summary=found.summary(),
        timeline=_timeline(found),
        film=_data("video/mp4", film.read_bytes()) if size is not None and size <= LARGEST_FILM else None,
        link=film.resolve().as_uri() if size is not None and size > LARGEST_FILM else None,
        mean=_png(colourise(found.mean, peak=None)),
        shares=found.mean.round(7).tolist(),
        stills=[(f"{time:.2f}", _jpeg(picture)) for time, picture in found.stills],
        cuts=[f"{time:.2f}" for time in found.cuts],
    )  # fmt: skip
    return write_text(out, page)


def write_index(pages: Sequence[tuple[Viewing, Path]], out: Path) -> Path:
    """Write a table of several films with links to their pages; a click on a heading sorts it."""
    rows = [(page.name, found.summary()) for found, page in pages]
    return write_text(out, _environment().get_template("films.html").render(rows=rows, columns=COLUMNS[1:]))


def _concentration(map_: FloatArray) -> tuple[float, float, float, float]:
    """Return entropy (0..1), spread (picture widths) and the centre (x, y in 0..1) of a map's attention."""
    height, width = map_.shape
    share = map_[map_ > 0]
    entropy = float(-(share * np.log2(share)).sum() / np.log2(max(map_.size, 2)))
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    across, down = map_.sum(0), map_.sum(1)
    middle_x, middle_y = float(across @ x), float(down @ y)
    ratio = height / width  # cells are taken for squares
    spread = float(np.sqrt(across @ (x - middle_x) ** 2 + ratio**2 * (down @ (y - middle_y) ** 2)))
    return entropy, spread, middle_x, middle_y


def _share(map_: FloatArray, area: Area) -> float:
    """Return the share of attention inside a box; attention is even within a cell."""

    def covered(cells: int, low: float, high: float) -> FloatArray:
        begin = np.arange(cells)
        return np.clip(np.minimum(begin + 1, high * cells) - np.maximum(begin, low * cells), 0, 1)

    height, width = map_.shape
    return float(covered(height, area.top, area.bottom) @ map_ @ covered(width, area.left, area.right))


def _correlation(one: FloatArray, other: FloatArray | None) -> float:
    if other is None or one.shape != other.shape or not (one.std() and other.std()):
        return float("nan")
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _scores(folder: Path, times: FloatArray, points: FloatArray) -> FloatArray:
    """Return the NSS of each map for the gaze from its time until the next one's (for the last, as long as before)."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else np.inf
    inside = points[((points[:, 1:] >= 0) & (points[:, 1:] < 1)).all(1)]
    frame = np.searchsorted(np.append(times, times[-1] + step), inside[:, 0], side="right") - 1
    found = np.full(len(times), np.nan)
    for k, (_, map_) in enumerate(saved(folder)):
        here = inside[frame == k, :0:-1]  # (y, x)
        if len(here):
            cells = (here * map_.shape).astype(np.int64)
            found[k] = float(nss(torch.from_numpy(map_), torch.from_numpy(cells)))
    return found


def _pictures(
    film: Path, folder: Path, rows: FloatArray
) -> tuple[list[float], list[tuple[float, np.ndarray]]]:
    """Return the film's cuts, and its pictures under their heat maps at the most concentrated moments."""
    chosen: list[int] = []
    for k in np.argsort(rows[:, 1], kind="stable").tolist():
        if len(chosen) < STILLS and all(abs(rows[k, 0] - rows[j, 0]) >= STILL_APART for j in chosen):
            chosen.append(k)
    maps = np.load(folder / "maps.npy", mmap_mode="r", allow_pickle=False)
    detector, cuts, stills = ShotDetector(), [], []
    wanted = {k: rows[k, 0] for k in sorted(chosen)}
    with VideoStream(film) as stream:
        for frame in stream:
            if detector.push(frame.image, frame.time) and frame.index:
                cuts.append(frame.time)
            for k in [k for k, time in wanted.items() if frame.time >= time - 1e-6]:
                del wanted[k]
                picture = Image.fromarray(frame.image)
                picture.thumbnail((STILL_WIDTH, 4 * STILL_WIDTH))
                map_ = np.asarray(maps[k], np.float32)
                map_ = map_.mean(0) if map_.ndim == 3 else map_
                map_ = map_ - map_.min()
                stills.append(
                    (frame.time, overlay(np.asarray(picture), map_ / max(float(map_.max()), 1e-12)))
                )
    return cuts, stills


def _timeline(found: Viewing) -> str:
    """Return the timeline as an SVG picture, base64."""
    from matplotlib.figure import Figure

    extra = found.extra
    figure = Figure(figsize=(10, 4.2 if extra else 3), layout="constrained")
    axes = figure.subplots(2 if extra else 1, 1, sharex=True, squeeze=False)[:, 0]
    times = found.rows[:, 0]
    labels = {1: "entropy (0 to 1)", 2: "spread (picture widths)", 5: "steadiness (CC with the frame before)"}
    for column, label in labels.items():
        axes[0].plot(times, found.rows[:, column], label=label, linewidth=1)
    for name, values in extra.items():
        axes[-1].plot(times, values, label=name.replace("$", r"\$"), linewidth=1)
    for axis in axes:
        for cut in found.cuts:
            axis.axvline(cut, color="0.6", linestyle=":", linewidth=1)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("seconds (dotted: cuts)")
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    return _data("image/svg+xml", target.getvalue())


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("avsal.applications"), autoescape=True)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: np.ndarray) -> str:
    target = io.BytesIO()
    height = max(1, round(STILL_WIDTH * image.shape[0] / image.shape[1]))
    Image.fromarray(image).resize((STILL_WIDTH, height)).save(target, "PNG")
    return _data("image/png", target.getvalue())


def _jpeg(image: np.ndarray) -> str:
    target = io.BytesIO()
    Image.fromarray(image).save(target, "JPEG", quality=85)
    return _data("image/jpeg", target.getvalue())


def _mean(values: FloatArray) -> float | None:
    known = values[~np.isnan(values)]
    return round(float(known.mean()), 4) if len(known) else None
