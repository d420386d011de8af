"""CASP-Net's audio-visual interaction (Equations 1 to 5): visual tokens attend with one audio key.

The key is one audio vector copied to every token, and that has consequences. A softmax over the keys, as
printed in Equation 1, is uniform whatever is heard: the sound has no influence at all. Nor has it in linear
attention divided by its row sums. Without either the module is a scalar per token times one value vector,
which `AVIM.contracted` computes without an attention map; `AVIM.literal` follows the equations step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError
from avsal.nn.mvit import to_grid, to_tokens

KERNELS = ("linear", "quadratic")


def phi(x: Tensor) -> Tensor:
    """Return gelu(x) + 0.2, the positive kernel function of Equation 5 (its minimum is about 0.03)."""
    return F.gelu(x) + 0.2


def _bias(layer: nn.Conv3d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class AVIM(nn.Module):
    """Audio-visual interaction of one stage: f + delta(attention(alpha(f), beta(a), gamma(f))).

    `delta` starts at zero, so a new module is the identity.

    Args:
        channels: channels C of the visual maps.
        audio_channels: size of the audio embedding.
        kernel: "linear" is phi(Q) (phi(K)^T V) / N (Equation 4, with the scale of Equation 1);
            "quadratic" is (Q K^T / N) V.
        softmax: put the softmax of Equation 1 around the quadratic scores, as printed. The module is
            then blind to the sound; it is here to show that, not to be trained.
    """

    def __init__(
        self,
        channels: int = 256,
        audio_channels: int = 128,
        kernel: str = "linear",
        softmax: bool = False,
    ) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ConfigError(f"kernel={kernel!r} is not known; allowed: {', '.join(KERNELS)}.")
        if softmax and kernel == "linear":
            raise ConfigError("softmax=True belongs to Equation 1: it needs kernel='quadratic'.")
        self.kernel, self.softmax = kernel, softmax
        self.audio = nn.Linear(audio_channels, channels)
        self.alpha = nn.Conv3d(channels, channels, 1)
        self.beta = nn.Conv3d(channels, channels, 1)
        self.gamma = nn.Conv3d(channels, channels, 1)
        self.delta = nn.Conv3d(channels, channels, 1)
        for parameter in self.delta.parameters():
            nn.init.zeros_(parameter)

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Return the updated maps (B, C, T, h, w).

        Args:
            visual: (B, C, T, h, w) maps of one stage.
            audio: (B, audio_channels) embedding of the sound.
        """
        return self.literal(visual, audio) if self.softmax else self.contracted(visual, audio)

    def contracted(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Return f_t + s_t u + b: exact, no attention map, memory linear in the tokens.

        With k = phi(beta(a)) and the mean token m: s_t = phi(alpha(f_t)) . k and u = W_delta gamma(m). For
        the quadratic kernel phi is the identity, and alpha folds into k too.
        """
        if self.softmax:
            raise ConfigError("The softmax form has no contraction; call literal().")
        key = F.linear(self.audio(audio), self.beta.weight.flatten(1), self.beta.bias)
        value = F.linear(visual.mean((2, 3, 4)), self.gamma.weight.flatten(1), self.gamma.bias)
        update = F.linear(value, self.delta.weight.flatten(1))
        if self.kernel == "linear":
            score = torch.einsum("bcthw,bc->bthw", phi(self.alpha(visual)), phi(key))
        else:
            folded = key @ self.alpha.weight.flatten(1)
            offset = key @ _bias(self.alpha)
            score = torch.einsum("bcthw,bc->bthw", visual, folded) + offset[:, None, None, None]
        return (
            visual
            + score.unsqueeze(1) * update[:, :, None, None, None]
            + _bias(self.delta)[:, None, None, None]
        )

    def literal(self, visual: Tensor, audio: Tensor, rows: int = 1024) -> Tensor:
        """Return the same update by the printed order of operations, attention map and all.

        Args:
            visual: (B, C, T, h, w).
            audio: (B, audio_channels).
            rows: tokens whose rows of the N x N map are held at once (quadratic only).
        """
        tokens = visual.shape[2:].numel()
        heard = self.audio(audio)[:, :, None, None, None].expand(-1, -1, *visual.shape[2:])
        query, key, value = (
            to_tokens(layer(x))
            for layer, x in ((self.alpha, visual), (self.beta, heard), (self.gamma, visual))
        )
        if self.kernel == "linear":
            attended = phi(query) @ (phi(key).transpose(1, 2) @ value) / tokens
        else:
            parts = []
            for chunk in query.split(rows, dim=1):
                scores = chunk @ key.transpose(1, 2) / tokens
                parts.append((scores.softmax(-1) if self.softmax else scores) @ value)
            attended = torch.cat(parts, dim=1)
        return visual + self.delta(to_grid(attended, visual.shape[2:]))
