"""Log-spectrograms around video frames, from the waveform, on its device (CSTS)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError

#: Added to the power spectrum before its logarithm; silence is log(1e-6) everywhere.
POWER_FLOOR = 1e-6


class SpectrogramWindows(nn.Module):
    """One log-spectrogram around every video frame, from the waveform, as the authors' scripts make them.

    log(|STFT|^2 + 1e-6) with a periodic Hann window, frames centred, zeros outside; linear frequency, no
    normalisation. Column c is centred on sample c * hop.

    Args:
        bins: frequency bins; the transform has 2 * bins - 1 points.
        columns: columns of the window around each video frame.
        sample_rate: Hz; 24000 in the paper.
        window: samples of the Hann window (10 ms in the paper).
        hop: samples between columns (5 ms in the paper).
    """

    hann: Tensor

    def __init__(
        self, bins: int = 256, columns: int = 256, sample_rate: int = 24000, window: int = 240, hop: int = 120
    ) -> None:
        super().__init__()
        if window > 2 * bins - 1:
            raise ConfigError(
                f"A window of {window} samples needs at least {(window + 2) // 2} frequency bins, not {bins}."
            )
        self.bins, self.columns, self.sample_rate, self.hop = bins, columns, sample_rate, hop
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Return log-power spectrograms (B, bins, 1 + S // hop) of waveforms (B, S) in [-1, 1]."""
        with torch.autocast(waveform.device.type, enabled=False):
            points = 2 * self.bins - 1
            spectrum = torch.stft(
                # Padded by hand: a waveform shorter than half a transform is allowed here.
                F.pad(waveform.float(), (points // 2, points // 2)),
                points,
                self.hop,
                len(self.hann),
                # Made here where the network's type has rounded the buffer.
                self.hann
                if self.hann.dtype == torch.float32
                else torch.hann_window(len(self.hann), device=waveform.device),
                center=False,
                return_complex=True,
            )
            return torch.log(spectrum.real.square() + spectrum.imag.square() + POWER_FLOOR)

    def centres(self, frame_times: Tensor, seconds: Tensor, columns: Tensor) -> Tensor:
        """Return the centre column (B, T) of every frame's window.

        round-half-even(time / duration * columns), clamped so that the window stays inside the observed sound:
        near its ends several frames share one window.

        Args:
            frame_times: (B, T) seconds from the first sample.
            seconds: (B,) duration of the observed sound.
            columns: (B,) columns of its spectrogram.
        """
        place = frame_times.to(torch.float64) / seconds.to(torch.float64)[:, None] * columns[:, None]
        half = self.columns // 2
        last = (columns - 1 - half).clamp_min(half)
        # Six decimals take away the division's noise, so that true halves go to the even column.
        return torch.minimum(place.round(decimals=6).round().long().clamp_min(half), last[:, None])

    def cut(self, spectrogram: Tensor, columns: Tensor, seconds: Tensor, frame_times: Tensor) -> Tensor:
        """Return the windows (B, 1, T, bins, columns) of log-spectrograms.

        Args:
            spectrogram: (B, bins, C) of the observed sound, from its first sample on.
            columns: (B,) columns that belong to each; the rest, and what a short one lacks, is silence.
            seconds: (B,) duration of the observed sound.
            frame_times: (B, T) seconds from the first sample.
        """
        if spectrogram.shape[1] != self.bins:
            raise ConfigError(
                f"Spectrograms of {spectrogram.shape[1]} frequency bins for a network of {self.bins}."
            )
        silence = math.log(POWER_FLOOR)
        seen = torch.arange(spectrogram.shape[2], device=spectrogram.device) < columns[:, None]
        spectrogram = spectrogram.masked_fill(~seen[:, None], silence)
        spectrogram = F.pad(spectrogram, (0, max(self.columns - spectrogram.shape[2], 0)), value=silence)
        offsets = torch.arange(self.columns, device=spectrogram.device) - self.columns // 2
        index = (self.centres(frame_times, seconds, columns)[..., None] + offsets).flatten(1)
        windows = spectrogram.gather(2, index[:, None].expand(-1, self.bins, -1))
        return windows.unflatten(2, (frame_times.shape[1], self.columns)).transpose(1, 2)[:, None]

    def forward(self, waveform: Tensor, length: Tensor, has_audio: Tensor, frame_times: Tensor) -> Tensor:
        """Return the windows (B, 1, T, bins, columns); missing sound is silence."""
        inside = torch.arange(waveform.shape[1], device=waveform.device) < length[:, None]
        spectrogram = self.spectrogram(waveform.float() * (inside & has_audio[:, None]))
        # The last column whose samples have all been heard.
        columns = length // self.hop
        seconds = length.clamp_min(1).to(torch.float64) / self.sample_rate
        return self.cut(spectrogram, columns, seconds, frame_times)
