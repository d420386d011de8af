"""A data set in one file, for training from network storage.

A pack is an HDF5 file with one group for each video: its frames at the network's size (uint8, what the resize
gives before normalisation), its waveform at the network's rate, and its annotation on its own grid. Batches from a
pack equal those from the folder, bit by bit. Why HDF5: a training clip is a random slice of a random
video, and a slice is one read of a contiguous block there; shards of tar files (WebDataset) are read in order, so
clips would have to be cut before training; h5py is a dependency already, for MATLAB files.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avsal.data.fixations import NO_POINTS, FixationTable, IntArray
from avsal.data.frames import FramePreprocessor
from avsal.data.items import Annotation, Frames, OpenItem, VideoItem
from avsal.data.readers import PointAnnotation
from avsal.errors import AvsalError, ConfigError, DataError
from avsal.files import writing
from avsal.types import ClipSpec

FORMAT = 1
#: Frames that are resized and written at once.
BLOCK = 64


def frame_key(spec: ClipSpec) -> dict[str, Any]:
    """Return what of a specification decides how packed frames and sound look."""
    return {
        "size": list(spec.size),
        "resize": spec.resize,
        "via": list(spec.via) if spec.via else None,
        "via_filter": spec.via_filter,
        "antialias": spec.antialias,
        "audio_rate": spec.audio.sample_rate if spec.audio else None,
        "audio": spec.audio is not None,
    }


def pack(
    items_of: Callable[[Any], Sequence[VideoItem]],
    out: str | Path,
    spec: ClipSpec,
    *,
    strict: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Write the videos of a data set into one file, which appears under its name when it is complete.

    `SaliencyDataModule.pack` calls this with its own videos.

    Args:
        items_of: returns the videos of the split "train", "val" or "test"; what it raises leaves the split out.
        out: the file to make; it must not exist.
        spec: the network's clip: frames are stored at its size, sound at its rate.
        strict: stop at the first video that cannot be read.
        progress: called with (videos done, videos in all, name).

    Returns:
        Sentences about videos that could not be read and are left out.

    Raises:
        ConfigError: `out` exists, or the network takes frames of the video's own aspect ratio.
        DataError: no video could be read.
    """
    import h5py

    out = Path(out).expanduser()
    if spec.resize == "keep_aspect":
        raise ConfigError(
            "A pack holds frames of one size; a network that keeps the aspect ratio reads the files."
        )
    if out.exists():
        raise ConfigError(f"{out} exists already; give another name or remove it yourself.")
    splits: dict[str, list[VideoItem]] = {}
    skipped: dict[str, str] = {}
    for split in ("train", "val", "test"):
        try:
            splits[split] = list(items_of(split))
        except DataError as error:
            splits[split], skipped[split] = [], f"{split}: {error}"
    items = {item.name: item for found in splits.values() for item in found}
    with writing(out) as part, _Sink(part, "w+") as sink:
        with h5py.File(sink, "w", libver=("v110", "v110")) as file:
            for done, (name, item) in enumerate(items.items(), 1):
                try:
                    _write_video(file, item, spec)
                    sink.check()
                except AvsalError as error:
                    if strict:
                        raise
                    if name in file:
                        del file[name]
                    skipped[name] = f"{name}: {error}"
                if progress:
                    progress(done, len(items), name)
            names = {
                split: [item.name for item in found if item.name not in skipped]
                for split, found in splits.items()
            }
            if not any(names.values()):
                raise DataError("Nothing to pack: " + " | ".join([*skipped.values()][:3]))
            file.attrs["avsal_pack"] = FORMAT
            file.attrs["splits"] = json.dumps(names)
            file.attrs["spec"] = json.dumps(frame_key(spec))
        sink.check()
    return list(skipped.values())


class _Sink(io.FileIO):
    """A file that takes everything, and keeps the first error of writing for its user to look at.

    HDF5 would try again and again when its objects go, and print every failure.
    """

    fault: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        size = len(view)
        while self.fault is None and len(view):
            try:
                view = view[super().write(view) :]
            except OSError as error:
                self.fault = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.fault = self.fault or error
            return size or 0

    def check(self) -> None:
        """Raise the first error."""
        if self.fault is not None:
            raise self.fault


def _write_video(file: Any, item: VideoItem, spec: ClipSpec) -> None:
    rate = spec.audio.sample_rate if spec.audio else None
    with contextlib.closing(item.open(rate, sound=spec.audio is not None)) as opened:
        group = file.create_group(item.name)
        count = opened.count
        preprocess = FramePreprocessor(spec)
        frames = group.create_dataset(
            "frames", (count, 3, *spec.size), dtype=np.uint8, chunks=(1, 3, *spec.size), fletcher32=True
        )
        for begin in range(0, count, BLOCK):
            pixels = preprocess.resized(opened.frames.read(range(begin, min(begin + BLOCK, count))))
            if pixels.dtype != torch.uint8:
                raise ConfigError("this network's resize does not end in 8 bits; its data cannot be packed.")
            frames[begin : begin + len(pixels)] = pixels.numpy()
        group.create_dataset("times", data=opened.frames.times[:count], fletcher32=True)
        group.attrs["fps"] = float(opened.frames.fps)
        group.attrs["listed"] = int(item.frames or count)
        if opened.gaze is not None:
            group.create_dataset("gaze", data=opened.gaze, fletcher32=True)
        _write_sound(group, opened)
        if opened.annotation is not None:
            _write_annotation(group.create_group("annotation"), opened.annotation, count)


