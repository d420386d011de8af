"""Windows: which frames make a clip, the same for a stream of frames and for a video whose frames are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from avsal.data.windows import scored_frames, segments, window_at
from avsal.types import AudioSpec, ClipSpec

SPEC = ClipSpec(
    frames=16, size=(48, 64), target=8, std=(1.0, 1.0, 1.0), audio=AudioSpec(None, 0.5, 0.5, window="hann")
)


def test_segments_follow_the_papers():
    # 90 frames, starting every 74: neighbours share one clip of 16.
    assert segments(385, 16) == [(0, 90), (74, 164), (148, 238), (222, 312), (296, 385)]
    assert segments(90, 16) == [(0, 90)]
    assert segments(91, 16) == [(0, 90), (74, 91)]
    assert segments(10, 16) == [(0, 10)]
    assert segments(385, 16, None) == [(0, 385)]
    for count in range(1, 400):
        covered = set()
        for begin, end in segments(count, 16):
            assert 0 <= begin < end <= count
            covered |= set(range(begin, end))
        assert covered == set(range(count))


def test_stavis_keeps_last_segments_of_two_frames_or_more():
    """Its loader counts range(1, frames, 74) from 1."""
    assert segments(385, 16, short=True) == [
        (0, 90),
        (74, 164),
        (148, 238),
        (222, 312),
        (296, 385),
        (370, 385),
    ]
    assert segments(75, 16, short=True) == [(0, 75)]
    assert segments(76, 16, short=True) == [(0, 76), (74, 76)]
    assert segments(10, 16, short=True) == [(0, 10)]
    assert segments(1, 16, short=True) == [(0, 1)]
    for count in range(2, 400):
        starts = range(1, count, 74)
        expected = [(j - 1, min(count + 1, j + 90) - 1) for j in starts]
        assert segments(count, 16, short=True) == expected


def test_scored_frames_follow_the_coverage():
    cyclic = replace(SPEC, authors_coverage="cyclic")
    assert scored_frames(cyclic, 100, "authors") == range(8, 100)
    assert scored_frames(cyclic, 100) == range(100)
    assert list(scored_frames(SPEC, 10, stride=4)) == [0, 4, 8]


def test_windows_clamp_repeat_or_run_backwards():
    times = np.arange(20) / 25
    assert window_at(SPEC, 2, 20, times, 25).frames.tolist() == [0] * 6 + list(range(10))
    reverse = replace(SPEC, authors_coverage="reversed", target="last")
    assert [len(scored_frames(reverse, n, "authors")) for n in (30, 31, 32)] == [0, 31, 32]
    assert scored_frames(reverse, 30) == range(30)
    last = window_at(replace(SPEC, authors_coverage="cyclic"), 18, 20, times, 25, "authors")
    assert last.frames.tolist() == [*range(10, 20), *range(10, 16)]
    back = window_at(replace(SPEC, target="last", authors_coverage="reversed"), 3, 20, times, 25, "authors")
    assert back.frames.tolist() == list(range(18, 2, -1))
    assert back.reverse
    seconds = ClipSpec(frames=4, size=(8, 8), step=0.12, step_unit="seconds", target="last")
    assert window_at(seconds, 10, 20, times, 25).frames.tolist() == [1, 4, 7, 10]
