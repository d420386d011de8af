"""Predictive coding: explicit gradient steps, what the printed formulas do, how far the sound reaches."""

from __future__ import annotations

import pytest
import torch

from avsal.errors import ConfigError
from avsal.nn.cpc import PredictiveCoding

VISUAL = torch.randn(2, 6, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
AUDIO = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def module(**options: object) -> PredictiveCoding:
    torch.manual_seed(0)
    net = PredictiveCoding(6, 4, **options).double()  # type: ignore[arg-type]
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def test_no_iteration_is_the_identity() -> None:
    out, errors = module(iterations=0)(VISUAL, AUDIO)
    assert out is VISUAL
    assert errors.shape == (2, 0, 3)


def test_each_state_moves_down_the_gradient_of_its_own_error() -> None:
    """One iteration with autograd in place of the explicit difference."""
    net = module(iterations=1, alpha=0.1, alpha_top=0.3)
    mu0 = VISUAL.clone().requires_grad_()
    mu1 = net.up[0](mu0).relu().detach().requires_grad_()
    mu2 = net.up[1](mu1).relu().detach().requires_grad_()
    heard = net.audio(AUDIO)[:, :, None, None, None]

    def step(state: torch.Tensor, prediction: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        error = 0.5 * (state - prediction.detach()).square().flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(error.sum(), state)
        return (state - rate * gradient).detach(), error.detach()

    mu2, e2 = step(mu2, heard, 0.3)
    mu1, e1 = step(mu1, net.down[1](mu2, output_size=mu1.shape[2:]), 0.1)
    mu0, e0 = step(mu0, net.down[0](mu1, output_size=mu0.shape[2:]), 0.1)
    out, errors = net(VISUAL, AUDIO)
    torch.testing.assert_close(out, mu0)
    torch.testing.assert_close(errors[:, 0], torch.stack((e0, e1, e2), 1).float(), check_dtype=False)


def test_iterations_repeat_both_phases() -> None:
    once, thrice = module(iterations=1), module(iterations=3)
    expected = VISUAL
    for _ in range(3):
        expected = once(expected, AUDIO)[0]
    out, errors = thrice(VISUAL, AUDIO)
    torch.testing.assert_close(out, expected)
    assert errors.shape == (2, 3, 3)


def test_the_printed_mean_squared_error_hardly_moves_anything() -> None:
    """As printed the step is 2 / n of the difference, n values in a state: 4.7e-5 of it at 256 x 2 x 7 x 12."""
    summed, mean = module(iterations=1), module(iterations=1, error="mean")
    n = VISUAL[0].numel()
    moved = mean(VISUAL, AUDIO)[0] - VISUAL
    assert moved.abs().max() > 0
    # The bottom moves by alpha * 2 / n times its difference from what is predicted for it.
    mu1 = mean.up[0](VISUAL).relu()
    mu2 = mean.up[1](mu1).relu()
    mu2 = mu2 - 0.5 * 2 / mu2[0].numel() * (mu2 - mean.audio(AUDIO)[:, :, None, None, None])
    prediction1 = mean.down[1](mu2, output_size=mu1.shape[2:])
    mu1 = mu1 - 0.1 * 2 / mu1[0].numel() * (mu1 - prediction1)
    difference = VISUAL - mean.down[0](mu1, output_size=VISUAL.shape[2:])
    torch.testing.assert_close(moved, -0.1 * 2 / n * difference)
    assert moved.norm() < 0.02 * (summed(VISUAL, AUDIO)[0] - VISUAL).norm()


def test_the_printed_gradient_never_moves_the_output() -> None:
    out, errors = module(iterations=3, gradient="above")(VISUAL, AUDIO)
    assert torch.equal(out, VISUAL)
    # Every iteration begins from the same input and finds the same errors.
    torch.testing.assert_close(errors[:, 0], errors[:, 2])


def test_the_printed_gradient_is_the_gradient_with_respect_to_the_state_above() -> None:
    net = module(iterations=1, gradient="above", layers=1)
    above = torch.randn(2, 6, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    difference = VISUAL - net.down[0](above, output_size=VISUAL.shape[2:])
    (gradient,) = torch.autograd.grad(0.5 * difference.square().sum(), above)
    states = [VISUAL, above.detach()]
    net._descend(states, states[1], alpha=0.1, top=0.0)
    torch.testing.assert_close(states[1], above - 0.1 * gradient)


def test_the_sound_reaches_the_output_as_far_as_the_sheet_measured() -> None:
    """Relative change of mu_0 at full size when the sound is swapped; 0.29 with one layer and a full step."""
    measured = {(2, 0.1): 0.0011, (2, 0.5): 0.0051, (2, 1.0): 0.010, (3, 0.5): 2e-4, (1, 1.0): 0.29}
    for (layers, top), expected in measured.items():
        torch.manual_seed(0)
        net = PredictiveCoding(64, 128, layers=layers, alpha_top=top)
        visual = torch.randn(1, 64, 2, 7, 12)
        with torch.inference_mode():
            a, b = (net(visual, torch.randn(1, 128))[0] for _ in range(2))
        assert float((a - b).norm() / a.norm()) == pytest.approx(expected, rel=0.35), (layers, top)


def test_learnable_steps_start_where_told_and_receive_gradients() -> None:
    net = module(learnable=True, alpha=0.2, alpha_top=0.6)
    alpha, top = net.rates()
    assert (float(alpha.detach()), float(top.detach())) == pytest.approx((0.2, 0.6))
    net(VISUAL, AUDIO)[0].square().sum().backward()
    assert net.steps is not None
    assert net.steps.grad is not None
    assert (net.steps.grad != 0).all()
    fixed = module(alpha=0.2, alpha_top=0.6)
    torch.testing.assert_close(net(VISUAL, AUDIO)[0], fixed(VISUAL, AUDIO)[0], rtol=1e-6, atol=1e-6)


def test_every_parameter_trains_and_inference_mode_works() -> None:
    net = module()
    net(VISUAL, AUDIO)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    with torch.inference_mode():
        assert net(VISUAL, AUDIO)[0].shape == VISUAL.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "0, 1, 2"),
        ({"layers": 0}, "at least one"),
        ({"gradient": "up"}, "own, above"),
        ({"error": "max"}, "sum, mean"),
        ({"alpha": 2.0}, "0..1"),
        ({"learnable": True, "alpha": 0.0}, "strictly"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(**options)
