"""Saliency maps that any program wrote, and the ground truth to score them against, frame by frame.

Layouts of the ground truth (`--ground-truth DIR`):

- `stavis`: `<video>/maps/eyeMap_00001.jpg` and `<video>/fixMap_00001.mat` (or png), counted from 1, at any
  depth below DIR;
- `dhf1k`: `<video>/maps/0001.png` and `<video>/fixation/0001.png` (or `fixation/maps/0001.mat`), counted from
  1;
- `crowdsal`: a grey-scale video for each clip and its fixations, a list over frames of lists of (row,
  column): `<clip>.mp4` with `<clip>.json` or `<clip>/fixations.json`, beside it or below a sister folder of
  DIR.

Predictions of a video: `<video>.mp4` (any container), `<video>.npz` or `.npy` with (T, h, w) maps, or a
    folder `<video>` with
one image for each frame, numbered like the ground truth, with a `maps.npy`, or with one video. Nothing is
extracted to disk; one frame is held at a time.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from avsal.data.fixations import NO_POINTS, distinct
from avsal.data.readers import (
    MAP_SUFFIXES,
    VIDEO_SUFFIXES,
    FolderAnnotation,
    numbered,
    read_map,
    read_point_lists,
    table_of_lists,
)
from avsal.data.sets.dhf1k import open_maps_and_fixations
from avsal.errors import DataError
from avsal.io.limits import check

Format = Literal["stavis", "crowdsal", "dhf1k"]
Array = NDArray[np.float32]
Points = NDArray[np.int64]


@dataclass
class Truth:
    """Ground truth of one frame: (H, W) density, zero where there is none, and (N, 2) (row, column) fixations."""

    density: Array
    fixations: Points


class TruthVideo(Protocol):
    """Ground truth of one video; `frame` is called with rising indices."""

    name: str
    notes: list[str]

    def frame(self, index: int) -> Truth | None:
        """Return the ground truth of a frame (0-based); None where there is none."""
        ...

    def union(self) -> Points:
        """Return (M, 2) the distinct pixels fixated in any frame."""
        ...

    def count(self) -> int:
        """Return the number of frames with ground truth."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


@dataclass(frozen=True)
class Pair:
    """A video to score: its name, its predictions (None if missing) and how to open its ground truth."""

    name: str
    prediction: Path | None
    truth: Callable[[], TruthVideo]


# -- ground truth ------------------------------------------------------------------------------------


class FolderTruth:
    """One folder of maps and fixation files, as STAViS or DHF1K lays them out.

    Args:
        name: the video.
        folder: its annotation folder.
        layout: "stavis" or "dhf1k".
    """

    def __init__(self, name: str, folder: Path, layout: Literal["stavis", "dhf1k"]) -> None:
        self.name = name
        self.notes: list[str] = []
        self._files = open_maps_and_fixations(folder) if layout == "dhf1k" else FolderAnnotation(folder)
        if not self._files.count:
            raise DataError(f"{folder}: neither maps nor fixation files; is this the layout {layout!r}?")

    def frame(self, index: int) -> Truth | None:
        """Return the ground truth of a frame (0-based)."""
        if not self._files.listed(index):
            return None
        density, found = self._files.density(index), self._files.fixations(index)
        points = found[0] if found is not None else NO_POINTS
        return Truth(np.zeros(self._files.size, np.float32) if density is None else density, points)

    def union(self) -> Points:
        """Return the distinct pixels fixated in any frame (reads every fixation file once)."""
        return self._files.union()

    def count(self) -> int:
        """Return the number of frames with a map or fixations."""
        return self._files.count

    def close(self) -> None:
        """Nothing is open."""


class VideoTruth:
    """A grey-scale video with a JSON list of fixations for every frame (AViMoS, NTIRE 2026, CrowdSAL).

    Points are read as `table_of_lists` does; what it turns or leaves out is in `notes`.

    Args:
        name: the clip.
        video: the saliency video.
        fixations: the JSON file.
        direct: decode luma directly (see `GreyStream`).
    """

    def __init__(self, name: str, video: Path, fixations: Path, *, direct: bool = False) -> None:
        from avsal.io.grey import GreyStream
        from avsal.io.video import probe

        self.name, self._path, self._last = name, video, -1
        self.notes: list[str] = []
        info, lists = probe(video), read_point_lists(fixations)
        self._count = len(lists)
        self._table, turned = table_of_lists(fixations, lists, (info.height, info.width))
        if turned:
            self.notes.append("fixations are (column, row), against the format's rule; they were turned")
        if self._table.outside:
            self.notes.append(f"{self._table.outside} fixations outside the picture were left out")
        self._stream = GreyStream(video, direct=direct)
        self._frames = enumerate(self._stream)

    def frame(self, index: int) -> Truth | None:
        """Return the ground truth of a frame (0-based); indices must rise."""
        if index <= self._last:
            raise DataError(f"{self._path}: frame {index} was asked for after frame {self._last}.")
        for number, density in self._frames:
            if number == index:
                self._last = index
                return Truth(density, self._table.at(index)[0])
        return None

    def union(self) -> Points:
        """Return the distinct pixels fixated in any frame."""
        return distinct(self._table.points, self._table.size)

    def count(self) -> int:
        """Return the number of frames of the fixation file."""
        return self._count

    def leftover(self) -> int:
        """Return how many frames of the video nobody asked for (reads to its end)."""
        return sum(1 for _ in self._frames)

    def close(self) -> None:
        """Close the video."""
        self._stream.close()


