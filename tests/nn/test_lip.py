"""Local importance pooling: weighted means, at the same size, frame by frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from avsal.nn.lip import LIP


def test_a_new_module_is_the_mean_over_the_neighbours_inside_the_map() -> None:
    maps = torch.randn(2, 3, 2, 5, 7)
    out = LIP(3)(maps)
    frames = maps.transpose(1, 2).flatten(0, 1)
    mean = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False).unflatten(0, (2, 2)).transpose(1, 2)
    torch.testing.assert_close(out, mean)


def test_it_is_the_importance_weighted_mean_of_the_formula() -> None:
    torch.manual_seed(0)
    net = LIP(4).double()
    torch.nn.init.normal_(net.conv.weight)
    torch.nn.init.normal_(net.norm.weight)
    torch.nn.init.normal_(net.norm.bias)
    maps = torch.randn(1, 4, 3, 6, 5, dtype=torch.float64)
    out = net(maps)
    for t in range(3):
        logit = net.norm(net.conv(maps[:, :, t]))
        weight = torch.exp(12 * torch.sigmoid(logit))
        # Sums by unfolding; positions outside weigh nothing.
        top = F.unfold(maps[:, :, t] * weight, 3, padding=1).view(1, 4, 9, 30).sum(2)
        bottom = F.unfold(weight, 3, padding=1).view(1, 4, 9, 30).sum(2)
        torch.testing.assert_close(out[:, :, t].flatten(2), top / bottom, rtol=1e-5, atol=1e-6)


def test_frames_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    net = LIP(4)
    torch.nn.init.normal_(net.conv.weight)
    maps = torch.randn(2, 4, 3, 6, 5)
    torch.testing.assert_close(net(maps)[:, :, 1:2], net(maps[:, :, 1:2]))


def test_half_precision_neither_overflows_nor_loses_the_mean() -> None:
    torch.manual_seed(0)
    net = LIP(4)
    torch.nn.init.normal_(net.conv.weight, std=10)
    maps = torch.randn(1, 4, 2, 6, 5) * 1000
    with torch.autocast("cpu", torch.bfloat16):
        out = net(maps.bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    assert out.abs().max() <= maps.abs().max()
