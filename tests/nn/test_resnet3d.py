"""The 3D ResNet: sizes, cost and loading; STAViS's golden files pin its numbers up to stage 3."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avsal.errors import WeightsError
from avsal.nn.resnet3d import ResNet3D, from_published


@torch.no_grad()
def test_the_50_layer_network_has_the_published_size_cost_and_shapes() -> None:
    with torch.device("meta"):
        network = ResNet3D((3, 4, 6, 3), classes=400).eval()
        clip = torch.empty(1, 3, 16, 112, 112)
        with FlopCounterMode(display=False) as counter:
            shapes = [tuple(x.shape[1:]) for x in network.features(clip)]
    assert shapes == [(64, 16, 56, 56), (256, 8, 28, 28), (512, 4, 14, 14), (1024, 2, 7, 7), (2048, 1, 4, 4)]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(47.02e6, abs=5e3)
    assert counter.get_total_flops() / 2e9 == pytest.approx(10.07, abs=5e-3)


@torch.no_grad()
def test_a_bottleneck_is_its_three_convolutions_added_to_the_projected_input() -> None:
    torch.manual_seed(0)
    block = ResNet3D((1, 1), 4).eval().layer2[0]
    x = torch.randn(1, 16, 4, 8, 8)
    functional = torch.nn.functional

    def normed(value: torch.Tensor, norm: torch.nn.BatchNorm3d) -> torch.Tensor:
        return value / (norm.running_var + 1e-5).sqrt()[:, None, None, None]

    y = functional.conv3d(x, block.conv1.weight)
    y = functional.conv3d(normed(y, block.bn1).relu(), block.conv2.weight, stride=2, padding=1)
    y = normed(functional.conv3d(normed(y, block.bn2).relu(), block.conv3.weight), block.bn3)
    conv, norm = block.downsample
    expected = (y + normed(functional.conv3d(x, conv.weight, stride=2), norm)).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("blocks", "width", "classes"), [((1, 2, 1, 1), 4, 7), ((2, 1, 1, 1), 8, None), ((1, 1, 1), 4, None)]
)
@torch.no_grad()
def test_a_published_file_rebuilds_its_network(blocks: tuple, width: int, classes: int | None) -> None:
    torch.manual_seed(0)
    original = ResNet3D(blocks, width, classes).eval()
    for norm in (m for m in original.modules() if isinstance(m, torch.nn.BatchNorm3d)):
        norm.running_mean.normal_(0, 0.1)
    again = from_published({f"module.{name}": value for name, value in original.state_dict().items()})
    assert not again.training
    clip = torch.randn(1, 3, 16, 32, 32)
    torch.testing.assert_close(again(clip), original(clip))


def test_a_file_that_is_not_a_3d_resnet_is_refused_by_name() -> None:
    state = ResNet3D((1, 1, 1), 4).state_dict()
    kernel = state.pop("layer2.0.conv2.weight")
    with pytest.raises(WeightsError, match=r"missing \(1\): layer2\.0\.conv2\.weight"):
        from_published(state)
    with pytest.raises(WeightsError, match=r"unexpected \(1\): head\.weight"):
        from_published({**state, "layer2.0.conv2.weight": kernel, "head.weight": kernel})
    with pytest.raises(WeightsError, match="missing"):
        from_published({"fc.weight": torch.zeros(2, 2)})
