"""Baselines: each bound is what it says, and it goes through the same test loop as a network."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from avsal.errors import ConfigError
from avsal.models.baselines import BaselineModule
from avsal.types import Batch

SIZE = (24, 32)


class Gaze(Dataset):
    """Six videos of eight frames; eight observers look at a spot of the video, with noise."""

    def __init__(self, seed: int = 0, spread: float = 1.5) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.items = [self._item(video, frame, spread) for video in range(6) for frame in range(8)]

    def _item(self, video: int, frame: int, spread: float) -> Batch:
        # Spots lie right of the centre, so that the fitted prior differs from the fixed one.
        spot = torch.tensor([8.0 + video, 20.0 + video])
        points = (spot + spread * torch.randn(8, 2, generator=self.generator)).round().long()
        points = points.clamp_min(0).minimum(torch.tensor(SIZE) - 1)
        grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij"), -1)
        density = torch.exp(-(grid[..., None, :] - points).square().sum(-1) / 8.0).sum(-1)
        return Batch(
            video=torch.zeros(3, 1, *SIZE),
            density=(density / density.max())[None],
            labelled=torch.tensor([True]),
            fixations=torch.cat([points, torch.full((2, 2), -1)])[None],
            observer=torch.tensor([*range(8), -1, -1])[None],
            video_id=torch.tensor(video),
            frame=torch.tensor([frame]),
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Batch:
        return self.items[index]


def run(module: BaselineModule, seed: int = 0, fit: bool = False) -> dict[str, float]:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.test_metrics = ("cc", "nss", "auc_judd", "sim")
    if fit:
        trainer.fit(module, DataLoader(Gaze(1), batch_size=5), DataLoader(Gaze(2), batch_size=5))
    (found,) = trainer.test(module, DataLoader(Gaze(seed), batch_size=7), verbose=False)
    return {name.removeprefix("test/"): value for name, value in found.items()}


def test_the_bounds_are_ordered_as_they_must_be() -> None:
    uniform = run(BaselineModule("uniform", SIZE))
    centre = run(BaselineModule("centre", SIZE))
    fitted = run(BaselineModule("fitted_centre", SIZE), fit=True)
    shuffled = run(BaselineModule("shuffled", SIZE), fit=True)
    observers = run(BaselineModule("observers", SIZE))
    # Chance under AUC-Judd lies at 0.5 + 1 / (2 (N + 1)) for N fixated pixels.
    pixels = torch.tensor([len(item["fixations"][0, :8].unique(dim=0)) for item in Gaze(0).items])
    assert uniform["auc_judd"] == pytest.approx((0.5 + 0.5 / (pixels + 1)).mean().item(), abs=1e-5)
    assert uniform["nss"] == pytest.approx(0.0, abs=1e-6)
    assert uniform["nss"] < centre["nss"] < fitted["nss"] < observers["nss"]
    assert uniform["cc"] < shuffled["cc"] < observers["cc"]


def test_the_fitted_centre_is_the_mean_density_of_the_training_set() -> None:
    module = BaselineModule("fitted_centre", SIZE)
    run(module, fit=True)
    maps = torch.stack([item["density"][0] for item in Gaze(1).items])
    mean = (maps / maps.sum((1, 2), keepdim=True)).mean(0)
    torch.testing.assert_close(module.network.density, mean)
    again = BaselineModule(**module.hparams)
    again.load_state_dict(module.state_dict())
    output = again.network(torch.zeros(2, 3, 1, *SIZE))
    torch.testing.assert_close(output.density()[1, 0], mean)


def test_the_fixed_centre_has_its_spread_and_is_symmetric() -> None:
    density = BaselineModule("centre", (200, 100), sigma=0.1).network.density
    torch.testing.assert_close(density, density.flip(0, 1))
    y = (torch.arange(200) + 0.5) / 200 - 0.5
    x = (torch.arange(100) + 0.5) / 100 - 0.5
    assert (density.sum(1) * y.square()).sum().sqrt() == pytest.approx(0.1, rel=1e-3)
    assert (density.sum(0) * x.square()).sum().sqrt() == pytest.approx(0.1, rel=1e-3)


def test_shuffled_maps_are_training_maps_and_need_a_fit() -> None:
    with pytest.raises(ConfigError, match="run `fit`"):
        run(BaselineModule("shuffled", SIZE))
    module = BaselineModule("shuffled", SIZE, reservoir=16)
    run(module, fit=True)
    assert int(module.count) == 48
    known = torch.stack([item["density"][0] / item["density"][0].sum() for item in Gaze(1).items])
    distances = (module.maps[:, None] - known).abs().amax((-2, -1))
    assert distances.amin(1).max() < 1e-6
    assert len(distances.argmin(1).unique()) == 16
    batch = next(iter(DataLoader(Gaze(0), batch_size=48)))
    drawn = module(batch).density()
    assert (drawn - known).abs().amax((-2, -1)).amin(1).max() < 1e-6
    assert len(drawn.flatten(1).unique(dim=0)) > 8
    torch.testing.assert_close(module(batch).logits, module(batch).logits)


def test_observers_who_predict_are_never_their_own_ground_truth() -> None:
    batch = next(iter(DataLoader(Gaze(0), batch_size=48)))
    for held_out, people in ((0.0, 1), (0.5, 4), (0.25, 2), (0.99, 7)):
        predicting, truth, usable = BaselineModule("observers", SIZE, held_out=held_out)._parts(batch)
        said, kept = (predicting >= 0).all(-1), (truth >= 0).all(-1)
        assert not (said & kept).any()
        assert torch.equal(said | kept, batch["observer"] >= 0)
        assert (kept.sum(-1) == people).all()
        assert usable.all()
    # Over the frames everybody is held out about equally often.
    assert (kept.float().mean((0, 1))[:8] > 0.7).all()


def test_one_observers_fixations_stay_together_and_lonely_observers_do_not_count() -> None:
    batch = next(iter(DataLoader(Gaze(0), batch_size=48)))
    batch["observer"] = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1, -1, -1]).expand(48, 1, -1)
    predicting, truth, _ = BaselineModule("observers", SIZE)._parts(batch)
    said, kept = (predicting >= 0).all(-1), (truth >= 0).all(-1)
    for person in range(3):
        mine = batch["observer"][0, 0] == person
        for part in (said, kept):
            assert (part[..., mine].all(-1) == part[..., mine].any(-1)).all()
    assert not (said | kept)[..., 7:].any()
    batch["observer"] = torch.tensor([4] * 8 + [-1] * 2).expand(48, 1, -1)
    assert not BaselineModule("observers", SIZE)._parts(batch)[2].any()
    del batch["observer"]
    with pytest.raises(ConfigError, match="observer ids"):
        BaselineModule("observers", SIZE)(batch)


def test_a_baseline_of_ground_truth_predicts_no_video() -> None:
    with pytest.raises(ConfigError, match="annotated data set"):
        BaselineModule("observers").network(torch.zeros(1, 3, 1, *SIZE))
    with pytest.raises(ConfigError, match="allowed: uniform"):
        BaselineModule("center")