def find_pairs(
    predictions: Path,
    ground_truth: Path,
    layout: Format,
    *,
    fixations: Path | None = None,
    direct: bool = False,
) -> list[Pair]:
    """Find the videos of the ground truth and the predictions of each.

    Args:
        predictions: folder of predictions.
        ground_truth: folder of ground truth.
        layout: "stavis", "dhf1k" or "crowdsal".
        fixations: folder of the JSON files of "crowdsal", where it is not beside the videos.
        direct: decode videos' luma directly (see `GreyStream`).

    Raises:
        DataError: a folder is missing or holds no ground truth of this layout.
    """
    for folder in (predictions, ground_truth, *((fixations,) if fixations else ())):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.")
    truths: dict[str, Callable[[], TruthVideo]] = {}
    if layout == "crowdsal":
        for video in sorted(p for p in ground_truth.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
            json_file = _fixation_file(video, ground_truth, fixations)
            truths[video.stem] = _OpenVideoTruth(video.stem, video, json_file, ground_truth, direct)
    else:
        below = ground_truth.rglob("*") if layout == "stavis" else ground_truth.iterdir()
        for folder in sorted({ground_truth, *(p for p in below if p.is_dir())}):
            if _annotated(folder, layout):
                name = folder.relative_to(ground_truth).as_posix() if folder != ground_truth else folder.name
                truths[name] = _OpenFolderTruth(name, folder, layout)
    if not truths:
        raise DataError(
            f"{ground_truth}: no ground truth in the layout {layout!r} here; see `avsal evaluate --help`."
        )
    return [Pair(name, find_prediction(predictions, name), truth) for name, truth in truths.items()]


@dataclass(frozen=True)
class _OpenFolderTruth:
    name: str
    folder: Path
    layout: Literal["stavis", "dhf1k"]

    def __call__(self) -> TruthVideo:
        return FolderTruth(self.name, self.folder, self.layout)


@dataclass(frozen=True)
class _OpenVideoTruth:
    name: str
    video: Path
    fixations: Path | None
    root: Path
    direct: bool

    def __call__(self) -> TruthVideo:
        if self.fixations is None:
            raise DataError(
                f"{self.video}: no fixations for this clip; looked for {self.name}.json and {self.name}/fixations.json"
                f" beside it, in {self.root} and in its sister folders. Name their folder with --fixations."
            )
        return VideoTruth(self.name, self.video, self.fixations, direct=self.direct)


def _annotated(folder: Path, layout: Literal["stavis", "dhf1k"]) -> bool:
    if folder.name in ("maps", "fixation"):
        return False
    if layout == "dhf1k":
        return (folder / "maps").is_dir() or (folder / "fixation").is_dir()
    return (folder / "maps").is_dir() or next(folder.glob("fixMap_*"), None) is not None


def _fixation_file(video: Path, root: Path, named: Path | None) -> Path | None:
    name = video.stem
    if named is not None:
        places = [named]
    else:
        sisters = sorted(p for p in root.parent.iterdir() if p.is_dir() and "fixation" in p.name.lower())
        inside = sorted(p for p in root.iterdir() if p.is_dir() and "fixation" in p.name.lower())
        places = [video.parent, root, *inside, *sisters]
        places += [p / "Test" for p in places]
    for place in places:
        for candidate in (place / f"{name}.json", place / name / "fixations.json"):
            if candidate.is_file():
                return candidate
    return None


# -- predictions -------------------------------------------------------------------------------------


def find_prediction(root: Path, name: str) -> Path | None:
    """Return the file or folder with the predictions of a video, under its name or its last part."""
    for candidate in dict.fromkeys((name, Path(name).name)):
        base = root / candidate
        for suffix in (".npz", ".npy", *VIDEO_SUFFIXES):
            for path in (base.with_name(base.name + suffix), base.with_name(base.name + suffix.upper())):
                if path.is_file():
                    return path
        if base.is_dir():
            return base
    return None


@dataclass
class Predictions:
    """The predicted maps of one video, in order.

    Args:
        path: a video, .npz, .npy, or a folder of images (or with one of the former in it).
        first: number in the name of an image that belongs to the first frame.
        direct: decode videos' luma directly (see `GreyStream`).

    Attributes:
        eight_bit: whether the maps come from 8-bit files.
        notes: what the reader has to say about the files.
    """

    path: Path
    first: int = 1
    direct: bool = False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._inner = self.path
        self._indices: list[int] | None = None
        if self.path.is_dir():
            self._images = numbered(self.path, MAP_SUFFIXES)
            if not self._images:
                self._inner = self._single()
        self.eight_bit = self._inner.suffix.lower() not in (".npz", ".npy")

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        """Yield 0-based frame numbers and (h, w) float32 maps."""
        if self._inner.is_dir():
            for number, image in self._images.items():
                if number < self.first:
                    raise DataError(
                        f"{image}: numbered below the first frame, {self.first}; see --first-frame."
                    )
                yield number - self.first, read_map(image)
        elif self._inner.suffix.lower() in (".npz", ".npy"):
            yield from self._arrays()
        else:
            from avsal.io.grey import GreyStream

            with GreyStream(self._inner, direct=self.direct) as stream:
                yield from enumerate(stream)
                self.notes.extend(f"{self._inner.name}: {error}" for error in stream.errors)

    def count(self) -> int | None:
        """Return the number of maps where that is known without reading them."""
        return len(self._images) if self._inner.is_dir() else None

    def _single(self) -> Path:
        # `avsal predict` writes maps.npy and saliency.mkv beside its overlay.
        for name in ("maps.npy", "maps.npz", "saliency.mkv"):
            if (self.path / name).is_file():
                self._indices = _predicted_frames(self.path / "summary.json")
                return self.path / name
        files = sorted(
            p for p in self.path.iterdir() if p.suffix.lower() in (".npz", ".npy", *VIDEO_SUFFIXES)
        )
        if len(files) != 1:
            raise DataError(
                f"{self.path}: {len(files)} videos or arrays and no numbered images; give one or the other."
            )
        return files[0]

    def _arrays(self) -> Iterator[tuple[int, Array]]:
        indices: Any = self._indices
        try:
            if zipfile.is_zipfile(self._inner):
                shapes = npz_shapes(self._inner)
                name = next(
                    (n for n, s in shapes.items() if len(s) == 3 or (len(s) == 4 and s[1] == 1)), None
                )
                if name is None:
                    raise ValueError(f"no array (T, h, w) among {', '.join(shapes) or 'no arrays'}")
                number = next((n for n in ("frame", "frames", "index") if len(shapes.get(n, ())) == 1), None)
                if number is not None:
                    with np.load(self._inner, allow_pickle=False) as loaded:
                        indices = loaded[number].tolist()
                shape, maps = shapes[name], _npz_maps(self._inner, name)
            else:
                array = np.load(self._inner, mmap_mode="r", allow_pickle=False)
                shape, maps = array.shape, iter(array)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self._inner}: cannot be read as maps ({error}).") from error
        if len(shape) != 3 and not (len(shape) == 4 and shape[1] == 1):
            raise DataError(f"{self._inner}: the array has the shape {shape}; maps are (T, h, w).")
        height, width = shape[-2:]
        check("AVSAL_MAX_PIXELS", height * width, f"{self._inner}: its maps have {width} x {height} pixels")
        if indices is not None and (len(indices) != shape[0] or np.any(np.diff(indices) <= 0)):
            raise DataError(
                f"{self._inner}: {len(indices)} frame numbers for {shape[0]} maps, or they do not rise."
            )
        try:
            for k, one in enumerate(maps):
                yield (
                    int(indices[k]) if indices is not None else k,
                    np.array(one, dtype=np.float32).reshape(height, width),
                )
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self._inner}: damaged ({error}); write it again.") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _npz_maps(path: Path, name: str) -> Iterator[Array]:
    """Give the maps of an array in a .npz file one after the other: it may unpack to gigabytes."""
    with zipfile.ZipFile(path) as bundle, bundle.open(f"{name}.npy") as file:
        shape, fortran, dtype = _header(file)
        if fortran:
            check("AVSAL_MAX_ARRAY", math.prod(shape) * dtype.itemsize, f"{path}: {name} in Fortran's order")
            yield from np.load(path, allow_pickle=False)[name]
            return
        count = math.prod(shape[1:]) * dtype.itemsize
        for _ in range(shape[0]):
            data = file.read(count)
            if len(data) < count:
                raise EOFError(f"{name} ends early")
            yield np.frombuffer(data, dtype).reshape(shape[1:])


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays in a .npz file, from their headers: nothing else is unpacked.

    Raises:
        MediaError: an array of less than two dimensions is larger than AVSAL_MAX_ARRAY (see `avsal.io.limits`).
        ValueError: an array holds pickled objects, or fewer bytes than its header says.
    """
    shapes = {}
    with zipfile.ZipFile(path) as bundle:
        for entry in bundle.infolist():
            with bundle.open(entry) as file:
                shape, _, dtype = _header(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} holds objects, or less than it announces")
            if len(shape) < 2:  # read as a whole
                check(
                    "AVSAL_MAX_ARRAY",
                    entry.file_size,
                    f"{path}: {entry.filename} has {entry.file_size:,} bytes",
                )
            shapes[entry.filename.removesuffix(".npy")] = shape
    return shapes


def _predicted_frames(summary: Path) -> list[int] | None:
    try:
        return [int(peak["frame"]) for peak in json.loads(summary.read_text())["peaks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
