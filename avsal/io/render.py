"""Writing results: heat maps over pictures, videos with the original sound, and growing .npy files.

Every writer works under a temporary name in the target's folder and renames at a successful `close`, so that
a file under its final name is always whole.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from avsal.errors import ConfigError, MediaError
from avsal.files import Partial
from avsal.io._container import DECODE_ERRORS, Closing, StrPath, open_media
from avsal.io.regions import Region, RegionMarker
from avsal.io.soundtrack import COPIED, join

# 1 / 90000 s represents 24, 25, 30, 30000/1001 … frames per second and whole milliseconds exactly.
_TIME_BASE = Fraction(1, 90000)
#: x264's options for pictures to look at.
DISPLAY = {"preset": "veryfast", "crf": "19"}


@lru_cache(maxsize=8)
def _table(colormap: str) -> np.ndarray:
    """(256, 3) uint8 colours of one of matplotlib's maps."""
    import matplotlib

    try:
        colours = matplotlib.colormaps[colormap](np.arange(256), bytes=True)
    except KeyError as error:
        raise ConfigError(
            f"colormap={colormap!r}: not a map of matplotlib; 'inferno' is the default."
        ) from error
    table = np.ascontiguousarray(colours[:, :3])
    table.setflags(write=False)
    return table


def grey(map_: np.ndarray, *, peak: float | None = 1.0, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a map as an 8-bit grey picture.

    Args:
        map_: (h, w) float, or uint8 with full scale 255.
        peak: the value that becomes 255 (for uint8 maps 1 means 255); None takes the map's maximum.
        size: (H, W) to resize to (bilinear); None keeps the map's.

    Returns:
        (H, W) uint8; negative values and NaN are 0.
    """
    values = np.asarray(map_)
    if values.ndim != 2:
        raise ValueError(f"a map has two axes (H, W), got shape {values.shape}.")
    if values.dtype == np.uint8:
        peak = 255.0 if peak == 1.0 else peak
    values = np.nan_to_num(values.astype(np.float32))
    if size is not None and values.shape != size:
        from PIL import Image

        height, width = size
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    if peak is None:
        peak = float(values.max())
    if peak <= 0:
        return np.zeros(values.shape, dtype=np.uint8)
    return (np.clip(values * (255.0 / peak), 0, 255) + 0.5).astype(np.uint8)


def colourise(map_: np.ndarray, *, colormap: str = "inferno", peak: float | None = 1.0) -> np.ndarray:
    """Return a map in the colours of a perceptually even colour map.

    Args:
        map_: (H, W) float, or uint8 with full scale 255.
        colormap: name of a matplotlib colour map.
        peak: the value that gets the last colour (for uint8 maps 1 means 255); None takes the map's maximum.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return _table(colormap)[grey(map_, peak=peak)]


def overlay(
    image: np.ndarray,
    map_: np.ndarray,
    *,
    alpha: float = 0.7,
    colormap: str = "inferno",
    peak: float | None = 1.0,
) -> np.ndarray:
    """Lay a heat map over a picture; the opacity grows with the map, so what is not salient stays visible.

    Args:
        image: (H, W, 3) uint8 RGB.
        map_: (h, w) float, or uint8 with full scale 255; resized bilinearly to the picture.
        alpha: opacity at the peak, 0..1.
        colormap: name of a matplotlib colour map.
        peak: the value with the last colour and full opacity; None takes the map's maximum.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: opacity lies in 0..1.")
    levels = grey(map_, peak=peak, size=image.shape[:2])
    weight = np.round(np.linspace(0, 256 * alpha, 256)).astype(np.uint16)
    colour = _table(colormap).astype(np.uint16) * weight[:, None]
    mixed = image * (256 - weight)[levels][..., None]
    mixed += colour[levels]
    return (mixed >> 8).astype(np.uint8)


def draw_points(
    image: np.ndarray,
    points: Iterable[Sequence[float]],
    colour: tuple[int, int, int] = (0, 255, 0),
    radius: int = 5,
) -> np.ndarray:
    """Draw filled discs with a black rim.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        points: (x, y) in pixels, origin at the top left; what lies outside the picture is cut off.
        colour: RGB.
        radius: pixels; the rim lies around it.

    Returns:
        (H, W, 3) uint8 RGB, a copy.
    """
    out = image.copy()
    height, width = out.shape[:2]
    reach = radius + 1
    for x, y in points:
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        column, row = round(float(x)), round(float(y))
        rows = slice(max(row - reach, 0), min(row + reach + 1, height))
        columns = slice(max(column - reach, 0), min(column + reach + 1, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue  # wholly outside
        dy, dx = np.mgrid[rows, columns]
        distance = (dy - row) ** 2 + (dx - column) ** 2
        out[rows, columns][distance <= reach**2] = 0
        out[rows, columns][distance <= radius**2] = colour
    return out


class _Writer(Closing):
    """A file that appears under its name when it is closed, and not at all where a `with` block fails."""

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._target = Partial(path)
        self._file: Any = None
        self._count = 0

    @abstractmethod
    def _finish(self) -> None:
        """Write what is left to write, and close the file."""

    def close(self) -> None:
        """Finish the file and give it its name; without effect when closed already."""
        if self._file is None:
            return
        try:
            self._finish()
        except BaseException:
            self.abort()
            raise
        self._file = None
        self._target.keep()

    def abort(self) -> None:
        """Give up: nothing remains on the disk. Without effect when closed already."""
        if self._file is not None:
            with contextlib.suppress(*DECODE_ERRORS):  # a file that was given up need not be whole
                self._file.close()
            self._file = None
        self._target.discard()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.close()
        else:
            self.abort()


class VideoWriter(_Writer):
    """Write pictures at given times as a video, with the sound of another file.

    H.264 (4:2:0, BT.709) that every player shows, or with `lossless` FFV1 in Matroska: the archive codec that
    FFmpeg, OpenCV and VLC read, exact to the bit, each frame on its own. (Lossless H.264 is smaller, but the
    4:4:4 profile it needs is refused by browsers and most hardware, which leaves it no advantage.)

    Args:
        path: .mp4, .mov or .mkv; .mkv with `lossless`.
        fps: nominal frames per second; the frames' true times are given to `write`.
        size: (H, W) of the pictures. H.264 needs even numbers: an odd picture gets its last row or column
            twice.
        audio_from: a file whose sound goes along (on the same time axis): copied bit by bit where the container
            allows and the sound is whole and of one kind, else encoded as AAC. A file without sound gives a video
            without sound, and so does a sound that cannot be written; `note` gives the reason.
        pixel_aspect: width over height of a pixel, for players to show the picture in the source's shape.
        lossless: store the exact pixels (times are then rounded to 1 ms by Matroska).
        grey: pictures are (H, W) instead of (H, W, 3).
        codec: FFmpeg's name of the encoder; ignored with `lossless`.
        options: the encoder's.

    Attributes:
        note: what became of the sound, once closed; None if it was copied, or encoded where the container asks for it.

    Raises:
        ConfigError: the file name does not fit the codec.
        MediaError: `audio_from` cannot be opened, or no frame was written before `close`.
    """

    def __init__(
        self,
        path: StrPath,
        fps: float | Fraction,
        size: tuple[int, int],
        *,
        audio_from: StrPath | None = None,
        pixel_aspect: float = 1.0,
        lossless: bool = False,
        grey: bool = False,
        codec: str = "libx264",
        options: Mapping[str, str] = DISPLAY,
    ) -> None:
        suffix = Path(path).suffix.lower()
        if suffix not in COPIED or (lossless and suffix != ".mkv"):
            allowed = ".mkv (lossless)" if lossless else ", ".join(COPIED)
            raise ConfigError(f"{path}: the name of this video must end in {allowed}.")
        if not fps > 0:
            raise ConfigError(f"{path}: fps={fps} must be positive.")
        super().__init__(path)
        self._size, self._lossless, self._grey = size, lossless, grey
        self._codec, self._options = codec, dict(options)
        self._marker: RegionMarker | None = None
        self._rate = Fraction(fps).limit_denominator(1001)
        self._last = -1
        self._sound = audio_from
        self.note: str | None = None
        try:
            if audio_from is not None:
                open_media(audio_from).close()
            self._file = av.open(f"file:{self._target.path}", "w")
            self._video = self._add_video()
            self._video.sample_aspect_ratio = Fraction(pixel_aspect).limit_denominator(1000)
        except BaseException:
            self.abort()
            raise

    def _add_video(self) -> Any:
        height, width = self._size
        if self._lossless:
            stream = self._file.add_stream("ffv1", rate=self._rate, options={"level": "3", "slicecrc": "1"})
            stream.pix_fmt = "gray" if self._grey else "bgr0"
            stream.height, stream.width = height, width
        else:
            try:
                stream = self._file.add_stream(self._codec, rate=self._rate, options=self._options)
            except (ValueError, av.error.FFmpegError) as error:
                raise ConfigError(
                    f"{self.path}: this FFmpeg cannot write {self._codec} here ({error}); choose another codec."
                ) from None
            stream.pix_fmt = "yuv420p"
            stream.height, stream.width = height + height % 2, width + width % 2
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = ColorRange.MPEG
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.time_base = _TIME_BASE
        self._reformatter = VideoReformatter()
        return stream

    def write(self, image: np.ndarray, time: float | None = None, regions: Sequence[Region] = ()) -> None:
        """Append a picture.

        Args:
            image: (H, W, 3) uint8 RGB, or (H, W) uint8 with `grey`.
            time: seconds, increasing; None puts the pictures 1 / fps apart.
            regions: parts that are encoded finer or coarser than the rest (libx264, libx265).
        """
        expected = self._size if self._grey else (*self._size, 3)
        if image.shape != expected or image.dtype != np.uint8:
            raise ValueError(f"{self.path}: expected uint8 {expected}, got {image.dtype} {image.shape}.")
        if not self._lossless and (image.shape[0] % 2 or image.shape[1] % 2):
            rest = [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)][: image.ndim]
            image = np.pad(image, rest, mode="edge")
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image), format="gray" if self._grey else "rgb24"
        )
        if not self._lossless:
            frame = self._reformatter.reformat(
                frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
        elif not self._grey:
            frame = self._reformatter.reformat(frame, format="bgr0")
        seconds = float(self._count / self._rate) if time is None else time
        frame.time_base = _TIME_BASE
        frame.pts = max(round(seconds / _TIME_BASE), self._last + 1)
        frame.duration = round(1 / self._rate / _TIME_BASE)
        self._last = frame.pts
        self._count += 1
        if regions:
            if self._marker is None:
                self._marker = RegionMarker((frame.height, frame.width), frame.format.name, _TIME_BASE)
            frame = self._marker(frame, regions)
        self._file.mux(self._video.encode(frame))

    def _finish(self) -> None:
        if self._count == 0:
            raise MediaError(f"{self.path}: no frame was written, so there is no video.")
        self._file.mux(self._video.encode(None))
        self._file.close()
        # The pictures are whole before the sound comes: whatever is wrong with it cannot cost them.
        if self._sound is not None:
            self.note = join(self._target.path, self._sound)


class NpyWriter(_Writer):
    """Append arrays of one shape to a .npy file, in constant memory.

    The file holds an array (n, *shape), where n is the number of arrays written; `numpy.load(path,
    mmap_mode="r")` reads it without loading it whole.

    Args:
        path: the .npy file.
        shape: shape of each array.
        dtype: type on disk; what is written is converted to it if that is safe ("same_kind").
    """

    def __init__(self, path: StrPath, shape: tuple[int, ...], dtype: Any = np.float16) -> None:
        super().__init__(path)
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._file = self._target.path.open("wb")
        self._header = self._write_header()

    def _write_header(self) -> int:
        # NumPy pads the header so that the first axis can grow in place.
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._count, *self._shape),
            },
        )
        return int(self._file.tell())

    def write(self, array: np.ndarray) -> None:
        """Append one array of the writer's shape."""
        array = np.asarray(array)
        if array.shape != self._shape:
            raise ValueError(f"{self.path}: expected shape {self._shape}, got {array.shape}.")
        self._file.write(np.ascontiguousarray(array.astype(self._dtype, casting="same_kind")).tobytes())
        self._count += 1

    def _finish(self) -> None:
        self._file.seek(0)
        if self._write_header() != self._header:
            raise MediaError(f"{self.path}: the header of this .npy file does not fit; use a newer NumPy.")
        self._file.close()
