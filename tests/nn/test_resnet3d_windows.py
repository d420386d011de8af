"""The 3D ResNet over windows: the same maps as the network prints for each window."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avsal.nn.resnet3d import ResNet3D
from avsal.nn.resnet3d_windows import ResNet3DWindows
from avsal.nn.slices import fold


def lively(network: ResNet3D) -> ResNet3D:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    return network.eval()


@torch.no_grad()
def test_folded_batch_norm_is_a_convolution_alone() -> None:
    network = lively(ResNet3D((1,), 4)).double()
    clip = torch.randn(1, 3, 4, 16, 16).double()
    weight, bias = fold(network.conv1, network.bn1)
    found = nn.functional.conv3d(clip, weight, bias, stride=(1, 2, 2), padding=3)
    torch.testing.assert_close(found, network.bn1(network.conv1(clip)))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 9])
@torch.no_grad()
def test_every_stage_of_windows_of_any_length_is_the_networks(frames: int) -> None:
    network = lively(ResNet3D((2, 1, 1, 2), 4)).double()
    windows = ResNet3DWindows(network)
    video = torch.randn(3, 20, 35, 50).double()
    for ids in ([[0, 1, 2], [1, 2, 3]], [[3, 4, 4], [2, 9, 3]], [[4, 5, 6]]):
        batch = torch.tensor(ids)[:, :1] + torch.arange(frames)
        batch[:, 1:3] = torch.tensor(ids)[:, 1:frames]
        clips = video[:, batch].transpose(0, 1)
        expected = network.features(clips)
        mean, x = windows.stem(clips, batch)
        torch.testing.assert_close(mean.movedim(-1, 1), expected[0].mean(2, keepdim=True))
        for number in range(1, 5):
            x = windows.stage(number, x)
            torch.testing.assert_close(x.movedim(-1, 1), expected[number])


@torch.no_grad()
def test_later_changes_of_the_network_do_not_reach_the_windows() -> None:
    network = lively(ResNet3D((1, 1), 4))
    windows = ResNet3DWindows(network)
    clip, ids = torch.randn(1, 3, 8, 16, 16), torch.arange(8)[None]
    before = windows.stage(1, windows.stem(clip, ids)[1])
    for parameter in network.parameters():
        parameter.zero_()
    again = windows.stage(1, windows.stem(clip, ids + 100)[1])  # frames not met before
    torch.testing.assert_close(again, before)
