"""Scores of egocentric gaze maps: F1, recall and precision at an adaptive threshold, as CSTS is evaluated.

Per-frame counts at every threshold come from one pass over the pixels; the means over frames, and with them
F1 and the best threshold, follow from running sums (`GazeMetrics`), so no map is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from avsal.metrics.inputs import MetricInputError
from avsal.metrics.resize import gaussian_matrix

GazeGrid = Literal["ego4d_forecast", "aria_forecast", "estimation", "full"]

#: first threshold, last threshold, number: the grids of CSTS's released code, and the whole range.
_GRIDS: dict[str, tuple[float, float, int]] = {
    "ego4d_forecast": (0.01, 0.07, 31),
    "aria_forecast": (0.0, 0.02, 21),
    "estimation": (0.0, 0.02, 11),
    "full": (0.0, 1.0, 201),
}
_EPS = 1e-6


class GazeScore(NamedTuple):
    """F1 of mean recall and mean precision at the threshold that maximises it."""

    f1: float
    recall: float
    precision: float
    threshold: float


class GazeCounts(NamedTuple):
    """Cells per frame: `hits` (..., K) true positives, `predicted` (..., K), `positives` (...), int64."""

    hits: Tensor
    predicted: Tensor
    positives: Tensor

    def recall(self) -> Tensor:
        """(..., K) share of the positive cells that are predicted, float64; 0 without positive cells."""
        return self.hits.double() / (self.positives.double() + _EPS).unsqueeze(-1)

    def precision(self) -> Tensor:
        """(..., K) share of the predicted cells that are positive, float64; 0 without predicted cells."""
        return self.hits.double() / (self.predicted.double() + _EPS)


def gaze_thresholds(grid: GazeGrid | Sequence[float] | Tensor = "ego4d_forecast") -> Tensor:
    """Return (K,) rising float64 thresholds.

    Args:
        grid: "ego4d_forecast" (0.01 to 0.07, 31 values), "aria_forecast" (0 to 0.02, 21), "estimation" (0 to
            0.02, 11), "full" (0 to 1, 201), or the values themselves. CSTS's grids are narrow: the best
            threshold is often their last one, so report it.

    Raises:
        MetricInputError: for an unknown name or values that do not rise.
    """
    if isinstance(grid, str):
        if grid not in _GRIDS:
            raise MetricInputError(
                f"threshold grid {grid!r} is not known; choose one of {', '.join(_GRIDS)}."
            )
        first, last, count = _GRIDS[grid]
        return torch.linspace(first, last, count, dtype=torch.float64)
    values = torch.as_tensor(grid, dtype=torch.float64).flatten()
    if len(values) == 0 or bool((values.diff() <= 0).any()):
        raise MetricInputError("thresholds must be at least one, in rising order.")
    return values


def rescale_gaze(density: Tensor) -> Tensor:
    """Scale each map to [0, 1): (v - min) / (max - min + 1e-6), as CSTS does before thresholding.

    Args:
        density: (..., h, w) maps, softmax over the pixels of each frame.

    Raises:
        MetricInputError: for NaN or infinite values.
    """
    density = density if density.dtype == torch.float64 else density.float()
    low, high = density.amin((-2, -1), keepdim=True), density.amax((-2, -1), keepdim=True)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise MetricInputError(
            "gaze maps hold NaN or infinite values; a frame without a valid map has no score."
        )
    return (density - low) / (high - low + _EPS)


def gaze_counts(
    pred: Tensor, target: Tensor, thresholds: GazeGrid | Sequence[float] | Tensor, *, positive: float = 1e-3
) -> GazeCounts:
    """Count predicted and truly predicted cells at every threshold.

    A cell is predicted where the rescaled map is strictly greater than the threshold, and positive where the
    target is greater than `positive`; the uniform target of a gaze outside the image has no positive cell.

    Args:
        pred: (..., h, w) maps rescaled by `rescale_gaze`.
        target: (..., h, w) ground-truth heat maps that sum to 1 (CSTS: 19x19 Gaussian, sigma 3.2, on 64x64).
        thresholds: K rising thresholds or the name of a grid.
        positive: lower bound of positive cells (exclusive).

    Returns:
        Counts for each frame; leading shape (...).
    """
    if pred.shape != target.shape:
        raise MetricInputError(f"gaze maps are {tuple(pred.shape)}, their targets {tuple(target.shape)}.")
    levels = gaze_thresholds(thresholds).to(pred.device, pred.dtype)
    lead, width = pred.shape[:-2], len(levels) + 1
    values = pred.reshape(-1, pred.shape[-2] * pred.shape[-1])
    mask = target.reshape(values.shape) > positive
    # The bin of a cell is the number of thresholds it exceeds; its code tells the frame and whether it is
    # positive.
    code = torch.bucketize(values, levels, right=False) + width * mask
    code = code + 2 * width * torch.arange(len(values), device=pred.device).unsqueeze(-1)
    counts = torch.bincount(code.flatten(), minlength=2 * width * len(values)).reshape(-1, 2, width)
    exceeding = counts.flip(-1).cumsum(-1).flip(-1)
    hits = exceeding[:, 1, 1:]
    return GazeCounts(
        hits.reshape(*lead, -1),
        (exceeding[:, 0, 1:] + hits).reshape(*lead, -1),
        mask.sum(-1).reshape(lead),
    )


def best_f1(recall: Tensor, precision: Tensor, thresholds: Tensor) -> GazeScore:
    """Choose the threshold with the highest F1 = 2 R P / (R + P + 1e-6) of mean recall and mean precision.

    Args:
        recall: (K,) means over frames; NaN where there were none.
        precision: (K,) means over frames.
        thresholds: (K,) thresholds.
    """
    f1 = 2 * recall * precision / (recall + precision + _EPS)
    best = int(f1.argmax())
    return GazeScore(float(f1[best]), float(recall[best]), float(precision[best]), float(thresholds[best]))


def adaptive_f1(
    pred: Tensor,
    target: Tensor,
    gaze_type: Tensor | None = None,
    *,
    thresholds: GazeGrid | Sequence[float] | Tensor = "ego4d_forecast",
    fixation_type: int = 0,
    positive: float = 1e-3,
) -> GazeScore:
    """F1, recall and precision of all fixation frames pooled, at the best threshold of the grid (CSTS's
    metric).

    Recall and precision are computed for each frame and averaged over the frames whose gaze is a fixation;
    frames with the gaze outside the image stay in and score 0. The threshold is chosen on the data that it
    scores.

    Args:
        pred: (..., h, w) maps rescaled by `rescale_gaze`.
        target: (..., h, w) ground-truth heat maps that sum to 1.
        gaze_type: (...) kind of gaze of each frame, None if every frame counts.
        thresholds: as in `gaze_thresholds`.
        fixation_type: the kind that counts: 0 in Ego4D and Aria, 1 in EGTEA.
        positive: lower bound of positive cells (exclusive).

    Returns:
        Four floats; NaN when no frame is a fixation.
    """
    counts = gaze_counts(pred, target, thresholds, positive=positive)
    keep = torch.ones(counts.positives.shape, dtype=torch.bool, device=pred.device)
    if gaze_type is not None:
        keep = gaze_type.to(pred.device) == fixation_type
    return best_f1(
        counts.recall()[keep].mean(0), counts.precision()[keep].mean(0), gaze_thresholds(thresholds)
    )


def gaze_auc(pred: Tensor, gaze: Tensor, *, sigma: float = 3.2) -> Tensor:
    """AUC of the centre of mass, as the gaze-estimation code before CSTS computes it.

    The map's centre of mass, cut to a cell, is blurred with a Gaussian; the score is one minus the share of
    cells that exceed the blurred value at the gaze cell (round((h - 1) y), round((w - 1) x)). CSTS itself
    reports no AUC.

    Args:
        pred: (..., h, w) maps rescaled by `rescale_gaze`.
        gaze: (..., 2) x and y in 0..1, origin top left.
        sigma: standard deviation of the Gaussian in cells, cut at four sigma, borders mirrored.

    Returns:
        (...) in [0, 1], float64; NaN for maps without mass.
    """
    height, width = pred.shape[-2:]
    maps = pred.double()
    mass = maps.sum((-2, -1))
    rows, columns = (torch.arange(n, dtype=torch.float64, device=pred.device) for n in (height, width))
    centre_row = ((maps.sum(-1) * rows).sum(-1) / mass).nan_to_num(0.0).long().clamp(0, height - 1)
    centre_column = ((maps.sum(-2) * columns).sum(-1) / mass).nan_to_num(0.0).long().clamp(0, width - 1)
    row_blur, column_blur = (
        gaussian_matrix(n, sigma, int(4 * sigma + 0.5)).to(pred.device) for n in (height, width)
    )
    blurred = row_blur[:, centre_row].movedim(0, -1).unsqueeze(-1) * column_blur[:, centre_column].movedim(
        0, -1
    ).unsqueeze(-2)
    gaze = gaze.double().to(pred.device)
    at_row = (gaze[..., 1] * (height - 1)).round().long().clamp(0, height - 1)
    at_column = (gaze[..., 0] * (width - 1)).round().long().clamp(0, width - 1)
    at = blurred.flatten(-2).gather(-1, (at_row * width + at_column).unsqueeze(-1))
    score = 1 - (blurred.flatten(-2) > at).double().mean(-1)
    return score.masked_fill(~(mass > 0), torch.nan)
