"""Light-ASD: is this face speaking what is heard? (Liao et al., "A Light Weight Model for Active Speaker
Detection", CVPR 2023), and the MFCCs that it hears. The layers keep the names of the released weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.nn.motion import unwrap
from avsal.nn.state import load_exact

#: Pictures per second, side of a face picture, sound samples per second, MFCC rows for each picture.
FPS, SIDE, RATE, ROWS = 25, 112, 16000, 4
#: Grey values of the faces are normalised by these (0..1 scale).
GREY_MEAN, GREY_STD = 0.4161, 0.1688
#: How many pictures before and after one decide its encoding: two in each of three blocks.
REACH = 6
CEPSTRA, FILTERS, POINTS, WINDOW, HOP, LIFTER, EMPHASIS = 13, 26, 512, 400, 160, 22, 0.97


class _Block(nn.Module):
    """Two branches (3 and 5 taps), each first across space (or frequency), then along time, summed and joined.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        first: name of the first convolutions, "s" (space) or "m" (frequency).
        stride: stride in space.
    """

    def __init__(self, inputs: int, outputs: int, first: str, stride: int = 1) -> None:
        super().__init__()
        self.first, self.time = first, 2 if first == "s" else 3
        visual = first == "s"
        conv: Any
        norm: Any
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if visual else (nn.Conv2d, nn.BatchNorm2d)
        for taps in (3, 5):
            half = taps // 2
            shape, pad, steps = (
                ((1, taps, taps), (0, half, half), (1, stride, stride))
                if visual
                else ((taps, 1), (half, 0), (1, 1))
            )
            along = (taps, 1, 1) if visual else (1, taps)
            self.add_module(f"{first}_{taps}", conv(inputs, outputs, shape, steps, pad, bias=False))
            self.add_module(f"bn_{first}_{taps}", norm(outputs, eps=0.001))
            self.add_module(f"t_{taps}", conv(outputs, outputs, along, bias=False))
            self.add_module(f"bn_t_{taps}", norm(outputs, eps=0.001))
        self.last = conv(outputs, outputs, 1, bias=False)
        self.bn_last = norm(outputs, eps=0.001)

    def _unit(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"bn_{name}")(getattr(self, name)(x)))

    def forward(
        self, x: Tensor, past: list[Tensor] | None = None, *, final: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the output and what the next piece of the same sequence needs.

        Args:
            x: the next pieces of the sequences, time in dimension 2 (pictures) or 3 (sound).
            past: what the call before returned; None begins a sequence.
            final: no piece follows. Otherwise the output ends two steps before the input does.
        """
        branches, kept = [], []
        for taps, before in zip((3, 5), past or (None, None), strict=True):
            y = self._unit(f"{self.first}_{taps}", x)
            edge = torch.zeros_like(y.narrow(self.time, 0, 1))
            y = torch.cat(
                [*((edge, edge) if before is None else (before,)), y, *((edge, edge) if final else ())],
                self.time,
            )
            steps = y.shape[self.time]
            kept.append(y.narrow(self.time, max(steps - 4, 0), min(steps, 4)))
            if steps < 5:
                branches.append(y.narrow(self.time, 0, 0))
                continue
            spare = (5 - taps) // 2
            branches.append(self._unit(f"t_{taps}", y.narrow(self.time, spare, steps - 2 * spare)))
        if not branches[0].shape[self.time]:
            return branches[0], kept
        return F.relu(self.bn_last(self.last(branches[0] + branches[1]))), kept


class _VisualEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = _Block(1, 32, "s", 2)
        self.block2 = _Block(32, 64, "s")
        self.block3 = _Block(64, 128, "s")

    def forward(
        self, x: Tensor, past: list[Any] | None = None, *, final: bool = True
    ) -> tuple[Tensor, list[Any]]:
        kept = list(past or [None] * 3)
        for index, block in enumerate((self.block1, self.block2, self.block3)):
            x, kept[index] = block(x, kept[index], final=final)
            if not x.shape[2]:
                return x.new_zeros(len(x), 0, 128), kept
            if index < 2:
                x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        return x.amax((3, 4)).transpose(1, 2), kept


class _AudioEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = _Block(1, 32, "m")
        self.block2 = _Block(32, 64, "m")
        self.block3 = _Block(64, 128, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.block1(x)[0], (1, 3), (1, 2), (0, 1))
        x = F.max_pool2d(self.block2(x)[0], (1, 3), (1, 2), (0, 1))
        return self.block3(x)[0].mean(2).transpose(1, 2)


class _Memory(nn.Module):
    """A GRU forwards in time, then one backwards, GELU after each."""

    def __init__(self) -> None:
        super().__init__()
        self.gru_forward = nn.GRU(128, 128, batch_first=True)
        self.gru_backward = nn.GRU(128, 128, batch_first=True)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, state = self.gru_forward(x, state)
        return self.backwards(x), state

    def backwards(self, x: Tensor) -> Tensor:
        """Return the backward pass over the forward GRU's outputs (N, T, 128)."""
        x, _ = self.gru_backward(F.gelu(x).flip(1))
        return F.gelu(x.flip(1))


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visualEncoder = _VisualEncoder()
        self.audioEncoder = _AudioEncoder()
        self.GRU = _Memory()


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.FC = nn.Linear(128, 2)


