"""STAViS: parity with the authors' network, its variants, losses and recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from avsal.errors import ConfigError, WeightsError
from avsal.losses import correlation, cross_entropy, scanpath_saliency
from avsal.models.stavis import (
    SoundLocalisation,
    STAViS,
    STAViSModule,
    bilinear_kernel,
    saliency_losses,
)
from avsal.types import Batch
from tests.golden.fill import fill, normal_input

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return json.loads((GOLDEN / f"{name}.json").read_text()), dict(arrays)


def filled(case: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(fill(n, tuple(s), seed)) for n, s in case["state_dict"]}


def inputs(case: dict) -> list[torch.Tensor]:
    return [
        torch.from_numpy(normal_input(i["name"], tuple(i["shape"]), case["seed"]) * np.float32(i["scale"]))
        for i in case["inputs"]
    ]


def watch_stages(network: STAViS) -> dict[str, torch.Tensor]:
    """Record the intermediate tensors that the golden files list, under their names."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, pick=lambda value: value) -> None:
        def hook(_, __, value):
            seen[name] = pick(value)

        module.register_forward_hook(hook)

    trunk = network.trunk
    keep("maxpool", trunk.maxpool)
    for number in (1, 2, 3):
        keep(f"layer{number}", getattr(trunk, f"layer{number}"))
    for level, dsam in enumerate(network.dsam, 1):
        keep(f"dsam{level}/features", dsam, lambda value: value[0])
        keep(f"dsam{level}/map", dsam, lambda value: value[1])
        keep(f"dsam{level}/attention", dsam, lambda value: value[2])
        keep(f"dsam{level}/activation", dsam.score)
    dsam_first = network.dsam[0]
    dsam_first.register_forward_pre_hook(lambda _, args: seen.__setitem__("stem", args[0]))
    if network.audiovisual:
        keep("fusion/affine_rgb", network.localisation.visual)
        keep("fusion/affine_audio", network.localisation.audio)
        keep("fusion/bilinear", network.localisation, lambda value: value.movedim(1, -1))
    return seen


@pytest.mark.parametrize(("name", "prefix"), [("stavis_visual", "module."), ("stavis_audiovisual", "")])
@torch.no_grad()
def test_the_authors_network_and_ours_print_the_same_numbers_at_every_stage(name: str, prefix: str) -> None:
    case, expected = golden(name)
    audiovisual = case["constructor"]["audiovisual"]
    state = {prefix + key: value for key, value in filled(case).items()}
    module = STAViSModule.from_authors(state, audiovisual=audiovisual)
    assert not module.training
    video, audio = inputs(case)
    stages = watch_stages(module.network)
    output = module.network.core(video, audio if audiovisual else None)
    stages["fusion/upsampled"] = output.aux.get("localisation", torch.empty(0))

    found = {"output/logits": output.logits, "output/saliency": output.saliency()}
    found |= {f"output/{key}": value for key, value in output.aux.items() if key.startswith("dsam")}
    for key in (key for key in expected if key.startswith("output/")):
        error = np.abs(found[key].numpy() - expected[key]).max()
        limit = 5e-4 if key.endswith("saliency") else 2e-4 * expected[key].std()
        assert error <= limit, f"{key}: {error} > {limit}"

    checked = 0
    for stage in (entry["name"] for entry in case["stages"]):
        if stage.startswith("soundnet/"):
            continue  # every tap is compared in tests/nn/test_soundnet.py
        value = stages[stage].double()
        std = float(expected[f"stage/{stage}/std"])
        tolerance = {"rtol": 2e-4, "atol": 2e-4 * std}
        np.testing.assert_allclose(value.mean(), expected[f"stage/{stage}/mean"], **tolerance)
        np.testing.assert_allclose(value.std(correction=0), std, **tolerance)
        np.testing.assert_allclose(value.flatten()[:8], expected[f"stage/{stage}/first8"], **tolerance)
        checked += 1
    assert checked == sum(not e["name"].startswith("soundnet/") for e in case["stages"])