def _write_sound(group: Any, opened: OpenItem) -> None:
    stream = opened.audio
    if stream is None:
        return
    pieces: list[NDArray[np.float32]] = []
    begin, step = 0, 60 * stream.rate
    while not pieces or begin < stream.length:  # the length is exact once the end has been read
        pieces.append(stream.read(begin, begin + step).numpy())
        begin += step
    wave = np.concatenate(pieces)
    sound = group.create_dataset("sound", data=wave[: stream.length], fletcher32=len(wave) > 0)
    sound.attrs["rate"], sound.attrs["has_audio"] = stream.rate, stream.has_audio


def _write_annotation(group: Any, annotation: Annotation, count: int) -> None:
    group.attrs["size"] = annotation.size
    points = [annotation.fixations(k) for k in range(count)]
    if any(found is not None for found in points):
        rows = [
            np.column_stack([np.full(len(where), k), where, who])
            for k, (where, who) in enumerate(found or (NO_POINTS, np.zeros(0, np.int64)) for found in points)
        ]
        group.create_dataset(
            "points", data=np.concatenate(rows).astype(np.int32), compression="gzip", fletcher32=True
        )
    # Negatives of images come from other images.
    group.create_dataset(
        "union", data=annotation.union().astype(np.int32), compression="gzip", fletcher32=True
    )
    sigma = getattr(annotation, "sigma", None)
    if sigma is not None:
        group.attrs["sigma"] = sigma
        return
    maps = None
    for k in range(count):
        density = annotation.density(k)
        if density is None:
            continue
        if maps is None:
            grey = bool(np.array_equal(np.rint(density * 255).astype(np.float32) / np.float32(255), density))
            maps = group.create_dataset(
                "maps", (count, *density.shape), dtype=np.uint8 if grey else np.float32,
                chunks=(1, *density.shape), compression="gzip", compression_opts=1, fletcher32=True,
            )  # fmt: skip
        if density.shape != maps.shape[1:]:
            raise DataError(f"frame {k}: a map of {density.shape} among maps of {maps.shape[1:]}.")
        maps[k] = np.rint(density * 255) if maps.dtype == np.uint8 else density


# -- reading -----------------------------------------------------------------------------------------------


def packed_items(path: Path, split: str, spec: ClipSpec) -> list[VideoItem]:
    """Return the videos of a pack's split.

    Raises:
        DataError: the file is no pack, or was made for a network of another input.
    """
    file = _file(path)
    try:
        made = dict(json.loads(file.attrs["spec"]))
        names = [str(name) for name in json.loads(file.attrs["splits"])[split]]
    except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: not a complete pack ({error}); make it again with 'avsal data pack'."
        ) from error
    wanted = frame_key(spec)
    if not wanted["audio"]:  # a network that does not hear can use a pack with sound
        wanted |= {"audio": made["audio"], "audio_rate": made["audio_rate"]}
    differing = [key for key, value in wanted.items() if made.get(key) != value]
    if differing:
        key = differing[0]
        raise DataError(
            f"{path} was packed for {key}={made.get(key)}, the model needs {key}={wanted[key]}; pack the "
            "data set again with --model."
        )
    return [_item(path, name) for name in names]


def _item(path: Path, name: str) -> VideoItem:
    where = _Where(path, name)
    listed: int | None = None
    fps: float | None = None
    # Where these are damaged, opening the video raises, and the video is left out.
    with contextlib.suppress(DataError), where.reading():
        attributes = where.group().attrs
        listed, fps = int(attributes["listed"]), float(attributes["fps"])
    return VideoItem(
        name, listed, fps, where.frames, where.annotation, None, where.gaze, where.sound, files=(path,)
    )


