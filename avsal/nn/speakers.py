"""Who speaks in a film, while it is read: detector, tracks and active-speaker network with a bounded delay.

The film goes by at 25 ticks per second, whatever its frame rate: each tick has the frame nearest to its time. Faces
are detected every fifth tick; their pictures and the sound run through the encoders of Light-ASD once, its forward GRU
keeps its state, and its backward GRU begins `AHEAD` ticks or a little more after the tick that is scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avsal.nn.facedetector import FaceDetector
from avsal.nn.facetracks import CUT, EVERY, SMOOTH, FaceTracker, Track
from avsal.nn.lightasd import FPS, RATE, REACH, ROWS, SIDE, LightASD, mfcc

#: Ticks from a scored one to where the backward GRU begins, at least; at most EVERY - 1 more.
AHEAD = 13
#: Seconds from a frame until its faces' scores are known.
DELAY = (SMOOTH + REACH + AHEAD + EVERY) / FPS
#: Ticks of sound around those that are encoded: the encoder's reach, rounded up.
SOUND_REACH = 6
#: The sound is also heard this many ticks late: the mouth's agreement with the sound is what the right time adds.
LATE = (13, 25, 38)
#: Agreement is averaged over the past: ticks until its weight has fallen to 1/e, and how many ticks of none come first.
MEMORY, DOUBT = 50.0, 12.0
#: Ticks on either side over which the picture's own score is averaged.
AROUND = 6
#: What a face's `scores` are.
SCORES = ("seen", "heard", "agrees")
#: Samples per tick.
HOP = RATE // FPS
#: Grey of what lies outside the picture.
OUTSIDE = 110


class Sound(Protocol):
    """Mono sound at 16 kHz whose first sample belongs to time 0, such as `avsal.io.audio.AudioStream`."""

    has_audio: bool

    def read(self, begin: int, end: int) -> Tensor:
        """Return the samples [begin, end), zeros where there are none."""


@dataclass(slots=True)
class Face:
    """One face at one tick.

    Attributes:
        track: number of its track.
        box: (4,) left, top, right, bottom in 0..1, smoothed.
        scores: (3,) `SCORES`: the logit "speaks" from the picture alone, the logit with the sound, and by how much
            the sound at the right time raises that over the sound late, averaged over the past seconds. Without a sound
            track the last two are 0. NaN for a face that is not scored: too many in view, or too short.
    """

    track: int
    box: Tensor
    scores: Tensor


@dataclass(slots=True)
class _Scored:
    """A track that the active-speaker network follows."""

    crop: int  # next tick whose picture is cut out
    coded: int  # next tick that is encoded
    past: list[Any] | None = None
    state: Tensor | None = None
    seen: Tensor | None = None  # (ticks,) the picture's logits, the last tick is coded - 1
    waiting: Tensor | None = (
        None  # (variants, ticks, 128) of the forward GRU, not yet scored, to the same tick
    )
    sum: float = 0.0  # of the agreement, older ticks weigh less
    weight: float = 0.0
    scores: dict[int, Tensor] = field(default_factory=dict)


class SpeakerStream:
    """Follows the faces of one film and says who speaks.

    Args:
        detector: finds the faces.
        asd: scores them.
        sound: the film's sound; with None or without a sound track only the pictures count.
        faces: so many faces at once are scored, the largest first; time and memory depend on it. With 0 they are only
            found and followed.
    """

    def __init__(
        self, detector: FaceDetector, asd: LightASD, sound: Sound | None = None, faces: int = 6
    ) -> None:
        self.detector, self.asd, self.faces = detector, asd, faces
        self.sound = sound if sound is not None and sound.has_audio else None
        self.tracker = FaceTracker()
        self.cuts = 0
        self._device = next(asd.parameters()).device
        self._scored: dict[int, _Scored] = {}
        self._frames: dict[int, np.ndarray] = {}
        self._codes: dict[int, Tensor] = {}
        self._results: dict[int, list[Face]] = {}
        self._shown: tuple[float, np.ndarray] | None = None
        self._thumbnail: Tensor | None = None
        self._start, self._tick, self._emitted, self._detected = 0.0, 0, 0, -1

    # -- the film ------------------------------------------------------------------------------------

    def push(self, image: np.ndarray, time: float) -> None:
        """Take the next frame: (H, W, 3) uint8 RGB, shown from `time` (seconds) on."""
        if self._shown is None:
            self._start = time
        before, last = self._shown or (time, image)
        while (due := self._due()) <= time + 1e-6:
            self._see(image if time - due <= due - before else last)
        self._shown = (time, image)

    def finish(self) -> None:
        """The film has ended: score what is waiting."""
        if self._shown is None:
            return
        time, image = self._shown
        while self._due() <= time + 0.5 / FPS:
            self._see(image)
        last = self._tick - 1
        if self._detected < last:
            self._detect(last, image)
        self.tracker.finish(last)
        self._advance(ended=True)

    def at(self, time: float) -> list[Face]:
        """Return the faces at a time of the film, in order of their tracks; earlier ones are forgotten."""
        tick = min(max(round((time - self._start) * FPS), 0), max(self._emitted - 1, 0))
        for old in [known for known in self._results if known < tick]:
            del self._results[old]
        return self._results.get(tick, [])

    # -- ticks ---------------------------------------------------------------------------------------

    def _due(self) -> float:
        return self._start + self._tick / FPS

    def _see(self, image: np.ndarray) -> None:
        tick = self._tick
        self._tick += 1
        self._frames[tick] = image
        thumbnail = _thumbnail(image)
        if self._thumbnail is not None and float((thumbnail - self._thumbnail).abs().mean()) > CUT:
            self.tracker.cut(tick)
            self.cuts += 1
            self._detect(tick, image)
        self._thumbnail = thumbnail
        if tick % EVERY == 0:
            self._detect(tick, image)
            self._advance()

    def _detect(self, tick: int, image: np.ndarray) -> None:
        if self._detected == tick:
            return
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).to(self._device)
        self.tracker.update(tick, self.detector.detect(pixels).cpu())
        self._detected = tick

    @torch.no_grad()
    def _advance(self, *, ended: bool = False) -> None:
        """Score what the boxes so far allow and record the results of the ticks that are complete."""
        ready = self._tick if ended else max(self._tick - SMOOTH - REACH - AHEAD, 0)
        self._choose()
        for track in self.tracker.tracks:
            if (scored := self._scored.get(track.number)) is not None:
                self._score(track, scored)
        for tick in range(self._emitted, ready):
            self._results[tick] = [
                self._face(track, tick) for track in self.tracker.tracks if self._present(track, tick)
            ]
        self._emitted = max(ready, self._emitted)
        self._forget()

    def _choose(self) -> None:
        """Give the free places of the active-speaker network to the largest faces that have none."""
        live = [track for track in self.tracker.tracks if not track.ended]
        free = self.faces - sum(track.number in self._scored for track in live)
        waiting = [track for track in live if track.number not in self._scored]
        area = {t.number: float((t.boxes[-1][2:] - t.boxes[-1][:2]).prod()) for t in waiting}
        for track in sorted(waiting, key=lambda one: -area[one.number])[: max(free, 0)]:
            first = max(track.start, self._emitted, min(self._frames))
            self._scored[track.number] = _Scored(first, first)

    def _score(self, track: Track, scored: _Scored) -> None:
        if track.ended and scored.coded >= track.stop:
            return
        stop = track.stop if track.ended else max(track.stop - SMOOTH, scored.crop)
        ticks = range(scored.crop, stop)
        scored.crop = stop
        if not ticks or (track.ended and scored.past is None and len(ticks) < EVERY):
            return  # nothing new, or too short to tell
        faces = torch.stack([face_picture(self._frames[tick], track.smooth(tick)) for tick in ticks])
        codes, scored.past = self.asd.encode(faces[None].to(self._device), scored.past, final=track.ended)
        if codes.shape[1]:
            scored.coded += codes.shape[1]
            seen = self.asd.looks(codes)[0].cpu()
            scored.seen = seen if scored.seen is None else torch.cat([scored.seen, seen])
            if self.sound is not None:
                heard = self._heard(scored.coded - codes.shape[1], scored.coded)
                out, scored.state = self.asd.model.GRU.gru_forward(codes + heard, scored.state)
                scored.waiting = out if scored.waiting is None else torch.cat([scored.waiting, out], 1)
        if scored.seen is not None:
            self._decide(scored, scored.coded - (0 if track.ended else AHEAD))

    def _decide(self, scored: _Scored, stop: int) -> None:
        """Store the scores of the ticks before `stop` that have none."""
        assert scored.seen is not None
        first = scored.coded - len(scored.seen)
        begin = max(scored.scores, default=first - 1) + 1
        logits = None
        if scored.waiting is not None and scored.waiting.shape[1]:
            logits = self.asd.speaks(self.asd.model.GRU.backwards(scored.waiting)).cpu()
        for tick in range(begin, stop):
            near = scored.seen[max(tick - AROUND - first, 0) : tick + AROUND + 1 - first].mean()
            heard = 0.0
            if logits is not None:
                row = logits[:, tick - (scored.coded - logits.shape[1])]
                heard = float(row[0])
                decay = math.exp(-1 / MEMORY)
                scored.sum = decay * scored.sum + heard - float(row[1:].mean())
                scored.weight = decay * scored.weight + 1
            agrees = scored.sum / (scored.weight + DOUBT)
            scored.scores[tick] = torch.stack([near, torch.tensor(heard), torch.tensor(agrees)])
        done = max(stop - begin, 0)
        if scored.waiting is not None:
            scored.waiting = scored.waiting[:, done:]
        scored.seen = scored.seen[max(stop - AROUND - first, 0) :]

    def _face(self, track: Track, tick: int) -> Face:
        scored = self._scored.get(track.number)
        unknown = torch.full((len(SCORES),), float("nan"))
        known = unknown if scored is None else scored.scores.get(tick, unknown)
        return Face(track.number, track.smooth(tick), known)

    def _present(self, track: Track, tick: int) -> bool:
        """Return whether the face is in view: within its track, not after its last detection, and no false alarm."""
        sure = track.found > 1 or self._tick <= EVERY
        return sure and track.start <= tick < track.stop and tick <= max(track.last, track.first)

    def _forget(self) -> None:
        for track in self.tracker.tracks:
            track.forget(self._emitted - SMOOTH)
        gone = [t for t in self.tracker.tracks if t.ended and t.stop <= self._emitted]
        for track in gone:
            self._scored.pop(track.number, None)
        self.tracker.tracks = [track for track in self.tracker.tracks if track not in gone]
        for scored in self._scored.values():
            for tick in [known for known in scored.scores if known < self._emitted - 1]:
                del scored.scores[tick]
        needed = min([self._tick - SMOOTH, *(s.crop for n, s in self._scored.items() if self._live(n))])
        for tick in [known for known in self._frames if known < needed]:
            del self._frames[tick]
        oldest = self._emitted - max(LATE)
        for tick in [known for known in self._codes if 0 < known < oldest]:
            del self._codes[tick]

    def _live(self, number: int) -> bool:
        return any(track.number == number and not track.ended for track in self.tracker.tracks)

    # -- sound ---------------------------------------------------------------------------------------

    def _heard(self, first: int, stop: int) -> Tensor:
        """Return the encoded sound (1 + len(LATE), ticks, 128), in time and late."""
        self._hear(max(first - max(LATE), 0), stop)
        ticks = range(first, stop)
        return torch.stack(
            [torch.stack([self._codes[max(tick - late, 0)] for tick in ticks]) for late in (0, *LATE)]
        )

    def _hear(self, first: int, stop: int) -> None:
        """Encode the sound of the ticks [first, stop) that is not encoded yet."""
        missing = [tick for tick in range(first, stop) if tick not in self._codes]
        if not missing:
            return
        assert self.sound is not None
        begin, end = missing[0] - SOUND_REACH, missing[-1] + 1 + SOUND_REACH
        # One tick more in front: the pre-emphasis looks back.
        origin = round(self._start * RATE)
        wave = self.sound.read(origin + (begin - 1) * HOP, origin + end * HOP + HOP)
        rows = mfcc(wave)[ROWS : ROWS * (1 + end - begin)]
        codes = self.asd.sound(rows[None].to(self._device))[0]
        for tick in range(begin + SOUND_REACH, end - SOUND_REACH):
            self._codes.setdefault(tick, codes[tick - begin])


def _grey(image: np.ndarray) -> Tensor:
    """Return ITU-R BT.601 luma (H, W) float32 of (H, W, 3) uint8, as the network's faces were made grey."""
    return torch.from_numpy(np.ascontiguousarray(image)).float() @ torch.tensor([0.299, 0.587, 0.114])


