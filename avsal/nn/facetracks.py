"""Faces followed over a film: detections every few pictures linked by overlap, in constant memory.

Everything runs on a clock of 25 ticks per second, so that the result does not depend on the film's frame rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Ticks between two detections, and the ticks on either side of one over which boxes are smoothed.
EVERY, SMOOTH = 5, 6
#: Detections in a row that may miss a face before its track ends.
GAP = 3
#: Least intersection over union of one face in two successive detections.
OVERLAP = 0.25
#: Least score of a detection that begins a track; one that goes on needs the detector's own threshold only.
BEGIN = 0.75
#: Mean difference of two pictures' thumbnails, 0..255, from which on they are two shots.
CUT = 28.0


@dataclass(slots=True)
class Track:
    """One face while it is in view.

    Attributes:
        number: unique in the film, from 0.
        start: tick of the first box that is kept.
        boxes: (left, top, right, bottom) in 0..1 for every tick from `start` on; between two detections they are
            interpolated, in a gap the last one is held.
        last: tick of the last detection that found it.
        first: tick of the first detection.
        found: how many detections found it.
        missed: how many in a row did not.
        ended: whether no box will follow.
    """

    number: int
    start: int
    boxes: list[Tensor]
    last: int
    first: int
    found: int = 1
    missed: int = 0
    ended: bool = False

    @property
    def stop(self) -> int:
        """One past the tick of the last box."""
        return self.start + len(self.boxes)

    def smooth(self, tick: int) -> Tensor:
        """Return the box at a tick: the median over 13 ticks, fewer at the track's ends."""
        low = max(tick - SMOOTH - self.start, 0)
        return torch.stack(self.boxes[low : tick + SMOOTH + 1 - self.start]).median(0).values

    def forget(self, before: int) -> None:
        """Drop the boxes of ticks before this one."""
        drop = min(max(before - self.start, 0), len(self.boxes))
        del self.boxes[:drop]
        self.start += drop


@dataclass(slots=True)
class FaceTracker:
    """Links detections to tracks.

    Attributes:
        tracks: those that are in use; `drop_ended` removes the others.
    """

    tracks: list[Track] = field(default_factory=list)
    _count: int = 0

    def cut(self, tick: int) -> None:
        """End every track before `tick`: another shot begins."""
        for track in self.tracks:
            if not track.ended:
                self._hold(track, tick - 1)
                track.ended = True

    def update(self, tick: int, faces: Tensor) -> None:
        """Take the detections of a tick.

        Args:
            tick: later than the last one.
            faces: (n, 5) left, top, right, bottom in 0..1, score.
        """
        live = [track for track in self.tracks if not track.ended]
        pairs = _matches(torch.stack([track.boxes[-1] for track in live]), faces[:, :4]) if live else {}
        for index, track in enumerate(live):
            if index in pairs:
                box, before = faces[pairs[index], :4], track.boxes[-1]
                steps = tick - track.stop + 1
                for k in range(1, steps + 1):
                    track.boxes.append(torch.lerp(before, box, k / steps))
                track.last, track.missed, track.found = tick, 0, track.found + 1
            else:
                self._hold(track, tick)
                track.missed += 1
                track.ended = track.missed > GAP
        taken = set(pairs.values())
        for index, face in enumerate(faces):
            if index not in taken and face[4] >= BEGIN:
                self.tracks.append(Track(self._count, tick, [face[:4]], tick, tick))
                self._count += 1

    def finish(self, tick: int) -> None:
        """End every track after `tick`, the film's last."""
        self.cut(tick + 1)

    @staticmethod
    def _hold(track: Track, tick: int) -> None:
        track.boxes.extend([track.boxes[-1]] * max(tick + 1 - track.stop, 0))


def _matches(tracks: Tensor, faces: Tensor) -> dict[int, int]:
    """Return which face continues which track: the pairs of largest overlap first, each used once."""
    from torchvision.ops import box_iou

    overlap = box_iou(tracks, faces)
    found: dict[int, int] = {}
    while overlap.numel() and float(overlap.max()) >= OVERLAP:
        row, column = divmod(int(overlap.argmax()), overlap.shape[1])
        found[row] = column
        overlap[row], overlap[:, column] = -1, -1
    return found
