"""VGGish: 0.96 s of sound to a 128-d embedding, and the log-mel spectrogram that it hears.

Hershey et al., "CNN architectures for large-scale audio classification" (2017). The spectrogram follows the
original recipe to the last digit: ready-made mel filter banks centre the window differently and give other
values (off by up to 1.8 in the logarithm).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.nn.state import load_exact

SAMPLE_RATE = 16000
#: Samples that give exactly 96 frames of 25 ms every 10 ms.
PATCH_SAMPLES = 15600
_WINDOW, _HOP, _FFT, _BANDS = 400, 160, 512, 64


def mel_matrix(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the (257, 64) matrix from FFT magnitudes to HTK mel bands between 125 and 7500 Hz.

    The triangles are linear in mel (1127 ln(1 + f / 700)) and not normalised by area; the DC bin is zero.
    """

    bins = 1127.0 * torch.log1p(torch.arange(_FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / _FFT / 700.0)
    low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in (125.0, 7500.0))
    edges = torch.linspace(low, high, _BANDS + 2, dtype=torch.float64)
    bins = bins[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre))
    triangles = triangles.clamp_min(0.0)
    triangles[0] = 0.0
    return triangles.to(dtype)


class LogMel(nn.Module):
    """Log-mel spectrogram of 16 kHz sound: ln(mel magnitude + 0.01), computed in float32 or float64.

    Args:
        samples: the excerpt's length that `excerpt` cuts to; 15600 gives 96 frames.
    """

    window: Tensor
    mel: Tensor

    def __init__(self, samples: int = PATCH_SAMPLES) -> None:
        super().__init__()
        self.samples = samples
        window = torch.hann_window(_WINDOW, periodic=True, dtype=torch.float64).float()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel", mel_matrix(torch.float32), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return (B, 1, frames, 64) for waveforms (B, S) in [-1, 1]; 15600 samples give 96 frames."""
        wide = waveform if waveform.dtype == torch.float64 else waveform.float()
        frames = wide.unfold(-1, _WINDOW, _HOP) * self.window.to(wide.dtype)
        magnitude = torch.fft.rfft(frames, _FFT).abs()
        # Quiet bands would vanish in half precision, which mixed precision gives to matrix products.
        kind = wide.device.type
        with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            bands = magnitude @ self.mel.to(wide.dtype)
        return torch.log(bands + 0.01).unsqueeze(1)

    def excerpt(
        self, waveform: Tensor, audio_length: Tensor | None = None, has_audio: Tensor | None = None
    ) -> Tensor:
        """Return (B, samples): each clip's sound in the middle of zeros, or its centre where it is longer.

        Args:
            waveform: (B, S) in [-1, 1], zero-padded at the end.
            audio_length: (B,) samples that belong to each clip; None means all.
            has_audio: (B,) bool; False gives silence. None means all True.
        """
        batch, length = waveform.shape
        if audio_length is None:
            audio_length = torch.full((batch,), length, device=waveform.device)
        if has_audio is not None:
            audio_length = audio_length * has_audio.to(audio_length.dtype)
        audio_length = audio_length.clamp(0, length)
        # Where each output sample comes from: the middles of excerpt and output coincide.
        begin = torch.div(self.samples - audio_length, 2, rounding_mode="floor")
        index = torch.arange(self.samples, device=waveform.device)[None] - begin[:, None]
        inside = (index >= 0) & (index < audio_length[:, None])
        padded = waveform if length else F.pad(waveform, (0, 1))
        picked = padded.gather(1, index.clamp(0, padded.shape[1] - 1))
        return torch.where(inside, picked, torch.zeros_like(picked))


class VGGish(nn.Module):
    """VGGish up to its 128-d embedding, before PCA and 8-bit quantisation.

    Args:
        final_relu: keep the ReLU after the last linear layer, as the PyTorch ports do; the original
            embedding has none.

    Attributes:
        out_features: 128.
    """

    out_features = 128

    def __init__(self, final_relu: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for widths in ((64,), (128,), (256, 256), (512, 512)):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        head: list[nn.Module] = [
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 128),
        ]
        if final_relu:
            head.append(nn.ReLU(inplace=True))
        self.embeddings = nn.Sequential(*head)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return the embedding (B, 128) of log-mel patches (B, 1, 96, 64)."""
        maps = self.features(log_mel)
        # The original network flattens time, mel, channel.
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))

    def load_published(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Load published weights: torchvggish (`features.0…`) or torchaudio (`features_network.0…`)."""

        def rename(name: str) -> str:
            return re.sub(
                r"^(features|embedding)_network\.",
                lambda found: f"{'features' if found[1] == 'features' else 'embeddings'}.",
                name,
            )

        return load_exact(self, state_dict, rename=rename, unused=(r"^pproc\.",), what="VGGish state dict")

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor], *, final_relu: bool = True) -> Self:
        """Return VGGish in eval mode with published weights; see `load_published`."""
        return cls(final_relu).load_published(state_dict).eval()


class SmallAudioNet(nn.Module):
    """A small convolutional stand-in for VGGish on the same log-mel patch, trained with the network.

    Not from any paper: 72 million frozen parameters are out of place beside a network of one million.

    Args:
        width: channels of the first of three layers (doubling), each halving time and frequency.
        out_features: size of the embedding.
    """

    def __init__(self, width: int = 16, out_features: int = 128) -> None:
        super().__init__()
        self.out_features = out_features
        layers: list[nn.Module] = []
        channels = 1
        for index in range(3):
            out = width * 2**index
            layers += [
                nn.Conv2d(channels, out, 3, 2, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        self.features = nn.Sequential(*layers)
        # The loudest moment of each band says what sounds, the mean says how often.
        self.head = nn.Linear(channels * 8 * 2, out_features)
        # The embedding has VGGish's order of magnitude, which AVIM and predictive coding are laid out for.
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return the embedding (B, out_features), non-negative, of log-mel patches (B, 1, 96, 64)."""
        maps = self.features(log_mel)
        pooled = torch.cat((maps.amax(2), maps.mean(2)), dim=1)
        return F.relu(self.head(pooled.flatten(1)))
