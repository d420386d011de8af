"""CSTS: parity with the released network and sound front end, its variants, loss and recipe."""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import signal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from avsal.data.gaze.targets import gaze_density
from avsal.errors import ConfigError, WeightsError
from avsal.models.csts import CSTS, FUSIONS, VARIANTS, CSTSModule
from avsal.nn.mvit import MViT
from avsal.nn.spectrogram import SpectrogramWindows
from avsal.types import Batch, SaliencyOutput
from tests.golden.fill import fill, normal_input

GOLDEN = Path(__file__).parents[1] / "golden"
SILENCE = math.log(1e-6)

#: A network with the same parts that runs in milliseconds.
SMALL: dict[str, Any] = {
    "size": (64, 64), "frames": 4, "embed_dim": 8, "depths": (1, 1, 1, 1), "contrast_dim": 8,
    "spectrogram": (32, 64), "sample_rate": 8000, "window": 60, "hop": 80,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, the more so where several tests share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return json.loads((GOLDEN / f"{name}.json").read_text()), dict(arrays)


def small(seed: int = 0, **options: Any) -> CSTSModule:
    torch.manual_seed(seed)
    return CSTSModule(**{**SMALL, **options})


def small_batch(clips: int = 2, seed: int = 0, **options: Any) -> Batch:
    g = torch.Generator().manual_seed(seed)
    gaze = torch.rand(clips, 4, 2, generator=g)
    kinds = torch.arange(clips * 4).view(clips, 4) % 4
    batch: Batch = {
        "video": torch.randn(clips, 3, 4, 64, 64, generator=g),
        "audio": torch.randn(clips, 14000, generator=g) / 5,
        "audio_length": torch.full((clips,), 14000),
        "has_audio": torch.ones(clips, dtype=torch.bool),
        "frame_times": torch.arange(4).mul(0.3).add(0.2).expand(clips, 4),
        "gaze": gaze,
        "gaze_type": kinds,
        "density": gaze_density(gaze),
        "labelled": kinds != 3,
        "video_id": torch.arange(clips),
        "frame": torch.arange(4).expand(clips, 4),
    }
    return {**batch, **options}  # type: ignore[typeddict-item, return-value]


# -- parity ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authors() -> dict[str, Tensor]:
    case, _ = golden("csts_forecast")
    return {
        name: torch.from_numpy(fill(name, tuple(shape), case["seed"])) for name, shape in case["state_dict"]
    }


@pytest.fixture(scope="module")
def released(authors: dict[str, Tensor]) -> CSTSModule:
    from avsal.zoo import convert

    module = convert("csts", authors)
    assert isinstance(module, CSTSModule)
    return module


@pytest.mark.slow
def test_the_released_networks_output_is_reproduced(released: CSTSModule) -> None:
    case, expected = golden("csts_forecast")
    video, audio = (torch.from_numpy(normal_input(n, tuple(s), case["seed"])) for n, s in case["inputs"])
    stages: dict[str, Tensor] = {}
    watched = [n for n in case["stage_names"] if n in dict(released.network.named_modules())]
    for name in watched:
        released.network.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: stages.__setitem__(name, out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        output = released.network.core(video, audio)
    tolerance = case["tolerance"]
    close(output.logits, expected["preds"][:, 0], **tolerance["preds"])
    close(output.density(), expected["heatmap"][:, 0], **tolerance["heatmap"])
    for name in ("vision_embed", "audio_embed"):
        close(output.aux[name], expected[name], **tolerance[name])
    similarity = F.cosine_similarity(output.aux["vision_embed"], output.aux["audio_embed"], eps=1e-8)
    close(similarity[:, None], expected["similarity"], **tolerance["similarity"], rtol=0)
    compared = 0
    for name, value in stages.items():
        if "fusion" in name:
            continue  # grouped by time step here; their tokens are compared through what follows
        for statistic, got in (("mean", value.mean()), ("std", value.std(correction=0))):
            close(got, expected[f"stage/{name}/{statistic}"], **tolerance["stage"])
            compared += 1
    assert compared == 2 * 21


def close(found: Tensor, expected: np.ndarray, *, atol: float, rtol: float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), atol=atol, rtol=rtol)


def test_norms_have_the_released_epsilons(released: CSTSModule) -> None:
    """An exchange of 1e-5 and 1e-6 moves the output by less than the tolerance, so they are looked at."""
    for name, module in released.network.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if ".attn.norm_" in name else 1e-6), name


