"""Gaze scores against CSTS's own code (golden data), and their streaming form against the pooled one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avsal.metrics import GazeMetrics, adaptive_f1, gaze_auc, gaze_thresholds, rescale_gaze
from avsal.metrics.inputs import MetricInputError

GOLDEN = Path(__file__).parents[1] / "golden"
META = json.loads((GOLDEN / "metrics.json").read_text())["gaze"]
ARRAYS = dict(np.load(GOLDEN / "metrics.npz"))
CSTS = dict(np.load(GOLDEN / "csts_metrics.npz"))
GRIDS = {
    "ego4d_av_gaze_forecast": "ego4d_forecast",
    "aria_av_gaze_forecast": "aria_forecast",
    "ego4d_av_gaze": "estimation",
    "aria_av_gaze": "estimation",
}


@pytest.mark.parametrize("dataset", ["ego4d_av_gaze_forecast", "aria_av_gaze_forecast", "ego4d_av_gaze"])
@pytest.mark.parametrize("name", ["gaze_good", "gaze_poor"])
def test_adaptive_f1_equals_the_released_code(name: str, dataset: str) -> None:
    pred, heat, label = (torch.from_numpy(ARRAYS[f"{name}/{k}"]) for k in ("pred", "heat", "label"))
    score = adaptive_f1(pred.squeeze(1), heat, label[..., 2], thresholds=GRIDS[dataset])
    expected = META[name]["csts"][dataset]
    for key in ("f1", "recall", "precision"):
        assert getattr(score, key) == pytest.approx(expected[key], abs=2e-7)
    assert score.threshold == pytest.approx(expected["threshold"], abs=1e-9)


def csts(letter: str) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.from_numpy(CSTS[f"{letter}/logits"]).squeeze(1)
    density = (logits / 2).flatten(-2).softmax(-1).view_as(logits)
    return density, torch.from_numpy(CSTS[f"{letter}/labels_hm"]), torch.from_numpy(CSTS[f"{letter}/gaze"])


@pytest.mark.parametrize(
    ("letter", "dataset"),
    [
        ("a", "ego4d_av_gaze_forecast"),
        ("b", "aria_av_gaze_forecast"),
        ("b", "ego4d_av_gaze"),
        ("b", "aria_av_gaze"),
    ],
)
def test_metric_from_network_output_to_four_numbers(letter: str, dataset: str) -> None:
    density, heat, gaze = csts(letter)
    metric = GazeMetrics(GRIDS[dataset], auc=True)
    for clip in (1, 0):
        metric.update(
            density[clip : clip + 1],
            heat[clip : clip + 1],
            gaze[clip : clip + 1, :, 2],
            video_id=torch.tensor([clip]),
            frame=torch.arange(8)[None],
            gaze=gaze[clip : clip + 1, :, :2],
        )
    f1, recall, precision, threshold = CSTS[f"{letter}/{dataset}/f1_recall_precision_threshold"]
    result = metric.compute()
    assert result["f1"] == pytest.approx(f1, abs=1e-6)
    assert result["recall"] == pytest.approx(recall, abs=1e-6)
    assert result["precision"] == pytest.approx(precision, abs=1e-6)
    assert result["threshold"] == pytest.approx(threshold, abs=1e-9)
    assert result["auc"] == pytest.approx(float(CSTS[f"{letter}/companion_auc"]), abs=1e-9)
    kept = int((gaze[..., 2] == 0).sum())
    assert metric.frames_used() == {"frames": 16, "frames_f1": kept, "videos": 2}
    steps = metric.per_step()
    assert sum(s["frames"] for s in steps) == kept
    # The pooled means are the frame-weighted means of the steps at one threshold.
    assert sum(s["recall"] * s["frames"] for s in steps if s["frames"]) / kept == pytest.approx(
        recall, abs=1e-6
    )
    # So are each step's means those of the videos, weighted by their frames of this step.
    videos = metric.per_video(steps=True).values()
    for number, step in enumerate(steps, 1):
        frames = [v[f"frames_step{number}"] for v in videos]
        assert sum(frames) == step["frames"]
        for name in ("recall", "precision"):
            total = sum(v[f"{name}_step{number}"] * n for v, n in zip(videos, frames, strict=True) if n)
            assert total / max(step["frames"], 1) == pytest.approx(
                step[name] if step["frames"] else 0, abs=1e-12
            )
    own = metric.per_step("own")
    assert all(o["f1"] >= s["f1"] for o, s in zip(own, steps, strict=True) if s["frames"])


@pytest.mark.parametrize("letter", ["a", "b"])
def test_auc_of_the_centre_of_mass(letter: str) -> None:
    density, _, gaze = csts(letter)
    ours = gaze_auc(rescale_gaze(density), gaze[..., :2])[gaze[..., 2] == 0]
    assert ours.tolist() == pytest.approx(CSTS[f"{letter}/companion_auc_per_frame"].tolist(), abs=1e-12)


def direct(pred: Tensor, heat: Tensor, kind: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision for every threshold by thresholding whole maps."""
    keep = kind == 0
    p, positive = pred[keep].flatten(1), heat[keep].flatten(1) > 1e-3
    over = p.unsqueeze(0) > levels.to(p.dtype)[:, None, None]
    hits = (over & positive).sum(-1).double()
    return (
        (hits / (positive.sum(-1) + 1e-6)).mean(-1),
        (hits / (over.sum(-1) + 1e-6)).mean(-1),
    )


