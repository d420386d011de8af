"""Draws one video's results: the overlay with its sound, the grey-scale video and the raw maps."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from avsal.data.frames import seen_part
from avsal.errors import MediaError
from avsal.io._container import DECODE_ERRORS
from avsal.io.render import NpyWriter, VideoWriter, draw_points, grey, overlay

if TYPE_CHECKING:
    from avsal.inference.video import FrameMap, VideoPrediction

PAST, FUTURE = (255, 255, 255), (64, 224, 255)
#: How long a past gaze point stays in the picture, in seconds.
TRAIL = 0.5


class Artist:
    """Writes `overlay.mp4`, `saliency.mkv`, `maps.npy`, perhaps `correlation.mp4`, of one video as its maps arrive.

    `maps.npy` is float32 (frames, h, w), or (frames, T_out, h, w) for anticipation: the network's activated
    maps. `saliency.mkv` is lossless grey-scale FFV1, every frame stretched to 0..255. A still image gives
    `overlay.png` and `saliency.png` instead of the videos.

    Args:
        folder: where the files go.
        prediction: the run whose results arrive.
        alpha: opacity of the heat map at its peak.
        overlay: whether to draw the overlay at all.
        still: the input is a picture.
        gaze: measured gaze (time, x, y) rows, x and y in 0..1, drawn for the last half second.
        correlation: also write `correlation.mp4` from the results' "spatial_correlation": where the picture goes
            with the sound (CSTS Figure 5).
        speakers: draw the results' "faces" as frames, green the more likely they speak, and write them to
            `speakers.csv`: frame, time, track, left, top, right, bottom (0..1 of the picture), speaking (0..1 or nan).

    Attributes:
        notes: what went wrong with the videos; the maps are whole without them.
    """

    def __init__(
        self,
        folder: Path,
        prediction: VideoPrediction,
        alpha: float,
        *,
        overlay: bool = True,
        still: bool = False,
        gaze: np.ndarray | None = None,
        correlation: bool = False,
        speakers: bool = False,
    ) -> None:
        self.folder, self.prediction, self.alpha, self.still, self.gaze = (
            folder,
            prediction,
            alpha,
            still,
            gaze,
        )
        self.draws, self.correlates = overlay, correlation and not still
        self.map_size: tuple[int, int] | None = None
        self._writers: list[Any] = []
        self.notes: list[str] = []
        self._maps: NpyWriter | None = None
        self._grey: VideoWriter | None = None
        self._overlay: VideoWriter | None = None
        self._correlation: VideoWriter | None = None
        self._table = ["frame,time,track,left,top,right,bottom,speaking"] if speakers else None

    def add(self, result: FrameMap) -> dict[str, Any]:
        """Write one frame's results and return where its map peaks, as plain numbers for the summary."""
        maps = result.map.numpy()
        if self._maps is None:
            self._open(result)
        assert self._maps is not None
        self._maps.write(maps)
        # Anticipation: one picture can hold only one heat map, the mean over the future; the peaks are drawn.
        shown = maps.mean(0) if maps.ndim == 3 else maps
        stretched = _stretched(shown)
        info = self.prediction.info
        part = seen_part(info.height, info.width, self.prediction.spec)
        peaks = [_peak(m, part) for m in (maps if maps.ndim == 3 else maps[None])]
        self._draw(result, stretched, peaks if maps.ndim == 3 else [])
        if self._table is not None:
            for track, box, speaking in _faces(result):
                numbers = ",".join(f"{value:.4f}" for value in (*box, speaking))
                self._table.append(f"{result.index},{result.time:.6f},{track},{numbers}")
        row: dict[str, Any] = {"frame": result.index, "time": round(result.time, 6)}
        if result.target_times:
            row["targets"] = [round(t, 6) for t in result.target_times]
            row["x"], row["y"] = [p[0] for p in peaks], [p[1] for p in peaks]
        else:
            row["x"], row["y"] = peaks[0]
        return row

    def _open(self, result: FrameMap) -> None:
        maps, info = result.map, self.prediction.info
        self.map_size = (maps.shape[-2], maps.shape[-1])
        self._maps = NpyWriter(self.folder / "maps.npy", tuple(maps.shape), np.float32)
        self._writers.append(self._maps)
        if self.still:
            return
        fps = info.fps / self.prediction.stride
        with self._side_product("saliency.mkv"):
            self._grey = VideoWriter(
                self.folder / "saliency.mkv", fps, self.map_size, lossless=True, grey=True
            )
            self._writers.append(self._grey)
        if self.draws:
            self._overlay = self._video("overlay.mp4", result, fps)
        if self.correlates:
            self._correlation = self._video("correlation.mp4", result, fps)

    def _video(self, name: str, result: FrameMap, fps: float) -> VideoWriter | None:
        """Return a writer of pictures as large as the input's, with its sound."""
        if result.image is None:
            return None
        height, width = result.image.shape[:2]
        info = self.prediction.info
        sound = self.prediction.path if info.has_audio else None
        with self._side_product(name):
            writer = VideoWriter(
                self.folder / name, fps, (height, width), audio_from=sound, pixel_aspect=info.pixel_aspect
            )
            self._writers.append(writer)
            return writer
        return None

    @contextlib.contextmanager
    def _side_product(self, name: str, writer: VideoWriter | None = None) -> Iterator[None]:
        """Give up a video that cannot be written, with a note, instead of the maps."""
        try:
            yield
        except (*DECODE_ERRORS, MediaError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            if writer is not None:
                writer.abort()
                self._writers.remove(writer)
            self.notes.append(
                f"{self.prediction.path}: {name} could not be written ({error}); the maps are whole."
            )

    def _painted(self, result: FrameMap, map_: np.ndarray) -> np.ndarray:
        """Return the picture under a heat map; what a network that crops does not see stays as it is."""
        assert result.image is not None
        image = result.image.copy()
        height, width = image.shape[:2]
        top, left, bottom, right = seen_part(height, width, self.prediction.spec)
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        image[rows, columns] = overlay(image[rows, columns], map_, alpha=self.alpha)
        return image

    def _draw(self, result: FrameMap, stretched: np.ndarray, future: list[tuple[float, float]]) -> None:
        image = None
        if self.draws and result.image is not None:
            image = self._painted(result, stretched)
            height, width = image.shape[:2]
            radius = max(2, height // 120)
            image = draw_points(image, [(x * width, y * height) for x, y in future], FUTURE, radius)
            if self._table is not None:
                image = _framed(image, _faces(result), radius)
            if self.gaze is not None:
                near = (self.gaze[:, 0] > result.time - TRAIL) & (self.gaze[:, 0] <= result.time)
                image = draw_points(image, self.gaze[near, 1:] * (width, height), PAST, radius)
        if self.still:
            Image.fromarray(grey(stretched)).save(self.folder / "saliency.png")
            if image is not None:
                Image.fromarray(image).save(self.folder / "overlay.png")
            return
        self._append(self._grey, grey(stretched), result.time)
        if image is not None:
            self._append(self._overlay, image, result.time)
        if self._correlation is not None:
            # One map for two frames; the last of them is now.
            now = result.aux["spatial_correlation"][-1].numpy()
            self._append(self._correlation, self._painted(result, _stretched(now)), result.time)

    def _append(self, writer: VideoWriter | None, image: np.ndarray, time: float) -> None:
        if writer is not None and writer in self._writers:
            with self._side_product(writer.path.name, writer):
                writer.write(image, time)

    def close(self) -> None:
        """Finish all files."""
        if self._table is not None:
            (self.folder / "speakers.csv").write_text("\n".join(self._table) + "\n", encoding="utf-8")
        for writer in [*self._writers]:
            if not isinstance(writer, VideoWriter):
                writer.close()
                continue
            with self._side_product(writer.path.name, writer):
                writer.close()
                self.notes += [note for note in [writer.note] if note and note not in self.notes]

    def abandon(self) -> None:
        """Drop what was written so far."""
        if self._table is not None:
            (self.folder / "speakers.csv").write_text("\n".join(self._table) + "\n", encoding="utf-8")
        for writer in self._writers:
            writer.abort()


def _faces(result: FrameMap) -> list[tuple[int, list[float], float]]:
    """Return the faces of a frame: track, box in 0..1, how likely it speaks (NaN where that is not known)."""
    aux = result.aux
    rows = zip(aux["tracks"].tolist(), aux["faces"].tolist(), aux["speaking"].tolist(), strict=True)
    return [row for row in rows if row[0] >= 0]


def _framed(image: np.ndarray, faces: list[tuple[int, list[float], float]], thick: int) -> np.ndarray:
    """Draw each face's box, with its track and how likely it speaks above it."""
    picture = Image.fromarray(image)
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    for track, (left, top, right, bottom), speaking in faces:
        place, colour = (
            (left * width, top * height, right * width, bottom * height),
            _speaking_colour(speaking),
        )
        draw.rectangle(place, outline=colour, width=thick)
        draw.text((place[0], max(place[1] - 5 * thick - 4, 0)), f"{track}: {speaking:.2f}", fill=colour)
    return np.asarray(picture)


def _speaking_colour(speaking: float) -> tuple[int, int, int]:
    """Return grey for an unknown face, else a colour from red (silent) over yellow to green (speaks)."""
    if not 0.0 <= speaking <= 1.0:
        return (160, 160, 160)
    return (round(255 * min(1.0, 2 - 2 * speaking)), round(255 * min(1.0, 2 * speaking)), 0)


def _stretched(map_: np.ndarray) -> np.ndarray:
    """Stretch a map to [0, 1]; a constant map becomes zero."""
    low, high = float(map_.min()), float(map_.max())
    return np.zeros_like(map_) if high <= low else (map_ - low) / (high - low)


def _peak(map_: np.ndarray, part: tuple[float, float, float, float]) -> tuple[float, float]:
    """Return (x, y) in 0..1 of the whole picture of the centre of the map's largest pixel."""
    row, column = np.unravel_index(int(map_.argmax()), map_.shape)
    top, left, bottom, right = part
    x = left + (right - left) * (float(column) + 0.5) / map_.shape[1]
    y = top + (bottom - top) * (float(row) + 0.5) / map_.shape[0]
    return round(x, 4), round(y, 4)
