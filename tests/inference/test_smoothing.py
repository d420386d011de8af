"""The filter over time against its formula on the whole film, and its shots and memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from avsal.errors import ConfigError
from avsal.inference.files import predict_files
from avsal.inference.smoothing import smoothed
from avsal.inference.video import FrameMap
from tests.media import write_clip


def film(times: list[float], cut: int | None = None) -> list[FrameMap]:
    generator = torch.Generator().manual_seed(len(times))
    dark, light = np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 255, np.uint8)
    return [
        FrameMap(
            k, time, torch.rand(3, 4, generator=generator), image=None if cut is None else light if k >= cut else dark
        )
        for k, time in enumerate(times)
    ]  # fmt: skip


def direct(frames: list[FrameMap], seconds: float) -> np.ndarray:
    times = np.array([frame.time for frame in frames])
    distance = times[:, None] - times
    weights = np.exp(-0.5 * (distance / seconds) ** 2) * (np.abs(distance) <= 3 * seconds)
    maps = np.stack([frame.map.numpy() for frame in frames])
    return np.einsum("ij,jhw->ihw", weights / weights.sum(1, keepdims=True), maps)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.01, 0.7), min_size=1, max_size=40), st.floats(0.03, 1.0))
def test_every_map_is_the_weighted_mean_of_its_neighbours_on_any_clock(
    steps: list[float], seconds: float
) -> None:
    frames = film(np.cumsum(steps).tolist())
    found = list(smoothed(frames, seconds))
    assert [(one.index, one.time) for one in found] == [(one.index, one.time) for one in frames]
    np.testing.assert_allclose(np.stack([one.map for one in found]), direct(frames, seconds), atol=1e-5)


def test_a_shot_change_is_not_smoothed_over() -> None:
    frames = film([k / 25 for k in range(40)], cut=17)
    found = np.stack([one.map for one in smoothed(frames, 0.2)])
    apart = np.concatenate([direct(frames[:17], 0.2), direct(frames[17:], 0.2)])
    np.testing.assert_allclose(found, apart, atol=1e-5)


def test_images_and_results_are_held_for_the_filters_span_only() -> None:
    read = 0

    def results() -> Iterator[FrameMap]:
        nonlocal read
        for frame in film([k / 25 for k in range(200)], cut=0):
            read += 1
            yield frame

    for k, one in enumerate(smoothed(results(), 0.1)):
        assert read <= min(k + 0.3 * 25 + 2, 200)
        assert one.image is not None


def test_maps_of_several_moments_are_averaged_too_and_nothing_means_nothing() -> None:
    frames = [FrameMap(k, k / 10, torch.full((8, 2, 2), float(k))) for k in range(5)]
    assert [one.map.shape for one in smoothed(frames, 0.1)] == [(8, 2, 2)] * 5
    assert list(smoothed(frames, 0)) == frames
    assert list(smoothed([], 0.5)) == []


@pytest.mark.parametrize("seconds", [-0.1, 1.5, float("nan")])
def test_a_span_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="0 to 1 seconds"):
        list(smoothed([], seconds))


def test_predict_writes_smoothed_maps_and_says_so(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "film.mp4", frames=8)
    for name, smooth in (("plain", 0.0), ("smooth", 0.1)):
        (done,) = predict_files(
            film, checkpoint="isp-lite-openfix", out=tmp_path / name, smooth=smooth, quiet=True, overlay=False
        )
        assert done.status == "done"
    plain, smooth = (np.load(tmp_path / name / "film" / "maps.npy") for name in ("plain", "smooth"))
    frames = [FrameMap(k, k / 24, torch.from_numpy(one)) for k, one in enumerate(plain)]
    np.testing.assert_allclose(smooth, direct(frames, 0.1), atol=1e-5)
    assert (
        json.loads((tmp_path / "smooth" / "film" / "summary.json").read_text())["settings"]["smooth"] == 0.1
    )
