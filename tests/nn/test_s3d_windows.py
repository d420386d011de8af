"""S3D over sliding windows: exactly the plain network, with the reuse that arithmetic allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avsal.nn.aspp import ASPP
from avsal.nn.s3d import S3DFeatures
from avsal.nn.s3d_windows import S3DWindows


@pytest.fixture(scope="module")
def parts() -> tuple[S3DFeatures, nn.ModuleList]:
    torch.manual_seed(0)
    encoder = S3DFeatures(width=0.1)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    heads = nn.ModuleList(ASPP(channels, 5) for channels in encoder.channels)
    for head in heads:
        for branch in head.branches:
            nn.init.kaiming_normal_(branch.weight)
    return encoder.eval(), heads.eval()


def plain(parts: tuple[S3DFeatures, nn.ModuleList], video: Tensor) -> list[Tensor]:
    encoder, heads = parts
    return [head(value) for head, value in zip(heads, encoder(video), strict=True)]


def windows(ids: Tensor, size: tuple[int, int] = (32, 40)) -> Tensor:
    frames = torch.randn(int(ids.max()) + 1, 3, *size, generator=torch.Generator().manual_seed(0))
    return frames[ids].transpose(1, 2)


def clamped(count: int, frames: int, target: int, last: int) -> Tensor:
    return torch.tensor([[min(max(g - target + t, 0), last) for t in range(frames)] for g in range(count)])


@torch.inference_mode()
@pytest.mark.parametrize(("frames", "batch"), [(8, 3), (16, 1), (16, 5), (32, 4)])
def test_every_window_equals_the_plain_network(
    parts: tuple[S3DFeatures, nn.ModuleList], frames: int, batch: int
) -> None:
    # The video is 45 frames long: windows are clamped at both ends.
    ids = clamped(45, frames, frames // 2, 44)
    video = windows(ids)
    runner = S3DWindows(*parts)
    for start in range(0, 45, batch):
        ours = runner(video[start : start + batch], ids[start : start + batch])
        for value, expected in zip(ours, plain(parts, video[start : start + batch]), strict=True):
            assert value.shape == expected.shape
            assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_windows_reversed_cyclic_and_out_of_order_are_right_too(
    parts: tuple[S3DFeatures, nn.ModuleList],
) -> None:
    reversed_ = torch.tensor([[g + 15 - t for t in range(16)] for g in range(5)])
    cyclic = torch.tensor([[g + t % 9 for t in range(16)] for g in range(3)])
    jumping = clamped(40, 16, 8, 39)[[3, 30, 4, 5, 29, 28]]
    runner = S3DWindows(*parts)
    for ids in (reversed_, cyclic, jumping, reversed_.flip(0)):
        video = windows(ids)
        for value, expected in zip(runner(video, ids), plain(parts, video), strict=True):
            assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("frames", "new"),
    [
        # Slices computed for one more window: steps of the layer less those reused.
        (16, {"stem": 1, "second": 4, "f1": 6, "head1": 6, "5 frames": 6, "5": 8}),
        (
            32,
            {
                "stem": 1,
                "second": 4,
                "f1": 6,
                "head1": 6,
                "5 frames": 6,
                "5": 8,
                "6 frames": 8,
                "6": 10,
                "head2": 10,
                "7": 6,
            },
        ),
    ],
)
def test_each_layer_reuses_as_many_slices_as_its_receptive_field_allows(
    parts: tuple[S3DFeatures, nn.ModuleList], frames: int, new: dict[str, int]
) -> None:
    ids = torch.stack([torch.arange(g, g + frames) for g in range(8)])
    video = windows(ids)
    runner = S3DWindows(*parts)
    for g in range(7):
        runner(video[g : g + 1], ids[g : g + 1])
    before, kept = dict(runner.computed), len(runner._cache)
    runner(video[7:8], ids[7:8])
    assert {layer: runner.computed[layer] - before[layer] for layer in new} == new
    assert len(runner._cache) == kept  # what no later window can use is dropped


@torch.inference_mode()
def test_a_still_video_costs_one_window(parts: tuple[S3DFeatures, nn.ModuleList]) -> None:
    ids = torch.zeros(6, 16, dtype=torch.int64)
    runner = S3DWindows(*parts)
    runner(windows(ids), ids)
    assert runner.computed["stem"] == 1
