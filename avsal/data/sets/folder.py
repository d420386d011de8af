"""Your own videos: a folder of video files with one gaze file, or one saliency video, each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avsal.data.fixations import FixationTable
from avsal.data.gaze.tables import FIXATION, GazeTable, Origin, TimeUnit, Units, read_gaze_table
from avsal.data.items import Annotation, MapVideo, OpenVideo, PointAnnotation, VideoItem, list_videos
from avsal.data.layout import default_sigma
from avsal.data.module import SaliencyDataModule, Split
from avsal.data.sets.audiovisual import held_out
from avsal.errors import ConfigError, DataError

GAZE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
GAZE_FOLDERS = ("", "gaze", "fixations", "eyetracking")
MAP_FOLDERS = ("saliency", "maps", "density")
VIDEO_FOLDERS = ("videos", "video", "clips", "")


def table_to_fixations(table: GazeTable, times: np.ndarray, size: tuple[int, int]) -> FixationTable:
    """Put every gaze sample on the frame that was on screen at its time.

    Args:
        table: gaze on the picture, on the video's clock.
        times: (n,) seconds of the frames.
        size: (H, W) of the video.

    Returns:
        Fixations on the video's pixels. Samples before the first or after the last frame, lost ones, and those that
        the table marks as saccade, outside or untracked are left out.
    """
    if table.kind != "points":
        raise DataError(f"{table.path}: gaze angles need a camera model; give points on the picture.")
    if np.isfinite(table.time).all():
        # Half a millisecond of grace: times are rounded in text files.
        frame = np.searchsorted(times, table.time + 5e-4, side="right") - 1
        last = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1)
        frame = np.where(table.time > last, len(times), frame)
    else:
        assert table.frame is not None
        frame = table.frame
    keep = table.tracked
    if table.gaze_type is not None:
        keep &= table.gaze_type == FIXATION
    who = table.observer[keep] if table.observer is not None else None
    return FixationTable.build(
        frame[keep], table.x[keep] * size[1], table.y[keep] * size[0], who, size, len(times)
    )


@dataclass(frozen=True)
class OpenFolderAnnotation:
    """Opens the gaze file or the saliency video of one video."""

    video: Path
    gaze: Path | None
    maps: Path | None
    sigma: float | None = None
    offset: float = 0.0
    options: tuple[tuple[str, Any], ...] = field(default=())

    def __call__(self) -> Annotation:
        """Return the annotation."""
        from avsal.io.video import VideoReader

        table = None
        if self.gaze is not None:
            with VideoReader(self.video) as reader:
                size = (reader.info.height, reader.info.width)
                times, fps = reader.times, reader.fps
            options = dict(self.options)
            options["columns"] = dict(options.get("columns") or ())
            gaze = read_gaze_table(self.gaze, size=size, fps=fps, **options).shifted(self.offset)
            gaze.check_span(float(times[-1] - times[0]))
            table = table_to_fixations(gaze, times, size)
            if len(table.frame) == 0:
                raise DataError(
                    f"{self.gaze}: no sample lies on a frame of {self.video.name} ({times[0]:.2f} to "
                    f"{times[-1]:.2f} s). The samples run from {np.nanmin(gaze.time):.2f} to "
                    f"{np.nanmax(gaze.time):.2f} s: pass offset= in seconds if the clocks differ, or time_unit=."
                )
        if self.maps is None:
            assert table is not None
            return PointAnnotation(table, self.sigma or default_sigma(table.size))
        annotation = MapVideo(self.maps)
        if table is not None:
            scaled = (table.points + 0.5) * (np.array(annotation.size) / np.array(table.size))
            annotation.table = FixationTable.build(
                table.frame, scaled[:, 1], scaled[:, 0], table.observer, annotation.size
            )
        return annotation


class FolderDataModule(SaliencyDataModule):
    """A folder of video files, each with a gaze file or a saliency video of the same name.

    ::

        root/a.mp4  root/a.csv            or  root/videos/a.mp4  root/gaze/a.csv
        root/b.mp4  root/saliency/b.mp4   or both of them

    A gaze file is CSV, TSV or Parquet with a header: `time` (or `time_ms`, `frame`, …), `x`, `y` and, if known,
    `observer`. Units and time base are taken from the columns' names or from the values; what is not certain is
    refused with the reason.

    Args:
        root: the folder.
        splits: a CSV file with the columns `video` (name without suffix) and `split` (train, val, test). Without it the
            videos are dealt by their names.
        val_fraction: share of the videos that validates, without `splits`.
        test_fraction: share of the videos that is tested, without `splits`.
        sigma: Gaussian of the density in pixels; 1/30 of the width by default (about one degree on a screen).
        time_unit: unit of the times, "auto" to recognise it.
        units: unit of the coordinates, "auto" to recognise it.
        origin: where y is 0.
        columns: own names of the columns "time", "x", "y", "frame", "observer", "gaze_type".
        offset: seconds on the gaze clock at which the video starts.
        options: see `SaliencyDataModule`.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        splits: str | Path | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        sigma: float | None = None,
        time_unit: TimeUnit = "auto",
        units: Units = "auto",
        origin: Origin = "auto",
        columns: Mapping[str, str] | None = None,
        offset: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must leave something to train on."
            )
        self.splits = Path(splits).expanduser() if splits is not None else None
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.sigma, self.offset = sigma, offset
        self._reading = (
            ("time_unit", time_unit), ("units", units), ("origin", origin), ("columns", tuple((columns or {}).items())),
        )  # fmt: skip

    def all_items(self) -> list[VideoItem]:
        """Return every video that has gaze or a saliency video."""
        root = self.require_root()
        videos = next(
            (v for f in VIDEO_FOLDERS if (root / f).is_dir() and (v := list(list_videos(root / f)))), []
        )
        items = []
        for video in videos:
            gaze = _beside(root, video, GAZE_FOLDERS, GAZE_SUFFIXES)
            maps = _beside(root, video, MAP_FOLDERS, (video.suffix, ".mp4", ".mkv", ".avi", ".webm"))
            if gaze is None and maps is None:
                message = f"{video.name}: no gaze file {video.stem}.csv and no saliency/{video.stem}.mp4 belongs to it."
                if self.strict:
                    raise DataError(message)
                self.report(message)
                continue
            annotation = OpenFolderAnnotation(video, gaze, maps, self.sigma, self.offset, self._reading)
            files = tuple(p for p in (video, gaze, maps) if p is not None)
            items.append(
                VideoItem(
                    f"{root.name}/{video.stem}", None, None, OpenVideo(video), annotation, video, files=files
                )
            )
        if not items:
            raise DataError(
                f"{root}: no video with a gaze file or a saliency video of the same name. "
                + ("; ".join(self.left_out.values()) or "There is no video file in it.")
            )
        return items

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of a split."""
        items = self.all_items()
        if self.splits is not None:
            chosen = read_splits(self.splits)
            return [item for item in items if chosen.get(item.name.partition("/")[2]) == split]
        names = [item.name for item in items]
        test = held_out(names, self.test_fraction)
        rest = [name for name in names if name not in test]
        val = held_out(rest, self.val_fraction / (1 - self.test_fraction))
        wanted: Mapping[Literal["train", "val", "test"], set[str]] = {
            "train": set(rest) - val, "val": val, "test": test,
        }  # fmt: skip
        return [item for item in items if item.name in wanted[split]]


def read_splits(path: Path) -> dict[str, str]:
    """Read a CSV file of video and split.

    Raises:
        DataError: it cannot be read, or a split has another name than train, val or test.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
            chosen = {Path(row["video"]).stem: row["split"].strip().lower() for row in rows}
    except (OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file with the columns video and split ({error!r}).") from error
    wrong = sorted(set(chosen.values()) - {"train", "val", "test"})
    if wrong:
        raise DataError(f"{path}: unknown split {wrong[0]!r}; allowed: train, val, test.")
    return chosen


def _beside(root: Path, video: Path, folders: tuple[str, ...], suffixes: tuple[str, ...]) -> Path | None:
    for folder in (video.parent, *(root / f for f in folders if f)):
        if folder == video.parent and "" not in folders:
            continue
        for suffix in suffixes:
            candidate = folder / f"{video.stem}{suffix}"
            if candidate.is_file() and candidate != video:
                return candidate
    return None