def test_entries_that_a_mode_does_not_use_may_be_absent_and_nothing_else_may() -> None:
    case, _ = golden("stavis_visual")
    state = filled(case)
    seen = {k: v for k, v in state.items() if not k.startswith(("soundnet8.", "fusion3.", "fuseav."))}
    STAViSModule.from_authors(seen, audiovisual=False)
    with pytest.raises(WeightsError, match=r"missing .*soundnet"):
        STAViSModule.from_authors(seen)
    heard = {k: v for k, v in state.items() if not k.startswith("fuse.") and ".upscale_." not in k}
    STAViSModule.from_authors(heard, audiovisual=True)
    with pytest.raises(WeightsError, match=r"missing .*dsam\.0\.upscale_map"):
        STAViSModule.from_authors(heard, audiovisual=False)
    with pytest.raises(WeightsError, match=r"unexpected .*layer9"):
        STAViSModule.from_authors({**state, "layer9.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"mis-shaped .*fuseav.weight is \(1, 3"):
        STAViSModule.from_authors({**state, "fuseav.weight": torch.zeros(1, 3, 1, 1)})


@torch.no_grad()
def test_parameters_and_multiply_adds_are_those_of_the_paper_code() -> None:
    visual = STAViS(audiovisual=False).eval()
    assert sum(p.numel() for p in visual.parameters()) == 17_695_445
    assert sum(p.numel() for p in visual.trunk.parameters()) == 17_078_464
    assert [sum(p.numel() for p in d.parameters()) for d in visual.dsam] == [13_361, 53_345, 139_553, 410_657]
    both = STAViS().eval()
    assert sum(p.numel() for p in both.parameters()) == 21_815_333
    assert sum(p.numel() for p in both.soundnet.parameters()) == 2_874_320
    assert sum(p.numel() for p in both.localisation.parameters()) == 1_245_504

    def cost(network: STAViS, *args: torch.Tensor) -> float:
        with FlopCounterMode(display=False) as counter:
            network.core(*args)
        return counter.get_total_flops() / 2e9

    video = torch.zeros(1, 3, 16, 112, 112)
    assert cost(visual, video) == pytest.approx(9.692, abs=6e-4)
    # 9.754 G without the bilinear layer, which takes 1 M + 1.6 M when the sound is contracted first.
    assert cost(both, video, torch.zeros(1, 1, 1, 35280)) == pytest.approx(9.754 + 0.0027, abs=1e-3)


@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_contracting_the_sound_first_equals_the_bilinear_layer_as_written(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = SoundLocalisation(12, 20, 16, "bilinear", 5).double()
    visual, audio = torch.randn(3, 12, *size).double(), torch.randn(3, 20).double()
    h_v = layer.visual(visual.permute(0, 2, 3, 1)).relu()
    h_a = layer.audio(audio).relu()[:, None, None].expand(*h_v.shape).contiguous()
    written = layer.product(h_v.contiguous(), h_a).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(visual, audio), written, rtol=1e-12, atol=1e-12)


def test_the_weighted_product_is_a_diagonal_bilinear_and_the_unit_matrix_is_nearly_the_cosine() -> None:
    torch.manual_seed(0)
    visual, audio = torch.randn(2, 12, 4, 6), torch.randn(2, 20)
    bilinear = SoundLocalisation(12, 20, 8, "bilinear", 3)
    weighted = SoundLocalisation(12, 20, 8, "weighted", 3)
    cosine = SoundLocalisation(12, 20, 8, "cosine", 1)
    for other in (weighted, cosine):
        other.visual, other.audio = bilinear.visual, bilinear.audio
    with torch.no_grad():
        bilinear.product.weight.copy_(torch.diag_embed(weighted.product.weight))
        bilinear.product.bias.copy_(weighted.product.bias)
    torch.testing.assert_close(weighted(visual, audio), bilinear(visual, audio))
    with torch.no_grad():
        bilinear.product.weight.copy_(torch.eye(8).expand(3, 8, 8))
        bilinear.product.bias.zero_()
        h_v = bilinear.visual(visual.movedim(1, -1)).relu().norm(dim=-1).unsqueeze(1)
        h_a = bilinear.audio(audio).relu().norm(dim=-1)[:, None, None, None]
        torch.testing.assert_close(cosine(visual, audio) * h_v * h_a, bilinear(visual, audio)[:, :1])


SMALL = {"size": (64, 64), "width": 8, "blocks": (1, 1, 1), "audio_width": 2, "dsam_maps": 4, "hidden": 8}
TABLE_1 = [
    *[
        (method, 1, fusion)
        for fusion in ("audio_only", "weighted_sum", "attention")
        for method in ("cosine", "weighted", "bilinear")
    ],
    ("bilinear", None, "multi_attention"),
    ("bilinear", None, "concatenation"),
    ("bilinear", None, "late"),
]


@pytest.mark.parametrize(("localisation", "maps", "fusion"), TABLE_1)
def test_every_row_of_table_1_trains_from_sight_and_sound(
    localisation: str, maps: int | None, fusion: str
) -> None:
    torch.manual_seed(0)
    module = STAViSModule(localisation=localisation, maps=maps, fusion=fusion, **SMALL)
    network = module.network
    video = torch.randn(2, 3, 16, 64, 64) * 50
    sound = torch.randn(2, 20000).clamp(-1, 1)
    output = network(video, sound)
    assert output.logits.shape == (2, 1, 64, 64)
    assert output.aux["localisation"].shape == (2, maps or 16, 64, 64)
    module.loss_terms(output, truth(2))["loss"].backward()
    silent = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert not silent, f"no gradient reaches {silent}"
    with torch.no_grad():
        randomised(network).eval()
        video, sound = video / 50, sound / 100
        assert not torch.equal(network(video, sound).logits, network(video, sound / 10).logits)


def randomised(network: STAViS) -> STAViS:
    """Give every layer weights through which signals reach the end without training."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    return network


def truth(clips: int, size: int = 64, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    fixations = torch.randint(0, size, (clips, 1, 9, 2), generator=generator)
    return Batch(density=torch.rand(clips, 1, size, size, generator=generator), fixations=fixations)


def test_fusions_are_the_papers_formulae() -> None:
    torch.manual_seed(0)
    video, audio = torch.randn(1, 3, 16, 64, 64), torch.randn(1, 1, 1, 35280)
    with torch.no_grad():
        for fusion in ("weighted_sum", "attention", "late"):
            network = STAViS(fusion=fusion, **SMALL).eval()
            for conv in (network.fuse, network.fuse_audio):
                nn.init.normal_(conv.weight)
                nn.init.zeros_(conv.bias)
            output = network.core(video, audio)
            s_v, s_a = output.aux["visual_logits"].sigmoid(), output.aux["audio_logits"].sigmoid()
            if fusion == "attention":
                expected = s_v * (1 + s_a)
            else:
                network.mix.weight.copy_(torch.tensor([2.0, 3.0, 5.0])[: len(network.mix.weight)])
                output = network.core(video, audio)
                expected = 2 * s_v + 3 * s_a - 6
                if fusion == "late":
                    s_3 = (output.logits - expected) / 5
                    assert bool(((s_3 > 0) & (s_3 < 1)).all())
                    expected = expected + 5 * s_3
            torch.testing.assert_close(output.logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"localisation": "cosine", "maps": 3}, "gives one map"),
        ({"fusion": "multi_attention", "maps": 3}, "pairs each"),
        ({"localisation": "cosine", "fusion": "multi_attention"}, "pairs each"),
        ({"frames": 12}, "nearest are 8 and 16"),
        ({"fusion": "sum"}, "allowed: audio_only"),
        ({"size": (112, 4)}, "at least 8"),
        ({"audio_samples": 90000}, "audio_pool='global'"),
    ],
)
def test_combinations_that_the_paper_does_not_have_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        STAViS(**options)


@pytest.mark.parametrize(
    ("frames", "size"), [(8, (64, 64)), (16, (100, 100)), (24, (61, 90)), (32, (33, 47))]
)
@torch.no_grad()
def test_other_clip_lengths_and_odd_sizes_keep_the_maps_on_the_frames(
    frames: int, size: tuple[int, int]
) -> None:
    network = STAViS(frames=frames, **{**SMALL, "size": size}).eval()
    output = network.core(torch.randn(1, 3, frames, *size), torch.randn(1, 1, 1, 12766))
    assert network.spec.target == frames // 2
    for maps in (output.logits, *output.aux.values()):
        assert maps.shape[-2:] == size


@torch.no_grad()
def test_a_clip_gives_the_same_map_alone_and_in_a_batch() -> None:
    network = randomised(STAViS(**SMALL)).eval()
    video, sound = torch.randn(3, 3, 16, 64, 64), torch.randn(3, 15000)
    together = network(video, sound).logits
    for row in range(3):
        alone = network(video[row : row + 1], sound[row : row + 1]).logits
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=2e-5 * together.std().item())


@torch.no_grad()
def test_missing_sound_is_silence_and_a_visual_network_hears_nothing() -> None:
    network = randomised(STAViS(**SMALL)).eval()
    video = torch.randn(2, 3, 16, 64, 64)
    silence = network(video, torch.zeros(2, 15000)).logits
    torch.testing.assert_close(network(video).logits, silence)
    has_audio = torch.tensor([False, True])
    mixed = network(video, torch.randn(2, 15000), has_audio=has_audio).logits
    torch.testing.assert_close(mixed[0], silence[0])
    assert not torch.equal(mixed[1], silence[1])
    with pytest.raises(ConfigError, match="needs audio_input"):
        network.core(video)
    seeing = STAViS(audiovisual=False, **SMALL)
    assert seeing.spec.audio is None
    assert seeing.frontend(torch.zeros(2, 100)) is None
    assert not any("soundnet" in name for name, _ in seeing.named_parameters())


@torch.no_grad()
def test_the_global_maximum_equals_the_fixed_pool_up_to_45533_samples_and_takes_any_length() -> None:
    torch.manual_seed(0)
    fixed = STAViS(**SMALL).eval()
    free = STAViS(audio_pool="global", **SMALL).eval()
    free.load_state_dict(fixed.state_dict())
    for samples, equal in ((12766, True), (45533, True), (45534, False)):
        sound = torch.randn(1, 1, 1, samples) * 100
        a, b = fixed._audio_vector(sound), free._audio_vector(sound)
        assert torch.equal(a, b) is equal
    for samples in (12765, 78302):
        with pytest.raises(ConfigError, match="12766 to 78301"):
            fixed._audio_vector(torch.randn(1, 1, 1, samples))
        assert free._audio_vector(torch.randn(1, 1, 1, samples)).shape == (1, 128)


@torch.no_grad()
def test_attention_survives_activations_beyond_the_range_of_the_exponential() -> None:
    network = STAViS(audiovisual=False, **SMALL).eval()
    network.dsam[0].score.bias.fill_(500.0)
    plain = network.core(torch.randn(1, 3, 16, 64, 64))
    assert torch.isfinite(plain.logits).all()


# -- whole videos --------------------------------------------------------------------------------------


def lively(network: STAViS) -> STAViS:
    """Give every layer weights, and batch norm statistics, through which signals reach the end."""
    randomised(network).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def starts(*values: int, frames: int = 16) -> torch.Tensor:
    return torch.tensor(values)[:, None] + torch.arange(frames)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, [starts(0, 1, 2, 3), starts(4, 5, 6, 7), starts(8)]),
        ({"fusion": "late", "visual_pool": "all", "prior": (4, 8)}, [starts(k) for k in range(4)]),
        ({"audiovisual": False, "size": (61, 90)}, [starts(0, 2, 4), starts(6, 8)]),
        ({"audiovisual": False, "width": 64, "size": (24, 40)}, [starts(0, 1, 2), starts(3, 4, 5)]),
        ({"fusion": "multi_attention", "frames": 8, "size": (8, 9)}, [starts(0, 1, 2, frames=8)] * 2),
        # Repeated frames before the beginning and after the end, a gap, and a video that runs backwards.
        ({"fusion": "attention"}, [starts(-8, -7, -3).clamp_min(0), starts(3, 30, 4).clamp_max(20)]),
        ({"audiovisual": False}, [starts(5, 3).flip(1), starts(1, 2) % 11]),
    ],
)
@torch.no_grad()
def test_a_video_in_batches_of_windows_gives_what_each_window_gives_alone(
    options: dict, ids: list[torch.Tensor]
) -> None:
    network = lively(STAViS(**{**SMALL, **options}))
    video = torch.randn(3, 60, *network.spec.size)
    runner = network.window_runner()
    for batch in ids:
        clips = video[:, batch].transpose(0, 1)
        sound = torch.randn(len(batch), 1, 1, 35280) * 50 if network.audiovisual else None
        expected, found = network.core(clips, sound), runner(clips, batch, sound)
        assert found.aux.keys() == expected.aux.keys()
        pairs = [(found.logits, expected.logits), *((found.aux[k], expected.aux[k]) for k in expected.aux)]
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * float(wanted.std()))


@torch.no_grad()
def test_the_stem_meets_each_frame_once_and_adds_up_each_slice_once() -> None:
    network = lively(STAViS(audiovisual=False, **SMALL))
    video = torch.randn(3, 60, 64, 64)
    runner = network.window_runner()
    for first in (0, 4, 8):
        batch = starts(*range(first, first + 4))
        runner(video[:, batch].transpose(0, 1), batch, None)
    assert runner.windows.computed["products"] == 12 + 15
    # Of 16 slices six touch the window's ends; the other ten are those of the frames 3 to 23.
    assert (runner.windows.asked["stem"], runner.windows.computed["stem"]) == (12 * 16, 12 * 6 + 21)


def test_the_runner_leaves_training_and_gradients_to_the_network_and_follows_its_number_type() -> None:
    network = lively(STAViS(audiovisual=False, **SMALL))
    runner, ids = network.window_runner(), starts(0, 1)
    video = torch.randn(3, 30, 64, 64)[:, ids].transpose(0, 1)
    assert runner(video, ids, None).logits.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(runner(video, ids, None).logits, network.core(video).logits)
        network.double()
        found = runner(video.double(), ids, None).logits
        torch.testing.assert_close(found, network.core(video.double()).logits, rtol=1e-10, atol=1e-10)
        network.train()
        before = network.trunk.bn1.running_mean.clone()
        runner(video.double(), ids, None)
        assert not torch.equal(network.trunk.bn1.running_mean, before)


def test_transposed_convolutions_start_as_bilinear_interpolation() -> None:
    dsam = STAViS(audiovisual=False, **SMALL).dsam[1]
    ramp = torch.arange(6.0).expand(1, 4, 6, 6)
    with torch.no_grad():
        up = dsam.upscale_features(ramp)[0, :, 4:-4, 4:-4]
    expected = torch.nn.functional.interpolate(ramp, scale_factor=4, mode="bilinear")[0, :, 2:-2, 2:-2]
    torch.testing.assert_close(up, expected)
    assert bilinear_kernel(4)[0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]


def test_first_predictions_are_about_a_quarter_of_a_percent() -> None:
    with torch.no_grad():
        first = STAViS(**SMALL)(torch.randn(2, 3, 16, 64, 64) * 50).saliency()
    assert first.mean() == pytest.approx(0.0025, rel=0.05)


# -- losses and recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize("audiovisual", [False, True])
def test_a_learned_prior_adds_its_enlarged_map_and_starts_at_the_centre(audiovisual: bool) -> None:
    module = STAViSModule(audiovisual=audiovisual, prior=(4, 8), deep_supervision="none", **SMALL).eval()
    clip, sound = torch.randn(2, 3, 16, 64, 64), torch.randn(2, 20000)
    network, prior = module.network, module.network.prior
    assert prior is not None
    whole = prior.detach().clone()[0, 0]
    assert whole.argmax() in (11, 12, 19, 20)
    torch.testing.assert_close(whole, whole.flip(0).flip(1))
    with torch.no_grad():
        with_prior = network(clip, sound).logits
        prior.zero_()
        without = network(clip, sound).logits
        prior.fill_(-2.5)
        torch.testing.assert_close(network(clip, sound).logits, without - 2.5)
    added = (with_prior - without)[0, 0]
    # Each cell covers 16 x 8 pixels; between the cells' middles the map is linear, outside it is constant.
    rows = np.stack(
        [np.interp(np.arange(64), np.arange(4) * 16 + 7.5, column) for column in whole.numpy().T], 1
    )
    expected = np.stack([np.interp(np.arange(64), np.arange(8) * 8 + 3.5, row) for row in rows])
    np.testing.assert_allclose(added.numpy(), expected, atol=1e-4)
    assert any("prior" in group["name"] for group in module.parameter_groups(1.0))
    with pytest.raises(ConfigError, match="prior=\\(1, 8\\)"):
        STAViS(prior=(1, 8), **SMALL)


def test_losses_and_gradient_are_those_of_the_authors_code() -> None:
    case = json.loads((GOLDEN / "stavis_losses.json").read_text())
    shape, seed = tuple(case["shape"]), case["seed"]
    logits = torch.from_numpy(normal_input("loss_logits", shape, seed)).requires_grad_()
    density = torch.from_numpy(np.clip(60 * np.abs(normal_input("loss_density", shape, seed)), 0, 255)) / 255
    fixated = torch.from_numpy(normal_input("loss_fixations", shape, seed) > 2.5)
    assert fixated.sum((1, 2, 3)).tolist() == case["fixations_per_sample"]

    saliency = logits.sigmoid()
    tolerance = {"rtol": case["tolerance"]["rtol"], "atol": case["tolerance"]["atol"]}
    ce, cc = cross_entropy(logits, density), -correlation(saliency, density)
    nss = -scanpath_saliency(saliency, fixated)
    for name, value in (("bce", ce), ("cc", cc), ("nss", nss)):
        np.testing.assert_allclose(value.detach()[:, 0], case[name], err_msg=name, **tolerance)

    points = [fixated[b, 0].nonzero() for b in range(shape[0])]
    fixations = torch.full((shape[0], 1, 80, 2), -1)
    for b, found in enumerate(points):
        fixations[b, 0, : len(found)] = found
    parts = saliency_losses(logits, density, fixations)
    combined = 0.1 * parts[0] - 2 * parts[1] - parts[2]
    np.testing.assert_allclose(combined.item(), np.mean(case["combined"]), rtol=1e-6)
    combined.backward()
    gradient = logits.grad
    np.testing.assert_allclose(gradient.flatten()[:8], case["grad_first8"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradient.mean(), case["grad_mean"], rtol=1e-4)
    np.testing.assert_allclose(gradient.std(correction=0), case["grad_std"], rtol=1e-4)


def test_frames_without_ground_truth_do_not_count() -> None:
    batch = truth(3)
    logits = torch.randn(3, 1, 64, 64)
    some = saliency_losses(
        logits, batch["density"], batch["fixations"], torch.tensor([[True], [False], [True]])
    )
    kept = [0, 2]
    only = saliency_losses(logits[kept], batch["density"][kept], batch["fixations"][kept])
    torch.testing.assert_close(some, only)
    none = saliency_losses(logits, batch["density"], batch["fixations"], torch.zeros(3, 1, dtype=torch.bool))
    assert [float(v) for v in none] == [0.0, 0.0, 0.0]


def test_degenerate_maps_give_finite_losses_and_gradients() -> None:
    logits = torch.full((2, 1, 64, 64), -6.0, requires_grad=True)
    batch = truth(2)
    batch["density"][1] = 0
    batch["fixations"][1] = -1
    ce, cc, nss = saliency_losses(logits, batch["density"], batch["fixations"])
    assert (cc.item(), nss.item()) == (0.0, 0.0)
    (ce - cc - nss).backward()
    assert torch.isfinite(logits.grad).all()


class _Trainer:
    max_epochs = 60


def test_deep_supervision_falls_from_the_first_epoch_to_zero_at_the_last() -> None:
    module = STAViSModule(audiovisual=False, **SMALL)
    module._trainer = trainer = _Trainer()
    found = []
    for epoch in (0, 29, 59):
        trainer.current_epoch = epoch
        found.append(module.supervision_weight())
    assert found == pytest.approx([59 / 60, 0.5, 0.0])
    assert STAViSModule(audiovisual=False, deep_supervision="constant", **SMALL).supervision_weight() == 1
    module._trainer = None

    video, batch = torch.randn(1, 3, 16, 64, 64), truth(1)
    output = module.network.core(video)
    terms = module.loss_terms(output, batch)

    def eq_11(logits: torch.Tensor) -> torch.Tensor:
        ce, cc, nss = saliency_losses(logits, batch["density"], batch["fixations"])
        return 0.1 * ce - 2 * cc - nss

    dsam = sum(eq_11(output.aux[f"dsam{level}_logits"]) for level in (1, 2, 3, 4))
    torch.testing.assert_close(terms["loss"], eq_11(output.logits) + module.supervision_weight() * dsam)


@pytest.mark.parametrize(("audiovisual", "trunk"), [(False, 1e-3), (True, 1e-4)])
def test_every_parameter_has_the_authors_rate(audiovisual: bool, trunk: float) -> None:
    module = STAViSModule(audiovisual=audiovisual, **SMALL)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    named = {n: rates.get(id(p)) for n, p in module.network.named_parameters()}
    expected = {
        "trunk.conv1.weight": trunk,
        "trunk.layer3.0.bn1.bias": trunk,
        "dsam.2.side_prep.weight": 1e-4,
        "dsam.2.side_prep.bias": 2e-4,
        "dsam.2.score.weight": 1e-5,
        "dsam.2.score.bias": 2e-5,
        "dsam.2.upscale_features.weight": 1e-5,
    }
    if audiovisual:
        expected |= {
            "soundnet.convs.0.weight": 1e-3,
            "localisation.visual.weight": 1e-2,
            "localisation.product.bias": 1e-2,
            "fuse_av.weight": 1e-5,
            "fuse_av.bias": 2e-5,
            "dsam.0.upscale_map.weight": None,
            "dsam.3.score.bias": None,
        }
    else:
        expected |= {"fuse.weight": 1e-5, "fuse.bias": 2e-5, "dsam.0.upscale_map.weight": 1e-5}
    for name, rate in expected.items():
        assert named[name] == (None if rate is None else pytest.approx(rate)), name
    for group in optimizer.param_groups:
        assert (group["momentum"], group["dampening"], group["weight_decay"]) == (0.9, 0.9, 1e-5)
        assert not group["nesterov"]
    course = []
    for _ in range(60):
        course.append(optimizer.param_groups[0]["lr"] / trunk)
        optimizer.step()
        schedule.step()
    # Counted from 1: epochs 1..29, 30..44, 45..60.
    assert course == pytest.approx([1.0] * 29 + [0.1] * 15 + [0.01] * 16)


def test_a_small_network_learns_a_spot_on_a_cpu() -> None:
    torch.manual_seed(0)
    module = STAViSModule(audiovisual=False, optimizer="adamw", lr=3e-3, **SMALL)
    optimizer = module.configure_optimizers()["optimizer"]
    batch = truth(4)
    where = torch.randint(8, 56, (4, 2))
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    for b, (row, column) in enumerate(where.tolist()):
        batch["density"][b, 0] = torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 50.0)
        batch["fixations"][b, 0] = torch.tensor([row, column])
    video = 255 * batch["density"][:, None].expand(4, 3, 16, 64, 64) - 100
    first = last = 0.0
    for step in range(40):
        terms = module.loss_terms(module.network.core(video), batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        first, last = (terms["cc"].item() if step == 0 else first), terms["cc"].item()
    assert last > max(0.8, first)


def test_the_second_stage_starts_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from avsal import zoo

    first = STAViSModule(audiovisual=False, **SMALL)
    monkeypatch.setattr(zoo, "load_state", lambda source: first.state_dict(), raising=False)
    second = STAViSModule(init_from="stage-1", **SMALL)
    monkeypatch.setattr(second, "print", print)
    second.setup("fit")
    theirs, ours = first.state_dict(), second.state_dict()
    shared = [name for name in ours if name.startswith(("network.trunk.", "network.dsam."))]
    assert shared
    for name in shared:
        assert torch.equal(ours[name], theirs[name])


def test_a_backbone_is_loaded_exactly_and_its_classifier_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from avsal import zoo
    from avsal.nn.resnet3d import ResNet3D
    from avsal.nn.soundnet import SoundNet

    states = {
        "kinetics": ResNet3D((1, 1, 1, 1), 8, classes=5).state_dict(),
        "flickr": SoundNet(2).state_dict(),
    }
    monkeypatch.setattr(zoo, "load_state", states.__getitem__, raising=False)
    module = STAViSModule(backbone="kinetics", audio_backbone="flickr", **SMALL)
    module.setup("fit")
    assert torch.equal(module.network.trunk.conv1.weight, states["kinetics"]["conv1.weight"])
    assert torch.equal(module.network.soundnet.convs[6].weight, states["flickr"]["convs.6.weight"])
    with pytest.raises(WeightsError, match="backbone flickr"):
        STAViSModule(backbone="flickr", **SMALL).setup("fit")


def test_a_module_rebuilds_itself_from_its_hyperparameters() -> None:
    module = STAViSModule(localisation="weighted", fusion="late", projection_relu=False, **SMALL)
    again = STAViSModule(**module.hparams)
    again.load_state_dict(module.state_dict())
    assert not again.network.localisation.projection_relu
    assert again.spec == module.spec


@torch.no_grad()
def test_the_core_exports() -> None:
    class Core(nn.Module):
        def __init__(self, network: STAViS) -> None:
            super().__init__()
            self.network = network

        def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            return self.network.core(video, audio).logits

    network = STAViS(**SMALL).eval()
    args = torch.randn(2, 3, 16, 64, 64), torch.randn(2, 1, 1, 35280)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Core(network), args, dynamic_shapes=({0: batch}, {0: batch}))
    args = torch.randn(3, 3, 16, 64, 64), torch.randn(3, 1, 1, 35280)
    torch.testing.assert_close(program.module()(*args), network.core(*args).logits)
