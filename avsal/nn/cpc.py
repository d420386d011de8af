"""CASP-Net's consistency-aware predictive coding (Equations 6 and 7).

Vision climbs a small hierarchy, its top is compared with the sound, and predictions descend again; every
state moves a step towards what is predicted for it. The gradient of each squared error with respect to its
own state is the difference itself, so the loop needs no autograd call and runs under inference mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError

GRADIENTS = ("own", "above")
ERRORS = ("sum", "mean")


class PredictiveCoding(nn.Module):
    """Iterative inference between visual maps and an audio embedding.

    One iteration: mu_i = relu(conv(mu_(i-1))) upwards; the top moves `alpha_top` of the way to the sound;
    downwards each mu_i moves `alpha` of the way to the transposed convolution of mu_(i+1).

    Args:
        channels: channels of all states.
        audio_channels: size of the audio embedding.
        layers: levels L above the input. Each one weakens the sound by another factor alpha.
        iterations: how often both phases run; 0 returns the input.
        alpha: step of every state but the top.
        alpha_top: step of the top towards the sound; 0.5 is the mean of seen and heard.
        learnable: train both steps (kept between 0 and 1).
        gradient: "own" moves each state by its own error; "above" is the printed sentence, which moves
            mu_(i+1) by the error of its prediction: the output then equals the input.
        error: "sum" takes half the squared error; "mean" is the mean squared error as printed, whose
            gradient is smaller by half the number of values: the states then hardly move.
    """

    def __init__(
        self,
        channels: int = 256,
        audio_channels: int = 128,
        layers: int = 2,
        iterations: int = 3,
        alpha: float = 0.1,
        alpha_top: float = 0.5,
        learnable: bool = False,
        gradient: str = "own",
        error: str = "sum",
    ) -> None:
        super().__init__()
        if iterations < 0:
            raise ConfigError(f"iterations={iterations}: predictive coding runs 0, 1, 2, … times.")
        if layers < 1:
            raise ConfigError(f"layers={layers}: predictive coding needs at least one layer.")
        for name, value, allowed in (("gradient", gradient, GRADIENTS), ("error", error, ERRORS)):
            if value not in allowed:
                raise ConfigError(f"{name}={value!r} is not known; allowed: {', '.join(allowed)}.")
        for name, step in (("alpha", alpha), ("alpha_top", alpha_top)):
            if not 0 <= step <= 1 or (learnable and step in (0, 1)):
                raise ConfigError(
                    f"{name}={step} must lie in 0..1 (strictly inside if the steps are learnable)."
                )
        self.iterations, self.gradient, self.error = iterations, gradient, error
        self.audio = nn.Linear(audio_channels, channels)
        strides = [(1, 2, 2)] + [(2, 2, 2)] * (layers - 1)
        self.up = nn.ModuleList(nn.Conv3d(channels, channels, 3, s, 1) for s in strides)
        self.down = nn.ModuleList(nn.ConvTranspose3d(channels, channels, 3, s, 1) for s in strides)
        for layer in (self.audio, *self.up, *self.down):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        # Learnable steps live as logits, so that training keeps them between 0 and 1.
        steps = torch.tensor([alpha, alpha_top])
        self.steps = nn.Parameter(torch.logit(steps)) if learnable else None
        self._fixed = (alpha, alpha_top)

    def rates(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the current (alpha, alpha_top)."""
        if self.steps is None:
            return self._fixed
        alpha, top = self.steps.sigmoid()
        return alpha, top

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the consistent visual maps and the prediction errors on the way.

        Args:
            visual: (B, C, T, h, w).
            audio: (B, audio_channels).

        Returns:
            mu_0 (B, C, T, h, w), and the errors (B, iterations, layers + 1): half the squared distance of
            each state from its prediction, level 0 first, the top (against the sound) last, each measured
            before its step.
        """
        alpha, top = self.rates()
        heard = self.audio(audio)[:, :, None, None, None]
        bottom = visual
        history: list[Tensor] = []
        for _ in range(self.iterations):
            states = [bottom]
            for layer in self.up:
                states.append(F.relu(layer(states[-1])))
            history.append(torch.stack(self._descend(states, heard, alpha, top), dim=1))
            bottom = states[0]
        if not history:
            return visual, visual.new_zeros(len(visual), 0, len(self.up) + 1)
        return bottom, torch.stack(history, dim=1)

    def _descend(
        self, states: list[Tensor], heard: Tensor, alpha: Tensor | float, top: Tensor | float
    ) -> list[Tensor]:
        """Move the states in place, from the top down; return the errors, level 0 first."""
        difference = states[-1] - heard
        errors = [_half_square(difference)]
        states[-1] = states[-1] - top * self._scale(difference) * difference
        for level in reversed(range(len(self.down))):
            layer, above = self.down[level], states[level + 1]
            difference = states[level] - layer(above, output_size=states[level].shape[2:])
            errors.insert(0, _half_square(difference))
            step = alpha * self._scale(difference)
            if self.gradient == "own":
                states[level] = states[level] - step * difference
            else:
                # The transpose of a transposed convolution is the convolution with the same weight.
                stride: tuple[int, int, int] = layer.stride  # type: ignore[assignment]
                back = F.conv3d(difference, layer.weight, stride=stride, padding=1)  # type: ignore[arg-type]
                states[level + 1] = above + step * back
        return errors

    def _scale(self, difference: Tensor) -> float:
        return 1.0 if self.error == "sum" else 2.0 / difference[0].numel()


def _half_square(difference: Tensor) -> Tensor:
    return 0.5 * difference.float().square().flatten(1).sum(1)
