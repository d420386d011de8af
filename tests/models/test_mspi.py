"""MSPI: parity with the authors' network for all seven encoders, cost, exact reuse, loss and recipe."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from avsal.errors import ConfigError, WeightsError
from avsal.losses import correlation, kl_divergence, similarity
from avsal.models.mspi import MSPI, TABLE6, VARIANTS, MSPIModule, audio_visual_loss
from avsal.nn.avfusion import FUSIONS, position_codes
from avsal.nn.cost import count
from avsal.nn.motion import MOTION_ENCODERS
from avsal.types import SaliencyOutput
from tests.golden.fill import normal_input
from tests.golden.mspi import FOLDER, MSPIGolden
from tests.media import tone, write_clip

#: Table 6's networks measured to two digits, in M parameters and G multiply-adds.
MEASURED6 = {
    "s3d": (87.58, 122.23),
    "x3dl": (83.63, 120.79),
    "slowfast4x16": (113.94, 127.38),
    "morphmlps": (126.22, 171.92),
    "videoswins": (128.98, 188.49),
    "uniformerb": (129.08, 201.86),
    "mvitv2s": (113.70, 169.83),
}
TINY = {"size": (64, 96), "width": 0.1875, "image_encoder": "mobilenetv2_035", "bn_momentum": 0.1}


def tiny(**options: object) -> MSPIModule:
    torch.manual_seed(0)
    return MSPIModule(**{**TINY, **options})  # type: ignore[arg-type]


def lively(module: MSPIModule) -> MSPIModule:
    """Two training passes give batch norms statistics, so that outputs depend on inputs."""
    module.train()
    for seed in range(2):
        module(batch(2, seed))
    return module.eval()


def batch(clips: int = 2, seed: int = 0, size: tuple[int, int] = (64, 96)) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "video": torch.randn(clips, 3, 16, *size, generator=generator),
        "audio": 0.1 * torch.randn(clips, 10880, generator=generator),
        "density": torch.rand(clips, 1, *size, generator=generator) ** 8,
    }


# -- parity ------------------------------------------------------------------------------------------------


class Run:
    """One pass of a converted network on the golden input, with the stages that the golden file lists."""

    def __init__(self, encoder: str) -> None:
        self.golden = MSPIGolden(encoder)
        self.module = MSPIModule.from_authors(self.golden.state_dict(), encoder=encoder)
        self.seen: dict[str, Tensor] = {}
        network = self.module.network
        places: dict[str, nn.Module] = {
            "adapter": network.adapter,
            "audnet": network.audio_encoder,
            "av_tokens": network.fusion.blocks,
            "vis_projector": network.visual_projector,
            "aud_projector": network.audio_projector,
            "mlp_vis": network.visual_predictor,
            "mlp_aud": network.audio_predictor,
            **{f"latlayer_{i}": layer for i, layer in enumerate(network.lateral)},
        }
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name: self.seen.update({name: out}))
            for name, module in places.items()
        ]
        hooks.append(
            network.motion_encoder.register_forward_hook(
                lambda _, __, out: self.seen.update({f"v{i + 1}": x for i, x in enumerate(out)})
            )
        )
        hooks.append(
            network.image_encoder.register_forward_hook(
                lambda _, __, out: self.seen.update(image_encoder_o16=out[0], image_encoder_o32=out[1])
            )
        )
        with torch.inference_mode():
            self.output = network.core(self.golden.input("clip"), self.golden.input("spectrogram"))
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module", params=list(MOTION_ENCODERS))
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


@pytest.mark.slow
def test_log_map_and_loss_equal_the_authors_network(run: Run) -> None:
    expected = run.golden.arrays
    assert run.output.logits.shape == (1, 1, 224, 224)
    assert np.abs(run.output.logits[:, 0].numpy() - expected["log_map"]).max() <= 5e-4
    assert abs(float(run.output.aux["loss_av"]) - float(expected["loss_av"])) <= 1e-5
    # The map is a density, so that the loss may take exp(logits) as it is.
    torch.testing.assert_close(run.output.density(), run.output.logits.exp(), rtol=1e-4, atol=1e-9)


def test_stages_equal_the_authors_network(run: Run) -> None:
    for name, value in run.seen.items():
        entry = run.golden.meta["stages"][name]
        std = float(run.golden.arrays[f"stage/{name}/std"])
        assert list(value.shape) == entry["shape"], name
        assert abs(float(value.mean()) - float(run.golden.arrays[f"stage/{name}/mean"])) <= 1e-4 * std, name
        assert abs(float(value.std(unbiased=False)) / std - 1) <= 1e-4, name
        first = value.flatten()[:8].numpy() - run.golden.arrays[f"stage/{name}/first8"]
        assert np.abs(first).max() <= 5e-4 * std, name


@pytest.mark.slow
def test_parameters_and_multiply_adds_are_those_of_table_6(run: Run) -> None:
    """The paper's counter also counts norms: 2 per value of a batch norm, 5 of a layer norm.

    Two convolutions of the readout run before their upsampling here; what that saves is added back.
    """
    network = MSPI(run.golden.meta["encoder"]).to("meta")
    norms = 0

    def add(layer: nn.Module, _, out: Tensor) -> None:
        nonlocal norms
        norms += out.numel() * (5 if isinstance(layer, nn.LayerNorm) else 2)

    for layer in network.modules():
        if isinstance(layer, nn.LayerNorm | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.register_forward_hook(add)
    clip = torch.empty(1, 3, 16, 224, 224, device="meta")
    cost = count(network, clip, torch.empty(1, 1, 257, 111, device="meta"), method="core")
    points = 4 * 56 * 56
    saved = 768 * 192 * points - 192 * 192 * points * (1 + 1 / 4 + 1 / 16 + 1 / 64)
    saved += 64 * 32 * 4 * (224 * 224 - 56 * 56)
    encoder = run.golden.meta["encoder"]
    (params, macs), (exact_params, exact_macs) = TABLE6[encoder], MEASURED6[encoder]
    total = (cost.macs + norms + saved) / 1e9
    assert round(cost.params / 1e6) == params
    assert round(total) == macs
    # UniFormer's unused classifier (0.21 M) is not built.
    assert cost.params / 1e6 == pytest.approx(exact_params, abs=0.006 + 0.21 * (params == 129))
    assert total == pytest.approx(exact_macs, abs=0.006)


def test_a_file_of_the_wrong_encoder_or_with_a_gap_is_refused() -> None:
    state = MSPIGolden("s3d").state_dict()
    with pytest.raises(WeightsError, match=r"stages\.0|missing"):
        MSPIModule.from_authors(state, encoder="x3dl")
    del state["readout.12.bias"]
    with pytest.raises(WeightsError, match=r"readout\.map\.bias"):
        MSPIModule.from_authors(state)


def test_a_visual_only_network_does_not_ask_for_the_entries_of_sound() -> None:
    state = MSPIGolden("s3d").state_dict()
    state["latlayer_3.0.weight"] = state["latlayer_3.0.weight"][:, :1024]
    module = MSPIModule.from_authors(state, audio=False)
    assert module.network.spec.audio is None
    assert not module.training


@pytest.mark.parametrize(
    ("encoder", "size"), [("mvitv2s", (64, 128)), ("videoswins", (96, 64)), ("s3d", (32, 96))]
)
def test_other_multiples_of_32_work(encoder: str, size: tuple[int, int]) -> None:
    network = MSPI(encoder, size, width=0.1, image_stream="none").eval()
    with torch.inference_mode():
        output = network(torch.randn(1, 3, 16, *size))
    assert output.logits.shape == (1, 1, *size)
    assert float(output.logits.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_tables_of_another_clip_size_survive_saving(tmp_path: Path) -> None:
    options = {"encoder": "mvitv2s", "size": (64, 64), "width": 0.1, "image_stream": "none", "audio": False}
    module = MSPIModule(**options)
    table = torch.randn(191, 96)
    module.network.motion_encoder.blocks[0].attn.rel_pos_w.data = table.half().float()
    folder = module.save_pretrained(tmp_path / "mspi", dtype=torch.float16)
    again = MSPIModule.from_pretrained(folder)
    assert torch.equal(again.network.motion_encoder.blocks[0].attn.rel_pos_w, table.half().float())
    started = MSPIModule(**options)
    started.initialise_from(str(folder))
    assert torch.equal(started.network.motion_encoder.blocks[0].attn.rel_pos_w, table.half().float())


# -- sound -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def functions() -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(FOLDER / "mspi_functions.npz") as arrays:
        return json.loads((FOLDER / "mspi_functions.json").read_text()), dict(arrays)


def cut(case: dict) -> Tensor:
    waveform = torch.from_numpy(normal_input("waveform", (1, 48000))) * 0.1
    spec = MSPI("s3d", (32, 32), width=0.1, image_stream="none").spec.audio
    first, last = (case["start_frame"] / case["fps"], (case["start_frame"] + 15) / case["fps"])
    assert spec is not None
    begin, end = spec.samples(first, last, case["fps"], 16000)
    assert (begin, end) == tuple(
        round(case["start_frame"] * 16000 / case["fps"] + k) for k in (0, end - begin)
    )
    piece = waveform[0, begin:end]
    return piece.flip(0) if case["reversed"] else piece


def test_spectrograms_equal_the_authors_also_in_one_batch_of_different_lengths(functions: tuple) -> None:
    meta, expected = functions
    network = MSPI("s3d", (32, 32), width=0.1, image_stream="none")
    pieces = [cut(case) for case in meta["cases"]]
    lengths = torch.tensor([len(piece) for piece in pieces])
    canvas = network.frontend(nn.utils.rnn.pad_sequence(pieces, batch_first=True), lengths)
    assert canvas is not None
    assert canvas.shape == (len(pieces), 1, 257, 111)
    for case, value in zip(meta["cases"], canvas, strict=True):
        assert np.abs(value[0].numpy() - expected[f"spec{case['index']}"]).max() <= 2e-3
        columns = min(int(expected[f"spec{case['index']}_columns"]), 111)
        assert (value[0, :, columns:] == np.float32(0.02)).all()


def test_missing_and_too_short_sound_is_a_canvas_of_two_hundredths_and_silence_is_zero() -> None:
    network = MSPI("s3d", (32, 32), width=0.1, image_stream="none")
    sound = torch.randn(4, 10880)
    sound[3] = 0
    lengths, has = torch.tensor([10880, 256, 0, 10880]), torch.tensor([False, True, True, True])
    canvas = network.frontend(sound, lengths, has)
    assert canvas is not None
    assert (canvas[:3] == np.float32(0.02)).all()
    assert (canvas[3, 0, :, :69] == 0).all()
    assert (canvas[3, 0, :, 69:] == np.float32(0.02)).all()
    assert torch.equal(network.audio_input(torch.zeros(1, 3, 16, 32, 32)), canvas[:1])  # type: ignore[arg-type]


# -- losses ------------------------------------------------------------------------------------------------


def test_losses_equal_the_authors(functions: tuple) -> None:
    _, expected = functions
    logits, raw = (torch.from_numpy(normal_input(name, (2, 56, 96))) for name in ("logits", "density"))
    density = raw.abs() / raw.abs().amax((1, 2), keepdim=True)
    log_map = logits - logits.logsumexp((1, 2), keepdim=True)
    assert float(kl_divergence(log_map.exp(), density).mean()) == pytest.approx(
        float(expected["kl"]), abs=1e-5
    )
    assert float(correlation(log_map.exp(), density).mean()) == pytest.approx(float(expected["cc"]), abs=1e-5)
    assert float(similarity(log_map.exp(), density).mean()) == pytest.approx(float(expected["sim"]), abs=1e-5)
    vectors = [
        torch.from_numpy(normal_input(n, (2, 2048))) for n in ("vis_pred", "aud_emb", "aud_pred", "vis_emb")
    ]
    assert float(audio_visual_loss(*vectors)) == pytest.approx(float(expected["av_loss"]), abs=1e-5)

    module = MSPIModule(encoder="s3d", size=(32, 32), width=0.1, audio=False, image_stream="none")
    output = SaliencyOutput(log_map[:, None], "softmax")
    terms = module.loss_terms(output, {"density": density[:, None]})
    assert float(terms["loss"]) == pytest.approx(float(expected["sal_loss"]), abs=1e-5)


def test_unlabelled_and_empty_maps_do_not_count() -> None:
    module = tiny(audio=False, image_stream="none")
    logits = torch.randn(3, 1, 64, 96)
    density = torch.rand(3, 1, 64, 96)
    density[2] = 0
    labelled = torch.tensor([[True], [False], [True]])
    terms = module.loss_terms(SaliencyOutput(logits, "softmax"), {"density": density, "labelled": labelled})
    alone = module.loss_terms(SaliencyOutput(logits[:1], "softmax"), {"density": density[:1]})
    assert float(terms["loss"]) == pytest.approx(float(alone["loss"]), abs=1e-6)


def test_lambda_weighs_the_audio_visual_loss_and_its_targets_get_no_gradient() -> None:
    data = batch()
    losses = {}
    for weight in (1.0, 3.0):
        module = tiny(av_weight=weight).eval()
        losses[weight] = module.loss_terms(module(data), data)
    assert float(losses[3.0]["loss"] - losses[1.0]["loss"]) == pytest.approx(
        2 * float(losses[1.0]["av"]), abs=1e-5
    )
    assert "loss_av" not in tiny(av_weight=0.0).eval()(data).aux

    targets = torch.randn(2, 8, requires_grad=True)
    predictions = torch.randn(2, 8, requires_grad=True)
    audio_visual_loss(predictions, targets, predictions, targets).backward()
    assert targets.grad is None
    assert predictions.grad is not None


# -- exact reuse -------------------------------------------------------------------------------------------


def windows(video: Tensor, targets: list[int], *, backwards: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[min(max(t - 15 + k, 0), video.shape[1] - 1) for k in range(16)] for t in targets])
    ids = ids.flip(1) if backwards else ids
    return video[:, ids].transpose(0, 1), ids


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"image_stream": "maps"}, {"audio": False}, {"fusion": "avim"}])
def test_the_runner_equals_the_plain_sliding_window(options: dict) -> None:
    module = lively(tiny(**options))
    network, video = module.network, torch.randn(3, 40, 64, 96)
    runner = network.window_runner()
    sounds = torch.randn(40, 1, 257, 111)
    calls: list[int] = []
    network.image_encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    with torch.inference_mode():
        for start in range(0, 40, 8):
            targets = list(range(start, start + 8))
            clips, ids = windows(video, targets)
            audio = sounds[targets] if network.spec.audio else None
            before = len(calls)
            reused = runner(clips, ids, audio)
            seen = sum(calls[before:])
            assert seen == 8  # eight new frames, whatever the windows' length
            plain = network.core(clips, audio)
            del calls[before:]
            assert (reused.logits - plain.logits).abs().max() <= 1e-5
            assert "loss_av" not in reused.aux


def test_what_the_runner_differs_by_is_rounding() -> None:
    """In float32 the paper's widths leave some 1e-5 of the log-map's range; in float64 nothing is left."""
    network = lively(tiny()).network.double()
    video = torch.randn(3, 19, 64, 96, dtype=torch.float64)
    runner, sounds = network.window_runner(), torch.randn(19, 1, 257, 111, dtype=torch.float64)
    with torch.inference_mode():
        for target in (17, 18):
            clips, ids = windows(video, [target])
            reused, plain = runner(clips, ids, sounds[[target]]), network.core(clips, sounds[[target]])
            spread = plain.logits.amax() - plain.logits.amin()
            assert spread > 1e-2
            assert (reused.logits - plain.logits).abs().max() <= 1e-12 * max(1.0, float(spread))


def test_reversed_windows_reuse_the_same_frames() -> None:
    network, video = lively(tiny()).network, torch.randn(3, 40, 64, 96)
    runner = network.window_runner()
    sound = torch.randn(4, 1, 257, 111)
    with torch.inference_mode():
        for backwards in (True, False):
            for start in (15, 19, 23):
                clips, ids = windows(video, list(range(start, start + 4)), backwards=backwards)
                plain = network.core(clips, sound)
                assert (runner(clips, ids, sound).logits - plain.logits).abs().max() <= 1e-5
    assert runner.image_calls == 27


@pytest.mark.slow
def test_equal_sounds_are_heard_once_and_the_cache_stays_small() -> None:
    network, video = lively(tiny()).network, torch.randn(3, 200, 64, 96)
    runner = network.window_runner()
    heard: list[int] = []
    network.audio_encoder.register_forward_hook(lambda _, inputs, __: heard.append(len(inputs[0])))
    silence = network.audio_input(torch.zeros(4, 3, 16, 64, 96))
    with torch.inference_mode():
        for start in range(0, 200, 4):
            clips, ids = windows(video, list(range(start, start + 4)))
            runner(clips, ids, silence)
    assert heard == [1]
    assert runner.image_calls == 200
    assert len(runner._frames) <= runner.keep


@pytest.mark.slow
@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("coverage", ["full", "authors"])
def test_a_whole_video_gives_the_same_maps_with_and_without_reuse(
    tmp_path: Path, coverage: str, sound: bool
) -> None:
    # The sound ends before the picture, so that the last windows have little of it or none.
    path = write_clip(tmp_path / "clip.mp4", frames=36, sound=tone(1.2) if sound else None)
    module = lively(tiny())
    seen: list[int] = []
    module.network.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    reused = list(module.predict_video(path, coverage=coverage, batch_size=5))
    assert sum(seen) == 36
    plain = list(module.predict_video(path, coverage=coverage, batch_size=5, reuse=False))
    assert [frame.index for frame in reused] == list(range(36))
    for one, other in zip(reused, plain, strict=True):
        assert (one.map.log() - other.map.log()).abs().max() <= 1e-5


# -- training ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_network_learns_one_batch() -> None:
    module, data = tiny(freeze_image=False, freeze_audio=False, lr=3e-3).train(), batch(4)
    assert 1e6 < sum(p.numel() for p in module.parameters()) < 3e6
    data["density"] = torch.zeros(4, 1, 64, 96)
    for clip in range(4):
        data["density"][clip, 0, 10 * clip + 8 : 10 * clip + 16, 20 * clip + 4 : 20 * clip + 16] = 1
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    losses = []
    for _ in range(15):
        terms = module.loss_terms(module(data), data)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["loss"]))
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize("freeze_motion", [False, True])
def test_frozen_encoders_stay_as_they_are_while_training(freeze_motion: bool) -> None:
    module = tiny(freeze_motion=freeze_motion).train()
    network = module.network
    frozen = ["network.image_encoder.", "network.audio_encoder."] + [
        "network.motion_encoder."
    ] * freeze_motion
    assert not network.image_encoder.training
    assert not network.audio_encoder.training
    assert network.motion_encoder.training is not freeze_motion
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = batch()
    module.loss_terms(module(data), data)["loss"].backward()
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    optimizer.step()
    for name, value in module.state_dict().items():
        if name.startswith(tuple(frozen)):
            assert torch.equal(value, before[name]), name
    unmoved = [n for n, p in module.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert all(parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad)
    # Zero-initialised biases behind a norm may have no gradient; weights must all have moved.
    assert not [name for name in unmoved if name.endswith("weight") and before[name].ndim > 1]


def test_the_recipe_is_the_papers() -> None:
    module = tiny(audio=False, image_stream="none")
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]  # type: ignore[index,call-overload]
    assert type(optimizer).__name__ == "AdamW"
    rates = []
    for _ in range(120):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert rates[:60] == [1e-4] * 60
    assert rates[60:] == pytest.approx([1e-5] * 60)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_of_table_5_hears(fusion: str) -> None:
    module = tiny(fusion=fusion)
    if "avim" in fusion:  # starts as the identity
        nn.init.normal_(module.network.fusion.interaction.delta.weight)
    module = lively(module)
    data = batch(1)
    with torch.inference_mode():
        loud = module(data).logits
        other = module({**data, "audio": batch(1, seed=5)["audio"]}).logits
    assert loud.shape == (1, 1, 64, 96)
    assert not torch.allclose(loud, other)


def test_the_positional_fusion_tells_its_size() -> None:
    network = MSPI("s3d", (64, 96), width=0.1, image_stream="none", fusion="bilinear_max").eval()
    with pytest.raises(ConfigError, match="64x96"):
        network(torch.randn(1, 3, 16, 96, 96))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_of_table_2_have_the_streams_they_say(name: str) -> None:
    arguments = {**VARIANTS[name], "width": 0.1, "size": (32, 32)}
    with torch.device("meta"):
        module = MSPIModule(**arguments)
    network = module.network
    assert (network.audio_encoder is not None) == (name not in ("baseline", "V2"))
    assert (network.image_encoder is not None) == (name not in ("baseline", "V1"))
    assert hasattr(network, "image_decoder") == (name == "V7")
    assert network.compute_av_loss == (name in ("V1", "V4", "V5", "V6", "V7"))


def test_batch_norm_projectors_are_an_option() -> None:
    kinds = {
        norm: {type(layer) for layer in tiny(projector_norm=norm).network.visual_projector.modules()}
        for norm in ("layer", "batch")
    }
    assert nn.LayerNorm in kinds["layer"]
    assert nn.BatchNorm1d in kinds["batch"]
    assert nn.LayerNorm not in kinds["batch"]


def test_position_codes_are_sines_and_cosines_of_the_token_index() -> None:
    codes = position_codes(40, 8)
    for position in (0, 1, 39):
        for pair in range(4):
            angle = position / 10000 ** (2 * pair / 8)
            assert float(codes[position, 2 * pair]) == pytest.approx(np.sin(angle), abs=1e-5)
            assert float(codes[position, 2 * pair + 1]) == pytest.approx(np.cos(angle), abs=1e-5)


# -- weights of the encoders, bad input ------------------------------------------------------------------------


def test_encoder_weights_come_from_published_files(tmp_path: Path) -> None:
    import timm

    golden = MSPIGolden("s3d")
    trunk = {f"audnet.{k.removeprefix('audnet.')}": v for k, v in golden.state_dict("audnet.").items()}
    torch.save(
        {"model_state_dict": {**trunk, "audnet.fc.weight": torch.zeros(309, 512)}}, tmp_path / "vggsound.pth"
    )
    motion = {k.removeprefix("visnet."): v for k, v in golden.state_dict("visnet.").items()}
    torch.save(motion, tmp_path / "s3d.pt")
    image = {k.removeprefix("image_encoder."): v for k, v in golden.state_dict("image_encoder.").items()}
    torch.save(image, tmp_path / "isp.pth")
    module = MSPIModule(
        motion_weights=str(tmp_path / "s3d.pt"),
        audio_weights=str(tmp_path / "vggsound.pth"),
        image_weights=str(tmp_path / "isp.pth"),
    )
    module.load_encoders()
    network = module.network
    assert torch.equal(network.audio_encoder.conv1.weight, trunk["audnet.conv1.weight"])
    assert torch.equal(network.motion_encoder.features[0][0][0].weight, motion["base1.0.conv_s.weight"])
    assert torch.equal(network.image_encoder.transition32[0].weight, image["smooth_0.0.weight"])

    classifier = timm.create_model("convnext_tiny", pretrained=False)
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "mobilenetv2_100"}'
    )  # timm's own, beside the file
    entries = MSPIModule.read_weights(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(entries[name], value) for name, value in classifier.state_dict().items())
    torch.save(classifier.state_dict(), tmp_path / "imagenet.pth")
    network.image_encoder.load_imagenet(torch.load(tmp_path / "imagenet.pth"))
    assert torch.equal(network.image_encoder.encoder.stem_0.weight, classifier.stem[0].weight)

    (tmp_path / "SLOWFAST_4x16_R50.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3)}}))
    bad = MSPIModule(
        encoder="slowfast4x16",
        size=(32, 32),
        width=0.1,
        motion_weights=str(tmp_path / "SLOWFAST_4x16_R50.pkl"),
        audio=False,
    )
    with pytest.raises(WeightsError, match="caffe2"):
        bad.load_encoders()


def test_saliency_maps_as_masks_need_a_decoder_with_weights(tmp_path: Path) -> None:
    from avsal.models.isp import ISPModule

    isp = ISPModule(encoder="mobilenetv2_035", size=(64, 96), channels=(16, 56))
    torch.save({"state_dict": isp.state_dict()}, tmp_path / "isp.pth")
    module = tiny(image_stream="maps", audio=False, image_weights=str(tmp_path / "isp.pth"))
    module.load_encoders()
    assert torch.equal(module.network.image_decoder.map.weight, isp.network.decoder.map.weight)
    encoder_only = {k: v for k, v in isp.state_dict().items() if ".encoder." in k}
    torch.save(encoder_only, tmp_path / "encoder.pth")
    with pytest.raises(WeightsError, match="decoder of"):
        tiny(image_stream="maps", audio=False, image_weights=str(tmp_path / "encoder.pth")).load_encoders()


def test_masks_do_not_depend_on_the_constant_that_the_decoder_s_softmax_leaves_open() -> None:
    module = tiny(image_stream="maps", audio=False).eval()
    frames = batch()["video"][:, :, 0]
    with torch.no_grad():
        (before,) = module.network.image_features(frames)
        module.network.image_decoder.map.bias -= 8
        (after,) = module.network.image_features(frames)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    assert torch.equal(before.amax((-2, -1)), torch.ones(2, 1))


def test_frozen_encoders_of_random_weights_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"audio_encoder \(all layers\): give audio_weights.*image_encoder.*allow_random"
    ):
        tiny().setup("fit")
    with pytest.raises(ConfigError, match="motion_encoder"):
        tiny(audio=False, image_stream="none", freeze_motion=True).setup("fit")
    tiny(freeze_audio=False, freeze_image=False).setup("fit")
    tiny(audio=False, image_stream="none").setup("fit")
    tiny(allow_random_frozen=True).setup("fit")
    # A checkpoint, restored or named, is weights; half of them are not enough.
    torch.save(tiny().state_dict(), tmp_path / "whole.pth")
    tiny(init_from=str(tmp_path / "whole.pth")).setup("fit")
    restored = tiny()
    restored.load_state_dict(tiny().state_dict())
    restored.setup("fit")
    sound = {k: v for k, v in tiny().state_dict().items() if "audio_encoder" in k}
    torch.save(sound, tmp_path / "sound.pth")
    with pytest.raises(ConfigError, match=r"image_encoder \(all layers\)") as error:
        tiny(init_from=str(tmp_path / "sound.pth")).setup("fit")
    assert "audio_encoder" not in str(error.value)


def test_imagenet_weights_leave_transitions_that_must_learn(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("mobilenetv2_035", pretrained=False).state_dict(), tmp_path / "imagenet.pth")
    options = {"audio": False, "imagenet_weights": str(tmp_path / "imagenet.pth")}
    with pytest.raises(
        ConfigError, match=r"image_encoder \(transition16\.0, transition16\.1, transition32\.0 …\)"
    ):
        tiny(**options).setup("fit")
    tiny(**options, freeze_image=False).setup("fit")


def test_a_training_refuses_random_frozen_encoders_and_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader([0], collate_fn=lambda _: batch())  # type: ignore[arg-type]

    def fit(module: MSPIModule, ckpt: Path | None = None) -> L.Trainer:
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, barebones=False,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=ckpt)
        return trainer

    with pytest.raises(ConfigError, match="would train behind frozen parts of random weights"):
        fit(tiny())
    fit(tiny(allow_random_frozen=True)).save_checkpoint(tmp_path / "a.ckpt")
    fit(tiny(), tmp_path / "a.ckpt")


def test_without_the_audio_visual_loss_every_trainable_parameter_gets_a_gradient() -> None:
    module, data = tiny(av_weight=0.0).train(), batch()
    module.loss_terms(module(data), data)["loss"].backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


def test_options_that_are_not_there_are_told() -> None:
    with pytest.raises(ConfigError, match="mvitv2s"):
        MSPIModule(encoder="i3d")
    with pytest.raises(ConfigError, match="multiples of 32"):
        MSPIModule(size=(225, 224))
    with pytest.raises(ConfigError, match="avim_cpc"):
        MSPIModule(fusion="sum")
    with pytest.raises(ConfigError, match="height and width"):
        MSPIModule(size=224)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least two clips"):
        tiny(projector_norm="batch").train()(batch(1))
    with pytest.raises(ConfigError, match="convnext_tiny and mobilenetv2_100"):
        MSPIModule(image_encoder="nothing")
    with pytest.raises(ConfigError, match="strides"):
        MSPIModule(image_encoder="vit_tiny_patch16_224", audio=False)
    with pytest.raises(ConfigError, match="no such stream"):
        MSPIModule(audio=False, image_stream="none", width=0.1, audio_weights="x").load_encoders()
    module = tiny(audio=False, image_stream="none").eval()
    with pytest.raises(ConfigError, match="16 frames"):
        module.network.core(torch.zeros(1, 3, 8, 64, 96))
    with pytest.raises(ConfigError, match="spectrograms"):
        tiny(image_stream="none").network.core(torch.zeros(1, 3, 16, 64, 96))


def test_the_checkpoint_rebuilds_itself() -> None:
    module = lively(tiny(encoder_options={"bn_momentum": 0.2}))
    again = MSPIModule(**module.hparams).eval()
    again.load_state_dict(module.state_dict())
    data = batch(1)
    with torch.inference_mode():
        assert torch.equal(module(data).logits, again(data).logits)


# -- the image stream as prior ------------------------------------------------------------------------------


def prior_module(**options: Any) -> MSPIModule:
    torch.manual_seed(0)
    return MSPIModule(
        size=(64, 96), width=0.1, audio=False, image_stream="prior", image_encoder="efficientnet_lite0",
        motion_size=(32, 64), step=0.08, **options,
    ).eval()  # fmt: skip


def test_untrained_motion_leaves_the_weighted_mean_of_the_image_stream_s_maps() -> None:
    network = prior_module().network
    video = torch.randn(1, 3, 16, 80, 112)
    with torch.inference_mode():
        found = network.core(video).density()[0, 0]
        each = [network.image_decoder(*network.image_encoder(video[:, :, k])) for k in range(16)]
    maps = torch.stack([one.flatten().softmax(0).view(20, 28) for one in each])
    weights = torch.exp(torch.arange(-15.0, 1.0) / 6)
    expected = (maps * (weights / weights.sum())[:, None, None]).sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_an_isp_checkpoint_becomes_the_prior_and_motion_gets_gradients(tmp_path: Path) -> None:
    from avsal.models.isp import ISPModule

    torch.manual_seed(1)
    isp = ISPModule(encoder="efficientnet_lite0", size=(64, 96)).eval()
    folder = isp.save_pretrained(tmp_path / "isp")
    module = prior_module(image_weights=str(folder / "model.safetensors"))
    module.load_encoders()
    frame = torch.randn(1, 3, 1, 64, 96)
    with torch.inference_mode():
        still = module.network.core(frame.expand(-1, -1, 16, -1, -1)).density()
        torch.testing.assert_close(still, isp.network.core(frame).density(), rtol=1e-3, atol=1e-6)
    module.train()
    logits = module.network.core(torch.randn(2, 3, 16, 64, 96)).logits
    logits[..., 0, 0].sum().backward()
    assert float(module.network.readout.map.weight.grad.abs().sum()) > 0
    assert float(module.network.history.grad.abs().sum()) > 0
    assert all(p.grad is None for p in module.network.image_encoder.parameters())


def test_the_prior_s_runner_sees_every_frame_once_and_gives_what_whole_windows_give() -> None:
    network = prior_module().network
    torch.nn.init.normal_(network.readout.map.weight, std=0.1)
    frames = torch.randn(3, 20, 64, 96)
    ids = torch.stack([torch.arange(k, k + 16) for k in range(5)])
    windows = torch.stack([frames[:, window] for window in ids])
    runner = network.window_runner()
    with torch.inference_mode():
        found = torch.cat([runner(windows[k : k + 2], ids[k : k + 2], None).logits for k in (0, 2, 4)])
        expected = network.core(windows).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert runner.image_calls == 20


def test_light_encoders_have_no_feature_stream_and_the_clip_is_in_seconds() -> None:
    spec = prior_module().spec
    assert (spec.step, spec.step_unit, spec.resize) == (0.08, "seconds", "keep_aspect")
    with pytest.raises(ConfigError, match="'prior' or 'maps'"):
        MSPIModule(size=(64, 96), width=0.1, audio=False, image_encoder="efficientnet_lite0")
