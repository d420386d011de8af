"""Windows: which frames make a clip, the same for a stream of frames and for a video whose frames are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from avsal.data.windows import WindowPlanner, scored_frames, segments, window_at
from avsal.errors import ConfigError
from avsal.models import create_model
from avsal.types import ClipSpec, Coverage

SPEC = ClipSpec(frames=16, size=(48, 64), target=8)
PAPERS = ("stavis", "caspnet", "mspi", "avrsp", "csts")


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
    assert [len(scored_frames(cyclic, n, "authors")) for n in (1, 8, 9)] == [0, 0, 1]


def test_windows_clamp_repeat_or_run_backwards():
    times = np.arange(20) / 25
    assert window_at(SPEC, 2, times, 25).frames.tolist() == [0] * 6 + list(range(10))
    reverse = replace(SPEC, authors_coverage="reversed", target="last")
    assert [len(scored_frames(reverse, n, "authors")) for n in (30, 31, 32)] == [0, 31, 32]
    assert scored_frames(reverse, 30) == range(30)
    last = window_at(replace(SPEC, authors_coverage="cyclic"), 18, times, 25, "authors")
    assert last.frames.tolist() == [*range(10, 20), *range(10, 16)]
    back = window_at(replace(SPEC, target="last", authors_coverage="reversed"), 3, times, 25, "authors")
    assert back.frames.tolist() == list(range(18, 2, -1))
    assert back.reverse
    seconds = ClipSpec(frames=4, size=(8, 8), step=0.12, step_unit="seconds", target="last")
    assert window_at(seconds, 10, times, 25).frames.tolist() == [1, 4, 7, 10]


def test_authors_rules_are_for_neighbouring_frames():
    spec = replace(SPEC, authors_coverage="cyclic", step=2)
    assert window_at(spec, 8, np.arange(40) / 25, 25).frames.tolist() == [0] * 4 + [*range(0, 23, 2)]
    for ask in (
        lambda: window_at(spec, 8, np.arange(40) / 25, 25, "authors"),
        lambda: scored_frames(spec, 40, "authors"),
        lambda: WindowPlanner(spec, 25, "authors"),
    ):
        with pytest.raises(ConfigError, match="neighbouring frames"):
            ask()


# -- streams -----------------------------------------------------------------------------------------------


def expected(spec: ClipSpec, target: int, times: list[float], fps: float, coverage: Coverage) -> list[int]:
    """The frames of one window, by a plain loop over slots and all frames."""
    rule = spec.authors_coverage if coverage == "authors" else "clamp"
    length, count, place = spec.frames, len(times), spec.target_index
    if rule == "cyclic":
        present = [k for k in range(target - place, target - place + length) if k < count]
        return [present[i % len(present)] for i in range(length)]
    if rule == "reversed":
        begin, step = (target + length - 1, -1) if target < length - 1 else (target - place, 1)
        return [min(begin + step * i, count - 1) for i in range(length)]
    step = spec.step / fps if spec.step_unit == "frames" else spec.step
    wanted = [times[target] + (i - place) * step for i in range(length)]
    near = [min(range(count), key=lambda k: (abs(times[k] - t), k)) for t in wanted]
    if spec.step_unit == "seconds":
        return near
    by_index = [target + round((i - place) * spec.step) for i in range(length)]
    inside = [i for i in range(length) if 0 <= by_index[i] < count]
    drifts = [(abs(times[by_index[i]] - wanted[i]) * fps, 0.5 + 0.05 * abs(i - place)) for i in inside]
    steady = all(drift <= allowed for drift, allowed in drifts)
    return [min(max(k, 0), count - 1) for k in by_index] if steady else near


@st.composite
def clocks(draw: st.DrawFn) -> tuple[list[float], float]:
    """Seconds of the frames of a video, and its rate: steady, jittering, with holes, or of any gaps."""
    count = draw(st.integers(1, 90))
    nominal = draw(st.sampled_from([10, 33, 40, 41]))
    kind = draw(st.sampled_from(["steady", "jitter", "holes", "any"]))
    odd = {
        "steady": [0],
        "jitter": [-8, 0, 0, 9],
        "holes": [0] * 12 + [350],
        "any": [*range(1 - nominal, 300)],
    }
    gaps = [nominal + draw(st.sampled_from(odd[kind])) for _ in range(count - 1)]
    times = [draw(st.integers(0, 700)) / 1000]
    for gap in gaps:
        times.append(times[-1] + gap / 1000)
    average = (count - 1) / (times[-1] - times[0]) if count > 1 else 25.0
    return times, draw(st.sampled_from([average, 1000 / nominal]))


OTHERS = {
    "a step of 1.5": ClipSpec(frames=5, size=(8, 8), target="middle", step=1.5),
    "0.11 s": ClipSpec(frames=4, size=(8, 8), target=1, step=0.11, step_unit="seconds"),
    "one frame": ClipSpec(frames=1, size=(8, 8)),
}


@cache
def spec_of(name: str) -> ClipSpec:
    with torch.device("meta"):
        return OTHERS.get(name) or create_model(name).spec


@pytest.mark.parametrize("coverage", ["full", "authors"])
@pytest.mark.parametrize("name", [*PAPERS, *OTHERS])
@given(clock=clocks(), stride=st.sampled_from([1, 1, 3, 40]))
@settings(max_examples=60, deadline=None)
def test_a_stream_gets_the_windows_of_the_whole_video(
    name: str, coverage: Coverage, clock: tuple[list[float], float], stride: int
):
    spec, (times, fps) = spec_of(name), clock
    planner = WindowPlanner(spec, fps, coverage, stride)
    streamed = [window for time in times for window in planner.push(time)] + planner.finish()
    targets = scored_frames(spec, len(times), coverage, stride)
    assert [window.target for window in streamed] == list(targets)
    for window in streamed:
        whole = window_at(spec, window.target, np.array(times), fps, coverage)
        assert window.frames.tolist() == whole.frames.tolist()
        assert window.times.tolist() == whole.times.tolist()
        assert (window.reverse, window.clip_sound) == (whole.reverse, whole.clip_sound)
        assert whole.frames.tolist() == expected(spec, window.target, times, fps, coverage)


@given(clock=clocks())
@settings(max_examples=60, deadline=None)
def test_a_planner_keeps_what_windows_need_and_little_more(clock: tuple[list[float], float]):
    times, fps = clock
    planner = WindowPlanner(SPEC, fps)
    for number, time in enumerate(times):
        known = planner.first
        for window in planner.push(time):
            assert window.frames.min() >= known
            # The window is given as soon as no later frame can be in it.
            assert number <= window.target + 7 or times[number - 1] < times[window.target] + 7 / fps
        assert planner.first <= number
        if (
            len(set(np.diff(times).round(6))) <= 1
            and abs(fps * (times[-1] - times[0]) - len(times) + 1) < 1e-6
        ):
            assert number - planner.first <= 16 + 1
