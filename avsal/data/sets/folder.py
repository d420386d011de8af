"""Your own videos: a folder of video files with one gaze file, or one saliency video, each."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avsal.data.fixations import FixationTable, default_sigma
from avsal.data.gaze.options import Origin, Reading, TimeUnit, Tracker, Units, read_recordings
from avsal.data.gaze.tables import GazeTable, read_gaze_table
from avsal.data.items import Annotation, VideoItem
from avsal.data.module import SaliencyDataModule, Split, items_in_split
from avsal.data.readers import MapVideo, PointAnnotation, list_videos, size_and_times, video_item
from avsal.errors import ConfigError, DataError

GAZE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".asc", ".xls", ".hdf5", ".h5")
GAZE_FOLDERS = ("", "gaze", "fixations", "eyetracking")
MAP_FOLDERS = ("saliency", "maps", "density")
VIDEO_FOLDERS = ("videos", "video", "clips", "")


def table_to_fixations(table: GazeTable, times: np.ndarray, size: tuple[int, int]) -> FixationTable:
    """Put every gaze sample on the frame that was on screen at its time, a fixation with a duration on all of them.

    Args:
        table: gaze on the picture, on the video's clock.
        times: (n,) seconds of the frames.
        size: (H, W) of the video.

    Returns:
        Fixations on the video's pixels, with the rows that were left out counted by reason.

    Raises:
        DataError: nothing is left; the message gives the reasons.
    """
    if table.kind != "points":
        raise DataError(f"{table.path}: gaze angles need a camera model; give points on the picture.")
    count = len(times)
    last = times[-1] + (times[-1] - times[0]) / max(count - 1, 1)

    def frame_at(seconds: np.ndarray) -> np.ndarray:
        # Half a millisecond of grace: times are rounded in text files.
        return np.searchsorted(times, seconds + 5e-4, side="right") - 1

    if table.by_frame:
        assert table.frame is not None
        first = table.frame
    else:
        first = np.where(table.time > last, count, frame_at(table.time))
    final = first
    if table.duration is not None:
        final = np.maximum(first, np.minimum(frame_at(table.time + table.duration - 1e-3), count - 1))
        first = np.where((first < 0) & (final >= 0), 0, first)
    reason = np.array(table.reason if table.reason is not None else np.full(len(table), ""), dtype=object)
    with np.errstate(invalid="ignore"):
        inside = (table.x >= 0) & (table.x < 1) & (table.y >= 0) & (table.y < 1)
    for rows, why in (
        (~table.tracked, "lost"), (first < 0, "before the video"), (first >= count, "after the video"),
        (~inside, "outside the picture"),
    ):  # fmt: skip
        reason[rows & (reason == "")] = why
    keep = np.flatnonzero(reason == "")
    dropped = Counter(dict(table.skipped)) + Counter(str(why) for why in reason if why)
    if len(keep) == 0:
        counts = ", ".join(f"{n} {why}" for why, n in dropped.most_common())
        raise DataError(
            f"{table.path}: none of its {len(table)} samples is a fixation on a frame: {counts}. The video runs from "
            f"{times[0]:.2f} to {last:.2f} s, the samples from {table.time[0]:.2f} to {table.time[-1]:.2f} s, x from "
            f"{np.nanmin(table.x, initial=np.inf):.2f} to {np.nanmax(table.x, initial=-np.inf):.2f} and y from "
            f"{np.nanmin(table.y, initial=np.inf):.2f} to {np.nanmax(table.y, initial=-np.inf):.2f} of the picture."
        )
    rows = np.repeat(keep, (final - first + 1)[keep])
    starts = np.concatenate([[0], np.cumsum((final - first + 1)[keep])[:-1]])
    frame = first[rows] + np.arange(len(rows)) - np.repeat(starts, (final - first + 1)[keep])
    who = table.observer[rows] if table.observer is not None else None
    found = FixationTable.build(frame, table.x[rows] * size[1], table.y[rows] * size[0], who, size, count)
    return replace(found, dropped=tuple(dropped.most_common()), outside=dropped["outside the picture"])


def open_folder_annotation(
    video: Path,
    gaze: Path | None,
    maps: Path | None,
    sigma: float | None = None,
    reading: Reading | None = None,
) -> Annotation:
    """Return the reader of the gaze file or the saliency video (or both) of one video."""
    table = None
    if gaze is not None:
        size, times = size_and_times(video)
        options = vars(reading or Reading())
        table = table_to_fixations(
            read_gaze_table(gaze, size=size, times=times, video=video.stem, **options), times, size
        )
    if maps is None:
        assert table is not None
        return PointAnnotation(table, sigma or default_sigma(table.size))
    annotation = MapVideo(maps)
    if table is not None:
        scaled = (table.points + 0.5) * (np.array(annotation.size) / np.array(table.size))
        moved = FixationTable.build(table.frame, scaled[:, 1], scaled[:, 0], table.observer, annotation.size)
        annotation.table = replace(moved, dropped=table.dropped, outside=table.outside)
    return annotation


class FolderDataModule(SaliencyDataModule):
    """A folder of video files, each with a gaze file or a saliency video of the same name.

    ::

        root/a.mp4  root/a.csv            or  root/videos/a.mp4  root/gaze/a.csv
        root/b.mp4  root/saliency/b.mp4   or both of them

    A gaze file is a table with a header (CSV, TSV, Parquet): `time` (or `time_ms`, `frame`, …), `x`, `y` and, if known,
    `observer`; or what an eye tracker exports (`avsal.data.gaze.importers`). Units, origin and time base are taken from
    the columns' names or from the values; what is not certain is refused with the reason. The options from `tracker` to
    `columns` say how gaze files are read, and hold for all of them but those that `recordings` names.

    Args:
        root: the folder.
        splits: a CSV file with the columns `video` (name without suffix) and `split` (train, val, test). Without it the
            videos are dealt by their names.
        val_fraction: share of the videos that validates, without `splits`.
        test_fraction: share of the videos that is tested, without `splits`.
        sigma: Gaussian of the density in pixels; 1/30 of the width by default (about one degree on a screen).
        tracker: the software that wrote the gaze files, "auto" to recognise it by their columns.
        time_unit: unit of the times, "auto" to recognise it.
        units: unit of the coordinates, "auto" to recognise it.
        origin: where y is 0, "auto" as the tracker counts, else the top.
        offset: seconds on the gaze clock at which the video's time is 0.
        screen: "WIDTHxHEIGHT" of the screen that the gaze counts, in its pixels.
        picture: where the video stood on that screen: "fit", "stretch", "centre" or "LEFT,TOP,WIDTH,HEIGHT".
        stimulus: the video's name in the gaze files, where they hold several; its own by default.
        first_frame: number of the first frame, where gaze files number frames.
        min_confidence: least confidence of a sample, where gaze files state it.
        columns: own names of the columns "time", "x", "y", "frame", "duration", "observer", "gaze_type", "valid".
        recordings: a CSV file with the column `video` and any of these options as columns, for single recordings.
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
        tracker: Tracker = "auto",
        time_unit: TimeUnit = "auto",
        units: Units = "auto",
        origin: Origin = "auto",
        offset: float | None = None,
        screen: str | None = None,
        picture: str | None = None,
        stimulus: str | None = None,
        first_frame: int | None = None,
        min_confidence: float = 0.6,
        columns: Mapping[str, str] | None = None,
        recordings: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must leave something to train on."
            )
        self.splits = Path(splits).expanduser() if splits is not None else None
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.sigma = sigma
        self.reading = Reading(
            tracker, units, time_unit, origin, offset, screen, picture, stimulus, first_frame, min_confidence,
            tuple((columns or {}).items()),
        )  # fmt: skip
        self.recordings = Path(recordings).expanduser() if recordings is not None else None

    def all_items(self) -> list[VideoItem]:
        """Return every video that has gaze or a saliency video."""
        root = self.require_root()
        videos = next(
            (v for f in VIDEO_FOLDERS if (root / f).is_dir() and (v := list(list_videos(root / f)))), []
        )
        own = read_recordings(self.recordings, self.reading) if self.recordings is not None else {}
        items = []
        for video in videos:
            gaze = _beside(root, video, GAZE_FOLDERS, GAZE_SUFFIXES)
            maps = _beside(root, video, MAP_FOLDERS, (video.suffix, ".mp4", ".mkv", ".avi", ".webm"))
            if gaze is None and maps is None:
                self.leave_out(
                    f"{video.name}: no gaze file {video.stem}.csv and no saliency/{video.stem}.mp4 belongs to it."
                )
                continue
            reading = own.get(video.stem, self.reading)
            annotation = partial(open_folder_annotation, video, gaze, maps, self.sigma, reading)
            files = (path for path in (gaze, maps) if path is not None)
            items.append(video_item(f"{root.name}/{video.stem}", video, annotation, *files))
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
        val = self.val_fraction / (1 - self.test_fraction)
        return items_in_split(items, split, test=self.test_fraction, val=val)


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
    """Return the file of a video in the folders below the root; "" is the video's own folder."""
    places = [root / name if name else video.parent for name in folders]
    candidates = (place / f"{video.stem}{suffix}" for place in places for suffix in suffixes)
    return next((path for path in candidates if path.is_file() and path != video), None)