def test_a_state_dict_without_the_contrastive_heads_gives_the_network_without_them(
    authors: dict[str, Tensor],
) -> None:
    entries = {f"module.{n}": v for n, v in authors.items() if "_proj" not in n.split(".")[0]}
    with torch.device("meta"):
        module = CSTSModule.from_authors({n: v.to("meta") for n, v in entries.items()})
    assert module.network.contrast == "none"
    assert sum(p.numel() for p in module.parameters()) == 187_788_673


def test_entries_that_are_missing_left_over_or_of_another_shape_are_named() -> None:
    entries = dict(small().network.state_dict())
    entries["decode_block9.attn.weight"] = entries.pop("decode_block1.attn.proj.weight")
    entries["classifier.bias"] = torch.zeros(2)
    options = {n: v for n, v in SMALL.items() if n not in ("size", "frames", "embed_dim", "contrast_dim")}
    with pytest.raises(
        WeightsError, match=r"decode_block1\.attn\.proj\.weight.*decode_block9.*classifier\.bias"
    ):
        CSTSModule.from_authors(entries, **options)


def test_sizes_follow_from_the_authors_entries() -> None:
    source = small(3).eval()
    options = {n: SMALL[n] for n in ("depths", "spectrogram", "sample_rate", "window", "hop")}
    built = CSTSModule.from_authors(source.network.state_dict(), **options)
    batch = small_batch()
    with torch.no_grad():
        assert torch.equal(built(batch).logits, source(batch).logits)


def test_parameters_and_cost_are_those_of_the_released_network() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        network = CSTS().eval()
        assert count(network) == 188_182_401
        assert len(network.state_dict()) == 524
        assert count(network.blocks) == 35_957_088
        assert count(network.blocks_audio) == 10_612_896
        assert count(network.patch_embed) == 42_432
        assert count(network.vision_pool) == count(network.audio_pool2) == 37_749_504
        assert count(network.spatial_fusion) == 7_087_872
        decoder = [count(network.get_submodule(f"decode_block{i}")) for i in (1, 2, 3, 4)]
        assert decoder == [7_096_224, 4_448_832, 1_118_496, 286_944]
        with FlopCounterMode(display=False) as counter:
            network.core(torch.empty(1, 3, 8, 256, 256), torch.empty(1, 1, 8, 256, 256))
        # 104.05 GMACs were counted with attention over all 260 tokens of the spatial fusion; groups of 65 save 0.08.
        saved = 2 * 768 * (260**2 - 4 * 65**2) / 1e9
        assert counter.get_total_flops() / 2e9 == pytest.approx(104.05 - saved, abs=0.01)
        assert round(count(CSTS(fusion="vision-only", contrast="none")) / 1e6, 2) == 49.34


# -- sound ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, np.ndarray], Tensor]:
    _, arrays = golden("csts_audio")
    return arrays, torch.from_numpy(arrays["waveform_int16"].astype(np.float32) / 32768)[None]


