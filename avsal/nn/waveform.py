"""From the sound of a clip to the waveform that SoundNet expects in STAViS and AVRSP."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: SoundNet's waveforms lie within +-256: 32-bit integer samples times 2^-23.
GAIN = 256.0


def windowed_excerpt(
    waveform: Tensor,
    length: Tensor | None = None,
    has_audio: Tensor | None = None,
    *,
    samples: int,
    gain: float = GAIN,
) -> Tensor:
    """Weight each clip's sound with a Hann window of its own length and centre it in a fixed buffer.

    The window is symmetric and ends in zeros, so the moment in the middle of the clip weighs most. An
    excerpt of n samples begins at index `samples // 2 - n // 2` of the buffer; of a longer one the
    middle is kept.

    Args:
        waveform: (B, S) float in [-1, 1], zero-padded at the end.
        length: (B,) samples n of each row that belong to the clip; None means all S.
        has_audio: (B,) bool, False gives silence; None means all True.
        samples: length of the buffer.
        gain: factor on the samples.

    Returns:
        (B, samples) float32 on the waveform's device.
    """
    total = waveform.shape[-1]
    if total == 0:
        return waveform.new_zeros(waveform.shape[0], samples, dtype=torch.float32)
    if length is None:
        length = torch.full((waveform.shape[0],), total, device=waveform.device)
    n = length.to(waveform.device).clamp(0, total).unsqueeze(-1)
    first = samples // 2 - torch.div(n, 2, rounding_mode="floor")
    index = torch.arange(samples, device=waveform.device) - first
    inside = (index >= 0) & (index < n)
    if has_audio is not None:
        inside = inside & has_audio.to(waveform.device).unsqueeze(-1)
    # sin² is the same window as (1 - cos) / 2 and keeps its precision near the zeros.
    hann = torch.sin(math.pi * index / (n - 1).clamp_min(1)).square()
    hann = torch.where(n > 1, hann, torch.ones_like(hann))
    excerpt = waveform.float().gather(-1, index.clamp(0, total - 1))
    return torch.where(inside, excerpt * hann * gain, torch.zeros_like(excerpt))
