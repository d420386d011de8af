"""SynthAV: clips whose right answer is known, drawn and sounded from a seed.

Specification (version 1). All numbers below are drawn from PCG64 raw output and combined in integers, so the
frames and the waveform of a clip are the same bytes on every platform; encoded files may differ by encoder.

Picture
    W x H = 160 x 120 at 25 fps. The background is a smooth texture that drifts. Two (`easy`), three
    (`medium`) or four (`hard`) objects move over it and bounce off the borders. There are six classes; a
    class is a shape, a hue, a texture, a kind of beat and a timbre, the same in every clip. Every object
    beats in a rhythm of its own, *all the time*: it swells and brightens, and opens (every second class) or
    shakes (every third). One object, drawn at random, is larger and more contrasting: the most salient one.
    So a single frame, or the picture alone, says nothing about which object sounds.
Sound
    22050 Hz, 16 bit, mono. Time is divided into turns of 0.9 to 1.6 s. During a turn one source sounds:
    a held tone, and a note at each of its visible beats. Class c has its fundamental in a band of its own
    (`FUNDAMENTALS`, +-2 % from clip to clip). Successive turns belong to different sources; a quarter of
    them is followed by a pause.
Conditions (one set each)
    `congruent`: the sources are the objects on screen. `offscreen`: the one source belongs to a class that is not on
    screen. `silent`: no sound track at all. A fourth, `ego`, is a head-mounted camera: the world is wider than
    the picture, turns last 2.4 to 4 s, the wearer's gaze jumps to the sounding object after 400 to 680 ms (so the
    sound tells where he will look), the head turns two fifths of the way after it, slowly, and shakes; there is one
    continuous gaze track instead of observers.
Observers
    15 by default. Each holds a fixation for 0.3 to 0.8 s, following its target, with Gaussian noise of 3.5 % of the
    width; frames in which the eye jumps have no fixation. When the sounding source changes, an observer
    decides anew after his own latency of 200 to 280 ms. The target is drawn in the proportions
    `CHOICES`: sounding, most salient, centre, other object. All start at the centre.
Difficulty
    also sets the drift and contrast of the background, the speed of the objects and the noise in the sound.

Files, in the layout of the six real audio-visual sets (see `avsal.data.layout`)::

    video/SynthAV_<condition>/<name>.mp4                  H.264 + AAC, a key frame every 12 frames
    annotations/SynthAV_<condition>/<name>/fixations.csv  frame,x,y,observer (0-based frame, pixels)
    annotations/SynthAV_ego/<name>/gaze.csv               frame,time,x,y,gaze_type (0..1, top left)
    fold_lists/SynthAV_<condition>_list_{train,val,test}_fps.txt
    synthav.json                                          parameters, and the answer for every clip

One file of points for each video stands for the thousands of `eyeMap_*.jpg` and `fixMap_*.mat` of the real
sets: it keeps the observers, and a whole set is written in seconds. `per_frame=True` writes those too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avsal.errors import ConfigError, DataError
from avsal.files import explained, writing

VERSION = 1
WIDTH, HEIGHT, FPS, RATE = 160, 120, 25, 22050
CONDITIONS = ("congruent", "offscreen", "silent")
DIFFICULTIES = ("easy", "medium", "hard")
#: Share of the three conditions in a default set.
SHARES = {"congruent": 0.5, "offscreen": 0.25, "silent": 0.25}
#: Share of the splits inside each condition.
SPLITS = {"train": 0.6, "val": 0.12, "test": 0.28}
#: Fundamental of each class's timbre in Hz, and its partials as (multiple, weight of 256).
FUNDAMENTALS = (130, 330, 720, 1450, 2900, 5400)
PARTIALS = (
    ((1, 256), (2, 170), (3, 90)),
    ((1, 256), (3, 70)),
    ((1, 256), (2, 90)),
    ((1, 256),),
    ((1, 256), (2, 40)),
    ((1, 256),),
)
SHAPES = ("disc", "square", "diamond", "triangle", "ring", "cross")
COLOURS = ((235, 60, 50), (60, 200, 70), (70, 100, 245), (240, 215, 50), (225, 70, 220), (60, 215, 225))
#: Where an observer looks next, in thousandths, while an object on screen sounds and otherwise.
CHOICES = {
    "sounding": {"sounding": 700, "salient": 180, "centre": 80, "other": 40},
    "nothing": {"sounding": 0, "salient": 550, "centre": 250, "other": 200},
}
#: Standard deviation of the Gaussian that turns fixations into a density, in pixels.
SIGMA = 8.0
_BEAT = np.array([256, 215, 165, 115, 70, 35, 15], dtype=np.int64)  # strength of a beat, frame by frame
_SINE = np.array([round(32767 * math.sin(2 * math.pi * k / 4096)) for k in range(4096)], dtype=np.int64)
_LEVELS = {
    "easy": {"objects": 2, "contrast": 14, "speed": 190, "noise": 0},
    "medium": {"objects": 3, "contrast": 24, "speed": 260, "noise": 120},
    "hard": {"objects": 4, "contrast": 36, "speed": 360, "noise": 400},
}

IntArray = NDArray[np.int64]


class _Stream:
    """Integers from PCG64's raw output, which NumPy keeps the same for ever (its distributions may change)."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def draw(self, low: int, high: int, size: int) -> IntArray:
        """Return `size` integers of low..high-1."""
        raw = self._bits.random_raw(size) >> np.uint64(32)
        return ((raw * np.uint64(high - low)) >> np.uint64(32)).astype(np.int64) + low

    def one(self, low: int, high: int) -> int:
        """Return one integer of low..high-1."""
        return int(self.draw(low, high, 1)[0])

    def order(self, n: int) -> list[int]:
        """Return a random order of 0..n-1."""
        return [int(k) for k in np.argsort(self._bits.random_raw(n), kind="stable")]

    def normal(self, scale: int) -> int:
        """Return an integer that is nearly normal with standard deviation `scale` (sum of twelve)."""
        return (int(self.draw(0, 2048, 12).sum()) - 12 * 1023) * scale // 2048