def random_gaze(seed: int = 0, clips: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    pred = torch.rand((clips, 3, 12, 12), generator=g) ** 4
    heat = torch.rand((clips, 3, 12, 12), generator=g) ** 6
    heat = heat / heat.sum((-2, -1), keepdim=True)
    return pred, heat, torch.randint(0, 4, (clips, 3), generator=g)


def test_streamed_curve_equals_thresholding_everything() -> None:
    pred, heat, kind = random_gaze()
    metric = GazeMetrics("full")
    for part in torch.randperm(9).split(2):
        metric.update(
            pred[part], heat[part], kind[part], video_id=part, frame=torch.arange(3).expand(len(part), 3)
        )
    levels, recall, precision = metric.curve()
    expected = direct(rescale_gaze(pred), heat, kind, levels)
    assert torch.allclose(recall, expected[0], atol=1e-12)
    assert torch.allclose(precision, expected[1], atol=1e-12)
    assert metric.per_video({0: "first"}).keys() >= {"first"}
    figure, _ = metric.plot()
    assert figure is not None


def test_threshold_is_exceeded_strictly_in_the_map_s_precision() -> None:
    pred = torch.tensor([[[0.01, 0.012], [0.5, 0.07]]])
    heat = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    score = adaptive_f1(pred, heat, thresholds=[0.01])
    assert score.recall == pytest.approx(0.5, abs=1e-6)


def test_no_fixation_frame_is_nan_and_said() -> None:
    pred, heat, kind = random_gaze()
    metric = GazeMetrics()
    metric.update(pred, heat, torch.full_like(kind, 2))
    with pytest.warns(UserWarning, match="no frame is a fixation"):
        assert all(math.isnan(v) for v in metric.compute().values())
    assert math.isnan(adaptive_f1(pred, heat, torch.full_like(kind, 2)).f1)


def test_bad_input_is_refused() -> None:
    pred, heat, kind = random_gaze()
    with pytest.raises(MetricInputError, match="NaN"):
        GazeMetrics().update(pred.masked_fill(pred > 0.5, torch.nan), heat, kind)
    with pytest.raises(MetricInputError, match="B, T_out"):
        GazeMetrics().update(pred[:, 0], heat[:, 0], kind)
    with pytest.raises(MetricInputError, match="gaze="):
        GazeMetrics(auc=True).update(pred, heat, kind)
    with pytest.raises(MetricInputError, match="rising"):
        gaze_thresholds([0.2, 0.1])
    with pytest.raises(MetricInputError, match="ego4d_forecast"):
        gaze_thresholds("ego4d")  # type: ignore[arg-type]
