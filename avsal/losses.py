"""Losses of the five papers, each equation once.

Every function takes batches of maps (..., h, w) and returns one value for each map (shape ...), so
that callers weight, mask and average as their paper says. Correlation, similarity and NSS are returned
positive (larger is better); a loss subtracts them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: MATLAB's eps, which the field's scripts use in the KL divergence.
EPS = 2.0**-52


def _flat(maps: Tensor) -> Tensor:
    return maps.float().flatten(-2)


def _distribution(maps: Tensor) -> Tensor:
    flat = _flat(maps)
    return flat / flat.sum(-1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)


def _positive(scale: Tensor) -> Tensor:
    """Return the scale, or 1 without gradient where it is 0."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def kl_divergence(prediction: Tensor, density: Tensor, *, eps: float = EPS) -> Tensor:
    """Kullback-Leibler divergence of the prediction from the ground truth, in nats.

    sum_x q log(eps + q / (p + eps)) with p and q divided by their sums (CASP-Net Eq. 8, MSPI Eq. 9,
    AVRSP Eq. 16).

    Args:
        prediction: (..., h, w) non-negative.
        density: (..., h, w) non-negative ground truth.
        eps: regularisation; 1e-7 is advised below float32.

    Returns:
        (...) values >= 0 up to eps; an empty ground truth gives 0.
    """
    p, q = _distribution(prediction), _distribution(density)
    return (q * torch.log(eps + q / (p + eps))).sum(-1)


def reverse_kl(prediction: Tensor, target: Tensor, *, eps: float = 1e-10) -> Tensor:
    """KL divergence of the target from the prediction, as CSTS's released code trains.

    sum_x p log(p + eps) - p log(q + eps), with p and q that already sum to 1 (CSTS, KL term of its loss).

    Args:
        prediction: (..., h, w) softmax maps.
        target: (..., h, w) Gaussian targets that sum to 1.

    Returns:
        (...) values in nats.
    """
    p, q = _flat(prediction), _flat(target)
    return (p * torch.log(p + eps) - p * torch.log(q + eps)).sum(-1)


def correlation(prediction: Tensor, density: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Pearson's linear correlation coefficient over all pixels, in [-1, 1].

    The common CC term (STAViS Eq. 9, CASP-Net Eq. 9, MSPI Eq. 8, AVRSP Eq. 17); a constant map gives 0.
    """
    p, q = _flat(prediction), _flat(density)
    p = p - p.mean(-1, keepdim=True)
    q = q - q.mean(-1, keepdim=True)
    # A relative guard, so that maps that sum to one and 0..255 maps are treated alike; a constant map,
    # which is 0 here, passes no gradient instead of an enormous one.
    p = p / _positive(p.abs().amax(-1, keepdim=True))
    q = q / _positive(q.abs().amax(-1, keepdim=True))
    return (p * q).sum(-1) / torch.sqrt(p.square().sum(-1) * q.square().sum(-1) + eps)


def similarity(prediction: Tensor, density: Tensor, *, norm: str = "minmax") -> Tensor:
    """Histogram intersection sum_x min(p, q) of two distributions, in [0, 1].

    Args:
        prediction: (..., h, w).
        density: (..., h, w).
        norm: "minmax" subtracts each map's minimum before dividing by the sum (CASP-Net Eq. 10),
            "sum" only divides (AVRSP Eq. 18).
    """
    p, q = _flat(prediction), _flat(density)
    if norm == "minmax":
        p = p - p.amin(-1, keepdim=True)
        q = q - q.amin(-1, keepdim=True)
    tiny = torch.finfo(p.dtype).tiny
    p = p / p.sum(-1, keepdim=True).clamp_min(tiny)
    q = q / q.sum(-1, keepdim=True).clamp_min(tiny)
    return torch.minimum(p, q).sum(-1)


def cross_entropy(logits: Tensor, density: Tensor) -> Tensor:
    """Binary cross-entropy with logits, summed over pixels (STAViS Eq. 8).

    Args:
        logits: (..., h, w) before the sigmoid.
        density: (..., h, w) in [0, 1].
    """
    return F.binary_cross_entropy_with_logits(_flat(logits), _flat(density), reduction="none").sum(-1)


def scanpath_saliency(prediction: Tensor, fixated: Tensor, *, eps: float = 2.0**-23) -> Tensor:
    """Mean of the standardised prediction at fixated pixels (NSS; STAViS Eq. 10).

    Args:
        prediction: (..., h, w).
        fixated: (..., h, w), nonzero where somebody fixated.

    Returns:
        (...); 0 without fixations or for a constant prediction.
    """
    p, f = _flat(prediction), (_flat(fixated) > 0).float()
    p = p - p.mean(-1, keepdim=True)
    # The scale is set apart first: float32 squares of a small map's deviations would vanish.
    p = p / _positive(p.abs().amax(-1, keepdim=True))
    z = p / _positive(p.square().mean(-1, keepdim=True)).sqrt()
    return (z * f).sum(-1) / (f.sum(-1) + eps)


def fixation_map(fixations: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps that are 1 where somebody fixated and 0 elsewhere.

    Args:
        fixations: (..., N, 2) int64 (row, column); entries outside the map (such as the padding -1) do
            not count.
        size: (h, w) of the maps.

    Returns:
        (..., h, w) float32.
    """
    height, width = size
    row, column = fixations.unbind(-1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    # Everything outside lands in one spare cell behind the map.
    index = torch.where(inside, row * width + column, height * width)
    maps = torch.zeros(*index.shape[:-1], height * width + 1, device=fixations.device)
    return maps.scatter_(-1, index, 1.0)[..., :-1].unflatten(-1, (height, width))


def gather_with_gradient(embedding: Tensor) -> Tensor:
    """Concatenate a (B, D) tensor of every rank into (world * B, D), gradients reaching every rank.

    A single process returns its input. The authors' gather hands every rank the gradient of rank 0's
    slice; `torch.distributed.nn`'s sums over ranks, as Equation 9 over the global batch needs.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return embedding
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(embedding)), dim=0)


def contrastive(video: Tensor, audio: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Symmetric InfoNCE over the batch (CSTS Eq. 9), the two directions summed.

    Args:
        video: (B, D) embeddings, gathered over ranks if the batch is distributed.
        audio: (B, D) embeddings of the same clips.
        temperature: divisor of the cosine similarities.

    Returns:
        A scalar >= 0; 0 for a batch of one.
    """
    similarity_matrix = F.normalize(video.float(), dim=-1, eps=1e-8) @ F.normalize(
        audio.float(), dim=-1, eps=1e-8
    ).transpose(0, 1)
    logits = similarity_matrix / temperature
    truth = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, truth) + F.cross_entropy(logits.transpose(0, 1), truth)
