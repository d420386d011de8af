"""What the examples' files give when a model's and a data set's are put together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from avsal.training import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def merged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *files: str
) -> dict[str, Any]:
    """Return the configuration of `lightning fit` with these files."""
    words = [word for file in files for word in ("-c", str(EXAMPLES / file))]
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", *words, "--print_config"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    return yaml.safe_load(printed[printed.index("seed_everything") :])


@pytest.mark.parametrize("model", ["casp", "avrsp"])
def test_the_visual_row_sees_as_many_clips_as_the_audio_visual_one(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, heard = (
        merged(monkeypatch, capsys, f, "data/six-av.yaml") for f in (f"{model}-visual.yaml", f"{model}.yaml")
    )
    for key in ("segment", "batch_size", "flip", "val_fraction", "val_stride"):
        assert seen["data"]["init_args"][key] == heard["data"]["init_args"][key], key
    assert seen["data"]["init_args"]["segment"] == 90
    for key in ("accumulate_grad_batches", "max_epochs"):
        if model == "casp":  # AVRSP's stages have 80 and 100 epochs in print
            assert seen["trainer"][key] == heard["trainer"][key]
    before = merged(monkeypatch, capsys, f"{model}-visual.yaml", "data/dhf1k.yaml")
    assert before["data"]["init_args"]["segment"] is None
    assert before["data"]["init_args"]["batch_size"] == {"casp": 8, "avrsp": 4}[model]


def test_a_data_set_s_file_leaves_mspis_recipe_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in ("data/six-av.yaml", "data/avad.yaml"):
        found = merged(monkeypatch, capsys, "mspi.yaml", data)
        recipe = {"batch_size": 4, "segment": None, "flip": 0.0, "val_fraction": 0.0, "val_stride": 32}
        assert {key: found["data"]["init_args"][key] for key in recipe} == recipe
    weights = {k: v for k, v in found["model"]["init_args"].items() if k.endswith("_weights") and v}
    assert set(weights) == {"motion_weights", "audio_weights", "image_weights"}
    assert found["model"]["init_args"]["keep"] == "last"


def test_stavis_trains_on_all_training_videos_for_60_epochs_and_hears_with_soundnets_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("stavis-visual.yaml", "stavis.yaml"):
        found = merged(monkeypatch, capsys, file, "data/six-av.yaml")
        data, trainer, model = found["data"]["init_args"], found["trainer"], found["model"]["init_args"]
        assert data["val_fraction"] == 0.0
        assert data["batch_size"] * trainer["accumulate_grad_batches"] == 128
        assert (trainer["max_epochs"], model["keep"], data["segment"]) == (60, "last", 90)
    assert model["audio_backbone"] == "soundnet8"
