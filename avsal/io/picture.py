"""From decoded frames to upright RGB arrays, and what a still image's file says beside its pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer


class Orientation(NamedTuple):
    """How a stored picture becomes the shown one: first mirrored left to right, then turned counter-clockwise."""

    mirrored: bool = False
    turns: int = 0  #: quarter turns, 0..3

    @property
    def swaps(self) -> bool:
        """Whether height and width change places."""
        return self.turns % 2 == 1

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return (H, W, …) as it is shown, C-contiguous."""
        image = image[:, ::-1] if self.mirrored else image
        return np.ascontiguousarray(np.rot90(image, self.turns))


#: The eight values of EXIF's tag "Orientation".
_EXIF = {
    1: Orientation(),
    2: Orientation(True, 0),
    3: Orientation(False, 2),
    4: Orientation(True, 2),
    5: Orientation(True, 1),
    6: Orientation(False, 3),
    7: Orientation(True, 3),
    8: Orientation(False, 1),
}


def orientation(frame: VideoFrame) -> Orientation:
    """Return the display matrix of a frame, to the nearest of the eight orientations."""
    try:
        matrix = np.frombuffer(bytes(frame.side_data[Type.DISPLAYMATRIX]), "<i4")  # type: ignore[typeddict-item]
    except KeyError:
        return Orientation()
    except ValueError:  # PyAV cannot list side data of kinds that are new to it
        return Orientation(False, round(frame.rotation / 90) % 4)
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return Orientation(mirrored, round(-math.degrees(math.atan2(b, a)) / 90) % 4)


def is_still(container: InputContainer) -> bool:
    """Return whether a file is a still image."""
    name = container.format.name
    return name == "image2" or name.endswith("_pipe")


def examine_still(path: Path) -> tuple[Orientation, str | None]:
    """Return what Pillow finds in an image file: its EXIF orientation, and what is wrong with its data.

    FFmpeg fills what a cut file lacks with grey and does not say so.
    """
    try:
        with Image.open(path) as image:
            found = _EXIF.get(image.getexif().get(Base.Orientation, 1), Orientation())
            try:
                image.load()
            except (OSError, SyntaxError, ValueError, EOFError) as error:
                return found, f"the picture is cut or damaged ({error})"
            return found, None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return Orientation(), None  # not one of Pillow's formats: FFmpeg decides


class Painter:
    """Turns decoded frames into upright RGB arrays of one size.

    Args:
        fixed: the orientation of all frames; None takes each frame's own.
    """

    def __init__(self, fixed: Orientation | None = None) -> None:
        # Keeps the scaler: making one for each frame costs more than its use.
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._fixed = fixed

    def orientation(self, frame: VideoFrame) -> Orientation:
        """Return how a frame is shown."""
        return orientation(frame) if self._fixed is None else self._fixed

    def paint(self, frame: VideoFrame) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB of the first frame's size, also where the stream's size changes half-way."""
        shown = self.orientation(frame)
        upright = (frame.width, frame.height) if shown.swaps else (frame.height, frame.width)
        self._size = self._size or upright
        height, width = self._size[::-1] if shown.swaps else self._size
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR
        )
        return shown.apply(rgb.to_ndarray())

    def grey(self, frame: VideoFrame, *, direct: bool = False) -> np.ndarray:
        """Return (H, W) float32, upright: 0..255 of an 8-bit frame, else 0..65535 (see `white`).

        The value is that of extracting pictures with FFmpeg and averaging their channels: colour formats go through
        RGB. `direct` takes the luma as 16-bit grey instead.
        """
        plain = direct or len(frame.format.components) == 1
        deep = white(frame) > 255
        if plain:
            target = "gray16le" if direct or deep else "gray"
        else:
            target = "rgb48le" if deep else "rgb24"
        image = self._reformatter.reformat(frame, format=target).to_ndarray().astype(np.float32)
        return self.orientation(frame).apply(image if plain else image.mean(-1, dtype=np.float32))


def white(frame: VideoFrame) -> int:
    """Return the largest value of `Painter.grey`: 255 of 8-bit frames, 65535 of deeper ones."""
    return 65535 if max((c.bits for c in frame.format.components), default=8) > 8 else 255
