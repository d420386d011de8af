"""ASPP: sums of dilated convolutions, and the exact form that leaves padding out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from avsal.nn.aspp import ASPP, RATES
from avsal.nn.cost import count


def test_it_is_the_sum_of_four_dilated_convolutions_of_each_frame() -> None:
    torch.manual_seed(0)
    net = ASPP(3, 5).double()
    maps = torch.randn(2, 3, 4, 20, 24, dtype=torch.float64)
    expected = sum(
        torch.stack(
            [
                F.conv2d(maps[:, :, t], b.weight[:, :, 0], b.bias, padding=r, dilation=r)
                for t in range(maps.shape[2])
            ],
            dim=2,
        )
        for b, r in zip(net.branches, RATES, strict=True)
    )
    torch.testing.assert_close(net(maps), expected)
    assert float(ASPP(64, 64).branches[0].weight.detach().std()) == pytest.approx(0.01, rel=0.1)


# The four stages of CASP-Net at 224 x 384, and maps where one side or both are short.
@pytest.mark.parametrize("size", [(56, 96), (28, 48), (14, 24), (7, 12), (3, 40), (40, 3), (1, 1), (2, 3)])
def test_leaving_out_taps_that_see_padding_changes_nothing(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = ASPP(4, 6).double().eval()
    for branch in net.branches:
        torch.nn.init.normal_(branch.bias)
    maps = torch.randn(2, 4, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(net(maps), net.plain(maps), rtol=1e-10, atol=1e-12)


def test_gradients_in_eval_mode_are_those_of_the_plain_form() -> None:
    torch.manual_seed(0)
    net = ASPP(3, 4).double().eval()
    maps = torch.randn(1, 3, 2, 9, 13, dtype=torch.float64, requires_grad=True)
    grads = [
        torch.autograd.grad(form(maps).square().sum(), [maps, *net.parameters()])
        for form in (net.trimmed, net.plain)
    ]
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_trimmed_form_saves_what_the_sheet_counts() -> None:
    """At 7 x 12 the branches of rate 12 and 18 shrink from nine taps to one, together."""
    with torch.device("meta"):
        net = ASPP(16, 8)
        maps = torch.empty(1, 16, 1, 7, 12)
        whole, trimmed = count(net, maps, method="plain"), count(net, maps, method="trimmed")
    per_tap = 16 * 8 * 7 * 12
    assert whole.macs == 36 * per_tap
    assert trimmed.macs < (36 - 17) * per_tap