def _thumbnail(image: np.ndarray) -> Tensor:
    """Return a small grey copy (18, 32), to see cuts."""
    step = max(min(image.shape[0] // 72, image.shape[1] // 128), 1)
    grey = _grey(image[::step, ::step])
    return F.interpolate(grey[None, None], (18, 32), mode="area")[0, 0]


def face_picture(image: np.ndarray, box: Tensor) -> Tensor:
    """Return a face's picture (112, 112): the middle half of the square around it that Light-ASD cuts out."""
    height, width = image.shape[:2]
    left, top, right, bottom = (box * box.new_tensor([width, height] * 2)).tolist()
    half = max(right - left, bottom - top, 2.0) / 2
    step = 1.4 * half / SIDE
    places = (torch.arange(SIDE) + 0.5) * step
    x, y = (left + right) / 2 - 0.7 * half + places, (top + bottom) / 2 - 0.3 * half + places
    # Only the part of the picture around the face is made grey.
    rows = slice(max(math.floor(float(y[0])) - 1, 0), max(math.ceil(float(y[-1])) + 2, 1))
    columns = slice(max(math.floor(float(x[0])) - 1, 0), max(math.ceil(float(x[-1])) + 2, 1))
    part = _grey(image[rows, columns])
    if not part.numel():
        return torch.full((SIDE, SIDE), float(OUTSIDE))
    grid_y = (y - rows.start) / part.shape[0] * 2 - 1
    grid_x = (x - columns.start) / part.shape[1] * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(grid_x[None], grid_y[:, None]), -1)[None]
    # Zeros stand for what is outside; so shift the grey values.
    return F.grid_sample((part - OUTSIDE)[None, None], grid, align_corners=False)[0, 0] + OUTSIDE
