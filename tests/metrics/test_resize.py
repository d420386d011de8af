"""Resizing and post-processing against MATLAB's results (golden data), SciPy and torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d, gaussian_filter

from avsal.metrics import postprocess, resize_maps
from avsal.metrics.inputs import MetricInputError
from avsal.metrics.resize import blur_maps, stretch

ARRAYS = dict(np.load(Path(__file__).parents[1] / "golden" / "metrics.npz"))


def test_bicubic_is_matlab_s_imresize() -> None:
    name = "resize_28x50_to_180x320_n30"
    resized = resize_maps(torch.from_numpy(ARRAYS[f"{name}/pred"]).double(), (180, 320)).numpy()
    assert np.abs(resized - ARRAYS[f"{name}/pred_resized"]).max() < 1e-7


@pytest.mark.parametrize("size", [(70, 110), (431, 977), (200, 150), (33, 640)])
def test_bicubic_is_the_antialiased_cubic_away_from_the_border(size: tuple[int, int]) -> None:
    maps = torch.rand((2, 1, 200, 300), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = resize_maps(maps, size)
    theirs = F.interpolate(maps, size, mode="bicubic", antialias=True)
    cut_r, cut_c = (4 * max(1, round(b / a)) for a, b in zip((200, 300), size, strict=True))
    inside = (..., slice(cut_r, -cut_r), slice(cut_c, -cut_c))
    assert (ours - theirs)[inside].abs().max() < 1e-12
    assert (ours - theirs).abs().max() > 1e-3


def test_border_is_mirrored_as_if_the_map_went_on() -> None:
    """A map that is its own mirror image beyond each edge resizes as its tiling does."""
    maps = torch.rand((20, 30), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wide = torch.cat((maps.flip(0), maps, maps.flip(0)))
    wide = torch.cat((wide.flip(1), wide, wide.flip(1)), 1)
    for size in ((50, 45), (8, 12)):
        tiled = resize_maps(wide, (3 * size[0], 3 * size[1]))
        middle = tiled[size[0] : 2 * size[0], size[1] : 2 * size[1]]
        assert torch.allclose(resize_maps(maps, size), middle, atol=1e-12)


def test_constant_maps_stay_constant_in_single_precision() -> None:
    maps = torch.full((3, 17, 23), 0.3)
    for out in (resize_maps(maps, (101, 77)), resize_maps(maps, (5, 7)), blur_maps(maps, sigma=2, radius=6)):
        assert (out == maps[0, 0, 0]).all()


def test_stavis_post_processing() -> None:
    """The map that the STAViS driver scores, made by its own code under Octave."""
    raw = torch.from_numpy(ARRAYS["video/pred"][0].astype(np.float64) / 255)
    ours = postprocess(raw, "stavis", quantise=False)
    assert np.abs(ours.numpy() - ARRAYS["video/post_frame0"]).max() < 1e-7
    assert torch.equal(postprocess(stretch(raw), "stavis"), ours) == bool((stretch(raw) * 255 % 1 == 0).all())
    assert (postprocess(torch.zeros((9, 9)), "stavis") == 0).all()


def test_blur_is_scipy_s() -> None:
    maps = np.random.default_rng(0).random((31, 40))
    ours = blur_maps(torch.from_numpy(maps), sigma=3.2, radius=13)
    assert np.abs(ours.numpy() - gaussian_filter(maps, 3.2)).max() < 1e-12
    weight = np.exp(-0.5 * (np.arange(-5, 6) / 2.0) ** 2)
    opencv = correlate1d(
        correlate1d(maps, weight / weight.sum(), 0, mode="mirror"), weight / weight.sum(), 1, mode="mirror"
    )
    reflected = blur_maps(torch.from_numpy(maps), sigma=2.0, radius=5, border="reflect")
    assert np.abs(reflected.numpy() - opencv).max() < 1e-12


def test_mspi_post_processing_blurs_the_log_map() -> None:
    log_map = torch.randn((2, 24, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = postprocess(log_map, "mspi", size=(48, 64))
    assert out.shape == (2, 48, 64)
    assert torch.equal((out * 255).round() / 255, out)
    assert float(out.amin()) == 0.0
    assert float(out.amax()) == 1.0
    by_hand = F.interpolate(
        blur_maps(log_map, sigma=2.0, radius=5, border="reflect").exp()[:, None], (48, 64), mode="bilinear"
    )[:, 0]
    assert (stretch(by_hand) - out).abs().max() <= 0.5 / 255 + 1e-12


def test_bad_options_are_refused() -> None:
    with pytest.raises(MetricInputError, match="filter"):
        resize_maps(torch.rand(3, 4, 4), (8, 8), filter="cubic")  # type: ignore[arg-type]
    with pytest.raises(MetricInputError, match="pipeline"):
        postprocess(torch.rand(3, 4, 4), "unisal")  # type: ignore[arg-type]
    with pytest.raises(MetricInputError):
        resize_maps(torch.rand(3, 4, 4), (0, 8))
