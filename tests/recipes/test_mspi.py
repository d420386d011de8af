"""MSPI on a miniature: clips, spectrograms, targets and written maps as the authors' code has them (see README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avsal.data import DIEMDataModule
from avsal.metrics import postprocess
from avsal.models.mspi import MEAN, STD, MSPIModule
from avsal.types import SaliencyOutput
from tests.golden.fill import normal_input
from tests.recipes.miniature import audiovisual

REFERENCE = np.load(Path(__file__).with_name("mspi.npz"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audiovisual(tmp_path_factory.mktemp("recipes") / "av", rate=44100, channels=2)


@pytest.fixture(scope="module")
def module() -> MSPIModule:
    return MSPIModule(size=(224, 384), width=0.1, image_stream="none")


@pytest.mark.parametrize("start", [0, 7, 24])
def test_a_training_clip_is_the_authors(root: Path, module: MSPIModule, start: int) -> None:
    data = DIEMDataModule(root, val_fraction=0.0, flip=0.0, segment=None, num_workers=0)
    data.use_spec(module.spec)
    clips = data.train_dataset()
    sample = clips._sample(clips._open[0], 0, start, start + 16, np.random.default_rng(0), flip=False)
    scale, shift = torch.tensor(STD).view(3, 1, 1, 1), torch.tensor(MEAN).view(3, 1, 1, 1)
    frames = (sample["video"] * scale + shift)[:, [0, 9, 15], ::8, ::8]
    assert np.abs(frames.numpy() - REFERENCE[f"frames_{start}"]).max() <= 1.01  # grey level
    assert sample["frame"].tolist() == [start + 15]
    assert np.abs(sample["density"][0, ::8, ::8].numpy() * 255 - REFERENCE[f"density_{start}"]).max() <= 1
    canvas = module.network.frontend(sample["audio"][None])[0, 0]
    # Where the tone is, and the floor that the logarithm's 1e-6 makes, to a hundredth of a deviation.
    assert int((canvas != 0.02).any(0).sum()) == REFERENCE[f"columns_{start}"][0]
    np.testing.assert_allclose(canvas[::8, ::2].numpy(), REFERENCE[f"spectrogram_{start}"], atol=0.02)


def test_the_written_map_is_the_authors(module: MSPIModule) -> None:
    output = SaliencyOutput(
        3 * torch.from_numpy(normal_input("mspi log map", (224, 384)))[None, None], "softmax"
    )
    written = postprocess(getattr(output, module.postprocess_input)(), "mspi")[0, 0]
    assert np.abs(written[::6, ::6].numpy() * 255 - REFERENCE["written"]).max() <= 1.01
