"""Shot changes of a film, found by FFmpeg's `scdet` filter while the film is read."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

#: FFmpeg's measure of a shot change, 0..100: the smaller of a frame's mean difference and of that difference's change.
THRESHOLD = 10.0
#: Rows and columns that every picture is thinned out to: a cut changes the whole picture, whatever its size.
_SIZE = (96, 160)
_TIME_BASE = Fraction(1, 1_000_000)


class ShotDetector:
    """Finds the first frame of every new shot.

    Hard cuts are found; fades and dissolves are no cuts.

    Args:
        threshold: `scdet`'s threshold in percent, 0..100; higher finds fewer cuts.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._graph = _graph(threshold)
        self._last = -1

    def push(self, image: np.ndarray, time: float) -> bool:
        """Return whether a picture begins a new shot.

        Args:
            image: (H, W, 3) uint8 RGB, in the film's order.
            time: its time in seconds, increasing.
        """
        rows, columns = (
            np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(image.shape, _SIZE, strict=False)
        )
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image[rows[:, None], columns]), format="rgb24"
        )
        frame.time_base = _TIME_BASE
        frame.pts = self._last = max(round(time / _TIME_BASE), self._last + 1)
        self._graph.push(frame)
        try:
            self._graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return False
        return True


def _graph(threshold: float) -> Graph:
    graph = Graph()
    height, width = _SIZE
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=_TIME_BASE
    )
    # Only frames that begin a shot pass (`sc_pass`).
    detector = graph.add("scdet", f"threshold={threshold}:sc_pass=1")
    sink = graph.add("buffersink")
    source.link_to(detector)
    detector.link_to(sink)
    graph.configure()
    return graph
