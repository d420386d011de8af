"""Motion encoders: one interface, declared shapes, published files under every naming."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avsal.checkpoints.file import read_state_dict
from avsal.errors import ConfigError, WeightsError
from avsal.nn.backbones import convert_backbone
from avsal.nn.motion import MOTION_ENCODERS, MotionEncoder, build_motion_encoder, motion_class, unwrap
from tests.golden.mspi import MSPIGolden

SIZES = dict.fromkeys(MOTION_ENCODERS, (64, 96)) | {"morphmlps": (224, 224)}


def randomised(network: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own, so that a lost entry shows."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    return network.eval()


@pytest.fixture(scope="module", params=list(MOTION_ENCODERS))
def encoder(request: pytest.FixtureRequest) -> tuple[str, MotionEncoder]:
    torch.manual_seed(0)
    return request.param, build_motion_encoder(request.param).eval()


def test_maps_have_the_declared_channels_and_strides(encoder: tuple[str, MotionEncoder]) -> None:
    name, network = encoder
    height, width = SIZES[name]
    network.check_size(height, width)
    with torch.inference_mode():
        maps = network(torch.randn(1, 3, 16, height, width))
    for x, channels, (t, h, w) in zip(maps, network.channels, network.strides, strict=True):
        assert x.shape == (1, channels, 16 // t, height // h, width // w)
    assert [stride[1:] for stride in network.strides] == [(4, 4), (8, 8), (16, 16), (32, 32)]


def test_the_authors_file_loads_in_its_wrapper_and_nothing_is_lost(
    encoder: tuple[str, MotionEncoder],
) -> None:
    name, network = encoder
    golden = MSPIGolden(name)
    plain = {key.removeprefix("visnet."): value for key, value in golden.state_dict("visnet.").items()}
    head = {"head.projection.weight": torch.zeros(400, 8)}
    wrapped = {
        "videoswins": {"state_dict": {f"backbone.{k}": v for k, v in plain.items()}},
        "x3dl": {"model_state": {**plain, **head}, "epoch": 3},
        "slowfast4x16": {"model_state": {**plain, **head}},
        "mvitv2s": {"model_state": {**plain, "cls_token": torch.zeros(1, 1, 96)}},
        "s3d": {f"module.{k}": v for k, v in plain.items()},
    }.get(name, plain)
    network.load_published(wrapped)
    ours = network.state_dict()
    for key, value in plain.items():
        target = network.rename(key)
        if target in ours:
            assert torch.equal(ours[target], value), key
    network.load_published(network.state_dict())  # our own names are one of the namings
    with pytest.raises(WeightsError, match=r"missing \(1\)"):
        network.load_published(dict(list(plain.items())[1:]))
    with pytest.raises(WeightsError, match="surprise"):
        network.load_published({**plain, "surprise.weight": torch.zeros(3)})


def test_pytorchvideos_x3d_runs_as_in_its_library() -> None:
    from pytorchvideo.models.hub import x3d_l

    library = randomised(x3d_l())
    ours = motion_class("x3dl").from_published({"model_state": library.state_dict()})
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.inference_mode():
        x, maps = library.blocks[0](clip), ours(clip)
        for index in range(4):
            x = library.blocks[index + 1](x)
            assert torch.equal(maps[index], x)


def test_pytorchvideos_8x8_slowfast_file_gives_its_lateral_kernel_and_its_slow_pathway() -> None:
    from pytorchvideo.models.hub import slowfast_r50

    library = randomised(slowfast_r50())
    ours = motion_class("slowfast4x16").from_published(library.state_dict(), slow_frames="even")
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.inference_mode():
        maps = ours(clip)
        pathways = [clip[:, :, [0, 5, 10, 15]], clip]
        for index in range(4):
            pathways = library.blocks[index](pathways)
            if index:
                assert torch.equal(maps[index - 1], pathways[0])
        assert torch.equal(maps[3], library.blocks[4](pathways)[0])


@pytest.mark.slow
def test_torchvisions_video_swin_runs_as_in_its_library_with_the_patch_norm() -> None:
    from torchvision.models.video import swin3d_s

    library = randomised(swin3d_s())
    ours = motion_class("videoswins").from_published(library.state_dict())
    clip = torch.randn(1, 3, 16, 64, 96)
    with torch.inference_mode():
        x, maps = library.patch_embed(clip), ours(clip)
        for index, layer in enumerate(library.features):
            x = layer(x)
            if index % 2 == 0:
                assert torch.equal(maps[index // 2], x.permute(0, 4, 1, 2, 3))
    # The same file must not lose its norm in silence.
    with pytest.raises(WeightsError, match=r"patch_embed\.norm\.weight"):
        build_motion_encoder("videoswins").load_published(library.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (64, 160)])
def test_torchvisions_mvit_gives_the_same_maps_when_its_class_token_is_ignored(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torchvision's own pass, with the token's key masked out and its query dropped."""
    from torchvision.models.video import mvit

    network = mvit.MViT
    monkeypatch.setattr(mvit, "MViT", lambda **options: network(**{**options, "spatial_size": size}))
    library = randomised(mvit.mvit_v2_s())
    ours = motion_class("mvitv2s").from_published(library.state_dict())
    clip = torch.randn(1, 3, 16, *size)
    seen = []

    original = mvit._add_rel_pos

    def masked(attn, *args):
        attn = original(attn, *args)
        attn[..., 0] = float("-inf")
        return attn

    hooks = [
        library.blocks[index].register_forward_hook(lambda _, __, out: seen.append(out))
        for index in (0, 2, 13, 15)
    ]
    mvit._add_rel_pos = masked
    try:
        with torch.inference_mode():
            library(clip)
            maps = ours(clip)
    finally:
        mvit._add_rel_pos = original
        for hook in hooks:
            hook.remove()
    for x, (tokens, grid) in zip(maps, seen, strict=True):
        expected = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
        assert (x - expected).abs().max() <= 2e-5 * expected.std()


