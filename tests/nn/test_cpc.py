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


@pytest.mark.parametrize("gradient", ["own", "above", "total"])
def test_no_iteration_is_the_identity(gradient: str) -> None:
    out, errors = module(iterations=0, gradient=gradient)(VISUAL, AUDIO)
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


# -- gradient="total": iterations that descend -------------------------------------------------------------


def total(net: PredictiveCoding, states: list[torch.Tensor], audio: torch.Tensor) -> torch.Tensor:
    """The sum of all errors per sample, written down apart from the module's loop."""
    predicted = [layer(above, output_size=below.shape[2:])
                 for layer, below, above in zip(net.down, states[:-1], states[1:], strict=True)]  # fmt: skip
    predicted.append(net.audio(audio)[:, :, None, None, None].expand_as(states[-1]))
    return sum(0.5 * (s - p).square().flatten(1).sum(1) for s, p in zip(states, predicted, strict=True))


def upward(net: PredictiveCoding, visual: torch.Tensor) -> list[torch.Tensor]:
    states = [visual / visual.square().mean((1, 2, 3, 4), keepdim=True).sqrt()]
    for layer in net.up:
        states.append(layer(states[-1]).relu())
    return states


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_sum_of_the_errors_falls_from_iteration_to_iteration(seed: int, layers: int) -> None:
    """For weights and inputs of any size, and for every share of the step; the other rule climbs for some."""
    generator = torch.Generator().manual_seed(seed)
    gain = 10.0 ** float(torch.empty(()).uniform_(-1, 1.5, generator=generator))
    torch.manual_seed(seed)
    alpha, top = (float(v) for v in torch.rand(2, generator=generator))
    net = PredictiveCoding(6, 4, layers=layers, iterations=12, alpha=alpha, alpha_top=top, gradient="total")
    net = net.double()
    for parameter in net.parameters():
        parameter.data.mul_(gain)
    visual = gain**2 * torch.randn(3, 6, 4, 8, 9, dtype=torch.float64, generator=generator)
    audio = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    with torch.inference_mode():
        _, errors = net(visual, audio)
    sums = errors.sum(2)
    assert (sums[:, 1:] < sums[:, :-1]).all(), sums


def test_moving_each_state_by_its_own_error_climbs_where_the_prediction_runs_ahead() -> None:
    """With down(up(x)) = g x the error of x - g x changes by (1 + alpha (g - 1))^2: it grows for g > 1."""
    for gain, alpha in ((0.5, 0.1), (3.0, 0.1), (3.0, 0.01)):
        net = PredictiveCoding(1, 1, layers=1, iterations=2, alpha=alpha, alpha_top=0.0).double()
        for parameter in net.parameters():
            torch.nn.init.zeros_(parameter)
        # One place: a kernel's centre is all that acts.
        net.up[0].weight.data[0, 0, 1, 1, 1] = 1.0  # type: ignore[operator, union-attr, index]
        net.down[0].weight.data[0, 0, 1, 1, 1] = gain  # type: ignore[operator, union-attr, index]
        visual = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        _, errors = net(visual, torch.zeros(1, 1, dtype=torch.float64))
        share = (errors[0, 1, 0] / errors[0, 0, 0]).item()
        assert share == pytest.approx((1 + alpha * (gain - 1)) ** 2)
        net.gradient = "total"
        _, errors = net(visual, torch.zeros(1, 1, dtype=torch.float64))
        assert errors[0, 1].sum() < errors[0, 0].sum()


