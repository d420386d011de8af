"""S3D: parity with the published network under all its names, taps, narrow variants."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import s3d

from avsal.errors import ConfigError, WeightsError
from avsal.nn.s3d import STRIDES, TAPS, S3DFeatures
from tests.golden.backbones import Golden


def kinetics_port_name(name: str) -> str:
    """`base2.0.x` (ViNet) -> `base.5.x` (Kinetics port)."""
    stage, index, rest = name.split(".", 2)
    offset = {"base1": 0, "base2": 5, "base3": 8, "base4": 14}[stage]
    return f"base.{offset + int(index)}.{rest}"


@torch.inference_mode()
def test_the_four_maps_are_the_published_networks() -> None:
    golden = Golden("s3d_backbone")
    maps = S3DFeatures.from_published(golden.state_dict())(golden.input("clip"))
    for index, value in enumerate(maps, 1):
        golden.check(f"f{index}", value)


def test_all_published_names_load_the_same_values() -> None:
    theirs = Golden("s3d_backbone").state_dict()
    port = {"module." + kinetics_port_name(k): v for k, v in theirs.items()}
    port["module.fc.0.weight"], port["module.fc.0.bias"] = torch.zeros(400, 1024, 1, 1, 1), torch.zeros(400)
    reference = s3d()
    # torchvision's network filled in the order of its entries.
    own = [k for k in reference.state_dict() if not k.startswith("classifier")]
    ordered = dict(zip(own, theirs.values(), strict=True))
    reference.load_state_dict(ordered, strict=False)
    expected = S3DFeatures.from_published(reference.state_dict()).state_dict()
    for published in (theirs, port, {f"backbone.{k}": v for k, v in theirs.items()}):
        loaded = S3DFeatures.from_published(published).state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[k], expected[k]) for k in expected)


@torch.inference_mode()
def test_it_is_torchvisions_network_also_at_odd_sizes() -> None:
    torch.manual_seed(0)
    reference = s3d().eval()
    features = S3DFeatures.from_published(reference.state_dict())
    clip = torch.randn(1, 3, 15, 60, 100)
    value, expected = clip, []
    for index, layer in enumerate(reference.features):
        value = layer(value)
        if index in TAPS:
            expected.append(value)
    for ours, theirs in zip(features(clip), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_size_and_strides() -> None:
    with torch.device("meta"):
        net = S3DFeatures()
        maps = net(torch.empty(1, 3, 32, 224, 384))
    assert sum(p.numel() for p in net.parameters()) == 7_910_048
    assert net.channels == (192, 480, 832, 1024)
    for value, channels, (t, h, w) in zip(maps, net.channels, STRIDES, strict=True):
        assert tuple(value.shape) == (1, channels, 32 // t, 224 // h, 384 // w)


def test_the_last_pool_can_keep_the_time_steps() -> None:
    with torch.device("meta"):
        f4 = S3DFeatures(last_pool_time_stride=1)(torch.empty(1, 3, 16, 224, 224))[3]
    assert tuple(f4.shape) == (1, 1024, 4, 7, 7)
    with pytest.raises(ConfigError, match="allowed: 1, 2"):
        S3DFeatures(last_pool_time_stride=3)


def test_a_narrow_network_is_small_and_runs() -> None:
    net = S3DFeatures(width=0.25, bn_momentum=0.1)
    maps = net(torch.randn(1, 3, 8, 32, 64))
    assert tuple(m.shape[1] for m in maps) == net.channels == (48, 120, 208, 256)
    assert sum(p.numel() for p in net.parameters()) < 8_000_000 / 14
    with pytest.raises(ConfigError, match="width"):
        S3DFeatures(width=0)


def test_a_wrong_checkpoint_is_refused_by_name() -> None:
    theirs = Golden("s3d_backbone").state_dict()
    theirs.pop("base1.0.conv_s.weight")
    theirs["gate.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"features\.0\.0\.0\.weight.*gate\.weight"):
        S3DFeatures.from_published(theirs)


class ViNetDecoder(nn.Module):
    """ViNet's decoder, written from its table, to see S3D inside a whole published network."""

    def __init__(self) -> None:
        super().__init__()

        def conv(a: int, b: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)):
            return nn.Conv3d(a, b, kernel, stride, (0, kernel[1] // 2, kernel[2] // 2), bias=False)

        self.convtsp1 = nn.Sequential(nn.Conv3d(1024, 832, (1, 3, 3), 1, (0, 1, 1), bias=False))
        self.convtsp2 = nn.Sequential(conv(832, 480, (3, 3, 3), (3, 1, 1)))
        self.convtsp3 = nn.Sequential(conv(480, 192, (5, 3, 3), (5, 1, 1)))
        self.convtsp4 = nn.Sequential(
            conv(192, 64, (5, 3, 3), (5, 1, 1)),
            nn.ReLU(),
            nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"),
            conv(64, 32, (2, 3, 3), (2, 1, 1)),
            nn.ReLU(),
            nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"),
            nn.Conv3d(32, 32, (2, 1, 1), (2, 1, 1), bias=False),
            nn.ReLU(),
            nn.Conv3d(32, 1, 1),
        )


@pytest.mark.slow
@torch.inference_mode()
def test_vinet_on_our_backbone_prints_its_golden_outputs() -> None:
    golden = Golden("vinet")
    state = golden.state_dict()
    backbone = S3DFeatures.from_published({k: v for k, v in state.items() if k.startswith("backbone.")})
    decoder = ViNetDecoder()
    decoder.load_state_dict(
        {k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")}
    )
    f1, f2, f3, f4 = backbone(golden.input("clip"))

    def up(value: Tensor) -> Tensor:
        return F.interpolate(value.relu(), scale_factor=(1, 2, 2), mode="trilinear")

    dec1 = up(decoder.convtsp1(f4))
    dec2 = up(decoder.convtsp2(torch.cat((dec1, f3), 2)))
    dec3 = up(decoder.convtsp3(torch.cat((dec2, f2), 2)))
    logits = decoder.convtsp4(torch.cat((dec3, f1), 2))
    for name, value in (("dec1", dec1), ("dec2", dec2), ("dec3", dec3), ("logits", logits)):
        golden.check(name, value)
    golden.check("saliency", logits.sigmoid()[:, 0, 0])
