"""Multiscale vision transformer blocks against PyTorchVideo's, and the published names of MViT-B."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from avsal.errors import ConfigError, WeightsError
from avsal.nn.mvit import (
    BLOCK_EPS,
    POOL_EPS,
    MultiscaleBlock,
    MViT,
    from_published,
    published_encoder,
    published_format,
    resize_positions,
    resize_times,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, the more so where several tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter, so that no norm, bias or position is at its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """PyTorchVideo's MViT-B without class token: an implementation by others of the video encoder."""
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    torch.manual_seed(0)
    network = create_multiscale_vision_transformers(
        spatial_size=64,
        temporal_size=8,
        cls_embed_on=False,
        sep_pos_embed=True,
        depth=16,
        norm="layernorm",
        patch_embed_dim=16,
        conv_patch_embed_kernel=(3, 7, 7),
        conv_patch_embed_stride=(2, 4, 4),
        conv_patch_embed_padding=(1, 3, 3),
        embed_dim_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
        atten_head_mul=[[1, 2.0], [3, 2.0], [14, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 8, 8],
        pool_kvq_kernel=[3, 3, 3],
        droppath_rate_block=0.0,
        head=None,
    )
    randomise(network)
    return network.eval()


def pytorchvideo_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "norm_embed" not in name}


def test_the_encoder_equals_pytorchvideos_with_its_weights(theirs: nn.Module) -> None:
    video = torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))
    ours = from_published(pytorchvideo_names(theirs.state_dict()))
    with torch.no_grad():
        x = theirs.patch_embed(video)
        x = theirs.cls_positional_encoding(x)
        grid = [4, 16, 16]
        for block in theirs.blocks:
            x, grid = block(x, grid)
        tokens, ours_grid = ours(video)
    assert tuple(grid) == ours_grid
    assert x.std() > 0.5
    torch.testing.assert_close(tokens, x, rtol=1e-4, atol=1e-4)


