"""Grey-scale videos at their full bit depth, such as saliency maps stored as video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from avsal.errors import MediaError
from avsal.io._container import DECODE_ERRORS, Closing, StrPath, open_media, require_video
from avsal.io.picture import Painter


class GreyStream(Closing):
    """The frames of a grey-scale video, once, in order, in constant memory.

    Iterate to get (H, W) float32 arrays: 0..255 of 8-bit videos, 0..65535 of deeper ones (see `Painter.grey`).

    Args:
        path: any video that FFmpeg can open.
        direct: take the luma as 16-bit grey instead, without the way through RGB.

    Attributes:
        count: frames that the container announces, None if it does not.
        errors: what went wrong while decoding; a file that breaks off ends early.

    Raises:
        MediaError: the file is missing, empty, or holds no video.
    """

    def __init__(self, path: StrPath, *, direct: bool = False) -> None:
        self.path, self.direct = path, direct
        self._container = open_media(path)
        try:
            self._stream = require_video(self._container, path)
        except BaseException:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self.count: int | None = self._stream.frames or None
        self.errors: list[str] = []
        self._painter = Painter()

    def __iter__(self) -> Iterator[np.ndarray]:
        found = 0
        try:
            for frame in self._container.decode(self._stream):
                found += 1
                yield self._painter.grey(frame, direct=self.direct)
        except DECODE_ERRORS as error:
            self.errors.append(str(error))
        if not found:
            reason = f" ({self.errors[0]})" if self.errors else ""
            raise MediaError(
                f"{self.path}: not one frame can be decoded{reason}; copy or convert the file again."
            )

    def close(self) -> None:
        """Close the file."""
        self._container.close()
