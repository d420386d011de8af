"""Quality that differs within the picture: quantiser offsets on blocks, handed to the encoder by FFmpeg's `addroi`."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

#: `addroi` takes offsets as shares of the encoder's range of quantisers, which is 51 for 8 bit.
QUANTISERS = 51


class Region(NamedTuple):
    """A rectangle (pixels) and how much coarser (positive) or finer (negative) it is quantised, in quantiser steps."""

    x: int
    y: int
    width: int
    height: int
    offset: int


def regions_of(offsets: NDArray[np.int64], size: tuple[int, int]) -> list[Region]:
    """Return the rectangles of a map of blocks; neighbours of one offset become one rectangle, zeros none.

    Args:
        offsets: (rows, columns) quantiser offsets.
        size: (H, W) of the picture.
    """
    rows, columns = offsets.shape
    y = np.linspace(0, size[0], rows + 1).round().astype(int)
    x = np.linspace(0, size[1], columns + 1).round().astype(int)
    open_runs: dict[tuple[int, int, int], int] = {}  # (first column, end, offset) -> first row
    found = []
    for row in range(rows + 1):
        line = offsets[row] if row < rows else np.zeros(columns, np.int64)
        edges = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist(), columns]
        runs = {(a, b, int(line[a])) for a, b in pairwise(edges) if line[a]}
        for a, b, offset in open_runs.keys() - runs:
            top = open_runs.pop((a, b, offset))
            found.append(Region(int(x[a]), int(y[top]), int(x[b] - x[a]), int(y[row] - y[top]), offset))
        for run in runs - open_runs.keys():
            open_runs[run] = row
    return sorted(found)


class RegionMarker:
    """Marks frames with regions; the graph of filters is built anew only when the regions change.

    Args:
        size: (H, W) of the frames.
        pix_fmt: their format.
        time_base: of their times.
    """

    def __init__(self, size: tuple[int, int], pix_fmt: str, time_base: Fraction) -> None:
        self._size, self._format, self._time_base = size, pix_fmt, time_base
        self._regions: Sequence[Region] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame, regions: Sequence[Region]) -> av.VideoFrame:
        """Return the frame with its regions as side data."""
        if not regions:
            return frame
        if self._graph is None or regions != self._regions:
            self._graph, self._regions = self._build(regions), regions
        self._graph.push(frame)
        marked = self._graph.vpull()
        marked.pict_type = av.video.frame.PictureType.NONE  # the encoder chooses
        return marked

    def _build(self, regions: Sequence[Region]) -> Graph:
        graph = Graph()
        height, width = self._size
        last = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat(self._format), time_base=self._time_base
        )
        for x, y, w, h, offset in regions:
            area = graph.add("addroi", f"x={x}:y={y}:w={w}:h={h}:qoffset={offset / QUANTISERS}")
            last.link_to(area)
            last = area
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph
