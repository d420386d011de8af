"""CASP-Net's interaction module: exact contraction, and what the printed formula does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avsal.errors import ConfigError
from avsal.nn.avim import AVIM, phi
from avsal.nn.cost import count


def module(kernel: str, softmax: bool = False) -> AVIM:
    torch.manual_seed(0)
    net = AVIM(12, 8, kernel, softmax).double()
    for layer in (net.delta, net.audio, net.beta):
        nn.init.normal_(layer.weight, std=0.5)
        nn.init.normal_(layer.bias)
    return net


VISUAL = torch.randn(2, 12, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
AUDIO = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kernel", ["linear", "quadratic"])
def test_the_contracted_form_is_the_literal_one(kernel: str) -> None:
    net = module(kernel)
    fast, literal = net.contracted(VISUAL, AUDIO), net.literal(VISUAL, AUDIO)
    assert (fast - literal).abs().max() < 1e-12 * literal.abs().max()
    grads = [
        torch.autograd.grad(form(VISUAL, AUDIO).square().sum(), list(net.parameters()))
        for form in (net.contracted, net.literal)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_the_literal_forms_are_the_equations_written_with_whole_matrices() -> None:
    """Equations 1 and 4 token by token, with an explicit N x N map."""
    for kernel in ("linear", "quadratic"):
        net = module(kernel)
        tokens = VISUAL.flatten(2).transpose(1, 2)
        heard = net.audio(AUDIO)[:, None].expand(-1, 60, -1)

        def affine(layer: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
            return x @ layer.weight[:, :, 0, 0, 0].T + layer.bias

        q, k, v = affine(net.alpha, tokens), affine(net.beta, heard), affine(net.gamma, tokens)
        scores = phi(q) @ phi(k).transpose(1, 2) if kernel == "linear" else q @ k.transpose(1, 2)
        out = tokens + affine(net.delta, scores @ v / 60)
        torch.testing.assert_close(net.literal(VISUAL, AUDIO, rows=7).flatten(2).transpose(1, 2), out)


def test_linear_attention_with_the_identity_kernel_is_quadratic_attention() -> None:
    """(Q K^T) V = Q (K^T V): both kinds differ by the kernel function alone."""
    net = module("quadratic")
    tokens = VISUAL.flatten(2)
    q, v = net.alpha(VISUAL).flatten(2).transpose(1, 2), net.gamma(VISUAL).flatten(2).transpose(1, 2)
    heard = net.audio(AUDIO)[:, :, None, None, None].expand(-1, -1, 3, 4, 5)
    k = net.beta(heard).flatten(2).transpose(1, 2)
    attended = q @ (k.transpose(1, 2) @ v) / 60
    out = tokens + net.delta(attended.transpose(1, 2).unflatten(2, (3, 4, 5))).flatten(2)
    torch.testing.assert_close(out, net(VISUAL, AUDIO).flatten(2))


def test_the_printed_softmax_is_deaf_and_the_default_hears() -> None:
    other = AUDIO.flip(0) * 3 + 1
    deaf = module("quadratic", softmax=True)
    torch.testing.assert_close(deaf(VISUAL, AUDIO), deaf(VISUAL, other), rtol=0, atol=1e-12)
    # Every token receives the mean value vector, whatever it asks.
    mean = deaf.gamma(VISUAL).mean((2, 3, 4), keepdim=True)
    torch.testing.assert_close(deaf(VISUAL, AUDIO), VISUAL + deaf.delta(mean))
    for kernel in ("linear", "quadratic"):
        net = module(kernel)
        assert (net(VISUAL, AUDIO) - net(VISUAL, other)).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="contraction"):
        deaf.contracted(VISUAL, AUDIO)


def test_linear_attention_with_a_normaliser_would_be_deaf_too() -> None:
    """Why Equation 4 has none: row sums of phi(Q) phi(K)^T cancel the one key."""
    net = module("linear")
    q = phi(net.alpha(VISUAL)).flatten(2).transpose(1, 2)
    v = net.gamma(VISUAL).flatten(2).transpose(1, 2)
    outputs = []
    for audio in (AUDIO, AUDIO * 2 - 1):
        heard = net.audio(audio)[:, :, None, None, None].expand(-1, -1, 3, 4, 5)
        k = phi(net.beta(heard)).flatten(2).transpose(1, 2)
        outputs.append(q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1).unsqueeze(-1)))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_a_new_module_is_the_identity_and_learns_to_hear() -> None:
    net = AVIM(12, 8).double()
    assert torch.equal(net(VISUAL, AUDIO), VISUAL)
    net(VISUAL, AUDIO).square().sum().backward()
    assert net.delta.weight.grad is not None
    assert net.delta.weight.grad.abs().max() > 0


def test_phi_is_positive_and_has_the_printed_values() -> None:
    x = torch.linspace(-20, 20, 100001, dtype=torch.float64)
    assert float(phi(x).min()) == pytest.approx(0.03, abs=0.001)
    assert float(phi(torch.zeros(()))) == pytest.approx(0.2)


def test_parameters_and_savings() -> None:
    with torch.device("meta"):
        net = AVIM()
        clip, sound = torch.empty(1, 256, 8, 28, 48), torch.empty(1, 128)
        fast, literal = (count(net, clip, sound, method=m) for m in ("contracted", "literal"))
    assert fast.params == 33024 + 4 * 65792
    tokens = 8 * 28 * 48
    assert literal.macs == pytest.approx(tokens * (4 + 2) * 256**2, rel=0.001)
    assert fast.macs == pytest.approx(tokens * 256**2, rel=0.02)


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="allowed: linear, quadratic"):
        AVIM(kernel="cosine")
    with pytest.raises(ConfigError, match="quadratic"):
        AVIM(kernel="linear", softmax=True)
