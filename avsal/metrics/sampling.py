"""The random forms of AUC-Judd, AUC-Borji and shuffled AUC, as the MIT code runs them, from a seed.

Published numbers were made this way. The closed forms in `functional` are their expectations and should be
preferred. Draws come from a CPU generator, so that a seed means the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from avsal.metrics.inputs import Maps, MetricInputError, Points
from avsal.metrics.roc import bins, rates, step_area

#: Upper bound of random numbers held at once.
_BUDGET = 1 << 24


def jittered(p: Maps, seed: int) -> Maps:
    """Return the maps in float64 with uniform noise of 1e-7 added, which breaks ties at random."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(p.raw.shape, generator=generator, dtype=torch.float64).to(p.raw.device)
    return Maps((p.raw.double() + noise * 1e-7).reshape(*p.lead, *p.size), p.name, check=False)


def borji_splits(p: Maps, f: Points, levels: Tensor, splits: int, seed: int) -> Tensor:
    """Return (B,) means of AUC-Borji over draws, with replacement, of as many pixels as fixations."""
    generator = torch.Generator().manual_seed(seed)
    pixels = bins(p, p.raw, levels)
    positive, width = bins(p, f.values(p.raw), levels), f.index.shape[-1]

    def draw(count: int) -> tuple[Tensor, Tensor]:
        pick = torch.randint(p.pixels, (len(p), count * width), generator=generator).to(pixels.device)
        drawn = pixels.gather(-1, pick).reshape(len(p), count, width)
        return drawn, f.valid.sort(-1, descending=True).values.unsqueeze(1).expand_as(drawn)

    return _mean_of_splits(positive, f.valid, draw, len(levels), splits, len(p) * max(width, 1))


def shuffled_splits(p: Maps, f: Points, o: Points, levels: Tensor, splits: int, seed: int) -> Tensor:
    """Return (B,) means of sAUC over `splits` draws of min(N, M) negatives without replacement."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = bins(p, f.values(p.raw), levels), bins(p, o.values(p.raw), levels)
    width = min(f.index.shape[-1], o.index.shape[-1])
    wanted = torch.minimum(f.count, o.count)[:, None, None]

    def draw(count: int) -> tuple[Tensor, Tensor]:
        key = torch.rand((len(p), count, o.index.shape[-1]), generator=generator).to(negative.device)
        key = key.masked_fill(~o.valid.unsqueeze(1), 2.0)
        pick = key.topk(width, dim=-1, largest=False, sorted=True).indices
        drawn = negative.unsqueeze(1).expand(-1, count, -1).gather(-1, pick)
        return drawn, (torch.arange(width, device=drawn.device) < wanted).expand_as(drawn)

    return _mean_of_splits(positive, f.valid, draw, len(levels), splits, len(p) * max(o.index.shape[-1], 1))


def _mean_of_splits(
    positive: Tensor,
    valid: Tensor,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    splits: int,
    cost: int,
) -> Tensor:
    if splits < 1:
        raise MetricInputError(f"splits={splits}: at least one draw is needed.")
    tp = rates(positive, valid, steps).unsqueeze(1)
    total, left = torch.zeros(positive.shape[0], dtype=torch.float64, device=positive.device), splits
    while left:
        count = max(1, min(left, _BUDGET // cost))
        drawn, chosen = draw(count)
        fp = rates(drawn.flatten(0, 1), chosen.flatten(0, 1), steps).reshape(-1, count, steps + 1)
        total += step_area(tp.expand_as(fp), fp).sum(-1)
        left -= count
    return total / splits
