"""The script that pre-trains the small networks' backbones writes what their recipes load."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from avsal import AVRSPModule, CSTSModule, MSPIModule
from avsal.models.base import SaliencyModule

EXAMPLES = Path(__file__).parents[1] / "examples"


def module(cls: type[SaliencyModule], file: str) -> Any:
    """Return the module of a recipe, from random weights."""
    torch.manual_seed(1)
    recipe = yaml.safe_load((EXAMPLES / file).read_text(encoding="utf-8"))
    return cls(**recipe["model"]["init_args"])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["s3d", "sound", "soundnet", "csts"])
def test_a_pretrained_backbone_is_what_its_recipe_starts_from(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = EXAMPLES / "synthav_backbones.py", tmp_path / "backbone.safetensors"
    words = [backbone, "--clips", "12", "--epochs", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "epoch 1: cross-entropy" in said
    assert "answers are right" in said

    if backbone == "csts":
        csts = module(CSTSModule, "csts-tiny.yaml")
        csts.initialise_from(str(out))
        saved = load_file(out / "model.safetensors")
        loaded = csts.state_dict()
        assert set(saved) == set(loaded)
    else:
        part = {
            "s3d": lambda: module(MSPIModule, "mspi-tiny.yaml").network.motion_encoder,
            "sound": lambda: module(MSPIModule, "mspi-tiny.yaml").network.audio_encoder,
            "soundnet": lambda: module(AVRSPModule, "avrsp-tiny.yaml").network.soundnet,
        }[backbone]()
        saved = load_file(out)
        module(MSPIModule, "mspi-tiny.yaml").load_backbone(part, str(out))
        loaded = part.state_dict()
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name
