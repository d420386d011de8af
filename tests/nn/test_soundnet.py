"""SoundNet: parity at every tap, the three published namings, the sound front end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from avsal.errors import WeightsError
from avsal.nn.soundnet import SoundNet, from_published
from avsal.nn.waveform import windowed_excerpt
from tests.golden.backbones import Golden

TAPS = ["pool1", "pool2", "relu3", "relu4", "pool5", "relu6", "relu7"]


@pytest.mark.parametrize("wave", ["wave16", "wave32"])
@torch.no_grad()
def test_every_tap_prints_the_published_networks_numbers(wave: str) -> None:
    golden = Golden("soundnet")
    network = from_published(golden.state_dict())
    assert not network.training
    taps = network.taps(golden.input(wave))
    assert list(taps) == TAPS
    for name, value in taps.items():
        assert golden.check(f"{wave}_{name}", value.unsqueeze(-1)) < 2e-5
    torch.testing.assert_close(network(golden.input(wave)), taps["relu7"])


def renamed(state: dict[str, Tensor], naming: str) -> dict[str, Tensor]:
    """Give a state dict in ViNet's names the names and layout of another publication."""
    if naming == "tensorflow":
        heads = {"conv8_objs": "conv8.0", "conv8_scns": "conv8_2.0"}
        found = {}
        for name, value in state.items():
            layer, leaf = name.split(".")
            part = heads.get(layer) or (f"conv{layer[9:]}.1" if layer.startswith("b") else f"{layer}.0")
            found[f"{part}.{leaf}"] = value
        return found
    if naming == "port":
        leaves = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        found = {}
        for name, value in state.items():
            layer, leaf = name.split(".")
            if layer.startswith("batchnorm") and leaf in leaves:
                found[f"conv{layer[9:]}.{leaves[leaf]}"] = value
            elif leaf == "weight":  # (K, 1, in, out) instead of (out, in, K, 1)
                found[f"{layer}.weights"] = value.permute(2, 3, 1, 0)
            elif leaf == "bias":
                found[f"{layer}.biases"] = value
        return found
    index = dict(enumerate((0, 4, 8, 11, 14, 18, 21), 1))
    found = {}
    for name, value in state.items():
        layer, leaf = name.split(".")
        if not layer.startswith("conv8"):
            number = index[int(layer[-1])] + layer.startswith("b")
            found[f"module.soundnet8.{number}.{leaf}"] = value.transpose(2, 3) if value.dim() == 4 else value
    return found


@pytest.mark.parametrize("naming", ["tensorflow", "stavis", "port"])
def test_all_four_namings_and_both_kernel_layouts_give_one_network(naming: str) -> None:
    state = Golden("soundnet").state_dict()
    one, other = from_published(state).state_dict(), from_published(renamed(state, naming)).state_dict()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_a_file_with_a_missing_or_foreign_entry_is_refused_by_name() -> None:
    state = Golden("soundnet").state_dict()
    kernel = state.pop("conv5.weight")
    with pytest.raises(WeightsError, match=r"missing \(1\): convs\.4\.weight"):
        from_published(state)
    with pytest.raises(WeightsError, match=r"unexpected \(1\): conv9\.weight"):
        from_published({**state, "conv5.weight": kernel, "conv9.weight": kernel})


def test_seven_layers_have_the_published_parameters_and_lengths() -> None:
    network = SoundNet().eval()
    assert sum(p.numel() for p in network.parameters()) == 2_874_320
    with torch.no_grad():
        assert {s: network(torch.zeros(1, s)).shape[1:] for s in (35280, 70560)} == {
            35280: (1024, 2),
            70560: (1024, 3),
        }


# -- the front end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 14112, 14113, 35279, 35280, 35281, 50000])
def test_an_excerpt_is_windowed_scaled_and_centred_as_in_numpy(n: int) -> None:
    buffer = 35280
    wave = np.random.default_rng(n).uniform(-1, 1, n)
    expected = np.zeros(max(buffer, n) * 3)
    start = len(expected) // 2 - n // 2  # a buffer wide enough for any n, then its middle
    expected[start : start + n] = wave * np.hanning(n) * 256
    begin = len(expected) // 2 - buffer // 2
    found = windowed_excerpt(torch.from_numpy(wave).float()[None], samples=buffer)
    np.testing.assert_allclose(found[0], expected[begin : begin + buffer], atol=2e-4)


def test_rows_have_their_own_length_and_silence() -> None:
    wave = torch.rand(4, 300) + 0.1
    length = torch.tensor([300, 101, 50, 0])
    has_audio = torch.tensor([True, True, False, True])
    found = windowed_excerpt(wave, length, has_audio, samples=200)
    torch.testing.assert_close(found[1], windowed_excerpt(wave[1:2, :101], samples=200)[0])
    torch.testing.assert_close(found[0], windowed_excerpt(wave[:1], samples=200)[0])
    audible = (found[1] > 1e-6).nonzero()
    assert (audible.min(), audible.max()) == (51, 149)
    assert not found[2:].any()
    assert windowed_excerpt(wave[:, :0], samples=200).shape == (4, 200)