def torchvision_mvit(dim: int = 16) -> nn.Module:
    """torchvision's `mvit_v1_b` with narrower layers and smaller frames."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT as TorchvisionMViT

    settings, heads, width = [], 1, dim
    for index in range(16):
        first, last = index in (1, 3, 14), index in (0, 2, 13)
        heads *= 2 if first else 1
        kv = {0: 8, 1: 4, 2: 4}.get(index, 2 if index < 14 else 1)
        settings.append(
            MSBlockConfig(
                num_heads=heads, input_channels=width, output_channels=2 * width if last else width,
                kernel_q=[3, 3, 3] if first else [], kernel_kv=[3, 3, 3], stride_q=[1, 2, 2] if first else [],
                stride_kv=[1, kv, kv],
            )
        )  # fmt: skip
        width *= 2 if last else 1
    torch.manual_seed(0)
    network = TorchvisionMViT(
        spatial_size=(64, 64), temporal_size=8, block_setting=settings, residual_pool=False,
        residual_with_cls_embed=False, rel_pos_embed=False, proj_after_attn=False, num_classes=7,
    )  # fmt: skip
    randomise(network)
    return network.eval()


def test_norms_have_the_epsilons_of_the_released_code() -> None:
    block = MultiscaleBlock(16, 32, 2, (1, 2, 2), (1, 2, 2))
    assert block.norm1.eps == block.norm2.eps == BLOCK_EPS == 1e-6
    assert block.attn.norm_q.eps == block.attn.norm_k.eps == block.attn.norm_v.eps == POOL_EPS == 1e-5


def test_torchvisions_weights_arrive_entry_by_entry() -> None:
    state = torchvision_mvit().state_dict()
    ours = from_published(state).state_dict()
    assert published_format(state) == "torchvision"
    block, mine = "blocks.14.attn.", "blocks.14.attn."
    for theirs, own in (
        ("conv_proj.weight", "patch_embed.proj.weight"),
        ("blocks.3.project.weight", "blocks.3.proj.weight"),
        ("blocks.3.mlp.0.weight", "blocks.3.mlp.fc1.weight"),
        ("blocks.3.mlp.3.bias", "blocks.3.mlp.fc2.bias"),
        (block + "project.0.weight", mine + "proj.weight"),
        (block + "pool_q.pool.weight", mine + "pool_q.weight"),
        (block + "pool_v.norm_act.0.bias", mine + "norm_v.bias"),
    ):
        if theirs in state:
            assert torch.equal(state[theirs], ours[own]), theirs
    # 305 entries apart from the positions; class token, its position, last norm and head stay behind.
    assert len(ours) == 305 + 2
    assert len(state) - len(ours) == 1 + 1 + 2 + 2
    assert torch.equal(ours["pos_embed_spatial"][0], state["pos_encoding.spatial_pos"])
    assert from_published(state).blocks[0].attn.norm_k.eps == 1e-6  # torchvision's own


def test_torchvisions_attention_gives_the_same_tokens_when_its_class_token_is_taken_out() -> None:
    """Their layers always carry a class token, so their own projections and pools are run with it cut off again."""
    from torchvision.models.video.mvit import MultiscaleAttention

    torch.manual_seed(0)
    theirs = MultiscaleAttention(
        input_size=[2, 8, 8], embed_dim=16, output_dim=16, num_heads=2, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3],
        stride_q=[1, 2, 2], stride_kv=[1, 2, 2], residual_pool=False, residual_with_cls_embed=False,
        rel_pos_embed=False, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    randomise(theirs, 3)
    ours = MultiscaleBlock(16, 16, 2, (1, 2, 2), (1, 2, 2), pool_eps=1e-6).attn
    renamed = {f"blocks.0.attn.{name}": value for name, value in theirs.state_dict().items()}
    renamed |= {"conv_proj.weight": torch.zeros(1)}
    entries = {
        n.removeprefix("blocks.0.attn."): v for n, v in published_encoder(renamed).items() if "blocks" in n
    }
    ours.load_state_dict(entries)
    tokens = torch.randn(2, 128, 16)
    with torch.no_grad():
        q, k, v = theirs.qkv(tokens).reshape(2, 128, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = []
        for x, pool in ((q, theirs.pool_q), (k, theirs.pool_k), (v, theirs.pool_v)):
            out, _ = pool(torch.cat([x.new_zeros(2, 2, 1, 8), x], 2), (2, 8, 8))
            pooled.append(out[:, :, 1:])
        weights = (pooled[0] * theirs.scaler @ pooled[1].transpose(-2, -1)).softmax(-1)
        expected = theirs.project((weights @ pooled[2]).transpose(1, 2).reshape(2, 32, 16))
        found, grid, _ = ours(tokens, (2, 8, 8))
    assert grid == (2, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pyslowfast_names_are_taken_as_they_are_with_qkv_joined_or_apart() -> None:
    network = MViT((64, 64), 8, 16, depths=(1, 1, 1, 1))
    state = network.state_dict()
    apart = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                apart[name.replace("qkv", letter)] = part
        else:
            apart[name] = value
    extra = {
        "norm.weight": torch.zeros(1),
        "head.projection.weight": torch.zeros(1),
        "cls_token": torch.zeros(1),
    }
    for entries in (state, {**apart, **extra}):
        found = published_encoder(entries)
        assert set(found) == set(state)
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_other_weights_are_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="conv_proj"):
        published_format({"stem.weight": torch.zeros(1)})


def test_a_decoder_block_raises_the_grid_and_keeps_a_constant_skip() -> None:
    block = MultiscaleBlock(16, 8, 2, (1, 2, 2), (1, 4, 4), upsample=True)
    with torch.no_grad():
        tokens, grid, weights = block(torch.randn(2, 4 * 8 * 8, 16), (4, 8, 8), attention=True)
    assert grid == (4, 16, 16)
    assert tokens.shape == (2, 4 * 16 * 16, 8)
    assert weights is not None
    assert weights.shape == (2, 2, 1024, 4 * 2 * 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 1024))
    assert block.mlp.fc1.out_features == 4 * 8
    # Without branches the block is the skip path: trilinear up-sampling of the tokens.
    plain = MultiscaleBlock(16, 16, 2, (1, 2, 2), (1, 4, 4), upsample=True)
    for layer in (plain.attn.proj, plain.mlp.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    ramp = torch.arange(8.0).view(1, 1, 1, 8, 1).expand(1, 4, 8, 8, 16).reshape(1, 256, 16)
    out = plain(ramp, (4, 8, 8))[0].view(4, 16, 16, 16)
    torch.testing.assert_close(out[0, 0, 1:-1, 0], torch.arange(14) / 2 + 0.25)


def test_attention_weights_do_not_change_the_result() -> None:
    block = MultiscaleBlock(16, 32, 2, (1, 2, 2), (1, 2, 2)).eval()
    randomise(block)
    tokens = torch.randn(2, 2 * 8 * 8, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            block(tokens, (2, 8, 8))[0], block(tokens, (2, 8, 8), attention=True)[0], rtol=1e-5, atol=1e-5
        )


def test_positions_are_resized_on_their_grid_or_as_a_list() -> None:
    rows = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 4, 1).reshape(1, 16, 1)
    on_grid = resize_positions(rows, (8, 8))
    # A picture of rows stays a picture of rows on the grid ...
    assert torch.equal(on_grid.view(8, 8), on_grid.view(8, 8)[:, :1].expand(8, 8))
    # ... and the list stretched as CSTS's code does is the bilinear resize of the (positions, channels) matrix.
    listed = resize_positions(torch.randn(1, 16, 5), (6, 6), mode="1-D")
    assert listed.shape == (1, 36, 5)
    source = torch.randn(1, 16, 5)
    matrix = nn.functional.interpolate(source[None], size=(36, 5), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resize_positions(source, (6, 6), mode="1-D"), matrix)
    assert resize_positions(rows, (4, 4)) is rows


def test_times_are_averaged_in_pairs_when_they_are_halved() -> None:
    temporal = torch.randn(1, 8, 3)
    torch.testing.assert_close(resize_times(temporal, 4), temporal.view(1, 4, 2, 3).mean(2))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="not a multiple"):
        MultiscaleBlock(10, 10, 3)
    with pytest.raises(ConfigError, match="square"):
        resize_positions(torch.zeros(1, 15, 2), (4, 4))
    with pytest.raises(ConfigError, match="3-D"):
        resize_positions(torch.zeros(1, 16, 2), (8, 8), mode="3-D")
