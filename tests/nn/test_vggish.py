"""VGGish and its spectrogram: parity with the published port, centring, silence, names."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avsal.errors import WeightsError
from avsal.nn.vggish import LogMel, SmallAudioNet, VGGish, mel_matrix
from tests.golden.backbones import Golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("vggish")


@pytest.fixture(scope="module")
def network(golden: Golden) -> VGGish:
    return VGGish.from_published(golden.state_dict())


@torch.inference_mode()
def test_spectrogram_and_embedding_are_the_published_ones(golden: Golden, network: VGGish) -> None:
    wave = 0.1 * golden.input("wave").double()[None]
    log_mel = LogMel()(wave)
    golden.check("log_mel", log_mel)
    golden.check("log_mel", LogMel()(wave.float()))
    golden.check("conv", network.features(log_mel.float()))
    golden.check("embedding", network(log_mel.float()))


def test_the_mel_bands_are_triangles_in_mel_between_125_and_7500_hertz() -> None:
    bands = mel_matrix().numpy()
    hertz = np.arange(257) * 8000 / 256
    assert bands.shape == (257, 64)
    assert bands[0].max() == 0
    assert bands[(hertz < 125) | (hertz > 7500)].max() == 0
    # One triangle, recomputed from the definition.
    mel = lambda f: 1127 * math.log(1 + f / 700)  # noqa: E731
    edges = np.linspace(mel(125), mel(7500), 66)
    k, b = 100, int(bands[100].argmax())
    rising = (mel(hertz[k]) - edges[b]) / (edges[b + 1] - edges[b])
    falling = (edges[b + 2] - mel(hertz[k])) / (edges[b + 2] - edges[b + 1])
    assert bands[k, b] == pytest.approx(min(rising, falling), abs=1e-12)


def test_a_tone_is_seen_in_its_band_and_silence_is_log_of_a_hundredth() -> None:
    time = torch.arange(15600) / 16000
    tone = LogMel()(torch.sin(2 * math.pi * 1000 * time)[None])[0, 0]
    centres = np.linspace(1127 * math.log(1 + 125 / 700), 1127 * math.log(1 + 7500 / 700), 66)[1:-1]
    assert int(tone.mean(0).argmax()) == int(np.abs(centres - 1127 * math.log(1 + 1000 / 700)).argmin())
    silent = LogMel()(torch.zeros(2, 15600))
    assert silent.shape == (2, 1, 96, 64)
    torch.testing.assert_close(silent, torch.full_like(silent, math.log(0.01)))


def test_mixed_precision_leaves_the_spectrogram_alone() -> None:
    wave = torch.randn(1, 15600, generator=torch.Generator().manual_seed(0)) * 1e-3
    expected = LogMel()(wave)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LogMel()(wave), expected)


def test_the_excerpt_lies_in_the_middle_and_long_sound_is_cut_at_its_centre() -> None:
    front = LogMel(samples=10)
    wave = torch.arange(1.0, 15.0)[None].repeat(4, 1)
    length = torch.tensor([4, 5, 14, 14])
    has_audio = torch.tensor([True, True, True, False])
    out = front.excerpt(wave, length, has_audio)
    assert out[0].tolist() == [0, 0, 0, 1, 2, 3, 4, 0, 0, 0]
    assert out[1].tolist() == [0, 0, 1, 2, 3, 4, 5, 0, 0, 0]
    assert out[2].tolist() == list(range(3, 13))
    assert out[3].tolist() == [0] * 10
    assert front.excerpt(torch.zeros(2, 0)).tolist() == [[0.0] * 10] * 2


def test_both_published_namings_load(network: VGGish) -> None:
    state = network.state_dict()
    old = {
        k.replace("features.", "features_network.").replace("embeddings.", "embedding_network."): v
        for k, v in state.items()
    }
    with torch.device("meta"):
        empty = VGGish()
    loaded = empty.to_empty(device="cpu").load_published(old).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in network.state_dict().items())
    assert sum(v.numel() for v in loaded.values()) == 72_141_184
    del old["embedding_network.4.bias"]
    with pytest.raises(WeightsError, match=r"embeddings\.4\.bias"):
        empty.load_published(old)


@torch.inference_mode()
def test_the_original_embedding_has_no_last_relu(golden: Golden, network: VGGish) -> None:
    with torch.device("meta"):
        raw = VGGish(final_relu=False)
    raw.load_state_dict(network.state_dict(), assign=True)
    log_mel = LogMel()(0.1 * golden.input("wave")[None])
    assert raw(log_mel).min() < 0
    assert torch.equal(raw(log_mel).relu(), network(log_mel))


def test_the_small_net_hears_the_difference_between_two_tones() -> None:
    torch.manual_seed(0)
    net = SmallAudioNet(width=8).eval()
    time = torch.arange(15600) / 16000
    tones = torch.stack([torch.sin(2 * math.pi * f * time) for f in (300.0, 3000.0)])
    a, b = net(LogMel()(tones))
    assert a.shape == (128,)
    assert (a - b).abs().max() > 1e-3
    assert sum(p.numel() for p in net.parameters()) < 80_000
