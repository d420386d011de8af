"""STAViS on a miniature: the clips, targets and one optimiser step that the authors' code gives (see README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avsal.data import DIEMDataModule
from avsal.data.loading import collate
from avsal.models.stavis import MEAN, STAViSModule, authors_name
from avsal.nn.waveform import windowed_excerpt
from tests.golden.fill import fill, normal_input
from tests.recipes.miniature import audiovisual

REFERENCE = np.load(Path(__file__).with_name("stavis.npz"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audiovisual(tmp_path_factory.mktemp("recipes") / "av")


def clip(root: Path, module: STAViSModule, start: int) -> dict[str, Any]:
    """Return the training clip that begins at a frame (from 1), not mirrored."""
    data = DIEMDataModule(root, val_fraction=0.0, flip=0.0, num_workers=0)
    data.use_spec(module.spec)
    clips = data.train_dataset()
    first = start - 1
    return clips._sample(clips._open[0], 0, first, first + 16, np.random.default_rng(0), flip=False)


@pytest.mark.parametrize("start", [1, 2, 9, 24])
def test_a_training_clip_is_the_authors(root: Path, start: int) -> None:
    module = STAViSModule()
    sample = clip(root, module, start)
    frames = sample["video"][:, [0, 7, 15], ::4, ::4] + torch.tensor(MEAN).view(3, 1, 1, 1)
    assert np.abs(frames.numpy() - REFERENCE[f"frames_{start}"]).max() <= 1  # grey level
    assert sample["frame"].tolist() == [2 * ((start + 8) // 2) - 1]  # an even number, counted from 1
    found = sample["density"][0, ::2, ::2].numpy() * 255
    assert np.abs(found - REFERENCE[f"density_{start}"]).max() <= 1
    points = sample["fixations"][0].numpy()
    assert sorted(map(tuple, points.tolist())) == sorted(map(tuple, REFERENCE[f"fixated_{start}"].tolist()))
    assert len(points) > 5 * 12  # dots, not cells

    heard = windowed_excerpt(sample["audio"][None], None, None, samples=35280)[0].numpy()
    assert len(sample["audio"]) == REFERENCE[f"span_{start}"][2]
    np.testing.assert_allclose(heard[::16], REFERENCE[f"sound_{start}"], atol=2e-3)  # of +-256


def test_plain_targets_are_the_frame_at_index_8_and_one_cell_for_each_fixation(root: Path) -> None:
    for start in (1, 2):
        sample = clip(root, STAViSModule(targets="plain"), start)
        assert sample["frame"].tolist() == [start + 8 - 1]
        assert len(sample["fixations"][0]) <= 12


def _buffer(ours: str, names: dict[str | None, str]) -> str:
    """Return the authors' name of a batch norm's statistics, from that of its weight."""
    part, leaf = ours.rsplit(".", 1)
    return f"{names[f'{part}.weight'].rsplit('.', 1)[0]}.{leaf}"


@pytest.mark.parametrize(("audiovisual", "key"), [(False, "v"), (True, "av")])
def test_one_optimiser_step_moves_every_weight_as_the_authors(
    root: Path, audiovisual: bool, key: str
) -> None:
    module = STAViSModule(audiovisual=audiovisual, size=(48, 48), lr=0.01)
    names = {authors_name(str(name)): str(name) for name in REFERENCE[f"{key}_names"]}
    state = {}
    for ours, value in module.network.state_dict().items():
        theirs = names.get(ours) or _buffer(ours, names)
        shape = tuple(value.shape)
        if "upscale" in ours:
            state[ours] = value  # they interpolate in the reference too
        elif ours.startswith("soundnet.convs.") and value.ndim == 3:
            state[ours] = torch.from_numpy(fill(theirs, (shape[0], shape[1], 1, shape[2]))).reshape(shape)
        else:
            state[ours] = torch.from_numpy(np.asarray(fill(theirs, shape)))
    module.network.load_state_dict(state)
    module.train()
    batch = collate([clip(root, module, start) for start in (1, 9)])
    # The authors' pixels to the last bit: a few grey levels of difference grow in a network of random weights.
    frames = torch.from_numpy(REFERENCE["step_frames"]).transpose(1, 2).float()
    batch["video"] = frames - torch.tensor(MEAN).view(3, 1, 1, 1)
    batch["density"] = torch.from_numpy(REFERENCE["step_density"])[:, None].float() / 255
    points = torch.from_numpy(REFERENCE["step_fixated"].astype(np.int64))
    dots = [points[points[:, 0] == k, 1:] for k in (0, 1)]
    batch["fixations"] = torch.nn.utils.rnn.pad_sequence(dots, batch_first=True, padding_value=-1)[:, None]
    optimizer = module.configure_optimizers()["optimizer"]
    before = {name: value.detach().clone() for name, value in module.network.named_parameters()}
    terms = module.loss_terms(module(batch), batch)
    terms["loss"].backward()
    optimizer.step()
    loss, ce, cc, nss = REFERENCE[f"{key}_loss"]
    assert float(terms["loss"]) == pytest.approx(loss, rel=2e-4)
    assert float(terms["ce"]) == pytest.approx(ce, rel=2e-4)
    assert float(terms["cc"]) == pytest.approx(-cc, abs=1e-3)
    assert float(terms["nss"]) == pytest.approx(-nss, abs=1e-3)
    expected = dict(zip(REFERENCE[f"{key}_names"].tolist(), REFERENCE[f"{key}_step"], strict=True))
    compared = 0
    for name, value in module.network.named_parameters():
        norm, along = expected[names[name]]
        delta = (value.detach() - before[name]).double().flatten()
        shape = tuple(value.shape)
        if name.startswith("soundnet.convs.") and value.ndim == 3:
            shape = (shape[0], shape[1], 1, shape[2])
        direction = torch.from_numpy(normal_input(f"step:{names[name]}", shape)).double().flatten()
        if norm > 1e-5:  # biases before a batch norm have rounding errors for gradients
            assert float(delta.norm()) == pytest.approx(norm, rel=2e-3), name
            assert float(delta @ direction) == pytest.approx(along, abs=0.01 * norm), name
            compared += 1
    assert compared > 150