@contextlib.contextmanager
def _reading(path: str | Path, name: str) -> Iterator[None]:
    """Turn HDF5's errors about a damaged video into a `DataError` that names it."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: damaged in the pack {path} ({text}); pack the data set again.") from error


def _child(group: Any, name: str) -> Any:
    """Return a group or data set inside a pack; what lies outside the file is not followed.

    Raises:
        DataError: on the way is a link to elsewhere, or the values are stored in other files.
    """
    import h5py

    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise KeyError(f"{name!r} is missing, or a link")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.is_virtual or group.external):
        raise ValueError(f"the values of {name!r} are stored in other files")
    return group


def _whole(group: Any, name: str) -> NDArray[Any]:
    """Return all values of a data set, which may not be many more than its bytes in the file can hold."""
    data = _child(group, name)
    if data.nbytes > 2**20 + 1100 * data.id.get_storage_size():
        raise ValueError(f"{name!r} announces {data.nbytes:,} bytes, which are not in the file")
    return np.asarray(data[()])


_OPEN: dict[tuple[int, Path], Any] = {}


def _file(path: Path) -> Any:
    """Return the open file of this process; a forked worker opens its own."""
    import h5py

    key = (os.getpid(), path)
    if key not in _OPEN:
        try:
            _OPEN[key] = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path}: not a pack, or damaged ({error}).") from error
    return _OPEN[key]


@dataclass(frozen=True)
class _Where:
    path: Path
    name: str

    def group(self) -> Any:
        return _child(_file(self.path), self.name)

    def frames(self) -> Frames:
        with self.reading():
            return PackedFrames(self)

    def sound(self, rate: int | None) -> Any:
        with self.reading():
            return PackedSound(self) if "sound" in self.group() else None

    def gaze(self) -> Any:
        with self.reading():
            group = self.group()
            return _whole(group, "gaze") if "gaze" in group else None

    def annotation(self) -> Any:
        with self.reading():
            return _annotation(self) if "annotation" in self.group() else None

    def reading(self) -> contextlib.AbstractContextManager[None]:
        return _reading(self.path, self.name)


class PackedFrames:
    """Frames of the network's size."""

    def __init__(self, where: _Where) -> None:
        group = where.group()
        self._where, self._data = where, _child(group, "frames")
        self.times, self.fps = _whole(group, "times"), float(group.attrs["fps"])
        shape, kind = self._data.shape, self._data.dtype
        if len(shape) != 4 or shape[1] != 3 or kind != np.uint8 or shape[0] != len(self.times):
            raise ValueError(f"frames of the form {shape} and type {kind}, {len(self.times)} times")

    def __len__(self) -> int:
        return len(self.times)

    def resized(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return (n, 3, H, W) uint8 for increasing indices."""
        first, last = indices[0], indices[-1]
        with self._where.reading():
            if last - first < 2 * len(indices):  # one read of a block, then a selection
                return self._data[first : last + 1][np.asarray(indices) - first]
            return np.stack([self._data[k] for k in indices])

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return (n, H, W, 3) uint8."""
        with self._where.reading():
            return np.stack([self._data[k] for k in indices]).transpose(0, 2, 3, 1)

    def close(self) -> None:
        """The file stays open for the other videos."""


class PackedSound:
    """The waveform, read like an `avsal.io.audio.AudioStream`."""

    def __init__(self, where: _Where) -> None:
        self._where, self._data = where, _child(where.group(), "sound")
        self.rate, self.has_audio = int(self._data.attrs["rate"]), bool(self._data.attrs["has_audio"])
        self.length = len(self._data)

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Return the samples begin..end; zeros outside the file."""
        out = torch.zeros(max(end - begin, 0))
        low, high = max(begin, 0), min(end, self.length)
        if low < high:
            with self._where.reading():
                out[low - begin : high - begin] = torch.from_numpy(self._data[low:high])
        return out

    def close(self) -> None:
        """The file stays open for the other videos."""


class PackedMaps:
    """Maps and fixations of one video."""

    def __init__(self, where: _Where, group: Any, size: tuple[int, int]) -> None:
        self._where, self.size = where, size
        self._maps = _child(group, "maps") if "maps" in group else None
        self._union: IntArray = _whole(group, "union").astype(np.int64)
        self._table = _table(group, size) if "points" in group else None

    def density(self, frame: int) -> NDArray[np.float32] | None:
        """Return the map of a frame; None where there is none."""
        if self._maps is None or not 0 <= frame < len(self._maps):
            return None
        with self._where.reading():
            density = self._maps[frame]
        if not density.any():
            return None
        return density.astype(np.float32) / np.float32(255) if density.dtype == np.uint8 else density

    def fixations(self, frame: int) -> tuple[IntArray, IntArray] | None:
        """Return the points and observers of a frame."""
        return self._table.at(frame) if self._table is not None else None

    def union(self) -> IntArray:
        """Return the pixels that negatives are drawn from."""
        return self._union


def _table(group: Any, size: tuple[int, int]) -> FixationTable:
    rows = _whole(group, "points").astype(np.int64).reshape(-1, 4)
    return FixationTable(rows[:, 0], rows[:, 1:3], rows[:, 3], size)


def _annotation(where: _Where) -> Annotation:
    """Return the annotation of one video."""
    group = _child(where.group(), "annotation")
    size = (int(group.attrs["size"][0]), int(group.attrs["size"][1]))
    if "sigma" not in group.attrs:
        return PackedMaps(where, group, size)
    none = np.zeros(0)
    table = _table(group, size) if "points" in group else FixationTable.build(none, none, none, none, size)
    sigma = group.attrs["sigma"]
    return PointAnnotation(table, tuple(map(float, sigma)) if np.ndim(sigma) else float(sigma))  # type: ignore[arg-type]
