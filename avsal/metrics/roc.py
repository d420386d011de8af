"""Receiver operating characteristics over evenly spaced thresholds of the min-max scaled map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avsal.metrics.inputs import Maps, MetricInputError


def grid(step: float, endpoint: bool) -> Tensor:
    """Thresholds step, 2 step, ... up to 1 in float64, as Octave's colon operator makes them."""
    if not 0 < step <= 1:
        raise MetricInputError(f"step={step}: thresholds lie in [0, 1], so the step is in (0, 1].")
    last = math.floor(1 / step + 1e-9)
    if not endpoint and math.isclose(last * step, 1.0):
        last -= 1
    return torch.arange(1, last + 1, dtype=torch.float64) * step


def bins(p: Maps, values: Tensor, levels: Tensor) -> Tensor:
    """Return how many thresholds of the grid the min-max scaled values (B, N) reach, in float64."""
    low, high = p.low.double(), p.high.double()
    span = torch.where(p.constant.unsqueeze(-1), torch.ones_like(low), high - low)
    return torch.bucketize((values.double() - low) / span, levels.to(values.device), right=True)


def rates(reached: Tensor, valid: Tensor, steps: int) -> Tensor:
    """Return (B, steps + 1) shares of the valid entries (B, N) at or above the thresholds 0, step, ..."""
    frames, width = reached.shape[0], steps + 2
    offset = torch.arange(frames, device=reached.device).unsqueeze(-1) * width
    code = torch.where(valid, reached, steps + 1) + offset
    counts = torch.bincount(code.flatten(), minlength=frames * width).reshape(frames, width)[:, : steps + 1]
    share = counts.flip(-1).cumsum(-1).flip(-1).double()
    return share / share[:, :1]


def step_area(tp: Tensor, fp: Tensor) -> Tensor:
    """Trapezoid over ROC points (..., K) at rising thresholds; rates beyond the last threshold are 0."""
    zero = torch.zeros_like(tp[..., :1])
    tp_next, fp_next = torch.cat((tp[..., 1:], zero), -1), torch.cat((fp[..., 1:], zero), -1)
    return ((fp - fp_next) * (tp + tp_next)).sum(-1) / 2
