"""CASP-Net: sizes, variants, what is heard, the loss, exact reuse, recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.table import Table
from torch import Tensor, nn

import avsal
from avsal.errors import ConfigError, WeightsError
from avsal.models.caspnet import VARIANTS, CASPNet, CASPNetModule
from avsal.nn.cost import count
from avsal.nn.s3d import S3DFeatures
from avsal.types import Batch, SaliencyOutput
from avsal.zoo.show import _variants
from benchmarks.aspp_attention import arithmetic

TINY: dict[str, Any] = {
    "size": (64, 96),
    "width": 0.15,
    "channels": 16,
    "growth": 4,
    "decoder_width": 8,
    "audio_encoder": "small",
    "audio_width": 4,
}


def tiny(**options: Any) -> CASPNet:
    """A small network in which everything does something: no zero-initialised gates, no trivial statistics."""
    torch.manual_seed(0)
    network = CASPNet(**{**TINY, **options})
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    for interaction in getattr(network, "avim", {}).values():
        nn.init.normal_(interaction.delta.weight, std=0.3)
    for aspp in network.aspp:
        for branch in getattr(aspp, "branches", ()):
            nn.init.kaiming_normal_(branch.weight)
    return network


def parameters(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.fixture(scope="module")
def network() -> CASPNet:
    return tiny().eval()


CLIP = torch.randn(2, 3, 16, 64, 96, generator=torch.Generator().manual_seed(1))
#: Two log-mel patches: hissing in the low and in the high half of the bands.
SOUND = torch.randn(2, 1, 96, 64, generator=torch.Generator().manual_seed(2)) * 0.3 - 3.0
SOUND[0, :, 20:60, :32] += 4.0
SOUND[1, :, 50:, 32:] += 4.0


def test_parameters_are_the_sheets_and_decoders_those_of_table_1_within_two_percent() -> None:
    with torch.device("meta"):
        full = CASPNet()
        decoders = {name: CASPNet(audiovisual=False, decoder=name).decoder for name in ("sal", "fcn", "unet")}
        bilinear = CASPNet(fusion="bilinear").bilinear
    assert parameters(full.encoder) == pytest.approx(7.910, abs=5e-4)
    assert [parameters(a) for a in full.aspp] == pytest.approx([1.770, 4.425, 7.669, 9.438], abs=1e-3)
    assert parameters(full.avim) == pytest.approx(1.185, abs=5e-4)
    assert parameters(full.cpc) == pytest.approx(7.112, abs=5e-4)
    assert {n: parameters(d) for n, d in decoders.items()} == pytest.approx(
        {"sal": 2.510, "fcn": 1.746, "unet": 3.908}, abs=5e-4
    )
    for name, printed in (("sal", 2.49), ("fcn", 1.77), ("unet", 3.94)):
        assert parameters(decoders[name]) == pytest.approx(printed, rel=0.02)
    assert parameters(full.audio_encoder) == pytest.approx(72.141, abs=5e-4)
    assert parameters(full) - parameters(full.audio_encoder) == pytest.approx(42.02, abs=5e-3)
    assert parameters(bilinear) == pytest.approx(8.389, abs=1e-3)


def test_costs_and_shapes_at_full_size() -> None:
    """Billions of multiply-adds for a clip of 16 x 224 x 384, as the sheet counts them."""
    with torch.device("meta"):
        full = CASPNet().eval()
        clip, sound = torch.empty(1, 3, 16, 224, 384), torch.empty(1, 1, 96, 64)
        stages = full.encoder(clip)
        assert [tuple(s.shape[2:]) for s in stages] == [(8, 56, 96), (8, 28, 48), (4, 14, 24), (2, 7, 12)]
        features = [a(s) for a, s in zip(full.aspp, stages, strict=True)]
        assert all(f.shape[1] == 256 for f in features)
        giga = {
            "s3d": count(full.encoder, clip).macs / 1e9,
            "aspp": sum(count(a, s, method="plain").macs for a, s in zip(full.aspp, stages, strict=True))
            / 1e9,
            "sal": count(full.decoder, features).macs / 1e9,
            "vggish": count(full.audio_encoder, sound).macs / 1e9,
            "cpc": count(full.cpc, features[3], torch.empty(1, 128)).macs / 1e9,
        }
        for decoder, expected in (("fcn", 1.6), ("unet", 35.4)):
            assert count(
                CASPNet(audiovisual=False, decoder=decoder).decoder, features
            ).macs / 1e9 == pytest.approx(expected, abs=0.1)
        output = full.core(clip, sound)
    assert giga == pytest.approx(
        {"s3d": 30.8, "aspp": 135.6, "sal": 27.5, "vggish": 0.9, "cpc": 0.6}, abs=0.06
    )
    assert tuple(output.logits.shape) == (1, 1, 224, 384)
    assert tuple(output.aux["cpc_error"].shape) == (1, 3, 3)


def test_the_spec_says_what_the_paper_and_the_sheet_say() -> None:
    with torch.device("meta"):
        spec, context, visual = (
            CASPNet(**o).spec
            for o in ({}, {"context": True}, {"audiovisual": False})  # type: ignore[arg-type]
        )
    assert (spec.frames, spec.target_index, spec.size, spec.authors_coverage) == (16, 8, (224, 384), "cyclic")
    assert spec.mean == pytest.approx((110.2008, 100.63983, 95.99475))
    assert spec.std == pytest.approx((58.14765, 56.46975, 55.332195))
    assert spec.audio is not None
    assert spec.audio.sample_rate == 16000
    # 16 frames from the first one's begin to the last one's end.
    assert spec.audio.span(1.0, 1.6, 25.0) == pytest.approx((1.0, 1.64))
    assert context.audio is not None
    assert context.audio.span(1.0, 1.6, 25.0) == pytest.approx((1.32 - 0.4875, 1.32 + 0.4875))
    assert visual.audio is None


@pytest.mark.parametrize(
    "options",
    [
        {"audiovisual": False},
        {"audiovisual": False, "decoder": "fcn"},
        {"audiovisual": False, "decoder": "unet"},
        {"fusion": "bilinear", "iterations": 0},
        {"fusion": "quadratic", "iterations": 0},
        {"iterations": 0},
        {"iterations": 5, "learnable_alpha": True},
        *({"stages": s, "iterations": 0} for s in ((1,), (2,), (3,), (4,), (2, 3, 4))),
    ],
    ids=str,
)
def test_every_row_of_the_ablations_runs_and_trains(options: dict[str, Any]) -> None:
    network = tiny(**options).train()
    audiovisual = options.get("audiovisual", True)
    output = network.core(CLIP, SOUND if audiovisual else None)
    assert output.logits.shape == (2, 1, 64, 96)
    output.logits.square().mean().backward()
    # Every trained parameter gets a gradient: distributed training would wait for it otherwise.
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert ("cpc_error" in output.aux) == (audiovisual and options.get("iterations", 3) > 0)
    stages = options.get("stages", (1, 2, 3, 4))
    if audiovisual and options.get("fusion") != "bilinear":
        assert sorted(network.avim) == [str(s) for s in stages]


@torch.inference_mode()
def test_the_sound_matters_unless_the_printed_softmax_is_used(network: CASPNet) -> None:
    swapped = SOUND.flip(0)
    ours = network.core(CLIP, SOUND).logits
    assert (ours - network.core(CLIP, swapped).logits).abs().max() > 0.02 * ours.std()
    deaf = tiny(fusion="quadratic", softmax=True, iterations=0).eval()
    torch.testing.assert_close(
        deaf.core(CLIP, SOUND).logits, deaf.core(CLIP, swapped).logits, rtol=1e-5, atol=1e-6
    )


@torch.inference_mode()
def test_as_printed_the_predictive_coding_leaves_the_map_alone() -> None:
    plain = tiny(iterations=0).eval()
    for options, limit in (({"cpc_gradient": "above"}, 0.0), ({"cpc_error": "mean"}, 1e-3), ({}, None)):
        other = tiny(**options).eval()  # type: ignore[arg-type]
        other.load_state_dict(plain.state_dict(), strict=False)
        moved = (other.core(CLIP, SOUND).logits - plain.core(CLIP, SOUND).logits).abs().max()
        scale = plain.core(CLIP, SOUND).logits.std()
        if limit is None:
            assert moved > 1e-2 * scale
        else:
            assert moved <= limit * scale


@torch.inference_mode()
def test_missing_sound_is_fifteen_thousand_six_hundred_zeros(network: CASPNet) -> None:
    silent = network.log_mel(torch.zeros(2, 15600))
    expected = network.core(CLIP, silent).logits
    noise = torch.randn(2, 9000)
    for output in (
        network(CLIP),
        network.core(CLIP, None),
        network(CLIP, noise, has_audio=torch.tensor([False, False])),
        network(CLIP, noise, audio_length=torch.tensor([0, 0])),
    ):
        torch.testing.assert_close(output.logits, expected)
    one = network(CLIP, noise, has_audio=torch.tensor([True, False])).logits
    torch.testing.assert_close(one[1], expected[1])
    assert (one[0] - expected[0]).abs().max() > 1e-5


@torch.inference_mode()
def test_odd_sizes_are_padded_below_and_right(network: CASPNet) -> None:
    clip = CLIP[:1, ..., :50, :71]
    output = network.core(clip, SOUND[:1])
    assert output.logits.shape == (1, 1, 50, 71)
    padded = torch.zeros(1, 3, 16, 64, 96)
    padded[..., :50, :71] = clip
    torch.testing.assert_close(output.logits, network.core(padded, SOUND[:1]).logits[..., :50, :71])
    with torch.device("meta"):
        assert CASPNet(size=(225, 385)).spec.size == (225, 385)


def test_a_map_of_a_video_needs_fewer_multiplications_than_as_written() -> None:
    with torch.device("meta"):
        giga = arithmetic(CASPNet().eval(), torch.empty(1, 1, 96, 64))
    reused = giga.pop("fast forms and reuse")
    assert giga == pytest.approx({"as written": 217.0, "fast forms": 189.7}, abs=0.1)
    assert giga["as written"] / reused > 1.3


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"audiovisual": False, "size": (50, 70)}], ids=str)
def test_windows_with_reuse_equal_windows_without(options: dict[str, Any]) -> None:
    network = tiny(**options).eval()
    height, width = network.spec.size
    frames = torch.randn(24, 3, height, width, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[min(max(g - 8 + t, 0), 23) for t in range(16)] for g in range(24)])
    video, sound = frames[ids].transpose(1, 2), torch.randn(24, 1, 96, 64)
    runner = network.window_runner()
    for start in range(0, 24, 4):
        part = slice(start, start + 4)
        heard = sound[part] if network.audiovisual else None
        ours, plain = runner(video[part], ids[part], heard), network.core(video[part], heard)
        assert (ours.logits - plain.logits).abs().max() <= 1e-5 * plain.logits.abs().max()
        assert ours.aux.keys() == plain.aux.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "cross"}, "linear, quadratic, bilinear"),
        ({"decoder": "deep"}, "sal, fcn, unet"),
        ({"audio_encoder": "big"}, "vggish, small"),
        ({"stages": (0, 1)}, "1, 2, 3, 4"),
        ({"stages": (1, 1)}, "at most once"),
        ({"iterations": -1}, "0, 1, 2"),
        ({"frames": 15}, "multiple of 8; the nearest are 8 and 16"),
        ({"size": (20, 100)}, "at least 32"),
        ({"softmax": True}, "quadratic"),
        ({"decoder": "fcn"}, "stages=.4,."),
        ({"alpha": -0.1}, "0..1"),
        ({"width": 0.0}, "width"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CASPNet(**{**TINY, **options})
    with pytest.raises(ConfigError, match="takes 16"):
        tiny(audiovisual=False).core(torch.zeros(1, 3, 8, 64, 96))


# -- the module ----------------------------------------------------------------------------------------


def batch() -> Batch:
    density = torch.zeros(2, 1, 64, 96)
    density[0, 0, 20:30, 40:60] = 1.0
    density[1, 0, 40:50, 10:20] = 0.5
    return {
        "video": CLIP,
        "audio": torch.randn(2, 10240, generator=torch.Generator().manual_seed(4)),
        "density": density,
        "labelled": torch.ones(2, 1, dtype=torch.bool),
    }


def loss(module: CASPNetModule, maps: Tensor, clip: Batch) -> dict[str, Tensor]:
    return module.loss_terms(SaliencyOutput(torch.logit(maps.clamp(1e-4, 1 - 1e-4))), clip)


def test_the_loss_is_kl_less_a_tenth_of_cc_and_sim_and_the_printed_sign_rewards_anticorrelation() -> None:
    ours, printed = CASPNetModule(**TINY), CASPNetModule(**TINY, loss="printed")
    clip = batch()
    maps = 0.7 * clip["density"] + 0.2 * torch.rand(2, 1, 64, 96)
    a, b = loss(ours, maps, clip), loss(printed, maps, clip)
    torch.testing.assert_close(a["loss"], a["kl"] - 0.1 * a["cc"] - 0.1 * a["sim"])
    torch.testing.assert_close(b["loss"], b["kl"] + 0.1 * b["cc"] - 0.1 * b["sim"])
    # With KL and SIM out of the way, the gradient says which way the correlation is pushed.
    for module, sign in ((ours, -1), (printed, 1)):
        cc = loss(module, maps, clip)["loss"] - loss(module, maps, clip)["kl"] + 0.1 * a["sim"]
        assert float(cc) == pytest.approx(sign * 0.1 * float(a["cc"]), abs=1e-5)
    assert float(a["cc"]) > 0.5


def test_a_better_map_has_a_lower_loss_and_maps_without_truth_do_not_count() -> None:
    module, clip = CASPNetModule(**TINY), batch()
    noise = torch.rand(2, 1, 64, 96)
    losses = [
        float(loss(module, w * clip["density"] + (1 - w) * noise, clip)["loss"]) for w in (0.0, 0.5, 0.9)
    ]
    assert losses == sorted(losses, reverse=True)
    first = loss(module, noise[:1], {**batch(), "density": clip["density"][:1], "labelled": torch.ones(1, 1)})
    clip["density"][1] = 0
    assert torch.equal(loss(module, noise, clip)["loss"], first["loss"])
    clip = batch()
    clip["labelled"][1] = False
    assert torch.equal(loss(module, noise, clip)["loss"], first["loss"])
    clip["labelled"][:] = False
    assert float(loss(module, noise, clip)["loss"]) == 0


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    torch.manual_seed(0)
    module = CASPNetModule(**TINY, bn_momentum=0.1, lr=3e-3).train()
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.Adam)
    values = []
    for _ in range(8):
        value = module.loss_terms(module(batch()), batch())["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] - 0.3


def test_vggish_is_frozen_and_the_small_encoder_trains() -> None:
    with torch.device("meta"):
        full = CASPNetModule().train()
    assert not any(p.requires_grad for p in full.network.audio_encoder.parameters())
    assert not full.network.audio_encoder.training
    small = CASPNetModule(**TINY, freeze_bn=True).train()
    assert all(p.requires_grad for p in small.network.audio_encoder.parameters())
    assert not any(m.training for m in small.network.encoder.modules() if isinstance(m, nn.BatchNorm3d))
    watch = small.configure_optimizers()["lr_scheduler"]
    assert (watch["scheduler"].factor, watch["scheduler"].patience, watch["monitor"]) == (0.5, 3, "val/loss")


def test_the_visual_stage_fits_into_the_audiovisual_one() -> None:
    visual, both = CASPNetModule(**TINY, audiovisual=False), CASPNetModule(**TINY)
    theirs, own = visual.state_dict(), both.state_dict()
    assert all(name in own and own[name].shape == value.shape for name, value in theirs.items())
    assert {n.split(".")[1] for n in own.keys() - theirs.keys()} == {"audio_encoder", "avim", "cpc"}


def test_backbones_load_when_training_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    donor = S3DFeatures(width=TINY["width"]).state_dict()
    monkeypatch.setattr("avsal.zoo.load_state", lambda source: donor if source == "s3d-kinetics" else {})
    module = CASPNetModule(**TINY, backbone="s3d-kinetics")
    module.setup("fit")
    assert all(torch.equal(v, donor[k]) for k, v in module.network.encoder.state_dict().items())
    module = CASPNetModule(**TINY, backbone="something")
    with pytest.raises(WeightsError, match="missing"):
        module.setup("fit")
    module.setup("test")
    with pytest.raises(ConfigError, match="does not hear"):
        CASPNetModule(**TINY, audiovisual=False, audio_backbone="vggish")


@pytest.mark.slow
def test_info_counts_every_configuration_of_the_paper() -> None:
    table = _variants(CASPNetModule(**TINY))[0]
    assert isinstance(table, Table)
    cells = {row: (size, cost) for row, _, size, cost in zip(*(c.cells for c in table.columns), strict=True)}
    assert cells["V (visual-only), Sal decoder"] == ("33.72 M", "184.6 G")
    assert cells["V, FCN decoder"] == ("19.09 M", "33.0 G")
    assert cells["V+A+I_Linear+C, N = 3"] == ("114.16 M", "189.7 G")
    assert len(cells) == len(VARIANTS)


def test_the_module_is_found_and_rebuilds_itself_from_its_arguments() -> None:
    module = avsal.create_model("caspnet", **TINY, iterations=1)
    assert type(module) is avsal.CASPNetModule
    again = CASPNetModule(**dict(module.hparams))
    again.load_state_dict(module.state_dict())
    assert again.network.cpc.iterations == 1
