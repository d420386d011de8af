"""FindWho, MVVA, LEDOV and HEVC-33: fixations with start and duration, by observer.

One `video_database.mat` (v5 or v7.3) lists the videos and holds `fixdata`, N x 6: observer, video (from 1), start and
duration in ms, x and y in source pixels. LEDOV has a `Data.mat` with N x 5 for each video, MVVA may have one `.npy` of
points for each frame. The rate of a video is its container's: the .mat stores 23.976 as 23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import FixationTable, default_sigma
from avsal.data.items import VideoItem
from avsal.data.layout import fold_list, read_fold_list
from avsal.data.matfile import load_mat
from avsal.data.module import SaliencyDataModule, Split, hash_of
from avsal.data.readers import PointAnnotation, find_video, size_and_times, video_item
from avsal.errors import ConfigError, DataError
from avsal.npy import read_npy


@dataclass(frozen=True)
class VideoDatabase:
    """The content of a `video_database.mat`.

    Attributes:
        names: the videos in order of their index.
        sizes: (height, width) of each in source pixels.
        frames: number of frames of each, as stored.
        fixdata: (N, 6) observer, video (from 1), start ms, duration ms, x, y; rows with NaN are removed.
        dropped: rows with NaN.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    fixdata: NDArray[np.float64]
    dropped: int

    def of(self, name: str) -> NDArray[np.float64]:
        """Return one video's rows (n, 5): observer, start ms, duration ms, x, y."""
        rows = self.fixdata[self.fixdata[:, 1] == self.names.index(name) + 1]
        return rows[:, [0, 2, 3, 4, 5]]


@lru_cache(maxsize=4)
def read_video_database(path: Path) -> VideoDatabase:
    """Read a `video_database.mat`, v5 or v7.3.

    Raises:
        DataError: it cannot be read or is not one.
    """
    content = load_mat(path)
    inner = content.get("video_database", content)
    try:
        info, fixdata = inner["videos_info"], np.asarray(inner["fixdata"], dtype=np.float64)
        names = tuple(str(name) for name in _listed(inner.get("video_names_list", info["name_list"])))
        sizes = np.asarray(info["size"], dtype=np.float64).reshape(len(names), 2)
        frames = np.asarray(info["frames"], dtype=np.float64).reshape(-1)
        if fixdata.ndim != 2 or fixdata.shape[1] != 6:
            raise ValueError(f"fixdata is {fixdata.shape}, expected N x 6")
        if len(frames) != len(names):
            raise ValueError(f"{len(names)} names, {len(frames)} frame counts")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a video_database.mat ({type(error).__name__}: {error}).") from error
    good = np.isfinite(fixdata).all(1)
    return VideoDatabase(
        names,
        tuple((int(h), int(w)) for w, h in sizes),
        tuple(int(n) for n in frames),
        fixdata[good],
        int((~good).sum()),
    )


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(np.asarray(value, dtype=object).ravel())


def spread_fixations(
    rows: NDArray[np.float64], times: NDArray[np.float64], size: tuple[int, int]
) -> FixationTable:
    """Turn fixations with start and duration into points of every frame that they cover.

    A fixation covers frames ceil(start / dt) to ceil((start + duration) / dt), counted from 1.

    Args:
        rows: (n, 5) observer, start ms, duration ms, x, y in pixels.
        times: (m,) seconds of the video's frames.
        size: (H, W) of the pixel grid.
    """
    if len(times) == 0 or len(rows) == 0:
        empty = np.zeros(0)
        return FixationTable.build(empty, empty, empty, empty, size)
    # ceil(t / dt) from 1 is the number of frames whose display began before t.
    first = np.maximum(np.searchsorted(times - times[0], rows[:, 1] / 1000, side="left") - 1, 0)
    last = np.searchsorted(times - times[0], (rows[:, 1] + rows[:, 2]) / 1000, side="left") - 1
    counts = np.maximum(np.minimum(last, len(times) - 1) - first + 1, 0)
    which = np.repeat(np.arange(len(rows)), counts)
    offset = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return FixationTable.build(first[which] + offset, rows[which, 3], rows[which, 4], rows[which, 0], size)


