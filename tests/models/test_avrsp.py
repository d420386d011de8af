"""AVRSP: sizes, the equations of its modules, variants, what is heard, the loss, exact reuse, recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import avsal
from avsal.errors import ConfigError, WeightsError
from avsal.models.avrsp import (
    AVRSP,
    RAVF,
    AVRSPModule,
    BottleneckFusion,
    PooledFusion,
    RAVFBlock,
    RegulatorGate,
    StepwiseBilinear,
    Synergy,
)
from avsal.nn.cost import count
from avsal.nn.s3d import S3DFeatures
from avsal.types import Batch, SaliencyOutput
from benchmarks.aspp_attention import arithmetic

TINY: dict[str, Any] = {
    "frames": 16,
    "size": (64, 96),
    "width": 0.1,
    "channels": 8,
    "heads": 2,
    "audio_width": 2,
}


def tiny(**options: Any) -> AVRSP:
    """A small network with statistics and pooling that do something."""
    torch.manual_seed(0)
    network = AVRSP(**{**TINY, **options})
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm3d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    for stage in network.stages:
        nn.init.normal_(stage[1].conv.weight, std=0.3)
        for branch in stage[0].branches:
            nn.init.kaiming_normal_(branch.weight)
    return network


def parameters(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CLIP = noise(2, 3, 16, 64, 96, seed=1)
SOUND = noise(2, 70560, seed=2) * torch.tensor([[5.0], [60.0]])


@pytest.fixture(scope="module")
def network() -> AVRSP:
    return tiny().eval()


def test_parameters_and_costs_are_the_sheets() -> None:
    """Section 11: millions of parameters, billions of multiply-adds for 32 x 224 x 384."""
    with torch.device("meta"):
        full = AVRSP().eval()
        clip, sound = torch.empty(1, 3, 32, 224, 384), torch.empty(1, 70560)
        stages = full.encoder(clip)
        assert [tuple(s.shape[2:]) for s in stages] == [(16, 56, 96), (16, 28, 48), (8, 14, 24), (4, 7, 12)]
        x3, x2, x1, x0 = (stage(value) for stage, value in zip(full.stages, stages, strict=True))
        assert all(x.shape[1] == 64 for x in (x3, x2, x1, x0))
        triples = {
            "3": {"m": x3, "l": x2},
            "2": {"h": x3, "m": x2, "l": x1},
            "1": {"h": x2, "m": x1, "l": x0},
        }
        synergy = {level: cost_of(full.synergy[level], **members) for level, members in triples.items()}
        gates = sum(
            count(full.gates[level], below, stage).macs / 1e9
            for level, below, stage in (("1", x0, x1), ("2", x1, x2), ("3", x2, x3))
        )
        giga = {
            "s3d": count(full.encoder, clip).macs / 1e9,
            "soundnet": count(full.soundnet, sound).macs / 1e9,
            "ravf": count(full.fusion, x0, torch.empty(1, 3, 1024)).macs / 1e9,
            "mrg": gates,
            "decoder": count(full.decoder, x0, [x1, x2, x3]).macs / 1e9,
        }
        output = full.core(clip, sound)
    counts = {
        "s3d": full.encoder,
        "aspp+lip": full.stages,
        "soundnet": full.soundnet,
        "ravf": full.fusion,
        "ms": full.synergy,
        "mrg": full.gates,
        "decoder": full.decoder,
        "sum": full,
    }
    assert {name: parameters(part) for name, part in counts.items()} == pytest.approx(
        {
            "s3d": 7.910,
            "aspp+lip": 5.97,
            "soundnet": 2.874,
            "ravf": 0.49,
            "ms": 3.76,
            "mrg": 1.00,
            "decoder": 1.14,
            "sum": 23.2,
        },
        abs=0.05,
    )
    assert giga == pytest.approx(
        {"s3d": 61.6, "soundnet": 0.1, "ravf": 0.03, "mrg": 36.6, "decoder": 8.6}, abs=0.06
    )
    assert synergy == pytest.approx({"3": 54.7, "2": 46.1, "1": 9.3}, abs=0.06)
    assert tuple(output.logits.shape) == (1, 1, 224, 384)
    assert tuple(output.aux["Ret_A"].shape) == (1, 2, 8, 3, 4, 7, 12)


def cost_of(module: nn.Module, **members: Tensor) -> float:
    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: Tensor) -> Tensor:
            return self.module(**dict(zip(members, values, strict=True)))

    return count(Call(), *members.values()).macs / 1e9


def test_the_spec_says_what_the_paper_and_the_sheet_say() -> None:
    with torch.device("meta"):
        spec = AVRSP().spec
        assert AVRSP(audiovisual=False).spec.audio is None
    assert (spec.frames, spec.target_index, spec.size, spec.authors_coverage) == (
        32,
        31,
        (224, 384),
        "reversed",
    )
    assert spec.audio is not None
    assert spec.audio.sample_rate is None
    # Half a frame before the first frame's time to half a frame after the last one's.
    assert spec.audio.span(1.0, 2.24, 25.0) == pytest.approx((0.98, 2.26))


# -- the modules against their equations ---------------------------------------------------------------


def test_ravf_follows_equations_1_to_7_head_by_head() -> None:
    torch.manual_seed(0)
    block = RAVFBlock(8, 5, heads=2).double()
    visual, audio = noise(1, 6, 8).double(), noise(1, 3, 5, seed=1).double()
    out, ret_a, ret_v = block(visual, audio)
    vq, vk, vv = block.visual(visual)[0].split(8, dim=-1)
    aq, ak, av = block.audio(audio)[0].split(8, dim=-1)
    v2a, summaries = [], []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        a = vq[:, part] @ ak[:, part].T / 2.0
        v = aq[:, part] @ vk[:, part].T / 2.0
        torch.testing.assert_close(ret_a[0, h], a)
        torch.testing.assert_close(ret_v[0, h], v)
        v2a.append(a @ av[:, part] / 3 + vv[:, part])
        a2v = v @ vv[:, part] / 6 + av[:, part]
        summaries.append(torch.cat((v2a[h].mean(0), a2v.mean(0))))
    weights = block.weigh(torch.stack(summaries))[:, 0].softmax(0) * 2
    fused = block.project(torch.cat([w * x for w, x in zip(weights, v2a, strict=True)], dim=-1))
    first = block.norm1(visual[0] + fused)
    torch.testing.assert_close(out[0], block.norm2(first + block.feed(first)))


def test_ravf_can_leave_the_sums_over_tokens_unscaled() -> None:
    torch.manual_seed(0)
    visual, audio = noise(1, 8, 2, 3, 4), noise(1, 3, 5)
    scaled = RAVF(8, 5, blocks=1, heads=2)
    plain = RAVF(8, 5, blocks=1, heads=2, scale_tokens=False)
    plain.load_state_dict(scaled.state_dict())
    (a, aux_a), (b, aux_b) = scaled(visual, audio), plain(visual, audio)
    assert (a - b).abs().max() > 1e-3
    assert torch.equal(aux_a["Ret_A"], aux_b["Ret_A"])
    # A factor of 3 on the audio values is what the missing division amounts to for v2a with one head pattern.
    assert aux_a["Ret_A"].shape == aux_a["Ret_V"].shape == (1, 1, 2, 3, 2, 3, 4)


def test_backbones_come_out_of_other_networks_checkpoints() -> None:
    """The small network starts from the S3D and the SoundNet that other shipped networks have learnt."""
    module = avsal.AVRSPModule(frames=16, size=(64, 96), width=0.1875, channels=32, audio_width=8)
    module.load_backbone(module.network.encoder, "caspnet-tiny-synthav")
    module.load_backbone(module.network.soundnet, "stavis-tiny-synthav")
    seen = avsal.from_pretrained("caspnet-tiny-synthav").network.encoder.state_dict()
    heard = avsal.from_pretrained("stavis-tiny-synthav").network.soundnet.state_dict()
    assert all(torch.equal(v, seen[k]) for k, v in module.network.encoder.state_dict().items())
    assert all(torch.equal(v, heard[k]) for k, v in module.network.soundnet.state_dict().items())
    with pytest.raises(WeightsError, match="does not fit SoundNet"):
        module.load_backbone(module.network.soundnet, "caspnet-tiny-synthav")


def test_loud_sound_drowns_the_positions_unless_tokens_are_normalised() -> None:
    torch.manual_seed(0)
    plain, normed = RAVF(32, 64, heads=4), RAVF(32, 64, heads=4, norm_tokens=True)
    normed.load_state_dict(plain.state_dict(), strict=False)
    # Features as ReLU leaves them: far from zero, with positions that differ little.
    visual, audio = 2 + 0.3 * noise(1, 32, 2, 3, 4), 40 * noise(1, 3, 64).relu()

    @torch.no_grad()
    def spread(fusion: RAVF, sound: Tensor) -> float:
        """How much the fused positions differ, as a share of all variation."""
        fused = fusion(visual, sound)[0]
        return float(fused.flatten(2).std(-1).mean() / fused.std())

    assert spread(plain, audio) < 0.5 * spread(plain, 0 * audio)
    assert spread(normed, audio) > 0.8
    assert spread(normed, 100 * audio) == pytest.approx(spread(normed, audio), rel=1e-3)


def test_retention_maps_lie_where_the_positions_are() -> None:
    torch.manual_seed(0)
    fusion = RAVF(8, 5, blocks=1, heads=2)
    visual, audio = noise(1, 8, 2, 3, 4), noise(1, 3, 5)
    one = visual.clone()
    one[:, :, 1, 2, 3] += 1.0
    change = (fusion(visual, audio)[1]["Ret_A"] - fusion(one, audio)[1]["Ret_A"]).abs().amax((0, 1, 2, 3))
    assert change[1, 2, 3] > 1e-3
    assert (change > 1e-6).sum() == 1
    later = audio.clone()
    later[:, 2] += 1.0
    change = (fusion(visual, audio)[1]["Ret_V"] - fusion(visual, later)[1]["Ret_V"]).abs()
    assert (change.amax((0, 1, 2, 4, 5, 6)) > 1e-4).tolist() == [False, False, True]


@pytest.mark.parametrize("members", ["hml", "ml", "hm"])
def test_synergy_follows_equations_9_to_12(members: str) -> None:
    torch.manual_seed(0)
    module = Synergy(3, members).double()
    sizes = {"h": (4, 8, 12), "m": (4, 4, 6), "l": (2, 2, 3)}
    x = {i: noise(1, 3, *sizes[i], seed=n).double() for n, i in enumerate(members)}

    def u(link: str, maps: Tensor, to: str, convs: nn.ModuleDict) -> Tensor:
        return convs[link](nn.functional.interpolate(maps, sizes[to], mode="trilinear"))

    def d(link: str, maps: Tensor, to: str, convs: nn.ModuleDict) -> Tensor:
        ratio = tuple(a // b for a, b in zip(maps.shape[2:], sizes[to], strict=True))
        return convs[link](nn.functional.avg_pool3d(maps, ratio))

    x1 = {i: module.own[i](x[i]) for i in members}
    x2 = {}
    for i, lower, higher in (("h", "m", ""), ("m", "l", "h"), ("l", "", "m")):
        if i in members:
            x2[i] = module.exchange[i + i](x1[i])
            if lower in x1 and lower:
                x2[i] = x2[i] + u(lower + i, x1[lower], i, module.exchange)
            if higher in x1 and higher:
                x2[i] = x2[i] + d(higher + i, x1[higher], i, module.exchange)
    x3 = module.merge["m"](x2["m"])
    if "h" in members:
        x3 = x3 + d("h", x2["h"], "m", module.merge)
    if "l" in members:
        x3 = x3 + u("l", x2["l"], "m", module.merge)
    torch.testing.assert_close(module(**x), x["m"] + x3)
    assert sum(isinstance(m, nn.Conv3d) for m in module.modules()) == {"hml": 13, "ml": 8, "hm": 8}[members]


def test_the_gate_is_one_number_per_channel_between_0_and_1() -> None:
    torch.manual_seed(0)
    module = RegulatorGate(3).double()
    below, stage = noise(1, 3, 2, 2, 3).double(), noise(1, 3, 4, 4, 6, seed=1).double()
    fused, out = module(below, stage)
    up = nn.functional.interpolate(below, (4, 4, 6), mode="trilinear")
    gate = module.gate(torch.cat((up, stage), 1)).sigmoid().mean((2, 3, 4))
    assert ((gate > 0) & (gate < 1)).all()
    torch.testing.assert_close(fused, module.regulate(up * gate[:, :, None, None, None]))
    torch.testing.assert_close(out, stage + fused)


def test_the_other_fusions_are_what_table_v_names() -> None:
    torch.manual_seed(0)
    visual, audio = noise(2, 4, 2, 3, 6), noise(2, 3, 5, seed=1)
    for kind in ("add", "multiply", "concat", "bilinear"):
        module = PooledFusion(kind, 4, 5)
        out, aux = module(visual, audio)
        heard = module.audio(audio.mean(1))
        spread = heard[:, :, None, None, None].expand_as(visual)
        tokens, a = visual.permute(0, 2, 3, 4, 1), spread.permute(0, 2, 3, 4, 1)
        if kind == "bilinear":
            expected = module.join(tokens.contiguous(), a.contiguous()).permute(0, 4, 1, 2, 3)
        elif kind == "concat":
            expected = module.join(torch.cat((visual, spread), 1))
        else:
            expected = visual + spread if kind == "add" else visual * spread
        torch.testing.assert_close(out, expected)
        assert aux == {}
    avinet = StepwiseBilinear(4, 5, 3, (4, 7, 12))
    assert (avinet.join.in1_features, avinet.join.in2_features, avinet.join.out_features) == (42, 3, 336)
    assert avinet(noise(1, 4, 4, 7, 12), audio[:1])[0].shape == (1, 4, 4, 7, 12)
    mbt = BottleneckFusion(4, 5, heads=2).eval()
    out = mbt(visual, audio)[0]
    assert out.shape == visual.shape
    assert (out - mbt(visual, audio.flip(0))[0]).abs().max() > 1e-5


# -- the network ---------------------------------------------------------------------------------------


ROWS: list[dict[str, Any]] = [
    # Table III
    *(
        {"audiovisual": a, "synergy": s, "gate": g}
        for a in (False, True)
        for s in (False, True)
        for g in (False, True)
    ),
    # Table IV
    *({"audiovisual": a, "pairs": p} for a in (False, True) for p in (4, 2, 1, 0)),
    # Table V
    *({"fusion": f} for f in ("add", "multiply", "concat", "bilinear", "bilinear_steps", "mbt")),
]


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_every_row_of_the_ablations_runs_trains_and_hears(options: dict[str, Any]) -> None:
    network = tiny(**options).train()
    audiovisual = options.get("audiovisual", True)
    output = network.core(CLIP, SOUND if audiovisual else None)
    assert output.logits.shape == (2, 1, 64, 96)
    output.logits.square().mean().backward()
    # Every trained parameter gets a gradient: distributed training would wait for it otherwise.
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert ("Ret_A" in output.aux) == (audiovisual and options.get("fusion", "ravf") == "ravf")
    if audiovisual:
        network.eval()
        with torch.inference_mode():
            ours, swapped = (network.core(CLIP, s).logits for s in (SOUND, SOUND.flip(0)))
        assert (ours - swapped).abs().max() > 1e-3 * ours.std()


@pytest.mark.parametrize("pairs", range(5))
def test_pairs_are_counted_from_the_shallowest_stage(pairs: int) -> None:
    with torch.device("meta"):
        network = AVRSP(pairs=pairs)
    levels = [str(level) for level in (0, 1, 2, 3)][4 - pairs :]
    assert list(network.synergy) == levels
    # Nothing lies below X^0 that a gate could let through.
    assert list(network.gates) == [level for level in levels if level != "0"]


@torch.inference_mode()
def test_missing_sound_is_silence_and_the_window_is_hann(network: AVRSP) -> None:
    expected = network.core(CLIP, torch.zeros(2, 70560)).logits
    wave = noise(2, 20480)
    for output in (
        network(CLIP),
        network.core(CLIP, None),
        network(CLIP, wave, has_audio=torch.tensor([False, False])),
    ):
        torch.testing.assert_close(output.logits, expected)
    eaten = network.frontend(torch.ones(1, 20481))
    assert eaten is not None
    assert eaten.shape == (1, 70560)
    window = torch.signal.windows.hann(20481, sym=True)
    torch.testing.assert_close(eaten[0, 35280 - 10240 : 35280 + 10241], 256 * window, atol=1e-3, rtol=1e-4)
    assert eaten[0, : 35280 - 10240].abs().max() == 0


@torch.inference_mode()
def test_odd_sizes_are_padded_below_and_right(network: AVRSP) -> None:
    clip = CLIP[:1, ..., :50, :71]
    padded = torch.zeros(1, 3, 16, 64, 96)
    padded[..., :50, :71] = clip
    output = network.core(clip, SOUND[:1])
    assert output.logits.shape == (1, 1, 50, 71)
    torch.testing.assert_close(output.logits, network.core(padded, SOUND[:1]).logits[..., :50, :71])


@pytest.mark.slow
def test_a_map_of_a_video_needs_fewer_multiplications_than_as_written() -> None:
    with torch.device("meta"):
        giga = arithmetic(AVRSP().eval(), torch.empty(1, 70560))
    reused = giga.pop("fast forms and reuse")
    assert giga == pytest.approx({"as written": 288.9, "fast forms": 284.2}, abs=0.1)
    assert giga["as written"] / reused > 1.25


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("frames", [16, 32])
def test_windows_with_reuse_equal_windows_without(frames: int) -> None:
    network = tiny(frames=frames).eval()
    images = noise(42, 3, 64, 96, seed=3)
    plain = torch.tensor([[max(g - frames + 1 + t, 0) for t in range(frames)] for g in range(frames - 4, 42)])
    backwards = torch.tensor([[g + frames - 1 - t for t in range(frames)] for g in range(6)])
    for ids in (plain, torch.cat((backwards, plain))):
        runner = network.window_runner()
        for start in range(0, len(ids), 4):
            part = ids[start : start + 4]
            video, sound = images[part].transpose(1, 2), noise(len(part), 70560, seed=start) * 30
            ours, expected = runner(video, part, sound), network.core(video, sound)
            assert (ours.logits - expected.logits).abs().max() <= 1e-5 * expected.logits.abs().max()
            torch.testing.assert_close(ours.aux["Ret_A"], expected.aux["Ret_A"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "cross"}, "ravf, add, multiply, concat, bilinear, bilinear_steps, mbt"),
        ({"pairs": 5}, "0, 1, 2, 3, 4"),
        ({"frames": 30}, "multiple of 8; the nearest are 24 and 32"),
        ({"size": (40, 100)}, "at least 64"),
        ({"channels": 9, "heads": 2}, "multiple of 2"),
        ({"heads": 0}, "at least 1"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AVRSP(**{**TINY, **options})
    with pytest.raises(ConfigError, match="takes 16"):
        tiny(audiovisual=False).core(torch.zeros(1, 3, 8, 64, 96))


# -- the module ----------------------------------------------------------------------------------------


def batch() -> Batch:
    density = torch.zeros(2, 1, 64, 96)
    density[0, 0, 20:30, 40:60] = 1.0
    density[1, 0, 40:50, 10:20] = 0.5
    return {
        "video": CLIP,
        "audio": noise(2, 10240, seed=4) * 0.2,
        "density": density,
        "labelled": torch.ones(2, 1, dtype=torch.bool),
    }


def loss(module: AVRSPModule, maps: Tensor, clip: Batch) -> dict[str, Tensor]:
    return module.loss_terms(SaliencyOutput(torch.logit(maps.clamp(1e-4, 1 - 1e-4))), clip)


def test_the_loss_is_kl_less_a_tenth_of_cc_and_sim_and_sim_is_normalised_by_the_sum() -> None:
    module, minmax = AVRSPModule(**TINY), AVRSPModule(**TINY, sim_norm="minmax")
    clip = batch()
    maps = 0.5 * clip["density"] + 0.2 + 0.2 * torch.rand(2, 1, 64, 96)
    terms = loss(module, maps, clip)
    torch.testing.assert_close(terms["loss"], terms["kl"] - 0.1 * terms["cc"] - 0.1 * terms["sim"])
    p, q = (m / m.sum((-2, -1), keepdim=True) for m in (maps, clip["density"]))
    assert float(terms["sim"]) == pytest.approx(float(torch.minimum(p, q).sum((-2, -1)).mean()), abs=1e-3)
    assert float(loss(minmax, maps, clip)["sim"]) > float(terms["sim"]) + 0.01
    better = loss(module, 0.9 * clip["density"] + 0.05, clip)
    assert better["loss"] < terms["loss"]
    clip["labelled"][1] = False
    one = loss(module, maps[:1], {**batch(), "density": clip["density"][:1], "labelled": torch.ones(1, 1)})
    assert torch.equal(loss(module, maps, clip)["loss"], one["loss"])


def test_the_coarse_map_is_judged_by_the_means_over_its_cells() -> None:
    module, clip = AVRSPModule(**TINY, coarse_weight=0.5), batch()
    output = module(clip)
    coarse = output.aux["coarse"]
    assert coarse.shape == (2, 1, 2, 3)
    terms = module.loss_terms(output, clip)
    plain = terms["kl"] - 0.1 * terms["cc"] - 0.1 * terms["sim"]
    torch.testing.assert_close(terms["loss"], plain + 0.5 * terms["coarse"])
    cells = clip["density"].unflatten(-1, (3, 32)).unflatten(-3, (2, 32)).mean((-3, -1)).flatten(1)
    truth = cells / cells.sum(1, keepdim=True)
    expected = (torch.xlogy(truth, truth) - truth * coarse.flatten(1).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["coarse"], expected)
    terms["coarse"].backward()
    # It reaches RAVF and SoundNet, and nothing above them.
    assert float(module.network.fusion.blocks[0].audio.weight.grad.abs().max()) > 0
    assert module.network.decoder.last.weight.grad is None
    assert "coarse" not in AVRSPModule(**TINY)(clip).aux
    with pytest.raises(ConfigError, match="coarse_weight=-1"):
        AVRSPModule(**TINY, coarse_weight=-1)


def test_the_coarse_map_of_padded_frames_lies_where_the_frames_are() -> None:
    module = AVRSPModule(**{**TINY, "size": (80, 96)}, coarse_weight=1.0)
    density = torch.zeros(1, 1, 80, 96)
    # Cells are 32 pixels of the padded frame: the second row of three, not the lowest third of 80 pixels.
    density[0, 0, 55:64, 40:60] = 1.0
    coarse = torch.zeros(1, 1, 3, 3)
    coarse[0, 0, 1, 1] = 30.0
    clip: Any = {"density": density, "labelled": torch.ones(1, 1, dtype=torch.bool)}
    right = module.loss_terms(SaliencyOutput(torch.zeros(1, 1, 80, 96), aux={"coarse": coarse}), clip)
    assert float(right["coarse"]) < 1e-3


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    torch.manual_seed(0)
    module = AVRSPModule(**TINY, bn_momentum=0.1, freeze_audio_bn=False, lr=3e-3).train()
    recipe = module.configure_optimizers()
    assert isinstance(recipe["optimizer"], torch.optim.AdamW)
    assert recipe["optimizer"].defaults["weight_decay"] == 1e-5
    watch = recipe["lr_scheduler"]
    assert (watch["scheduler"].factor, watch["scheduler"].patience, watch["monitor"]) == (0.5, 5, "val/loss")
    values = []
    for _ in range(8):
        value = module.loss_terms(module(batch()), batch())["loss"]
        recipe["optimizer"].zero_grad()
        value.backward()
        recipe["optimizer"].step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] - 0.2


def test_soundnet_trains_with_fixed_statistics_unless_told_otherwise() -> None:
    for frozen in (True, False):
        network = tiny(freeze_audio_bn=frozen, freeze_bn=frozen).train()
        assert all(p.requires_grad for p in network.soundnet.parameters())
        norms = [m for part in (network.soundnet, network.encoder) for m in part.modules()]
        training = {m.training for m in norms if isinstance(m, nn.BatchNorm1d | nn.BatchNorm3d)}
        assert training == {not frozen}


def test_a_frozen_encoder_keeps_weights_and_statistics() -> None:
    module = AVRSPModule(**TINY, freeze_encoder=True).train()
    network = module.network
    assert not any(p.requires_grad for p in network.encoder.parameters())
    assert not any(part.training for part in network.encoder.modules())
    assert all(p.requires_grad for p in network.stages.parameters())
    assert network.freeze_bn
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network.core(CLIP, SOUND).logits.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())
    assert all(p.grad is None for p in network.encoder.parameters())


def test_the_visual_stage_fits_into_the_audiovisual_one_and_backbones_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visual, both = AVRSPModule(**TINY, audiovisual=False), AVRSPModule(**TINY)
    theirs, own = visual.state_dict(), both.state_dict()
    assert all(name in own and own[name].shape == value.shape for name, value in theirs.items())
    assert {n.split(".")[1] for n in own.keys() - theirs.keys()} == {"soundnet", "fusion"}

    donor = S3DFeatures(width=TINY["width"]).state_dict()
    sound = {k: v + 1 for k, v in both.network.soundnet.state_dict().items()}
    monkeypatch.setattr(
        "avsal.zoo.load_state", {"s3d-kinetics": donor, "soundnet8": sound, "x": {}}.__getitem__
    )
    module = AVRSPModule(**TINY, backbone="s3d-kinetics", audio_backbone="soundnet8")
    module.setup("fit")
    assert all(torch.equal(v, donor[k]) for k, v in module.network.encoder.state_dict().items())
    assert all(torch.equal(v, sound[k]) for k, v in module.network.soundnet.state_dict().items())
    with pytest.raises(WeightsError, match="missing"):
        AVRSPModule(**TINY, backbone="x").setup("fit")
    with pytest.raises(ConfigError, match="no SoundNet"):
        AVRSPModule(**TINY, audiovisual=False, audio_backbone="soundnet8")


def test_the_module_is_found_and_rebuilds_itself_from_its_arguments() -> None:
    module = avsal.create_model("avrsp", **TINY, pairs=2)
    assert type(module) is avsal.AVRSPModule
    again = AVRSPModule(**dict(module.hparams))
    again.load_state_dict(module.state_dict())
    assert again.network.pairs == 2
