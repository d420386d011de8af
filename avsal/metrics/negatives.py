"""Where the negatives of shuffled AUC come from.

They depend on annotations only, so the data side builds them once for each video.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avsal.metrics.inputs import MetricInputError


def video_negatives(fixations: Tensor, *, exclude: bool = True) -> Tensor:
    """Union of the fixated pixels of all frames of a video, minus the frame's own (protocol `video`).

    STAViS's text and driver and ViNet's DIEM driver build the other map this way.

    Args:
        fixations: (T, N, 2) int64 (row, column), padded with -1, of every frame of one video.
        exclude: whether the pixels fixated in frame t are removed from its negatives.

    Returns:
        (T, M, 2) int64, padded with -1; every pixel at most once.
    """
    frames = fixations.shape[0]
    flat = fixations.reshape(-1, 2)
    union = flat[(flat >= 0).all(-1)].unique(dim=0)
    if not exclude:
        return union.expand(frames, -1, -1).clone()
    # One key per pixel, so that membership in a frame is a lookup among sorted keys.
    width = int(union[:, 1].max()) + 1 if len(union) else 1
    key = union[:, 0] * width + union[:, 1]
    own = torch.where((fixations >= 0).all(-1), fixations[..., 0] * width + fixations[..., 1], -1)
    taken = torch.zeros((frames, len(union)), dtype=torch.bool, device=fixations.device)
    frame, _ = (own >= 0).nonzero(as_tuple=True)
    taken[frame, torch.searchsorted(key, own[own >= 0])] = True
    return _pack(union, ~taken)


def random_frames_negatives(
    fixations: Tensor, *, frames: int = 10, seed: int = 0, size: tuple[int, int] | None = None
) -> Tensor:
    """Union of the fixations of random frames of the whole set, redrawn for each frame (protocol
    `dataset10`).

    The DHF1K protocol: the frame itself is not excluded. The draw depends on the seed only.

    Args:
        fixations: (T, N, 2) int64 (row, column), padded with -1, of the frames of the set, on one grid.
        frames: how many frames are drawn for each.
        seed: of the draw.
        size: (H, W) of the grid, for the check of the coordinates.

    Returns:
        (T, M, 2) int64, padded with -1; every pixel at most once in a frame.
    """
    total = fixations.shape[0]
    if total < 1:
        raise MetricInputError("no frames to draw negatives from.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand((total, total), generator=generator).topk(min(frames, total), dim=-1).indices
    points = fixations[drawn.to(fixations.device)].flatten(1, 2)
    width = size[1] if size else int(fixations[..., 1].max().clamp(min=0)) + 1
    key = torch.where((points >= 0).all(-1), points[..., 0] * width + points[..., 1], -1).sort(-1).values
    fresh = key >= 0
    fresh[:, 1:] &= key[:, 1:] != key[:, :-1]
    most = int(fresh.sum(-1).amax())
    order = (~fresh).long().argsort(dim=-1, stable=True)[:, :most]
    key = torch.where(fresh, key, -1).gather(-1, order)
    return torch.where(
        key.unsqueeze(-1) >= 0,
        torch.stack((key // width, key % width), -1),
        torch.full_like(key, -1).unsqueeze(-1),
    )


def _pack(pixels: Tensor, chosen: Tensor) -> Tensor:
    """Turn (U, 2) pixels and a (T, U) choice into (T, M, 2) padded with -1."""
    most = int(chosen.sum(-1).amax()) if chosen.numel() else 0
    out = torch.full((chosen.shape[0], most, 2), -1, dtype=torch.int64, device=pixels.device)
    frame, index = chosen.nonzero(as_tuple=True)
    out[frame, (chosen.cumsum(-1) - 1)[frame, index]] = pixels[index]
    return out