def open_fixdata(database: Path, name: str, video: Path, sigma: float | None = None) -> PointAnnotation:
    """Return one video's fixations from a `video_database.mat`, on the grid of the video file."""
    content = read_video_database(database)
    height, width = content.sizes[content.names.index(name)]
    # The file at hand may be a smaller copy of the source that the fixations are in.
    size, times = size_and_times(video)
    rows = content.of(name) * (1, 1, 1, size[1] / width, size[0] / height)
    return PointAnnotation(spread_fixations(rows, times, size), sigma or default_sigma(size))


def open_data_mat(path: Path, video: Path, sigma: float | None = None) -> PointAnnotation:
    """Return the fixations of LEDOV's `Data.mat` of one video: `Data.fixdata`, N x 5."""
    content = load_mat(path)
    inner = content.get("Data", content)
    rows = np.asarray(inner.get("fixdata", []) if isinstance(inner, dict) else [], dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise DataError(f"{path}: no 'Data.fixdata' with five columns.")
    size, times = size_and_times(video)
    table = spread_fixations(rows[np.isfinite(rows).all(1)], times, size)
    return PointAnnotation(table, sigma or default_sigma(size))


def read_points_npy(path: Path) -> list[NDArray[np.float64]]:
    """Read per-frame points: an object array (frames,) of (k, 2) x and y, or a (frames, k, 2) array with NaN.

    Raises:
        DataError: the file holds something else.
    """
    try:
        frames = [np.asarray(points, dtype=np.float64).reshape(-1, 2) for points in read_npy(path)]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not an array of points for each frame ({error}).") from error
    return [points[np.isfinite(points).all(1)] for points in frames]


def open_points_npy(path: Path, video: Path, sigma: float | None = None) -> PointAnnotation:
    """Return the points of MVVA's `<id>.npy` of one video; observers are unknown."""
    from avsal.io.video import probe

    points = read_points_npy(path)
    info = probe(video)
    size = (info.height, info.width)
    frame = np.repeat(np.arange(len(points)), [len(found) for found in points])
    xy = np.concatenate([np.zeros((0, 2)), *points])
    table = FixationTable.build(frame, xy[:, 0], xy[:, 1], None, size)
    return PointAnnotation(table, sigma or default_sigma(size))


class VideoDatabaseModule(SaliencyDataModule):
    """Base of the data sets that come with `video_database.mat`.

    Where the folder has `fold_lists/<set>_list_{train,test}_<fold>_fps.txt` they are used. Otherwise the
    videos are dealt into `folds` parts by their names: part `fold` is tested, the next one validates, the others
    train. Videos of the same scene (`same_scene`) stay together.

    Args:
        root: folder with the .mat and the videos (in it, or in a folder of it such as `clips` or `videos`).
        fold: number of the fold, from 1.
        folds: number of folds.
        sigma: Gaussian of the density in pixels of the video file; 1/30 of the width by default (about one degree).
        options: see `SaliencyDataModule`.
    """

    database = "video_database.mat"
    set_name = ""
    same_scene: Mapping[str, str] = {}

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        fold: int = 1,
        folds: int = 5,
        sigma: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        if folds < 3 or not 1 <= fold <= folds:
            raise ConfigError(f"fold={fold} of folds={folds}: at least three folds, and 1 <= fold <= folds.")
        self.fold, self.folds, self.sigma = fold, folds, sigma

    def annotated(self, root: Path) -> Iterator[tuple[str, Path | None, Callable[..., PointAnnotation]]]:
        """Yield each video's name, its file (None if there is none) and the function that opens its annotation."""
        database = root / self.database
        if not database.is_file():
            raise DataError(f"{database} is missing; {self._where()}")
        for name in read_video_database(database).names:
            yield name, locate_video(root, name), partial(open_fixdata, database, name)

    def all_items(self) -> list[VideoItem]:
        """Return every video of the set, in order."""
        root, items = self.require_root(), []
        for name, video, opened in self.annotated(root):
            title = f"{self.set_name}/{name}"
            if video is None:
                self.leave_out(f"{title}: no video file {name}.* in {root} or its folders.")
            else:
                items.append(video_item(title, video, partial(opened, video=video, sigma=self.sigma)))
        return items

    def _where(self) -> str:
        return f"'avsal data info {self.name}' says where the data comes from."

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of a split."""
        items = self.all_items()
        part = self._parts([item.name.partition("/")[2] for item in items])
        return [item for item in items if part[item.name.partition("/")[2]] == split]

    def _parts(self, names: list[str]) -> dict[str, str]:
        root = self.require_root()
        lists = {s: fold_list(root, self.set_name, s, self.fold) for s in ("train", "val", "test")}
        if lists["train"] and lists["test"]:
            found = {e.name: split for split, path in lists.items() if path for e in read_fold_list(path)}
            parts = {name: found.get(name, found.get(name.lstrip("0"), "")) for name in names}
            if not lists["val"]:
                training = sorted((n for n in names if parts[n] == "train"), key=hash_of)
                parts |= dict.fromkeys(training[: max(1, len(training) // 10)], "val")
            return parts
        scenes = sorted({self.same_scene.get(name, name) for name in names}, key=hash_of)
        number = {scene: k % self.folds for k, scene in enumerate(scenes)}
        split = {self.fold - 1: "test", self.fold % self.folds: "val"}
        return {name: split.get(number[self.same_scene.get(name, name)], "train") for name in names}


def locate_video(root: Path, name: str) -> Path | None:
    """Return the file of a video in a folder or the usual folders below it."""
    for folder in ("", "clips", "videos", "video", "Videos", "our_database_video", "Our_database", "Video"):
        found = find_video(root / folder, name) or find_video(root / folder / name, name)
        if found is not None:
            return found
    return None


class HEVC33DataModule(VideoDatabaseModule):
    """HEVC-33: 33 silent test sequences of video coding, 32 observers each, cross-validated by scene."""

    name = "hevc33"
    set_name = "HEVC33"
    #: The same recording with and without text or at two sizes, and clips that share a room or its people.
    same_scene = {
        "BasketballDrillText": "BasketballDrill",
        "RaceHorsesD": "RaceHorsesC",
        **dict.fromkeys(("Vidyo3", "Vidyo4"), "Vidyo1"),
        **dict.fromkeys(("KristenAndSara", "FourPeople"), "Johnny"),
        **dict.fromkeys(("Simo", "Male", "Female", "Lee", "Couple"), "Yan"),
    }


class FindWhoDataModule(VideoDatabaseModule):
    """FindWho: 65 multi-face clips with sound, 39 observers."""

    name = "findwho"
    set_name = "FindWho"


class MVVADataModule(VideoDatabaseModule):
    """MVVA: 300 multi-face clips with sound, 34 observers; `video_database.mat` or one `.npy` for each video."""

    name = "mvva"
    set_name = "MVVA"

    def annotated(self, root: Path) -> Iterator[tuple[str, Path | None, Callable[..., PointAnnotation]]]:
        """Yield the videos of the .mat file or, without it, of the `.npy` files."""
        folder = root / "all_videos_all_frames_fixation"
        if (root / self.database).is_file() or not folder.is_dir():
            yield from super().annotated(root)
            return
        for path in sorted(folder.glob("*.npy")):
            yield path.stem, locate_video(root, path.stem), partial(open_points_npy, path)


class LEDOVDataModule(VideoDatabaseModule):
    """LEDOV: 538 silent videos, 32 observers; one folder for each with the video and `Data.mat`."""

    name = "ledov"
    set_name = "LEDOV"

    def annotated(self, root: Path) -> Iterator[tuple[str, Path | None, Callable[..., PointAnnotation]]]:
        """Yield the videos of the .mat file or, without it, of the folders with a `Data.mat`."""
        if (root / self.database).is_file():
            yield from super().annotated(root)
            return
        found = sorted(root.glob("**/Data.mat"))
        if not found:
            raise DataError(f"{root}: no folder with a Data.mat and its video; {self._where()}")
        for path in found:
            name = path.parent.name
            video = find_video(path.parent, name) or locate_video(root, name)
            yield name, video, partial(open_data_mat, path)