@dataclass
class SynthClip:
    """One clip before encoding.

    Attributes:
        name: `c0001_easy` …; the set is `SynthAV_<condition>`.
        frames: (n, H, W, 3) uint8 RGB.
        waveform: (S,) int16 at `RATE`, or None for the silent condition.
        turns: (begin frame, end frame, object) of everything that sounds; object -1 is off screen.
        classes: the class of each object.
        salient: index of the most salient object.
        centres: (n, objects, 2) int64 (x, y) of each object in pixels.
        fixations: (N, 4) int64 rows of frame, x, y, observer.
        gaze: (n, 4) float64 rows of time, x, y in 0..1, type, for the ego condition, else None.
    """

    name: str
    condition: str
    difficulty: str
    split: str
    frames: NDArray[np.uint8]
    waveform: NDArray[np.int16] | None
    turns: list[tuple[int, int, int]]
    classes: list[int]
    salient: int
    centres: IntArray
    fixations: IntArray
    gaze: NDArray[np.float64] | None = None

    @property
    def set(self) -> str:
        """The name of the set that the clip belongs to."""
        return f"SynthAV_{self.condition}"

    def sounding(self) -> IntArray:
        """Return (n,) the index of the object that sounds in each frame, -1 for none."""
        answer = np.full(len(self.frames), -1, dtype=np.int64)
        for begin, end, index in self.turns:
            answer[begin:end] = index
        return answer