@pytest.mark.parametrize("rates", [(0.1, 0.5), (1.0, 1.0)])
def test_each_state_goes_its_share_towards_the_minimum_along_autograd_s_gradient(
    rates: tuple[float, float],
) -> None:
    """Gradients by autograd, the minimum on the line by a parabola through three points of the sum of errors."""
    alpha, top = rates
    net = module(iterations=1, alpha=alpha, alpha_top=top, gradient="total")
    states = [s.detach() for s in upward(net, VISUAL)]
    for level in (2, 1, 0):
        state = states[level].clone().requires_grad_()
        others = [*states[:level], state, *states[level + 1 :]]
        (gradient,) = torch.autograd.grad(total(net, others, AUDIO).sum(), state)

        def along(t: float, level: int = level, gradient: torch.Tensor = gradient) -> torch.Tensor:
            moved = states[level] - t * gradient
            return total(net, [*states[:level], moved, *states[level + 1 :]], AUDIO).detach()

        here, half, full = along(0.0), along(0.5), along(1.0)
        curve, slope = 2 * (full - 2 * half + here), 4 * half - full - 3 * here
        best = (-slope / (2 * curve))[:, None, None, None, None]
        states[level] = states[level] - (top if level == 2 else alpha) * best * gradient
    out, errors = net(VISUAL, AUDIO)
    scale = VISUAL.square().mean((1, 2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(out, states[0] * scale, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(errors.sum((1, 2)), total(net, upward(net, VISUAL), AUDIO).float())


def test_the_step_is_bounded_by_the_exact_spectral_norm_of_the_prediction() -> None:
    """The matrix of a transposed convolution, column by column, and its largest singular value."""
    net = module(iterations=1, alpha=1.0, alpha_top=1.0, layers=1, gradient="total")
    layer = net.down[0]
    states = [s.detach() for s in upward(net, VISUAL)]
    shape = states[1].shape[1:]
    with torch.no_grad():
        basis = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
        zero = layer(torch.zeros_like(basis[:1]), output_size=states[0].shape[2:])
        matrix = (layer(basis, output_size=states[0].shape[2:]) - zero).flatten(1).T
        norm = torch.linalg.matrix_norm(matrix, 2)
        heard = net.audio(AUDIO)[:, :, None, None, None]
    state = states[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(net, [states[0], state], AUDIO).sum(), state)
    moved: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: moved.append(inputs[0]))
    with torch.inference_mode():
        net._settle(VISUAL, heard, 1.0, 1.0)
    # The last prediction is made from the moved top.
    steps = (states[1] - moved[-1]).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert (steps >= 1 / (1 + norm**2) - 1e-9).all()
    assert (steps <= 1 + 1e-9).all()
    curvature = 1 + (matrix @ gradient.flatten(1).T).square().sum(0) / gradient.flatten(1).square().sum(1)
    torch.testing.assert_close(steps, 1 / curvature)


def test_the_size_of_the_maps_does_not_drown_the_sound() -> None:
    """Swapping the sound changes maps a thousand times larger by the same share; the other rule goes deaf."""
    changes = {}
    for gradient in ("own", "total"):
        net = module(gradient=gradient, alpha=0.3)
        for size in (1.0, 1e3):
            a, b = (net(size * VISUAL, audio)[0].detach() for audio in (AUDIO, AUDIO.flip(0)))
            changes[gradient, size] = float((a - b).norm() / a.norm())
    assert changes["total", 1e3] == pytest.approx(changes["total", 1.0], rel=1e-6)
    assert changes["own", 1e3] < 0.01 * changes["own", 1.0]


def test_silent_black_maps_stay_finite_and_give_gradients() -> None:
    net = PredictiveCoding(6, 4, gradient="total", learnable=True)
    visual = torch.zeros(2, 6, 2, 5, 7, requires_grad=True)
    out, errors = net(visual, torch.zeros(2, 4))
    out.sum().backward()
    assert out.isfinite().all()
    assert errors.isfinite().all()
    assert visual.grad is not None
    assert visual.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


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
        ({"gradient": "up"}, "own, above, total"),
        ({"gradient": "total", "error": "mean"}, "does not go with it"),
        ({"error": "max"}, "sum, mean"),
        ({"alpha": 2.0}, "0..1"),
        ({"learnable": True, "alpha": 0.0}, "strictly"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(**options)