class LightASD(nn.Module):
    """Active-speaker detection: from a face's pictures and the sound to "speaks" at 25 pictures per second."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Network()
        self.lossAV = _Head()
        self.lossV = _Head()

    def faces(self, faces: Tensor) -> Tensor:
        """Return the encoding (N, T, 128) of face pictures (N, T, 112, 112), grey 0..255.

        A picture's encoding depends on the `REACH` pictures before and after it; outside are zeros.
        """
        return self.encode(faces)[0]

    def encode(
        self, faces: Tensor, past: list[Any] | None = None, *, final: bool = True
    ) -> tuple[Tensor, list[Any]]:
        """Return the encodings that `faces`, the next pictures of a sequence, complete, and what the next call needs.

        Pieces give exactly what the whole sequence gives; without `final` the last `REACH` pictures stay open.
        """
        pictures = ((faces / 255 - GREY_MEAN) / GREY_STD)[:, None].to(self.lossV.FC.weight)
        return self.model.visualEncoder(pictures, past, final=final)

    def sound(self, mfcc: Tensor) -> Tensor:
        """Return the encoding (N, T, 128) of MFCCs (N, 4 T, 13), four rows for each picture."""
        return self.model.audioEncoder(mfcc[:, None].transpose(2, 3).to(self.lossV.FC.weight))

    def speaks(self, hidden: Tensor) -> Tensor:
        """Return the logit (N, T) "speaks" from the memory's output (N, T, 128): the second output less the first."""
        both = self.lossAV.FC(hidden)
        return (both[..., 1] - both[..., 0]).float()

    def looks(self, codes: Tensor) -> Tensor:
        """Return the logit (N, T) "speaks" from encodings (N, T, 128) of faces alone, by the head for that."""
        both = self.lossV.FC(codes)
        return (both[..., 1] - both[..., 0]).float()

    def forward(self, faces: Tensor, mfcc: Tensor) -> Tensor:
        """Return the logit (N, T) "speaks" of each picture.

        Args:
            faces: (N, T, 112, 112) grey values 0..255 at 25 pictures per second.
            mfcc: (N, 4 T, 13) of the same time (`mfcc`).
        """
        hidden, _ = self.model.GRU(self.faces(faces) + self.sound(mfcc))
        return self.speaks(hidden)

    def load_published(self, checkpoint: Mapping[str, Any], *, what: str = "Light-ASD checkpoint") -> Self:
        """Load the released weights.

        Raises:
            WeightsError: an entry is missing, left over or of another shape.
        """
        return load_exact(self, unwrap(checkpoint), what=what)


def mfcc(waveform: Tensor) -> Tensor:
    """Return 13 MFCCs of 25 ms windows every 10 ms: (..., S) at 16 kHz, full scale 1, -> (..., rows, 13).

    The defaults of python_speech_features: pre-emphasis 0.97 over the whole waveform, rectangular windows, the last
    one filled with zeros, power spectrum of 512 points, 26 triangular filters up to 8 kHz with edges on whole bins,
    orthonormal DCT-II, cepstral lifter 22, the first coefficient replaced by the logarithm of the window's energy.
    Samples are on the scale of 16-bit integers, as Light-ASD heard them.
    """
    samples = waveform.to(torch.float64) * 32768
    samples = torch.cat([samples[..., :1], samples[..., 1:] - EMPHASIS * samples[..., :-1]], -1)
    count = samples.shape[-1]
    rows = 1 if count <= WINDOW else 1 + math.ceil((count - WINDOW) / HOP)
    windows = F.pad(samples, (0, (rows - 1) * HOP + WINDOW - count)).unfold(-1, WINDOW, HOP)
    power = torch.fft.rfft(windows, POINTS).abs().square() / POINTS
    tiny = torch.finfo(torch.float64).eps
    energy = power.sum(-1).masked_fill_(power.sum(-1) == 0, tiny)
    bands = power @ _filters().to(power.device).T
    cepstra = bands.masked_fill(bands == 0, tiny).log() @ _transform().to(power.device)
    return torch.cat([energy.log()[..., None], cepstra[..., 1:]], -1).float()


def _filters() -> Tensor:
    """Return the triangular mel filters (26, 257)."""
    mel = torch.linspace(0, 2595 * math.log10(1 + RATE / 2 / 700), FILTERS + 2, dtype=torch.float64)
    edges = ((POINTS + 1) * 700 * (10 ** (mel / 2595) - 1) / RATE).floor()
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = torch.arange(POINTS // 2 + 1, dtype=torch.float64)
    rising = (bins - left) / (middle - left)
    falling = (right - bins) / (right - middle)
    inside = (bins >= left) & (bins < right)
    return torch.where(inside, torch.where(bins < middle, rising, falling), 0)


def _transform() -> Tensor:
    """Return the orthonormal DCT-II with its lifter, (26, 13)."""
    band = torch.arange(FILTERS, dtype=torch.float64)[:, None]
    number = torch.arange(CEPSTRA, dtype=torch.float64)
    dct = torch.cos(math.pi * number * (band + 0.5) / FILTERS) * math.sqrt(2 / FILTERS)
    dct[:, 0] /= math.sqrt(2)
    return dct * (1 + LIFTER / 2 * torch.sin(math.pi * number / LIFTER))
