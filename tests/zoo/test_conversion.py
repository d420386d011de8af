"""The door for authors' weights: found by format, strict, the same numbers as the golden files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avsal.checkpoints.file import read_state_dict
from avsal.errors import WeightsError
from avsal.models import formats
from avsal.zoo import convert, convert_backbone
from tests.zoo.conftest import TINY, same

GOLDEN = Path(__file__).parent.parent / "golden"
OPTIONS = {**TINY, "size": (32, 32)}


def golden_state(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Random entries under the published names and shapes of a golden file; parity itself is tested with the models."""
    spec = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    pairs = spec.items() if isinstance(spec, dict) else spec
    generator = torch.Generator().manual_seed(1)
    return {
        entry: torch.rand(shape, generator=generator) if shape else torch.tensor(0)
        for entry, shape in pairs
        if entry.startswith(prefix)
    }


def test_the_module_is_ready_to_use(module, authors_state):
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in authors_state.items()
    }
    converted = convert("stavis", half, **OPTIONS)
    assert not converted.training
    assert {value.dtype for value in converted.parameters()} == {torch.float32}
    assert same(convert("stavis", authors_state, **OPTIONS), module)


def test_every_fault_is_reported_by_name(authors_state):
    authors_state["module.stranger"] = torch.ones(1)
    name = "module.conv1.weight"
    authors_state[name] = authors_state[name][:1]
    del authors_state["module.bn1.running_mean"]
    with pytest.raises(WeightsError) as raised:
        convert("stavis", authors_state, **OPTIONS)
    text = str(raised.value)
    assert "missing (1): trunk.bn1.running_mean" in text
    assert "unexpected (1): stranger" in text
    assert "mis-shaped (1): conv1.weight is (1, 3, 7, 7, 7), expected (2, 3, 7, 7, 7)" in text


def test_formats_and_options_that_are_not_known_are_told(authors_state):
    with pytest.raises(WeightsError, match=r"no format 'tased'.*stavis"):
        convert("tased", authors_state)
    with pytest.raises(WeightsError, match=r"stavis takes no option colour; it takes: .*audiovisual"):
        convert("stavis", authors_state, colour=True)
    with pytest.raises(WeightsError, match=r"no backbone format 'alexnet'.*soundnet8"):
        convert_backbone("alexnet", {})
    with pytest.raises(WeightsError, match="Not a state dict: epoch"):
        convert("stavis", {"epoch": 3, **authors_state})


def test_models_without_published_weights_have_no_format():
    # CASP-Net's and AVRSP's authors released nothing.
    assert {"stavis", "mspi", "csts", "isp"} <= set(formats())
    assert not {"caspnet", "avrsp", "baselines"} & set(formats())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "case", "prefix"),
    [
        ("s3d-kinetics", "s3d_backbone", ""),
        ("soundnet8", "soundnet", ""),
        ("soundnet8", "stavis_audiovisual", "soundnet8."),
        ("vggish", "vggish", ""),
        ("resnet18-vggsound", "mspi_s3d", "audnet."),
        ("image-saliency-convnext", "mspi_s3d", "image_encoder."),
        ("mvitv2s", "mspi_mvitv2s", "visnet."),
        ("videoswins", "mspi_videoswins", "visnet."),
        ("x3dl", "mspi_x3dl", "visnet."),
        ("slowfast4x16", "mspi_slowfast4x16", "visnet."),
        ("uniformerb", "mspi_uniformerb", "visnet."),
        ("morphmlps", "mspi_morphmlps", "visnet."),
    ],
)
def test_backbones_take_published_names_and_their_own(format, case, prefix):
    published = golden_state(case, prefix)
    if prefix != "soundnet8.":
        published = {name.removeprefix(prefix): value for name, value in published.items()}
    network = convert_backbone(format, {f"module.{name}": value for name, value in published.items()})
    assert not network.training
    first = next(value for value in published.values() if value.dim() > 1)
    assert any(torch.equal(value.flatten(), first.flatten()) for value in network.state_dict().values())
    assert same(convert_backbone(format, network.state_dict()), network)
    missing = next(name for name, value in published.items() if value.dim() > 1)
    with pytest.raises(WeightsError, match="missing"):
        convert_backbone(format, {name: value for name, value in published.items() if name != missing})


def test_backbones_of_torchvision_and_of_3d_resnets_convert():
    import torchvision

    from avsal.nn.resnet3d import ResNet3D

    mvit = convert_backbone("mvit-b", torchvision.models.video.mvit_v1_b().state_dict())
    assert same(convert_backbone("mvit-b", mvit.state_dict()), mvit)
    published = {f"module.{name}": value for name, value in golden_state("stavis_visual").items()}
    trunk = {
        n: v
        for n, v in published.items()
        if n.split(".")[1] in ("conv1", "bn1", "layer1", "layer2", "layer3")
    }
    network = convert_backbone("resnet3d50-kinetics", trunk)
    assert isinstance(network, ResNet3D)
    assert torch.equal(network.state_dict()["conv1.weight"], published["module.conv1.weight"])


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model_state", "model"])
def test_a_state_dict_is_found_wherever_it_is(tmp_path, container):
    state = {"a.weight": torch.ones(2), "b.weight": torch.zeros(2)}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "file.pth")
    assert read_state_dict(tmp_path / "file.pth").keys() == state.keys()
    assert list(read_state_dict(tmp_path / "file.pth", prefix="a.")) == ["weight"]
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no state dict in this file; it holds: epoch"):
        read_state_dict(tmp_path / "none.pth")
