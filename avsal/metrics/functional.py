"""Saliency and gaze metrics as pure functions on batches of maps, on any device.

Common to all functions:

- Maps are (..., H, W), fixations (..., N, 2) int64 (row, column) padded with -1; the result is (...).
  Everything is computed on the ground truth's grid: resize predictions first (`avsal.metrics.resize_maps`).
- float64 maps are scored in float64, all others in float32; ranks, counts and stepped thresholds are exact in
  both.
- A frame that cannot be scored (no fixation, an empty ground truth, no negatives) gives NaN, to be counted
  and shown beside the mean and never averaged in. For SIM and KL `empty="mit"` gives the 0 of the MIT code,
  and `empty="uniform"` takes an empty ground truth for a uniform one, as pysaliency does.
- A constant prediction scores chance. `constant="nan"` makes it NaN; `constant="mit"` gives what the MIT code
  prints, which is NaN but for SIM of a zero map (0) and KL. NaN or infinite predictions raise
  `MetricInputError`, as do fixations outside the map.
- A pixel fixated twice counts once (the binary map of the MIT code); `duplicates=True` counts every fixation.

The defaults follow the MIT saliency benchmark code, which STAViS, MSPI and ViNet were scored with. Equations
and derivations of the closed forms: docs/metrics.md.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from avsal.metrics.egocentric import (
    adaptive_f1,
    best_f1,
    gaze_auc,
    gaze_counts,
    gaze_thresholds,
    rescale_gaze,
)
from avsal.metrics.inputs import (
    Comparison,
    Constant,
    Empty,
    Maps,
    MetricInputError,
    Points,
    as_tensor,
    ascending,
    fixation_points,
)
from avsal.metrics.roc import bins, grid, rates, step_area

#: MATLAB's eps, the regularisation of the MIT code.
EPS = 2.0**-52
#: The same constant as Python ports of the MIT code write it.
EPS_PYTHON = 2.2204e-16

Ties = Literal["expected", "matlab", "jitter"]
JuddMethod = Literal["judd", "rank", "rank_all"]
SplitMethod = Literal["step", "exact", "sampled"]
Norm = Literal["minmax", "sum", "pysaliency"]
KLConvention = Literal["mit", "pysaliency", "pysaliency_mit"]
__all__ = [
    "adaptive_f1",
    "auc_borji",
    "auc_judd",
    "best_f1",
    "cc",
    "fixation_points",
    "gaze_auc",
    "gaze_counts",
    "gaze_thresholds",
    "information_gain",
    "kl_div",
    "nss",
    "rescale_gaze",
    "sauc",
    "sim",
]
GainConvention = Literal["mit", "pysaliency", "mspi"]


def _choose(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise MetricInputError(
            f"{name}={value!r} is not known; choose one of {', '.join(map(repr, allowed))}."
        )


def _pair(pred: Tensor, density: Tensor, name: str = "density") -> tuple[Maps, Maps]:
    pred, density = as_tensor(pred, "pred"), as_tensor(density, name)
    p, q = Maps(pred), Maps(density, name)
    if p.lead != q.lead:
        raise MetricInputError(
            f"pred is {tuple(pred.shape)}, {name} is {tuple(density.shape)}; they must match."
        )
    p.check_same(q)
    if q.raw.dtype != p.raw.dtype or q.raw.device != p.raw.device:
        q = Maps(density.to(p.raw.device, p.raw.dtype), name, check=False)
    return p, q


def _degenerate(
    score: Tensor, prediction: Maps, chance: float | Tensor | None, constant: Constant, empty: Tensor
) -> Tensor:
    """Apply the rules for constant predictions and for frames without ground truth."""
    _choose("constant", constant, ("chance", "nan", "mit"))
    if constant != "chance":
        score = score.masked_fill(prediction.constant, torch.nan)
    elif chance is not None:
        score = torch.where(prediction.constant, torch.as_tensor(chance, dtype=score.dtype).to(score), score)
    return score.masked_fill(empty, torch.nan)


def cc(pred: Tensor, density: Tensor, *, constant: Constant = "chance") -> Tensor:
    """Pearson's linear correlation coefficient (CC).

    `sum (S - mean S)(Q - mean Q) / sqrt(sum (S - mean S)^2 sum (Q - mean Q)^2)`; invariant to increasing
    affine changes of either map.

    Args:
        pred: (..., H, W) prediction S.
        density: (..., H, W) dense ground truth Q.
        constant: what a constant prediction scores: "chance" (0), or "nan" ("mit" is the same here).

    Returns:
        (...) in [-1, 1]; NaN where the ground truth is constant or zero.
    """
    p, q = _pair(pred, density)
    return _cc(p, q, constant).reshape(p.lead)


def _cc(p: Maps, q: Maps, constant: Constant = "chance", both: Comparison | None = None) -> Tensor:
    both = both or Comparison(p, q, overlap=False)
    score = both.covariance / (p.power * q.power).sqrt()
    return _degenerate(score.clamp(-1, 1), p, 0.0, constant, q.constant)


def nss(
    pred: Tensor,
    fixations: Tensor,
    *,
    ddof: int = 1,
    duplicates: bool = False,
    constant: Constant = "chance",
) -> Tensor:
    """Normalised scanpath saliency (NSS): mean over fixations of the standardised prediction.

    `mean_F (S - mean S) / std S`; invariant to increasing affine changes of the prediction.

    Args:
        pred: (..., H, W) prediction S.
        fixations: (..., N, 2) (row, column), padded with -1.
        ddof: 1 for the sample standard deviation (MIT code, MSPI, UNISAL), 0 for the population's
            (pysaliency).
        duplicates: whether coinciding fixations count each (pysaliency) or once.
        constant: what a constant prediction scores: "chance" (0), or "nan" ("mit" is the same here).

    Returns:
        (...) unbounded, 0 at chance; NaN without fixations.
    """
    p = Maps(pred)
    return _nss(p, Points(fixations, p, duplicates=duplicates), ddof, constant).reshape(p.lead)


def _nss(p: Maps, f: Points, ddof: int = 1, constant: Constant = "chance") -> Tensor:
    std = (p.power / max(p.pixels - ddof, 1)).sqrt()
    score = f.mean_of(p.unit_at(f) - p.unit_sum / p.pixels) / std
    return _degenerate(score, p, 0.0, constant, f.count == 0)


def sim(
    pred: Tensor,
    density: Tensor,
    *,
    norm: Norm = "minmax",
    constant: Constant = "chance",
    empty: Empty = "nan",
) -> Tensor:
    """Similarity (SIM): the intersection `sum min(s, q)` of two maps that sum to 1.

    Args:
        pred: (..., H, W) prediction.
        density: (..., H, W) dense ground truth.
        norm: how maps become distributions: "minmax" subtracts the minimum first (MIT code, MSPI), "sum" only
            divides by the sum (UNISAL), "pysaliency" subtracts the minimum only where it is negative.
        constant: what a constant prediction scores: "chance" (as a uniform map), "nan" or "mit".
        empty: what an all-zero ground truth scores: "nan", "mit" for the MIT code's 0, or "uniform".

    Returns:
        (...) in [0, 1], 1 for equal maps; NaN where the ground truth is all zero.

    Raises:
        MetricInputError: with norm="sum", for maps that are largely negative, such as logits.
    """
    _choose("norm", norm, ("minmax", "sum", "pysaliency"))
    p, q = _pair(pred, density)
    return _sim(p, q, norm, constant, empty).reshape(p.lead)


def _sim(
    p: Maps,
    q: Maps,
    norm: Norm = "minmax",
    constant: Constant = "chance",
    empty: Empty = "nan",
    both: Comparison | None = None,
) -> Tensor:
    if norm == "minmax" and not (p.any_constant or q.any_constant):
        both = both or Comparison(p, q, overlap=True)
        assert both.overlap is not None
        score = both.overlap
    elif norm == "minmax":
        score = torch.minimum(p.unit_density, q.unit_density).sum(-1)
    elif norm == "sum":
        score = torch.minimum(p.density, q.density).sum(-1)
    else:
        score = torch.minimum(p.shifted_density(), q.shifted_density()).sum(-1)
    score = _degenerate(score, p, None, constant, torch.zeros_like(q.zero))
    if constant == "mit":
        score = score.masked_fill(p.zero, 0.0)
    return _empty_as(score, q, empty)


def kl_div(
    pred: Tensor,
    density: Tensor,
    *,
    eps: float = EPS,
    convention: KLConvention = "mit",
    constant: Constant = "chance",
    empty: Empty = "nan",
) -> Tensor:
    """Kullback-Leibler divergence of the prediction from the ground truth, in nats (smaller is better).

    `sum q log(eps + q / (s + eps))` with both maps divided by their sums. On 8-bit predictions the value is
    decided by
    eps: report it on floating predictions only.

    Args:
        pred: (..., H, W) non-negative prediction; small negative values, as bicubic resizing leaves, count as
            0 after the division by the sum.
        density: (..., H, W) non-negative ground truth.
        eps: 2^-52 in MATLAB; Python ports (pysaliency's MIT_KLDiv, MSPI) write 2.2204e-16.
        convention: "mit"; "pysaliency" for pysaliency's default, `sum q (log q - log s)` with 1e-20 added to
            both maps before the division; "pysaliency_mit" for its MIT_KLDiv. Both remove a negative minimum
            first.
        constant: what a constant prediction scores: "chance" (as a uniform map), "nan" or "mit".
        empty: what an all-zero ground truth scores: "nan", "mit" for the MIT code's 0, or "uniform".

    Returns:
        (...) values from about 0 upwards; NaN where the ground truth is all zero.

    Raises:
        MetricInputError: for maps that are largely negative, such as logits.
    """
    _choose("convention", convention, ("mit", "pysaliency", "pysaliency_mit"))
    p, q = _pair(pred, density)
    return _kl(p, q, eps, convention, constant, empty).reshape(p.lead)


def _kl(
    p: Maps,
    q: Maps,
    eps: float = EPS,
    convention: str = "mit",
    constant: Constant = "chance",
    empty: Empty = "nan",
) -> Tensor:
    pairs = zip(p.parts(), q.parts(), strict=True)
    return torch.cat([_kl_part(s, t, eps, convention, constant, empty) for s, t in pairs])


def _kl_part(p: Maps, q: Maps, eps: float, convention: str, constant: Constant, empty: Empty) -> Tensor:
    if convention != "pysaliency":
        shifted = convention == "pysaliency_mit"
        s = p.shifted_density() if shifted else p.density.clamp(min=0)
        t = q.shifted_density() if shifted else q.density.clamp(min=0)
        eps = EPS_PYTHON if shifted else eps
        score = (t * (eps + t / (s + eps)).log()).sum(-1)
    else:
        s, t = p.shifted_density(1e-20), q.shifted_density(1e-20)
        score = (t * (t.log() - s.log())).sum(-1)
    if constant == "mit":
        # The MIT code divides a zero map by nothing and scores every constant map.
        of_zero = (q.density * (eps + q.density / eps).log()).sum(-1)
        score = torch.where(p.zero, of_zero, score)
    else:
        score = _degenerate(score, p, None, constant, torch.zeros_like(q.zero))
    return _empty_as(score, q, empty)


def _empty_as(score: Tensor, q: Maps, empty: Empty) -> Tensor:
    _choose("empty", empty, ("nan", "mit", "uniform"))
    if empty == "uniform":
        return score
    return score.masked_fill(q.zero, 0.0 if empty == "mit" else torch.nan)


def information_gain(
    pred: Tensor,
    fixations: Tensor,
    baseline: Tensor,
    *,
    convention: GainConvention = "mit",
    duplicates: bool = False,
    constant: Constant = "chance",
) -> Tensor:
    """Information gain (IG) over a baseline density at the fixations: `mean_F log s - log b`.

    One fixation on the lowest pixel decides the mean, and the conventions differ by tens of bits there: name
    the convention wherever the number is shown.

    Args:
        pred: (..., H, W) prediction.
        fixations: (..., N, 2) (row, column), padded with -1.
        baseline: (H, W) or (..., H, W) baseline density, such as a centre prior.
        convention: "mit": both maps min-max scaled and divided by their sums, log2(2^-52 + .), in bits;
            "pysaliency": divided by the sum with a floor of 1e-20, in bits; "mspi": divided by the sum,
            natural logarithm of (2.2204e-16 + .), in nats, NaN for a prediction with a negative value
            anywhere.
        duplicates: whether coinciding fixations count each (pysaliency) or once.
        constant: what a constant prediction scores: "chance" (as a uniform map), or "nan" ("mit" is the same
            here).

    Returns:
        (...) unbounded, 0 for the baseline itself; NaN without fixations.
    """
    _choose("convention", convention, ("mit", "pysaliency", "mspi"))
    if baseline.ndim == 2:
        baseline = baseline.expand_as(pred)
    p, b = _pair(pred, baseline, "baseline")
    return _ig(p, Points(fixations, p, duplicates=duplicates), b, convention, constant).reshape(p.lead)


def _ig(
    p: Maps, f: Points, b: Maps, convention: GainConvention = "mit", constant: Constant = "chance"
) -> Tensor:
    if convention == "mit":
        at_p, at_b = (
            torch.where(m.constant.unsqueeze(-1), 1 / m.pixels, m.unit_at(f) / m.unit_sum) for m in (p, b)
        )
        gain = f.mean_of((EPS + at_p).log2() - (EPS + at_b).log2())
    elif convention == "pysaliency":
        gain = f.mean(p.shifted_density(1e-20).log2() - b.shifted_density(1e-20).log2())
    else:
        gain = f.mean((EPS_PYTHON + p.density).log() - (EPS_PYTHON + b.density).log())
        gain = gain.masked_fill(p.density.amin(-1) < -EPS_PYTHON, torch.nan)
    return _degenerate(gain, p, None, constant, f.count == 0)


def auc_judd(
    pred: Tensor,
    fixations: Tensor,
    *,
    ties: Ties = "expected",
    method: JuddMethod = "judd",
    duplicates: bool = False,
    constant: Constant = "chance",
    seed: int = 0,
) -> Tensor:
    """AUC-Judd: fixated pixels against all others, one ROC point per fixation, trapezoid.

    In closed form, with A_i the number of pixels at or above fixation i, N fixations and M other pixels
    (docs/metrics.md): `1 - [sum A_i - N(N+1)/2] / (N M) + (max A_i - N) / (2 N M)`. It exceeds the rank
    statistic by up to 1/(2N). Exact counts on the raw values: invariant to every strictly increasing change.

    Args:
        pred: (..., H, W) prediction, any scale (log-densities and logits rank alike).
        fixations: (..., N, 2) (row, column), padded with -1.
        ties: "expected" is the expectation of the MIT code under its default jitter, which breaks ties at
            random; "matlab" the MIT code with jitter off (NaN for a constant map); "jitter" one run with
            uniform noise of 1e-7 added in float64, from `seed`.
        method: "judd"; "rank", the Mann-Whitney statistic with ties one half (scikit-learn; pysaliency
            `unfixated`); "rank_all", the same against all pixels (pysaliency `uniform`).
        duplicates: whether coinciding fixations count each, for the rank methods only (pysaliency).
        constant: what a constant prediction scores: "chance" (0.5 + 1/(2(N+1)), or 0.5 for ranks) or "nan".
        seed: of `ties="jitter"`.

    Returns:
        (...) in [0, 1]; NaN without fixations or where every pixel is fixated.
    """
    _choose("ties", ties, ("expected", "matlab", "jitter"))
    _choose("method", method, ("judd", "rank", "rank_all"))
    if duplicates and method == "judd":
        raise MetricInputError(
            'duplicates=True is defined for method="rank" and "rank_all"; AUC-Judd is on binary maps.'
        )
    p = Maps(pred)
    if ties == "jitter" and method == "judd":
        from avsal.metrics.sampling import jittered

        p = jittered(p, seed)
        ties = "matlab"
    return _auc_judd(p, Points(fixations, p, duplicates=duplicates), ties, method, constant).reshape(p.lead)


def _auc_judd(
    p: Maps, f: Points, ties: str = "expected", method: JuddMethod = "judd", constant: Constant = "chance"
) -> Tensor:
    if f.index.shape[-1] == 0:
        return p.raw.new_full((len(p),), torch.nan, dtype=torch.float64).to(p.raw.dtype)
    total = p.pixels
    values = ascending(f.values(p.raw))
    n = f.count
    below, up_to = p.positions(values)
    valid = values < torch.inf
    at_least, above = (total - below) * valid, (total - up_to) * valid
    if method == "rank_all":
        double = (above + at_least).sum(-1)  # twice the pixels above, ties one half
        score = 1 - double.double() / (2.0 * n * total)
        return _degenerate(score, p, 0.5, constant, n == 0).to(p.raw.dtype)

    distinct = ascending(f.values(p.raw, f.unique))
    fixated = (distinct < torch.inf).sum(-1)
    m = (total - fixated).double()
    nm = n.double() * m
    nothing = (n == 0) | (m == 0)
    if ties == "matlab" and method == "judd":
        excess = at_least.sum(-1) - n * (n + 1) // 2
        score = 1 - excess.double() / nm + (at_least.amax(-1) - n).double() / (2 * nm)
        # A constant map has no ROC in the MIT code: its min-max scaling divides 0 by 0.
        return _degenerate(score, p, torch.nan, constant, nothing).to(p.raw.dtype)

    fixated = fixated.unsqueeze(-1)
    fixated_at_least = (fixated - torch.searchsorted(distinct, values, right=False)) * valid
    fixated_above = (fixated - torch.searchsorted(distinct, values, right=True)) * valid
    others_above = above - fixated_above
    others_tied = at_least - above - (fixated_at_least - fixated_above)
    score = 1 - (2 * others_above + others_tied).sum(-1).double() / (2 * nm)
    chance: Tensor | float = 0.5
    if method == "judd":
        e, g = others_tied[:, 0].double(), (fixated_at_least - fixated_above)[:, 0].double()
        score = score + (others_above[:, 0].double() + e * g / (g + 1)) / (2 * nm)
        chance = 0.5 + 0.5 / (n + 1).double()
    return _degenerate(score, p, chance, constant, nothing).to(p.raw.dtype)


def auc_borji(
    pred: Tensor,
    fixations: Tensor,
    *,
    method: Literal["step", "sampled"] = "step",
    step: float = 0.1,
    splits: int = 100,
    seed: int = 0,
    min_fixations: int = 2,
    constant: Constant = "chance",
) -> Tensor:
    """AUC-Borji: positives are the fixated pixels, negatives drawn from all pixels, thresholds every `step`.

    The prediction is min-max scaled. "step" is the exact expectation over the random negatives: the trapezoid
    with the false-positive rates of all pixels.

    Args:
        pred: (..., H, W) prediction.
        fixations: (..., N, 2) (row, column), padded with -1.
        method: "step", or "sampled" for the mean of `splits` draws of N pixels with replacement, from `seed`.
        step: distance of the thresholds 0, step, 2 step, ... up to 1.
        splits: number of draws of "sampled" (MIT code: 100).
        seed: of "sampled".
        min_fixations: frames with fewer fixations give NaN; the MIT code needs two.
        constant: what a constant prediction scores: "chance" (0.5), or "nan" ("mit" is the same here).

    Returns:
        (...) in [0, 1]; NaN for fewer than `min_fixations` fixations.
    """
    _choose("method", method, ("step", "sampled"))
    p = Maps(pred)
    f = Points(fixations, p)
    if method == "sampled":
        from avsal.metrics.sampling import borji_splits

        score = borji_splits(p, f, grid(step, True), splits, seed)
        score = _degenerate(score, p, 0.5, constant, f.count < max(min_fixations, 1)).to(p.raw.dtype)
    else:
        score = _auc_borji(p, f, step, constant, min_fixations)
    return score.reshape(p.lead)


def _auc_borji(
    p: Maps, f: Points, step: float = 0.1, constant: Constant = "chance", min_fixations: int = 2
) -> Tensor:
    levels = grid(step, True)
    tp = rates(bins(p, f.values(p.raw), levels), f.valid, len(levels))
    everything = torch.ones((1, 1), dtype=torch.bool, device=p.raw.device)
    fp = torch.cat([rates(bins(m, m.raw, levels), everything, len(levels)) for m in p.parts()])
    return _degenerate(step_area(tp, fp), p, 0.5, constant, f.count < max(min_fixations, 1)).to(p.raw.dtype)


def sauc(
    pred: Tensor,
    fixations: Tensor,
    negatives: Tensor,
    *,
    method: SplitMethod = "step",
    step: float = 0.1,
    endpoint: bool = True,
    splits: int = 100,
    seed: int = 0,
    duplicates: bool = False,
    constant: Constant = "chance",
) -> Tensor:
    """Shuffled AUC (sAUC): fixated pixels against fixations of other frames.

    "step" is the expectation of the MIT code over its random draws: the trapezoid over the thresholds 0,
    step, ..., 1 of the min-max scaled map, with the false-positive rates of all negatives.

    Args:
        pred: (..., H, W) prediction.
        fixations: (..., N, 2) (row, column), padded with -1.
        negatives: (..., M, 2) (row, column), padded with -1; taken as given: exclude the frame's own pixels
            first where the protocol says so (`avsal.metrics.video_negatives`).
        method: "step"; "exact", the rank statistic with ties one half (pysaliency, scikit-learn); "sampled",
            the mean of `splits` draws of min(N, M) negatives without replacement, from `seed`.
        step: distance of the thresholds.
        endpoint: False leaves the threshold 1 out, as UNISAL does.
        splits: number of draws of "sampled" (MIT code: 100).
        seed: of "sampled".
        duplicates: whether coinciding points count each (pysaliency), positives and negatives alike.
        constant: what a constant prediction scores: "chance" (0.5), or "nan" ("mit" is the same here).

    Returns:
        (...) in [0, 1]; NaN without fixations or without negatives.
    """
    _choose("method", method, ("step", "exact", "sampled"))
    p = Maps(pred)
    f = Points(fixations, p, duplicates=duplicates)
    o = Points(negatives, p, "negatives", duplicates=duplicates)
    if method == "sampled":
        from avsal.metrics.sampling import shuffled_splits

        score = shuffled_splits(p, f, o, grid(step, endpoint), splits, seed)
        score = _degenerate(score, p, 0.5, constant, (f.count == 0) | (o.count == 0)).to(p.raw.dtype)
    else:
        score = _sauc(p, f, o, method, step, endpoint, constant)
    return score.reshape(p.lead)


def _sauc(
    p: Maps,
    f: Points,
    o: Points,
    method: str = "step",
    step: float = 0.1,
    endpoint: bool = True,
    constant: Constant = "chance",
) -> Tensor:
    positive, negative = f.values(p.raw), o.values(p.raw)
    if method == "exact":
        negative = ascending(negative)
        # Twice the negatives below plus the tied ones: both searches count a tie once.
        won = torch.searchsorted(negative, positive, right=False) + torch.searchsorted(
            negative, positive, right=True
        )
        score = (won * f.valid).sum(-1).double() / (2.0 * f.count * o.count)
    else:
        levels = grid(step, endpoint)
        tp = rates(bins(p, positive, levels), f.valid, len(levels))
        fp = rates(bins(p, negative, levels), o.valid, len(levels))
        score = step_area(tp, fp)
    return _degenerate(score, p, 0.5, constant, (f.count == 0) | (o.count == 0)).to(p.raw.dtype)
