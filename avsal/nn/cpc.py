"""CASP-Net's consistency-aware predictive coding (Equations 6 and 7).

Vision climbs a small hierarchy, its top is compared with the sound, and predictions descend again; every
state moves a step towards what is predicted for it. All gradients are written out (the transpose of a transposed
convolution is the convolution with the same weight), so the loop needs no autograd call and runs under inference mode.

Moving each state by its own error, and predicting anew from the moved states, is no descent: the prediction moves
along, and where it moves further than the state the error grows. `gradient="total"` descends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsal.errors import ConfigError

GRADIENTS = ("own", "above", "total")
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
            mu_(i+1) by the error of its prediction: the output then equals the input; "total" moves each state
            down the gradient of the sum of all errors, with the steps of `_settle`.
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
        if gradient == "total" and error != "sum":
            raise ConfigError(f"gradient='total' sums the errors; error={error!r} does not go with it.")
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
            before its step. With `gradient="total"` they are those of the normalised maps, all measured
            when the iteration begins; their sum falls from one iteration to the next.
        """
        alpha, top = self.rates()
        heard = self.audio(audio)[:, :, None, None, None]
        if self.gradient == "total":
            return self._settle(visual, heard, alpha, top)
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
                states[level + 1] = above + step * _transposed(layer, difference)
        return errors

    def _settle(
        self, visual: Tensor, heard: Tensor, alpha: Tensor | float, top: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Descend the sum of all errors from the upward pass, which runs once; return as `forward`.

        The maps are divided by their root mean square, and multiplied by it in the end: the sound is then compared
        with states of its own size, however large the maps have become.

        From the top down, each state takes the part `alpha` of its best step. The sum is quadratic in each state,
        so no such step can raise it.
        """
        scale = (visual.float().square().mean((1, 2, 3, 4), keepdim=True) + 1e-12).sqrt()
        states = [(visual / scale).to(visual.dtype)]
        for layer in self.up:
            states.append(F.relu(layer(states[-1])))
        history = []
        for _ in range(self.iterations):
            differences = [self._difference(states, level, heard) for level in range(len(states))]
            history.append(torch.stack([_half_square(d) for d in differences], dim=1))
            for level in reversed(range(len(states))):
                rate = top if level == len(self.down) else alpha
                states[level] = states[level] - rate * self._best_step(states, level, heard)
        if not history:
            return visual, visual.new_zeros(len(visual), 0, len(self.up) + 1)
        return (states[0] * scale).to(visual.dtype), torch.stack(history, dim=1)

    def _best_step(self, states: list[Tensor], level: int, heard: Tensor) -> Tensor:
        """Return what to subtract from a state to reach the least sum of errors along its gradient.

        That is the gradient g times |g|^2 / (|g|^2 + |W g|^2), W being the prediction of the level below. The factor
        lies between 1 / (1 + |W|^2), |W| being the spectral norm, and 1.
        """
        gradient = self._difference(states, level, heard)
        if level == 0:
            return gradient
        layer: nn.ConvTranspose3d = self.down[level - 1]  # type: ignore[assignment]
        gradient = gradient - _transposed(layer, self._difference(states, level - 1, heard))
        moved = layer(gradient, output_size=list(states[level - 1].shape[2:]))
        if layer.bias is not None:
            moved = moved - layer.bias[:, None, None, None]
        square = _half_square(gradient)
        factor = square / (square + _half_square(moved)).clamp_min(1e-30)
        return factor.to(gradient.dtype)[:, None, None, None, None] * gradient

    def _difference(self, states: list[Tensor], level: int, heard: Tensor) -> Tensor:
        """Return a state less what is predicted for it."""
        state = states[level]
        if level == len(self.down):
            return state - heard
        return state - self.down[level](states[level + 1], output_size=state.shape[2:])

    def _scale(self, difference: Tensor) -> float:
        return 1.0 if self.error == "sum" else 2.0 / difference[0].numel()


def _transposed(layer: nn.Module, difference: Tensor) -> Tensor:
    """Return the transpose of a transposed convolution, without its bias, applied to `difference`."""
    stride: tuple[int, int, int] = layer.stride  # type: ignore[assignment]
    return F.conv3d(difference, layer.weight, stride=stride, padding=1)  # type: ignore[arg-type]


def _half_square(difference: Tensor) -> Tensor:
    return 0.5 * difference.float().square().flatten(1).sum(1)
