"""The four scores of the public scorers of AViMoS, NTIRE 2026 and CrowdSAL.

They differ from the defaults: populations' standard deviations with small constants, fixations counted with
    their
multiplicity, and an AUC-Judd whose number of negatives is off (see `scores`). Use them to compare with
leaderboards of these sets, and the defaults for everything else.

There are two editions. `scores` is the script that extracts every frame to disk first; `stream_scores` is
CrowdSAL's later one, which decodes to 16-bit grey, refuses to resize, and corrects AUC-Judd.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from avsal.metrics.inputs import Maps, MetricInputError, Points
from avsal.metrics.resize import resize_maps

_EPS = 1e-7
_STRETCH_EPS = torch.finfo(torch.float32).eps


def stretched(maps: Tensor) -> Tensor:
    """Min-max scale maps (..., h, w) in float64: (v - min) / (max - min + eps), with the eps of float32."""
    maps = maps.double()
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + _STRETCH_EPS)


def prepare(pred: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Scale both maps, then resize the prediction to the ground truth's grid (bilinear, in this order).

    Args:
        pred: (..., h, w) prediction in any range.
        density: (..., H, W) ground truth in any range.

    Returns:
        Two float64 maps (..., H, W).
    """
    size = (int(density.shape[-2]), int(density.shape[-1]))
    return resize_maps(stretched(pred), size, filter="bilinear"), stretched(density)


def scores(
    pred: Tensor,
    density: Tensor,
    fixations: Tensor,
    *,
    metrics: Collection[str] = ("cc", "sim", "nss", "auc_judd"),
) -> dict[str, Tensor]:
    """Score prepared maps as the public scorer does.

    CC: product of both maps standardised with population deviations (+1e-7). SIM: both divided by their sums
        (+1e-7).
    NSS: mean standardised prediction at all fixations, duplicates counted. AUC-Judd: one threshold per
        fixation,
    duplicates counted; false positives are divided by P - u, where u should be the number of distinct
    fixations but is that of distinct columns of the N x 2 coordinate table, 1 or 2.

    Args:
        pred: (B, H, W) from `prepare`.
        density: (B, H, W) from `prepare`.
        fixations: (B, N, 2) int64 (row, column), padded with -1.
        metrics: which scores.

    Returns:
        (B,) float64 for each name. NaN without fixations, where the scorer stops with an error.
    """
    unknown = set(metrics) - {"cc", "sim", "nss", "auc_judd"}
    if unknown:
        raise MetricInputError(
            f"the public scorer has no {', '.join(sorted(unknown))}; it has cc, sim, nss, auc_judd."
        )
    p, q = Maps(pred.double()), Maps(density.double(), "density")
    p.check_same(q)
    f = Points(fixations, p, duplicates=True)
    out: dict[str, Tensor] = {}
    if "cc" in metrics or "nss" in metrics:
        standard_p = _standard(p.raw)
        if "cc" in metrics:
            standard_q = _standard(q.raw)
            product = (standard_p * standard_q).sum(-1)
            out["cc"] = product / ((standard_p.square().sum(-1) * standard_q.square().sum(-1)).sqrt() + _EPS)
        if "nss" in metrics:
            out["nss"] = f.mean(standard_p)
    if "sim" in metrics:
        s, t = (m.raw / (m.raw.sum(-1, keepdim=True) + _EPS) for m in (p, q))
        out["sim"] = torch.minimum(s, t).sum(-1)
    if "auc_judd" in metrics:
        out["auc_judd"] = _auc_judd(p, f, fixations)
    nobody = f.count == 0
    return {name: out[name].masked_fill(nobody, torch.nan) for name in metrics}


def stream_scores(pred: Tensor, density: Tensor, fixations: Tensor) -> dict[str, Tensor]:
    """Score maps as CrowdSAL's later script does.

    Like `scores` with the eps of float32 as every constant, and another AUC-Judd: the prediction rounded to
    65,536 levels, one threshold for each distinct fixated value, every fixation a positive, pixels that
    nobody fixated the negatives.

    Args:
        pred: (B, H, W) prediction in any range, on the ground truth's grid.
        density: (B, H, W) ground truth in any range.
        fixations: (B, N, 2) int64 (row, column), padded with -1.

    Returns:
        (B,) float64 for "cc", "sim", "nss" and "auc_judd"; NaN without fixations.
    """
    single = [_stretch32(maps) for maps in (pred, density)]
    p, q = Maps(single[0].double()), Maps(single[1].double(), "density")
    p.check_same(q)
    f = Points(fixations, p, duplicates=True)
    standard_p, standard_q = _standard(p.raw, _STRETCH_EPS), _standard(q.raw, _STRETCH_EPS)
    power = standard_p.square().sum(-1) * standard_q.square().sum(-1)
    s, t = (m.raw / (m.raw.sum(-1, keepdim=True) + _STRETCH_EPS) for m in (p, q))
    out = {
        "cc": (standard_p * standard_q).sum(-1) / (power + _STRETCH_EPS).sqrt(),
        "sim": torch.minimum(s, t).sum(-1),
        "nss": f.mean(standard_p),
        "auc_judd": _auc_events(Maps((single[0].clamp(0, 1) * 65535).round()), fixations),
    }
    return {name: values.masked_fill(f.count == 0, torch.nan) for name, values in out.items()}


def _stretch32(maps: Tensor) -> Tensor:
    maps = maps.float()
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + _STRETCH_EPS)


def _auc_events(p: Maps, fixations: Tensor) -> Tensor:
    f = Points(fixations, p, duplicates=True)
    n = f.count
    if f.index.shape[-1] == 0:
        return torch.full_like(n, torch.nan, dtype=torch.float64)
    # Falling thresholds; padding repeats the lowest one, where the curve stands still.
    events = f.values(p.raw).masked_fill(~f.valid, -torch.inf).sort(-1, descending=True).values
    events = torch.maximum(events, f.values(p.raw).amin(-1, keepdim=True))
    pixels = f.values(p.raw, f.unique).sort(-1).values
    distinct = (pixels < torch.inf).sum(-1, keepdim=True)
    all_events = f.values(p.raw).sort(-1).values
    negatives = p.pixels - distinct
    hits = n.unsqueeze(-1) - torch.searchsorted(all_events, events, right=False)
    above = p.pixels - torch.searchsorted(p.sorted, events, right=False)
    above = above - (distinct - torch.searchsorted(pixels, events, right=False))
    tp, fp = hits.double() / n.unsqueeze(-1), above.double() / negatives
    tp, fp = (F.pad(F.pad(rate, (1, 0), value=0.0), (0, 1), value=1.0) for rate in (tp, fp))
    area = torch.trapezoid(tp, fp, dim=-1)
    return torch.where(negatives.squeeze(-1) > 0, area, torch.ones_like(area))


def _standard(values: Tensor, eps: float = _EPS) -> Tensor:
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True).sqrt() + eps)


def _auc_judd(p: Maps, f: Points, fixations: Tensor) -> Tensor:
    n = f.count
    if f.index.shape[-1] == 0:
        return torch.full_like(n, torch.nan, dtype=torch.float64)
    values = f.values(p.raw)
    at_least = (p.pixels - torch.searchsorted(p.sorted, values, right=False)) * f.valid
    row, column = fixations.to(p.raw.device).reshape(len(p), -1, 2).unbind(-1)
    columns = torch.where((row == column).all(-1), 1, 2)
    nm = n.double() * (p.pixels - columns).double()
    excess = (at_least.sum(-1) - n * (n + 1) // 2).double()
    return 1 - excess / nm + (at_least.amax(-1) - n).double() / (2 * nm)