def test_the_spectrogram_is_the_authors(recorded: tuple[dict[str, np.ndarray], Tensor]) -> None:
    expected, waveform = recorded
    found = SpectrogramWindows().spectrogram(waveform)[0, :, :1000].numpy()
    np.testing.assert_allclose(found[:, :3], expected["first_columns"], atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(found[:, -3:], expected["last_columns"], atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(found.mean(0), expected["column_mean"], atol=1e-3)
    np.testing.assert_allclose(found.std(0), expected["column_std"], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "observed", "fps"),
    [
        ("ego4d_forecast", 86, 30),
        ("ego4d_estimation", 150, 30),
        ("aria_forecast", 60, 20),
        ("aria_estimation", 100, 20),
    ],
)
def test_windows_lie_where_the_authors_loader_puts_them(
    recorded: tuple[dict[str, np.ndarray], Tensor], name: str, observed: int, fps: int
) -> None:
    expected, waveform = recorded
    task = "estimation" if "estimation" in name else "anticipation"
    timing = name.split("_")[0]
    network = CSTS(
        task=task, timing=timing, embed_dim=8, depths=(1, 1, 1, 1), contrast="none", size=(32, 32)  # type: ignore[arg-type]
    )  # fmt: skip
    frames = torch.from_numpy(expected[f"{name}_test_frames"])
    length = torch.tensor([observed * 24000 // fps])
    # What comes after the observed part is not heard: only that part is handed over.
    windows = network.frontend(waveform[:, : int(length)], length, None, (frames / fps)[None])
    assert windows is not None
    full = network.windows.spectrogram(waveform)[0]
    centres = expected[f"{name}_test_centres"]
    for frame, centre in enumerate(centres):
        torch.testing.assert_close(
            windows[0, 0, frame], full[:, centre - 128 : centre + 128], atol=1e-4, rtol=1e-4
        )
    if name == "ego4d_forecast":
        np.testing.assert_allclose(windows[0, 0, 3].numpy(), expected["window"], atol=2e-3, rtol=1e-4)
        assert int(length // 120) == expected["ego4d_forecast_columns_kept"]


def test_the_spectrogram_equals_scipys() -> None:
    windows = SpectrogramWindows(32, 64, 8000, 60, 80)
    wave = np.random.default_rng(0).normal(size=4000).astype(np.float32) / 5
    hann = np.zeros(63)
    hann[1:61] = signal.get_window("hann", 60)
    transform = signal.ShortTimeFFT(hann, 80, 8000, fft_mode="onesided", phase_shift=None)
    # SciPy's slices are centred too; both see zeros outside.
    theirs = np.log(np.abs(transform.stft(wave, p0=0, p1=50)) ** 2 + 1e-6)
    ours = windows.spectrogram(torch.from_numpy(wave)[None])[0, :, :50].numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_missing_sound_is_silence_and_silence_is_the_logarithm_of_the_floor() -> None:
    network = small().network
    wave = torch.randn(2, 14000)
    windows = network.frontend(wave, None, torch.tensor([True, False]))
    assert windows is not None
    assert windows.shape == (2, 1, 4, 32, 64)
    assert windows[0].std() > 1
    torch.testing.assert_close(windows[1], torch.full_like(windows[1], SILENCE))
    with torch.no_grad():
        video = torch.randn(2, 3, 4, 64, 64)
        silent = network.eval()(video, torch.zeros(2, 14000))
        torch.testing.assert_close(network(video).logits, silent.logits)


def test_a_short_waveform_is_followed_by_silence() -> None:
    network = small().network
    wave = torch.randn(1, 1600)  # 20 of 64 columns
    windows = network.frontend(wave, None, None, torch.tensor([[0.0, 0.05, 0.1, 0.2]]))
    assert windows is not None
    torch.testing.assert_close(windows[0, 0, :, :, 20:], torch.full((4, 32, 44), SILENCE))
    torch.testing.assert_close(windows[0, 0, 0, :, :19], network.windows.spectrogram(wave)[0, :, :19])


def test_a_clips_sound_does_not_depend_on_the_other_clips_of_its_batch() -> None:
    network = small().network
    times = torch.arange(4).mul(0.3).add(0.2).expand(2, 4)
    waves = torch.randn(2, 20000)
    together = network.frontend(waves, torch.tensor([20000, 12000]), None, times)
    alone = network.frontend(waves[1:, :12000], None, None, times[1:])
    assert together is not None
    assert alone is not None
    torch.testing.assert_close(together[1:], alone)


def test_stored_spectrograms_give_the_same_maps_as_the_sound() -> None:
    module = small().eval()
    batch = small_batch()
    stored = {**batch, "spectrogram": module.network.windows.spectrogram(batch["audio"])[:, :, :175]}
    stored |= {"columns": torch.full((2,), 175), "seconds": torch.full((2,), 1.75, dtype=torch.float64)}
    del stored["audio"]
    with torch.no_grad():
        torch.testing.assert_close(module(stored).logits, module(batch).logits)


# -- network -------------------------------------------------------------------------------------------------


def test_groups_of_one_time_step_equal_attention_with_the_cross_frame_mask() -> None:
    """Equations 1 to 5 as the paper runs them: all tokens at once, pairs of different steps masked out."""
    network = small(1).network.eval()
    width, steps, places = 64, 2, 4
    video, audio = torch.randn(3, steps * places, width), torch.randn(3, steps, width)
    step = torch.cat([torch.arange(steps).repeat_interleave(places), torch.arange(steps)])
    block = network.spatial_fusion
    with torch.no_grad():
        tokens = torch.cat([video, audio], 1)
        q, k, v = block.attn.qkv(block.norm1(tokens)).view(3, 10, 3, 8, 8).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 8**0.5 - 1e8 * (step[:, None] != step)
        mixed = tokens + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(3, 10, width))
        expected = mixed + block.mlp(block.norm2(mixed))
        seen, heard = network._spatial(video, audio, (steps, 2, 2), {})
    torch.testing.assert_close(torch.cat([seen, heard], 1), expected, rtol=1e-5, atol=1e-5)


def test_attention_maps_are_handed_out_on_request() -> None:
    module = small().eval()
    batch = small_batch()
    with torch.no_grad():
        plain = module(batch)
        module.network.attention_maps = True
        output = module(batch)
    assert "spatial_correlation" not in plain.aux
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert output.aux["spatial_attention"].shape == (2, 2, 8, 5, 5)
    assert output.aux["temporal_attention"].shape == (2, 8, 4, 4)
    correlation = output.aux["spatial_correlation"]
    assert correlation.shape == (2, 2, 2, 2)
    # The rest of the audio token's attention is on itself.
    own = output.aux["spatial_attention"][..., -1, -1].mean(-1)
    torch.testing.assert_close(correlation.sum((-1, -2)) + own, torch.ones(2, 2))


@pytest.mark.parametrize("row", list(VARIANTS))
def test_every_row_of_the_tables_trains_all_its_parameters(row: str) -> None:
    module = small(**VARIANTS[row])
    terms = module.loss_terms(module(small_batch()), small_batch())
    terms["loss"].backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None]
    assert idle == []
    assert ("contrastive" in terms) == (VARIANTS[row]["contrast"] != "none")
    assert bool(torch.isfinite(terms["loss"]))


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_sound_changes_the_map_of_every_network_that_hears(fusion: str) -> None:
    module = small(fusion=fusion).eval()
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    one, other = small_batch(), small_batch()
    other["audio"] = -other["audio"] * torch.linspace(0, 2, 14000)
    with torch.no_grad():
        difference = (module(one).logits - module(other).logits).abs().max()
    assert (difference > 1e-4) == (fusion != "vision-only")


def test_other_sizes_than_the_networks_own_work_at_run_time() -> None:
    network = small().network.eval()
    with torch.no_grad():
        output = network.core(torch.randn(1, 3, 6, 96, 128), torch.randn(1, 1, 6, 64, 32))
    assert output.logits.shape == (1, 6, 24, 32)
    torch.testing.assert_close(output.density().sum((-1, -2)), torch.ones(1, 6))


def test_bad_arguments_and_inputs_are_named() -> None:
    with pytest.raises(ConfigError, match=r"contrast='post'.*none, vanilla"):
        CSTS(fusion="linear", contrast="post")
    with pytest.raises(ConfigError, match="multiple of 32"):
        CSTSModule(**{**SMALL, "size": (64, 80)})
    with pytest.raises(ConfigError, match="fusion='stss'"):
        CSTSModule(fusion="stss")
    network = small().network
    with pytest.raises(ConfigError, match="needs audio_input"):
        network.core(torch.zeros(1, 3, 4, 64, 64))
    with pytest.raises(ConfigError, match="height of the clip=60"):
        network.core(torch.zeros(1, 3, 4, 60, 64), torch.zeros(1, 1, 4, 32, 64))


@pytest.mark.parametrize(
    ("timing", "task", "first", "last", "observed"),
    [("ego4d", "anticipation", 1 / 30, 64 / 30, 86 / 30), ("aria", "anticipation", 0.25, 2.0, 3.0),
     ("ego4d", "estimation", -2.1, 0.0, 5.0), ("aria", "estimation", -1.75, 0.0, 5.0)],
)  # fmt: skip
def test_the_clip_is_the_released_loaders(
    timing: str, task: str, first: float, last: float, observed: float
) -> None:
    spec = CSTS(timing=timing, task=task, embed_dim=8, depths=(1, 1, 1, 1), contrast="none").spec  # type: ignore[arg-type]
    assert isinstance(spec.target, tuple)
    assert (spec.target[0], spec.target[-1]) == pytest.approx((first, last))
    assert spec.outputs == spec.frames == 8
    assert spec.audio is not None
    begin, end = spec.audio.span(10.0, 10.0 + 7 * spec.step, fps=60.0)
    assert end - begin == pytest.approx(observed)
    assert end == pytest.approx(10.0 + 7 * spec.step + 1 / (30 if timing == "ego4d" else 20))


def test_kinetics_weights_fill_the_video_encoder_and_nothing_else() -> None:
    torch.manual_seed(5)
    source = MViT((128, 128), 8, 8, depths=(1, 1, 1, 1))
    network = small().network
    before = {n: v.clone() for n, v in network.state_dict().items()}
    names = network.from_published({"model_state": source.state_dict()})
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed <= set(names)
    assert changed == {n for n in names if not torch.equal(network.state_dict()[n], before[n])}
    assert torch.equal(network.patch_embed.proj.weight, source.patch_embed.proj.weight)
    temporal = source.pos_embed_temporal.view(1, 2, 2, 8).mean(2)
    torch.testing.assert_close(network.pos_embed_temporal, temporal)
    with pytest.raises(WeightsError, match="do not fit this video encoder"):
        small(embed_dim=16).network.from_published(source.state_dict())


# -- loss and recipe ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["a", "b"])
def test_the_loss_is_the_released_one(letter: str) -> None:
    case, arrays = golden("csts_metrics")
    gaze = torch.from_numpy(arrays[f"{letter}/gaze"])
    logits = torch.from_numpy(arrays[f"{letter}/logits"])[:, 0]
    aux = {n: torch.from_numpy(arrays[f"nce_{n}"]) for n in ("vision_embed", "audio_embed")}
    batch: Batch = {"density": gaze_density(gaze[..., :2]), "gaze_type": gaze[..., 2].long()}
    terms = small().loss_terms(SaliencyOutput(logits, "softmax", 2.0, aux), batch)
    rtol = case["tolerance"]["kl_loss"]["rtol"]
    assert float(terms["kl"]) == pytest.approx(float(arrays[f"{letter}/kl_loss"]), rel=rtol)
    assert float(terms["contrastive"]) == pytest.approx(float(arrays["nce_loss"]), rel=rtol)
    assert float(terms["loss"]) == pytest.approx(float(terms["kl"] + 0.05 * terms["contrastive"]))
    assert small(task="estimation").alpha == 0.01


def test_frames_can_be_left_out_of_the_loss() -> None:
    logits = torch.randn(1, 4, 16, 16)
    batch = small_batch(1)
    assert batch["gaze_type"].tolist() == [[0, 1, 2, 3]]

    def kl(frames: str, chosen: list[int] | None = None) -> float:
        module = small(loss_frames=frames, contrast="none")
        part, maps = dict(batch), logits
        if chosen is not None:
            part = {n: batch[n][:, chosen] for n in ("density", "gaze_type")}  # type: ignore[literal-required]
            maps = logits[:, chosen]
        return float(module.loss_terms(SaliencyOutput(maps, "softmax", 2.0), part)["kl"])  # type: ignore[arg-type]

    assert kl("tracked") == pytest.approx(kl("all", [0, 1, 2]), rel=1e-6)
    assert kl("fixations") == pytest.approx(kl("all", [0]), rel=1e-6)
    assert kl("all") != pytest.approx(kl("tracked"), rel=1e-3)


def test_a_target_on_a_coarser_grid_keeps_its_sum_and_place() -> None:
    from avsal.models.csts import _on_grid

    density = gaze_density(torch.tensor([[[0.2, 0.7]]]))
    coarse = _on_grid(density, (16, 16))
    torch.testing.assert_close(coarse.sum((-1, -2)), torch.ones(1, 1))
    assert divmod(int(coarse.argmax()), 16) == (11, 3)
    assert torch.equal(_on_grid(density, (64, 64)), density / density.sum((-1, -2), keepdim=True))


class _Clips(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = small_batch(1, seed=index)
        return {n: v[0] for n, v in batch.items()}  # type: ignore[index]


def trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def test_the_recipe_decays_matrices_clips_and_falls_to_the_last_rate(tmp_path: Path) -> None:
    norms: list[tuple[float, float]] = []

    class Watched(CSTSModule):
        def configure_gradient_clipping(self, *args: Any, **options: Any) -> None:
            def norm() -> float:
                return float(
                    nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
                )

            before = norm()
            super().configure_gradient_clipping(*args, **options)
            norms.append((before, norm()))

    torch.manual_seed(0)
    module = Watched(**SMALL, lr=1e-2, min_lr=1e-4)
    fit = trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    fit.fit(module, torch.utils.data.DataLoader(_Clips(), batch_size=2))
    optimizer = module.optimizers().optimizer  # type: ignore[union-attr]
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in free["params"])
    assert any(p is module.network.pos_embed_spatial for p in decayed["params"])
    assert decayed["lr"] == pytest.approx(1e-4)
    assert len(norms) == 6
    assert max(before for before, _ in norms) > 1.0
    assert all(after == pytest.approx(min(before, 1.0), rel=1e-3) for before, after in norms)


def test_test_scores_the_adaptive_f1_of_its_data_set(tmp_path: Path) -> None:
    from avsal.metrics.gaze import GazeMetrics

    module = small(timing="aria")
    loader = torch.utils.data.DataLoader(_Clips(), batch_size=2)
    results = trainer(tmp_path).test(module, loader, verbose=False)[0]
    reference = GazeMetrics("aria_forecast")
    module.eval()
    with torch.no_grad():
        for batch in loader:
            maps = module(batch).density()
            maps = F.interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False)
            reference.update(
                maps,
                batch["density"],
                batch["gaze_type"],
                batch["video_id"],
                batch["frame"],
                labelled=batch["labelled"],
            )
    expected = reference.compute()
    assert results["test/f1"] == pytest.approx(expected["f1"], abs=1e-6)
    assert {"test/recall", "test/precision", "test/threshold", "test/auc"} <= set(results)
    # The clips share video and frames by construction, so only distinct ones count.
    assert module.metrics("test").per_step()[0]["frames"] == 1


def test_hyper_parameters_rebuild_the_module() -> None:
    module = small(2, fusion="vanilla-sa", contrast="post", timing="aria")
    again = CSTSModule(**module.hparams)
    again.load_state_dict(module.state_dict())
    batch = small_batch()
    with torch.no_grad():
        assert torch.equal(again.eval()(batch).logits, module.eval()(batch).logits)


# -- several processes --------------------------------------------------------------------------------------


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        module = small(7, drop_path=0.0)

        class Loss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self, batch: Batch) -> Tensor:
                return self.module.loss_terms(self.module(batch), batch)["loss"]

        whole = small_batch(4, seed=11)
        half = {n: v[2 * rank : 2 * rank + 2] for n, v in whole.items()}  # type: ignore[index]
        parallel = nn.parallel.DistributedDataParallel(Loss())
        parallel(half).backward()
        if rank == 1:  # the rank that the released code gives the other one's gradients
            torch.save({n: p.grad for n, p in module.named_parameters()}, Path(folder) / "gradients.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    shared = torch.load(tmp_path / "gradients.pt", weights_only=True)
    module = small(7, drop_path=0.0)
    whole = small_batch(4, seed=11)
    module.loss_terms(module(whole), whole)["loss"].backward()
    assert float(module.network.audio_proj.weight.grad.norm()) > 1e-4  # type: ignore[union-attr]
    for name, parameter in module.named_parameters():
        # Small entries of a gradient are as exact as its large ones: float32 sums the clips in another order.
        large = max(1.0, float(parameter.grad.abs().max()))  # type: ignore[union-attr]
        torch.testing.assert_close(
            shared[name], parameter.grad, rtol=1e-3, atol=1e-6 * large, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_predicted_gaze_is_drawn_where_it_is_in_the_uncropped_picture(tmp_path: Path) -> None:
    """The network sees the middle square of a wide picture; results are told in shares of the whole picture."""
    from avsal.inference.overlay import Artist
    from avsal.inference.video import VideoPrediction
    from tests.media import write_clip

    path = write_clip(tmp_path / "wide.mp4", frames=3, fps=30, height=64, width=128)
    prediction = VideoPrediction(small(), path, keep_images=True)
    artist = Artist(tmp_path, prediction, 0.6)
    result = next(prediction)
    result.map = torch.zeros(4, 16, 16)
    result.map[:, 3, 15] = 1.0
    row = artist.add(result)
    artist.abandon()
    prediction.close()
    # The rightmost cell of the square from a quarter to three quarters of the width.
    assert row["x"] == pytest.approx([0.25 + 0.5 * 15.5 / 16] * 4, abs=1e-4)
    assert row["y"] == pytest.approx([3.5 / 16] * 4, abs=1e-4)
    assert row["targets"] == pytest.approx([(1 + 9 * i) / 30 for i in range(4)], abs=1e-5)


@pytest.mark.parametrize(
    ("task", "timing", "most"),
    [
        ("anticipation", "ego4d", 10),
        ("anticipation", "aria", 12),
        ("estimation", "ego4d", 16),
        ("estimation", "aria", 20),
    ],
)
def test_a_clip_longer_than_what_is_seen_of_a_segment_is_refused(task: Any, timing: Any, most: int) -> None:
    from avsal.data.gaze.segments import ARIA, EGO4D

    spec = small(task=task, timing=timing, frames=most).spec
    assert spec.audio is not None
    assert spec.audio.before >= 0
    # The data set's own protocol draws the same line.
    protocol = EGO4D if timing == "ego4d" else ARIA
    protocol.starts(most, task == "anticipation")
    with pytest.raises(ConfigError, match="take fewer"):
        protocol.starts(most + 2, task == "anticipation")
    with pytest.raises(ConfigError, match=rf"frames={most + 2}: .*allowed: 2, 4, … {most}\."):
        small(task=task, timing=timing, frames=most + 2)


def test_predict_writes_the_correlation_maps_and_draws_past_gaze(tmp_path: Path) -> None:
    from avsal.errors import DataError
    from avsal.inference.files import predict_files
    from avsal.io.video import VideoStream
    from tests.media import tone, write_clip

    path = write_clip(tmp_path / "walk.mp4", frames=12, fps=30, height=64, width=64, sound=tone(0.4))
    gaze = tmp_path / "gaze.csv"
    gaze.write_text("time_ms,x,y\n" + "".join(f"{20 * k},{0.25 * 64},{0.75 * 64}\n" for k in range(30)))

    def run(name: str, table: Path | None, module: CSTSModule, **options: Any) -> Any:
        (outcome,) = predict_files(path, module=module, out=tmp_path / name, stride=4, gaze=table, **options)
        return outcome

    plain, drawn = (run(n, t, small(), correlation=True) for n, t in (("plain", None), ("drawn", gaze)))
    pictures = []
    for outcome in (plain, drawn):
        assert outcome.status == "done", outcome.message
        with VideoStream(outcome.folder / "correlation.mp4") as video:
            assert [frame.image.shape for frame in video] == [(64, 64, 3)] * 3
        with VideoStream(outcome.folder / "overlay.mp4") as video:
            pictures.append(np.stack([frame.image for frame in video]).astype(int))
    changed = np.abs(pictures[0] - pictures[1]).sum(-1)
    where = np.argwhere(changed[-1] > 0.5 * changed[-1].max()).mean(0)
    assert where == pytest.approx([48, 16], abs=3)  # (0.75, 0.25) of the height and the width
    # Gaze of another clock, directions without a camera, and networks without the maps are refused with the reason.
    gaze.write_text(
        "time_s,x,y\n" + "".join(f"{900 + k / 50},{0.2 + k % 2 / 2},{0.3 + k % 2 / 2}\n" for k in range(30))
    )
    with pytest.raises(DataError, match="different clocks"):
        _raise(run("clock", gaze, small()))
    gaze.write_text(
        "time_s,yaw_rads_cpf,pitch_rads_cpf\n" + "".join(f"{k / 50},0.2,0.1\n" for k in range(30))
    )
    with pytest.raises(DataError, match="camera's calibration"):
        _raise(run("angles", gaze, small()))
    with pytest.raises(ConfigError, match="spatial fusion"):
        _raise(run("blind", None, small(fusion="vision-only"), correlation=True))


def _raise(outcome: Any) -> None:
    """Turn the message of a failed input into an error."""
    from avsal.errors import DataError

    if outcome.status == "failed":
        raise DataError(outcome.message)
