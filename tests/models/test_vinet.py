"""ViNet and ViNet-S: the authors' numbers, reuse between windows, conversion, training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avsal.errors import ConfigError, WeightsError
from avsal.inference.video import predict_video
from avsal.models import create_model
from avsal.models.vinet import ViNet, ViNetModule
from avsal.zoo import convert
from tests.golden.backbones import Golden
from tests.media import write_clip

SMALL = {"size": (64, 96), "width": 0.125}


def lively(network: ViNet) -> ViNet:
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
        if isinstance(layer, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network.eval()


@pytest.mark.slow
@torch.inference_mode()
def test_the_network_prints_the_authors_numbers() -> None:
    golden = Golden("vinet")
    module = convert("vinet", golden.state_dict())
    assert isinstance(module, ViNetModule)
    blocks: list[torch.Tensor] = []
    for convolution in module.network.decoder[:3]:
        convolution.register_forward_hook(lambda *call: blocks.append(call[2].relu()))
    output = module.network.core(golden.input("clip"))
    golden.check("logits", output.logits[:, :, None])
    golden.check("saliency", output.saliency()[:, 0])
    for number, block in enumerate(blocks, 1):
        golden.check(f"dec{number}", F.interpolate(block, scale_factor=(1, 2, 2), mode="trilinear"))


def test_vinet_s_has_the_published_size_and_its_entries_tell() -> None:
    sizes = {}
    for grouped in (False, True):
        with torch.device("meta"):
            network = ViNet(grouped=grouped)
        sizes[grouped] = sum(p.numel() for p in network.parameters())
    assert round(sizes[True] * 4 / 2**20) == 36  # MB, as its authors say
    dense = [1024 * 832 * 9, 832 * 480 * 27, 480 * 192 * 45, 192 * 64 * 45, 64 * 32 * 18]
    shared = sum(n - n // groups for n, groups in zip(dense, (32, 16, 8, 4, 2), strict=True))
    assert sizes[False] - sizes[True] == shared
    names = ("tsp1.0", "tsp2.0", "tsp3.0", "tsp4.0", "tsp4.3", "tsp4.6", "tsp4.8")
    state = create_model("vinet", grouped=True).network.state_dict()
    theirs = {
        f"module.decoder.conv{names[int(name.split('.')[1])]}.{name.split('.')[2]}"
        if name.startswith("decoder")
        else f"module.backbone.{name.removeprefix('encoder.')}": value
        for name, value in state.items()
    }
    small = convert("vinet", theirs)
    assert small.hparams["grouped"]
    assert small.loss_weights == (1, 1)
    assert all(torch.equal(value, state[name]) for name, value in small.network.state_dict().items())
    theirs["decoder.convtsp5.0.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"convtsp5"):
        convert("vinet", theirs)


@pytest.mark.parametrize("options", [{}, {"grouped": True, "frames": 16}])
def test_a_whole_video_gives_the_same_maps_with_and_without_reuse(options: dict, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=40, fps=25, height=72, width=96)
    module = create_model("vinet", **SMALL, **options).eval()
    with torch.no_grad():
        lively(module.network)
    found = torch.stack([result.map for result in predict_video(module, path, batch_size=3)])
    plain = torch.stack([result.map for result in predict_video(module, path, batch_size=3, reuse=False)])
    assert found.shape == (40, 64, 96)
    assert plain.std() > 1e-3
    assert (found - plain).abs().max() <= 1e-4 * plain.std()


@torch.no_grad()
def test_reuse_shares_slices_of_s3d() -> None:
    network = lively(ViNet(**SMALL))
    runner = network.window_runner()
    video = torch.randn(3, 40, 64, 96)
    for first in range(4):
        ids = torch.arange(first, first + 32)[None]
        runner(video[:, ids[0]][None], ids, None)
    asked, computed = runner.windows.asked, runner.windows.computed
    assert computed["stem"] == 32 + 3
    assert (asked["f1"], computed["f1"]) == (
        4 * 16,
        2 * 16 + 2 * 6,
    )  # two frames later half the stem is known


def test_the_last_frame_is_the_target_and_sizes_are_padded() -> None:
    for frames in (8, 16, 32):
        network = ViNet(frames, (50, 70), width=0.0625).eval()
        with torch.inference_mode():
            assert network.core(torch.randn(2, 3, frames, 50, 70)).logits.shape == (2, 1, 50, 70)
        assert network.spec.target_index == frames - 1
    with pytest.raises(ConfigError, match="frames=24"):
        ViNet(24)


@pytest.mark.parametrize(("grouped", "weight"), [(False, 0.0), (True, 1.0)])
def test_the_loss_is_kl_and_for_vinet_s_minus_cc(grouped: bool, weight: float) -> None:
    torch.manual_seed(0)
    module = create_model("vinet", **{**ViNetModule.small, "grouped": grouped})
    density = torch.rand(2, 1, 32, 32)
    batch = {"video": torch.randn(2, 3, 8, 32, 32), "density": density}
    output = module(batch)
    terms = module.loss_terms(output, batch)
    maps = output.logits.sigmoid().flatten(2).double()
    p, q = maps / maps.sum(-1, keepdim=True), density.flatten(2).double()
    q = q / q.sum(-1, keepdim=True)
    kl = (q * (q / p).log()).sum(-1).mean()
    pair = zip(p.flatten(0, 1), q.flatten(0, 1), strict=True)
    cc = torch.stack([torch.corrcoef(torch.stack(maps))[0, 1] for maps in pair]).mean()
    torch.testing.assert_close(terms["loss"].double(), kl - weight * cc, rtol=1e-4, atol=1e-5)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
