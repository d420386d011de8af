"""Maps made steadier: a Gaussian over time, exact on any clock, that does not reach over shot changes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from avsal.errors import ConfigError
from avsal.inference.video import FrameMap
from avsal.io.shots import ShotDetector

#: The Gaussian ends at this many standard deviations; its longest standard deviation in seconds.
REACH, LONGEST = 3.0, 1.0


def smoothed(results: Iterable[FrameMap], seconds: float) -> Iterator[FrameMap]:
    """Yield the results with each map averaged over time: weights exp(-(t' - t)^2 / (2 seconds^2)), which sum to 1.

    Args:
        results: of one video, in order. Shot changes are found where the results hold their images.
        seconds: standard deviation, 0 (no change) to 1.

    Returns:
        The same frames, `REACH * seconds` later; only those of that span, before and after, are held.

    Raises:
        ConfigError: `seconds` is out of its range.
    """
    if not 0 <= seconds <= LONGEST:
        raise ConfigError(f"smooth={seconds}: expected 0 to {LONGEST:g} seconds.")
    if seconds == 0:
        yield from results
        return
    detector, reach = ShotDetector(), REACH * seconds
    shot: deque[FrameMap] = deque()  # what averages may still need
    done = 0  # how many of these were yielded

    def mean(result: FrameMap) -> FrameMap:
        near = [other for other in shot if abs(other.time - result.time) <= reach]
        weights = torch.tensor(
            [math.exp(-0.5 * ((other.time - result.time) / seconds) ** 2) for other in near]
        )
        maps = torch.stack([other.map for other in near])
        return replace(result, map=torch.tensordot(weights / weights.sum(), maps, 1))

    for result in results:
        if result.image is not None and detector.push(result.image, result.time):
            yield from [mean(waiting) for waiting in list(shot)[done:]]
            shot.clear()
            done = 0
        shot.append(result)
        while shot[done].time + reach < result.time:
            yield mean(shot[done])
            # Its map is still needed by later ones, its image is not.
            shot[done] = replace(shot[done], image=None, aux={})
            done += 1
        while shot[0].time < shot[done].time - reach:
            shot.popleft()
            done -= 1
    yield from [mean(waiting) for waiting in list(shot)[done:]]