@dataclass(frozen=True)
class SynthSpec:
    """What `generate` writes; equal specifications give equal clips.

    Attributes:
        clips: clips over all conditions.
        seed: every clip follows from it and the clip's index.
        seconds: length of a clip.
        observers: simulated observers.
        difficulty: "easy", "medium", "hard", or "mixed" (the three in turn).
        ego: write the egocentric set instead of the three conditions.
        per_frame: write `eyeMap_*.jpg` and `fixMap_*.mat` for every frame as well.
    """

    clips: int = 240
    seed: int = 0
    seconds: float = 3.0
    observers: int = 15
    difficulty: str = "mixed"
    ego: bool = False
    per_frame: bool = False

    def __post_init__(self) -> None:
        if self.difficulty not in (*DIFFICULTIES, "mixed"):
            raise ConfigError(
                f"difficulty={self.difficulty!r} is not known; allowed: {', '.join(DIFFICULTIES)}, mixed."
            )
        for name, least in (("clips", 1), ("observers", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}.")
        if not 1.0 <= self.seconds <= 600.0:
            raise ConfigError(f"seconds={self.seconds} must lie between 1 and 600.")

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions of this set."""
        return ("ego",) if self.ego else CONDITIONS

    @property
    def key(self) -> str:
        """Twelve hex digits that name this specification in the cache."""
        text = json.dumps({"synthav": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def plan(self) -> list[tuple[str, int, str, str]]:
        """Return (condition, index in the condition, difficulty, split) of every clip."""
        rows: list[tuple[str, int, str, str]] = []
        left = self.clips
        for number, condition in enumerate(self.conditions):
            last = number == len(self.conditions) - 1
            count = left if last else min(left, round(self.clips * SHARES[condition]))
            left -= count
            train = max(1, round(count * SPLITS["train"]))
            val = max(1, round(count * SPLITS["val"])) if count > 2 else 0
            for index in range(count):
                split = "train" if index < train else "val" if index < train + val else "test"
                level = self.difficulty if self.difficulty != "mixed" else DIFFICULTIES[index % 3]
                rows.append((condition, index, level, split))
        return rows


# -- the picture -------------------------------------------------------------------------------------------


def _texture(stream: _Stream, contrast: int) -> IntArray:
    """Return a periodic smooth texture (256, 256, 3) of values around 96."""
    total = np.zeros((256, 256, 3), dtype=np.int64)
    for cell in (64, 16):
        n = 256 // cell
        grid = stream.draw(-256, 257, n * n * 3).reshape(n, n, 3)
        grid = np.concatenate([grid, grid[:1]], 0)
        grid = np.concatenate([grid, grid[:, :1]], 1)
        k: IntArray = np.arange(256, dtype=np.int64)
        i, rest = k // cell, k % cell
        f, g = rest[:, None, None], rest[None, :, None]
        rows: IntArray = grid[i] * (cell - f) + grid[i + 1] * f  # (256, n + 1, 3)
        total += (rows[:, i] * (cell - g) + rows[:, i + 1] * g) // (cell * cell)
    return 96 + total * contrast // 512


def _mask(shape: str, dx: IntArray, dy: IntArray, r: int) -> NDArray[np.bool_]:
    """Return which offsets (1/16 pixel) from the centre belong to a shape of radius r (1/16 pixel)."""
    ax, ay, d2 = abs(dx), abs(dy), dx * dx + dy * dy
    if shape == "disc":
        return d2 <= r * r
    if shape == "square":
        return np.maximum(ax, ay) * 8 <= r * 7
    if shape == "diamond":
        return (ax + ay) * 4 <= r * 5
    if shape == "triangle":
        return (dy * 4 <= r * 3) & (ax * 2 <= dy + r)
    if shape == "ring":
        return (d2 <= r * r) & (d2 * 9 >= r * r * 2)
    return (np.minimum(ax, ay) * 3 <= r) & (np.maximum(ax, ay) <= r)


def _draw(frame: IntArray, kind: int, x: int, y: int, r: int, beat: int, opacity: int, parity: int) -> None:
    """Paint one object into a frame; x, y, r in 1/16 pixel, beat and opacity of 256."""
    grow = 100 if kind % 3 == 0 else 60
    r = r + r * beat * grow // (256 * 256)
    if kind % 3 == 2:  # shakes
        x = x + (r * beat // (256 * 3)) * (1 if parity else -1)
    px, py, pr = x // 16, y // 16, r // 16 + 2
    x0, x1 = max(0, px - pr), min(frame.shape[1], px + pr + 1)
    y0, y1 = max(0, py - pr), min(frame.shape[0], py + pr + 1)
    if x0 >= x1 or y0 >= y1:
        return
    dx = (np.arange(x0, x1, dtype=np.int64) * 16 + 8 - x)[None, :]
    dy = (np.arange(y0, y1, dtype=np.int64) * 16 + 8 - y)[:, None]
    dx, dy = np.broadcast_arrays(dx, dy)
    inside = _mask(SHAPES[kind], dx, dy, r)
    stripe = (
        ((dx + dy * (1 if kind % 2 else -1)) >> 6) & 1 if kind < 3 else ((dx if kind == 3 else dy) >> 6) & 1
    )
    shade = 256 - 70 * stripe + beat * 60 // 256
    if kind % 3 == 1:  # opens: a dark mouth
        hole = r * beat * 5 // (256 * 8)
        shade = np.where(dx * dx + dy * dy <= hole * hole, 40, shade)
    colour = np.minimum(255, np.array(COLOURS[kind])[None, None, :] * shade[..., None] // 256)
    patch = frame[y0:y1, x0:x1]
    mixed = (patch * (256 - opacity) + colour * opacity) // 256
    patch[inside] = mixed[inside]


def _path(
    stream: _Stream, n: int, low: tuple[int, int], high: tuple[int, int], start: tuple[int, int], speed: int
) -> IntArray:
    """Return (n, 2) positions in 1/16 pixel of a point that bounces inside a box and turns now and then."""
    where, out = [start[0] * 16, start[1] * 16], np.empty((n, 2), dtype=np.int64)
    turn, step = 0, [0, 0]
    for t in range(n):
        if t == turn:
            turn = t + stream.one(18, 42)
            for axis in (0, 1):
                sign = 1 if stream.one(0, 2) else -1
                step[axis] = sign * stream.one(speed // 4, speed) // 16
        for axis in (0, 1):
            where[axis] += step[axis]
            if where[axis] < low[axis] * 16 or where[axis] > high[axis] * 16:
                step[axis] = -step[axis]
                where[axis] = min(max(where[axis], low[axis] * 16), high[axis] * 16)
        out[t] = where
    return out


def _beats(stream: _Stream, n: int, period: int) -> tuple[IntArray, IntArray]:
    """Return (n,) the strength of an object's beat in each frame, of 256, and the frames of its onsets."""
    onsets, t = [], stream.one(0, period)
    while t < n:
        onsets.append(t)
        t += period + stream.one(-1, 2)
    strength = np.zeros(n + len(_BEAT), dtype=np.int64)
    for onset in onsets:
        part = strength[onset : onset + len(_BEAT)]
        np.maximum(part, _BEAT, out=part)
    return strength[:n], np.array(onsets, dtype=np.int64)


# -- the sound ---------------------------------------------------------------------------------------------


def _turns(
    stream: _Stream, n: int, sources: Sequence[int], length: tuple[int, int] = (22, 41)
) -> list[tuple[int, int, int]]:
    """Return (begin, end, source) turns that fill n frames; neighbours differ where there are two sources."""
    turns: list[tuple[int, int, int]] = []
    t, previous = stream.one(0, 8), None
    while t < n:
        pool = [s for s in sources if s != previous] or list(sources)
        source = pool[stream.one(0, len(pool))]
        end = min(n, t + stream.one(*length))
        turns.append((t, end, source))
        previous = source
        t = end + (stream.one(6, 13) if stream.one(0, 4) == 0 else 0)
    return turns


def _tone(kind: int, detune: int, samples: int) -> IntArray:
    """Return (samples,) the steady tone of a class, +-32767; detune in thousandths."""
    k = np.arange(samples, dtype=np.int64)
    out, total = np.zeros(samples, dtype=np.int64), 0
    for multiple, weight in PARTIALS[kind]:
        increment = FUNDAMENTALS[kind] * multiple * (1000 + detune) * (1 << 32) // (1000 * RATE)
        out += _SINE[((k * increment) & 0xFFFFFFFF) >> 20] * weight
        total += weight
    return out // total


def _sound(
    stream: _Stream,
    n: int,
    turns: list[tuple[int, int, int]],
    kinds: dict[int, int],
    onsets: dict[int, IntArray],
    noise: int,
) -> NDArray[np.int16]:
    """Return the waveform (n * RATE / FPS,) int16 of all turns."""
    per_frame = Fraction(RATE, FPS)
    total = int(n * per_frame)
    out = np.zeros(total, dtype=np.int64)
    tones = {s: _tone(kinds[s], stream.one(-20, 21), total) for s in sorted(kinds)}
    ramp, length = 220, RATE * 32 // 100
    decay = (length - np.arange(length, dtype=np.int64)) ** 2 * 256 // (length * length)
    decay[:ramp] = decay[:ramp] * np.arange(ramp) // ramp
    for begin, end, source in turns:
        a, b = int(begin * per_frame), int(end * per_frame)
        level = np.full(b - a, 80, dtype=np.int64)  # the held tone, of 256
        for onset in onsets[source]:
            if begin <= onset < end:
                at = int(int(onset) * per_frame) - a
                part = level[at : at + length]
                np.maximum(part, 80 + decay[: len(part)] * 140 // 256, out=part)
        edge = np.minimum(np.arange(b - a), np.arange(b - a)[::-1])
        level = level * np.minimum(edge, ramp) // ramp
        out[a:b] += tones[source][a:b] * level // 512
    if noise:
        out += stream.draw(-noise, noise + 1, total)
    return np.clip(out, -32767, 32767).astype(np.int16)


# -- the observers -----------------------------------------------------------------------------------------


def _choose(stream: _Stream, sounding: int, salient: int, objects: int) -> int:
    """Return what an observer looks at next: an object's index, or -1 for the centre."""
    table = CHOICES["sounding" if sounding >= 0 else "nothing"]
    u = stream.one(0, 1000)
    what = "centre"
    for name, share in table.items():
        if u < share:
            what = name
            break
        u -= share
    if what == "sounding":
        return sounding
    if what == "salient":
        return salient
    if what == "centre":
        return -1
    others = [k for k in range(objects) if k not in (sounding, salient)] or [salient]
    return others[stream.one(0, len(others))]


def _look(
    stream: _Stream, sounding: IntArray, salient: int, objects: int, latency: tuple[int, int] = (5, 8)
) -> tuple[IntArray, NDArray[np.bool_], IntArray]:
    """Return per frame one observer's target, whether the eye is jumping, and the fixation's offset."""
    n = len(sounding)
    delay = stream.one(*latency)
    targets, jumps = np.empty(n, dtype=np.int64), np.zeros(n, dtype=bool)
    offsets = np.empty((n, 2), dtype=np.int64)
    target, heard, until = -1, -1, stream.one(4, 12)
    offset = (stream.normal(WIDTH * 35 // 10), stream.normal(WIDTH * 35 // 10))
    for t in range(n):
        now = int(sounding[t - delay]) if t >= delay else -1
        if now != heard or t >= until:
            heard, until = now, t + stream.one(8, 21)
            new = _choose(stream, now, salient, objects)
            jumps[t] = new != target and t > 0
            target = new
            offset = (stream.normal(WIDTH * 35 // 10), stream.normal(WIDTH * 35 // 10))
        targets[t], offsets[t] = target, offset
    return targets, jumps, offsets


def _observe(
    stream: _Stream, centres: IntArray, sounding: IntArray, salient: int, observers: int
) -> IntArray:
    """Return the fixations (N, 4) of all observers: frame, x, y, observer."""
    n, objects = centres.shape[:2]
    rows = []
    frames = np.arange(n)
    with_centre = np.concatenate([centres, np.full((n, 1, 2), (WIDTH // 2, HEIGHT // 2))], 1)
    for observer in range(observers):
        targets, jumps, offsets = _look(stream, sounding, salient, objects)
        points = with_centre[frames, targets] + (offsets + stream.draw(-80, 81, 2 * n).reshape(n, 2)) // 100
        points = np.clip(points, 0, (WIDTH - 1, HEIGHT - 1))
        keep = ~jumps
        rows.append(np.column_stack([frames[keep], points[keep], np.full(int(keep.sum()), observer)]))
    table = np.concatenate(rows)
    return table[np.lexsort((table[:, 3], table[:, 0]))]


def _wear(
    stream: _Stream, world: IntArray, sounding: IntArray, salient: int
) -> tuple[IntArray, NDArray[np.float64], IntArray]:
    """Return the camera's path (n, 2) in pixels, the gaze rows and the gaze as fixations of one observer."""
    n, objects = world.shape[:2]
    targets, jumps, offsets = _look(stream, sounding, salient, objects, latency=(10, 18))
    camera, gaze, rows = np.zeros((n, 2), dtype=np.int64), np.zeros((n, 4)), []
    where, centre = np.array([0, 0], dtype=np.int64), np.array([WIDTH // 2, HEIGHT // 2], dtype=np.int64)
    blink = stream.one(40, 120)
    for t in range(n):
        goal = world[t, targets[t]] if targets[t] >= 0 else where // 16 + centre
        point = goal + offsets[t] // 100
        # The head turns two fifths of the way that the eye turned, slowly: a twelfth of the rest each frame.
        where = (
            where
            + ((point - centre) * 32 // 5 - where) // 12
            + np.array([stream.one(-12, 13), stream.one(-12, 13)])
        )
        camera[t] = where // 16
        x, y = (point - camera[t]).tolist()
        kind = 1 if jumps[t] else 0
        if not (0 <= x < WIDTH and 0 <= y < HEIGHT):
            kind = 2
        if blink <= t < blink + 4:
            kind = 3
        elif t == blink + 4:
            blink = t + stream.one(60, 160)
        gaze[t] = (
            t / FPS,
            (min(max(x, 0), WIDTH - 1) + 0.5) / WIDTH,
            (min(max(y, 0), HEIGHT - 1) + 0.5) / HEIGHT,
            kind,
        )
        if kind == 0:
            rows.append((t, x, y, 0))
    return camera, gaze, np.array(rows, dtype=np.int64).reshape(-1, 4)


# -- one clip ----------------------------------------------------------------------------------------------


def render(condition: str, index: int, difficulty: str, *, seed: int = 0, seconds: float = 3.0,
           observers: int = 15, split: str = "train") -> SynthClip:  # fmt: skip
    """Draw and sound one clip.

    Args:
        condition: one of `CONDITIONS`, or "ego".
        index: number of the clip in its condition.
        difficulty: one of `DIFFICULTIES`.
        seed: seed of the set.
        seconds: length; the number of frames is rounded.
        observers: number of simulated observers.
        split: only recorded.
    """
    level, ego = _LEVELS[difficulty], condition == "ego"
    key = (VERSION, seed, (*CONDITIONS, "ego").index(condition), index)
    # Apart streams: what sounds, and who looks where, leaves no trace in the picture.
    stream, ears, eyes = _Stream(*key), _Stream(*key, 1), _Stream(*key, 2)
    n, count = round(seconds * FPS), level["objects"]
    order = stream.order(len(SHAPES))
    kinds, hidden = order[:count], order[count]
    salient = stream.one(0, count)
    spread = 40 if ego else 0  # how far the world reaches past the picture
    quarters = stream.order(4)
    radius, paths, strengths, onsets = [], [], [], {}
    periods = stream.order(4)
    for k in range(count):
        r = stream.one(12, 15) + (4 if k == salient else 0)
        radius.append(r)
        q = quarters[k]
        start = (
            WIDTH * (1 + 2 * (q % 2)) // 4 + stream.one(-12, 13),
            HEIGHT * (1 + 2 * (q // 2)) // 4 + stream.one(-8, 9),
        )
        low, high = (r - spread, r - spread), (WIDTH - r + spread, HEIGHT - r + spread)
        paths.append(_path(stream, n, low, high, start, level["speed"]))
        strength, onsets[k] = _beats(stream, n, (7, 9, 11, 14)[periods[k]])
        strengths.append(strength)
    _, onsets[-1] = _beats(stream, n, 10)

    sources = {"silent": [], "offscreen": [-1]}.get(condition, list(range(count)))
    turns = _turns(ears, n, sources, (60, 101) if ego else (22, 41)) if sources else []
    sounding = np.full(n, -1, dtype=np.int64)
    for begin, end, source in turns:
        sounding[begin:end] = source
    waveform = None
    if turns:
        timbres = {s: hidden if s < 0 else kinds[s] for s in sources}
        waveform = _sound(ears, n, turns, timbres, onsets, level["noise"])

    world = np.stack([p // 16 for p in paths], 1)
    gaze = None
    camera = np.zeros((n, 2), dtype=np.int64)
    if ego:
        camera, gaze, fixations = _wear(eyes, world, sounding, salient)
    else:
        fixations = _observe(eyes, world, sounding, salient, observers)

    texture, drift = _texture(stream, level["contrast"]), (stream.one(-8, 9), stream.one(-8, 9))
    frames = np.empty((n, HEIGHT, WIDTH, 3), dtype=np.uint8)
    columns, lines = np.arange(WIDTH), np.arange(HEIGHT)
    for t in range(n):
        shift = (t * drift[0] // 16 + int(camera[t, 0]), t * drift[1] // 16 + int(camera[t, 1]))
        frame = texture[((lines + shift[1]) & 255)[:, None], ((columns + shift[0]) & 255)[None, :]]
        for k in sorted(range(count), key=lambda k: k == salient):
            x, y = paths[k][t] - camera[t] * 16
            opacity = 256 if k == salient else 190
            _draw(frame, kinds[k], int(x), int(y), radius[k] * 16, int(strengths[k][t]), opacity, t & 1)
        frames[t] = np.clip(frame, 0, 255)
    return SynthClip(
        f"c{index:04d}_{difficulty}", condition, difficulty, split, frames, waveform, turns, kinds, salient,
        world - camera[:, None], fixations, gaze,
    )  # fmt: skip


# -- files -------------------------------------------------------------------------------------------------


def write_media(
    path: Path, frames: NDArray[np.uint8], waveform: NDArray[np.int16] | None, fps: int = FPS
) -> None:
    """Encode frames and sound as H.264 and AAC, with a key frame every 12 frames for quick random access."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream(
            "libx264", rate=fps, options={"crf": "17", "preset": "veryfast", "g": "12", "bf": "0"}
        )
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.codec_context.thread_count = 1
        audio: Any = None
        if waveform is not None:
            audio = container.add_stream("aac", rate=RATE, layout="mono", bit_rate=96000)
        for k, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = k, Fraction(1, fps)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if audio is not None and waveform is not None:
            for begin in range(0, len(waveform), 1024):
                sound = av.AudioFrame.from_ndarray(
                    waveform[None, begin : begin + 1024], format="s16", layout="mono"
                )
                sound.sample_rate, sound.pts, sound.time_base = RATE, begin, Fraction(1, RATE)
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))


def _write_clip(root: Path, clip: SynthClip, per_frame: bool) -> dict[str, Any]:
    """Write one clip's video and annotation, and return its entry in `synthav.json`."""
    video = root / "video" / clip.set
    folder = root / "annotations" / clip.set / clip.name
    video.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_media(video / f"{clip.name}.mp4", clip.frames, clip.waveform)
    rows = "\n".join(",".join(map(str, row)) for row in clip.fixations.tolist())
    (folder / "fixations.csv").write_text(f"frame,x,y,observer\n{rows}\n", encoding="utf-8")
    if clip.gaze is not None:
        lines = [
            f"{k},{t:.4f},{x:.6f},{y:.6f},{int(kind)}" for k, (t, x, y, kind) in enumerate(clip.gaze.tolist())
        ]
        (folder / "gaze.csv").write_text(
            "frame,time,x,y,gaze_type\n" + "\n".join(lines) + "\n", encoding="utf-8"
        )
    if per_frame:
        _write_frames(folder, clip)
    return {
        "set": clip.set, "name": clip.name, "split": clip.split, "difficulty": clip.difficulty,
        "frames": len(clip.frames), "classes": [SHAPES[k] for k in clip.classes], "salient": clip.salient,
        "turns": [list(turn) for turn in clip.turns], "audio": clip.waveform is not None,
    }  # fmt: skip


def _write_frames(folder: Path, clip: SynthClip) -> None:
    """Write `maps/eyeMap_*.jpg` and `fixMap_*.mat` exactly as the real sets hold them."""
    from PIL import Image
    from scipy.io import savemat

    from avsal.data.fixations import density_from_fixations

    (folder / "maps").mkdir(exist_ok=True)
    for t in range(len(clip.frames)):
        points = clip.fixations[clip.fixations[:, 0] == t]
        binary = np.zeros(clip.frames.shape[1:3], dtype=np.uint8)
        binary[points[:, 2], points[:, 1]] = 1
        savemat(folder / f"fixMap_{t + 1:05d}.mat", {"eyeMap": binary}, do_compression=True)
        density = density_from_fixations(points[:, [2, 1]], binary.shape, SIGMA)
        Image.fromarray(np.rint(density * 255).astype(np.uint8)).save(
            folder / "maps" / f"eyeMap_{t + 1:05d}.jpg", quality=95
        )


def generate(
    out: str | Path,
    *,
    clips: int = 240,
    seed: int = 0,
    seconds: float = 3.0,
    observers: int = 15,
    difficulty: str = "mixed",
    ego: bool = False,
    per_frame: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a SynthAV set; safe when several processes start at once, and never half there.

    Everything is written to a folder beside `out` and renamed when it is complete. A complete set of the same
    parameters is left as it is.

    Args:
        out: the folder to make.
        clips, seed, seconds, observers, difficulty, ego, per_frame: see `SynthSpec`.
        workers: threads that draw and encode; all cores (at most 8) by default.
        progress: called with (clips done, clips in all).

    Returns:
        The folder.

    Raises:
        DataError: `out` holds something else, or a set of other parameters.
        ConfigError: a parameter is out of range.
    """
    from filelock import FileLock

    spec = SynthSpec(clips, seed, seconds, observers, difficulty, ego, per_frame)
    out = Path(out).expanduser().absolute()
    if _complete(out, spec):
        return out
    with explained(out, everything=True):
        out.parent.mkdir(parents=True, exist_ok=True)
        (out.parent / f".{out.name}.lock").touch()
    with FileLock(str(out.parent / f".{out.name}.lock")):
        if _complete(out, spec):  # another process wrote it while we waited
            return out
        with writing(out) as part:  # an older folder is empty, as `_complete` made sure
            _write_set(part, spec, workers or min(8, os.cpu_count() or 1), progress)
    return out


def _complete(out: Path, spec: SynthSpec) -> bool:
    """Return whether `out` is this set; raise unless it is that, empty or absent."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    marker = out / "synthav.json"
    if not marker.is_file():
        raise DataError(f"{out} is not empty and no SynthAV set; give another folder, or remove it yourself.")
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))["key"]
    except (ValueError, KeyError, OSError) as error:
        raise DataError(
            f"{marker} cannot be read ({error}); remove the folder and generate it again."
        ) from error
    if found != spec.key:
        raise DataError(
            f"{out} holds a SynthAV set of other parameters (see {marker.name}); give another folder."
        )
    return True


def _write_set(
    part: Path, spec: SynthSpec, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    plan = spec.plan()

    def make(row: tuple[str, int, str, str]) -> dict[str, Any]:
        condition, index, level, split = row
        given: dict[str, Any] = {"seed": spec.seed, "seconds": spec.seconds, "observers": spec.observers}
        clip = render(condition, index, level, split=split, **given)
        return _write_clip(part, clip, spec.per_frame)

    entries: list[dict[str, Any]] = []
    with ThreadPoolExecutor(workers) as pool:
        for done, entry in enumerate(pool.map(make, plan), 1):
            entries.append(entry)
            if progress:
                progress(done, len(plan))
    lists = part / "fold_lists"
    lists.mkdir(parents=True)
    for condition in spec.conditions:
        for split in SPLITS:
            rows = [e for e in entries if e["set"] == f"SynthAV_{condition}" and e["split"] == split]
            text = "".join(f"{e['name']} {e['frames']} {FPS:.6f}\n" for e in rows)
            (lists / f"SynthAV_{condition}_list_{split}_fps.txt").write_text(text, encoding="utf-8")
    marker = {"version": VERSION, "key": spec.key, "parameters": asdict(spec), "fps": FPS, "sigma": SIGMA,
              "size": [HEIGHT, WIDTH], "choices": CHOICES, "clips": entries}  # fmt: skip
    (part / "synthav.json").write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