def test_mvit_takes_relative_position_tables_of_another_size() -> None:
    golden = MSPIGolden("mvitv2s")
    plain = {key.removeprefix("visnet."): value for key, value in golden.state_dict("visnet.").items()}
    plain["blocks.0.attn.rel_pos_w"] = torch.randn(191, 96)
    network = motion_class("mvitv2s").from_published(plain)
    again = motion_class("mvitv2s")()
    again.load_state_dict(network.state_dict())
    assert again.blocks[0].attn.rel_pos_w.shape == (191, 96)


@pytest.mark.parametrize(
    ("name", "option"), [("x3dl", {"shortcut_norm": False}), ("slowfast4x16", {"lateral_kernel": 7})]
)
def test_pytorchvideos_file_says_which_option_it_fits(name: str, option: dict[str, object]) -> None:
    published = motion_class(name)(**option)
    with pytest.raises(WeightsError) as caught:
        motion_class(name)().load_published(published.state_dict())
    assert f"encoder_options={option}" in str(caught.value)
    motion_class(name)(**option).load_published(published.state_dict())


def test_torchvisions_s3d_loads() -> None:
    from torchvision.models.video import s3d

    library = randomised(s3d())
    ours = motion_class("s3d").from_published(library.state_dict())
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(clip)[2], library.features[:13](clip))
        # The last pool keeps time: its four steps are maxima of single steps, not of pairs.
        assert ours(clip)[3].shape[2] == 4


def test_unknown_encoders_and_options_are_named() -> None:
    with pytest.raises(
        ConfigError, match="s3d, x3dl, slowfast4x16, morphmlps, videoswins, uniformerb, mvitv2s"
    ):
        build_motion_encoder("resnet")
    with pytest.raises(ConfigError, match="shortcut_norm"):
        build_motion_encoder("x3dl", patch_norm=True)
    with pytest.raises(ConfigError, match="slow_frames"):
        build_motion_encoder("slowfast4x16", slow_frames="all")


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigError, match="multiples of 32, such as 224x224"):
        build_motion_encoder("x3dl").check_size(224, 225)
    with pytest.raises(ConfigError, match="224x448"):
        build_motion_encoder("morphmlps").check_size(224, 384)


def test_caffe2_files_are_refused_with_a_word_on_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="SLOWFAST_8x8_R50"):
        unwrap({"blobs": {"conv1_w": [0.0]}})
    with pytest.raises(WeightsError, match="SLOWFAST_8x8_R50"):
        convert_backbone("slowfast4x16", {"blobs": {"conv1_w": [0.0]}})  # type: ignore[dict-item]
    path = tmp_path / "SLOWFAST_4x16_R50.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3)}}))
    with pytest.raises(WeightsError, match="SLOWFAST_8x8_R50"):
        read_state_dict(path)
    with pytest.raises(WeightsError, match="no tensors"):
        unwrap({"epoch": 3})
