"""SoundNet-8's convolutional layers (Aytar et al. 2016): a 1-D network on raw waveforms.

STAViS and AVRSP use its first seven layers; the two class heads of the published files are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, Self

from torch import Tensor, nn
from torch.nn import functional as F

from avsal.nn.state import load_exact, strip_prefix


class Layer(NamedTuple):
    """One convolution: kernel size (its stride is 2, its padding half the kernel) and the pool after it."""

    kernel: int
    pool: int | None


LAYERS = (
    Layer(64, 8),
    Layer(32, 8),
    Layer(16, None),
    Layer(8, None),
    Layer(4, 4),
    Layer(4, None),
    Layer(4, None),
)


class SoundNet(nn.Module):
    """Seven 1-D convolutions, each with batch norm and ReLU, pools of 8, 8 and 4 after the 1st, 2nd and 5th.

    The waveform is on a scale of +-256 (samples in [-1, 1] times 256), at the file's own rate; the
    published weights were trained at 22.05 kHz. The last layer has one step per 8192 samples or so:
    35280 samples give 2 steps, 70560 give 3.

    Args:
        width: channels of the first layer; each layer doubles them (16 gives 1024 at the seventh).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels = 1
        for number, layer in enumerate(LAYERS):
            out = width * 2**number
            self.convs.append(nn.Conv1d(channels, out, layer.kernel, stride=2, padding=layer.kernel // 2))
            self.norms.append(nn.BatchNorm1d(out))
            channels = out
        self.channels = channels

    def taps(self, waveform: Tensor) -> dict[str, Tensor]:
        """Return every layer's output (B, channels, steps), named `pool1, pool2, relu3, … relu7`.

        Args:
            waveform: (B, S), or with axes of length one beside S, as the published networks take it.
        """
        x = waveform.reshape(waveform.shape[0], 1, -1)
        found = {}
        for number, (layer, conv, norm) in enumerate(zip(LAYERS, self.convs, self.norms, strict=True), 1):
            x = F.relu(norm(conv(x)))
            if layer.pool:
                x = F.max_pool1d(x, layer.pool)
            found[f"{'pool' if layer.pool else 'relu'}{number}"] = x
        return found

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the seventh layer after batch norm and ReLU, (B, 64 width, steps), without a pool.

        Args:
            waveform: (B, S), or with axes of length one beside S.
        """
        return self.taps(waveform)["relu7"]

    def load_published(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Load published weights under any of the names that `published_name` maps; returns self.

        Raises:
            WeightsError: names the entries that are missing, left over or of another shape.
        """
        entries = {name: one_dimensional(name, value) for name, value in strip_prefix(state_dict).items()}
        return load_exact(self, entries, rename=published_name, unused=_HEADS, what="SoundNet file")


#: Index in STAViS's `soundnet8` sequence of each convolution; its batch norm is the next entry.
_SEQUENCE = {0: 0, 4: 1, 8: 2, 11: 3, 14: 4, 18: 5, 21: 6}
_HEADS = (r"^conv8",)
#: The TensorFlow port's names of one layer's entries.
_PORT = {
    "weights": "convs.{}.weight",
    "biases": "convs.{}.bias",
    "gamma": "norms.{}.weight",
    "beta": "norms.{}.bias",
    "mean": "norms.{}.running_mean",
    "var": "norms.{}.running_var",
}


def published_name(name: str) -> str | None:
    """Return this network's name for an entry of one of the four published naming schemes or its own, or None.

    `convN.{weights,biases,gamma,…}` (the TensorFlow port), `convN, batchnormN` (ViNet), `convN.0, convN.1` (a
    conversion of the port) and `soundnet8.{0,1,4,5,…}` (STAViS).
    """
    if (match := re.fullmatch(r"conv([1-7])\.(\w+)", name)) and match[2] in _PORT:
        return _PORT[match[2]].format(int(match[1]) - 1)
    if match := re.fullmatch(r"soundnet8\.(\d+)\.(\w+)", name):
        index, leaf = int(match[1]), match[2]
        if index in _SEQUENCE:
            return f"convs.{_SEQUENCE[index]}.{leaf}"
        return f"norms.{_SEQUENCE[index - 1]}.{leaf}" if index - 1 in _SEQUENCE else None
    if match := re.fullmatch(r"conv([1-7])\.([01])\.(\w+)", name):
        return f"{('convs', 'norms')[int(match[2])]}.{int(match[1]) - 1}.{match[3]}"
    if match := re.fullmatch(r"(conv|batchnorm)([1-7])\.(\w+)", name):
        return f"{'convs' if match[1] == 'conv' else 'norms'}.{int(match[2]) - 1}.{match[3]}"
    return name if re.match(r"(convs|norms)\.[0-6]\.", name) else None


def one_dimensional(name: str, value: Tensor) -> Tensor:
    """Return a kernel stored for two dimensions as (out, in, K).

    They are (out, in, K, 1) or (out, in, 1, K), and in the TensorFlow port (K, 1, in, out).
    """
    if name.endswith(".weights") and value.dim() == 4:
        return value[:, 0].permute(2, 1, 0).contiguous()
    if value.dim() == 4 and 1 in value.shape[2:]:
        return value.flatten(2)
    return value


def from_published(state_dict: Mapping[str, Tensor]) -> SoundNet:
    """Build SoundNet from any of the four published files; the layout of the kernels does not matter.

    Args:
        state_dict: entries in one naming of `published_name`, perhaps with `module.` before them; the
            heads (`conv8…`) may be there and are not used.

    Returns:
        The network in eval mode.

    Raises:
        WeightsError: names the entries that are missing, left over or of another shape.
    """
    entries = strip_prefix(state_dict).items()
    first = [one_dimensional(k, v) for k, v in entries if published_name(k) == "convs.0.weight"]
    return SoundNet(len(first[0]) if first else 16).load_published(state_dict).eval()
