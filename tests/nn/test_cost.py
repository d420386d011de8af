"""Multiply-adds against arithmetic by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from avsal.nn.cost import count


def test_convolutions_linear_layers_and_products_count_once() -> None:
    network = nn.Sequential(
        nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 3, groups=8)
    )
    cost = count(network, torch.zeros(2, 3, 4, 10, 12))
    assert cost.params == (3 * 9 + 1) * 8 + 16 + 28 * 8
    assert cost.macs == 2 * (8 * 27 * 4 * 10 * 12 + 8 * 27 * 2 * 8 * 10)
    assert count(nn.Linear(5, 7), torch.zeros(3, 5)) == (42, 105)


def test_attention_and_bilinear_layers_count() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Bilinear(4, 5, 6)

        def heads(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, k)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.mix(a, b)

    network = Both()
    assert count(network, torch.zeros(3, 4), torch.zeros(3, 5)).macs == 3 * 4 * 5 * 6
    queries, keys = torch.zeros(2, 4, 10, 16), torch.zeros(2, 4, 20, 16)
    assert count(network, queries, keys, method="heads").macs == 2 * (2 * 4 * 10 * 20 * 16)


def test_modes_and_statistics_are_left_as_they_were() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    network[1].eval()
    count(network, torch.randn(8, 4))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    assert torch.equal(network[0].running_mean, torch.zeros(4))


def test_networks_on_the_meta_device_are_counted_without_computing() -> None:
    network = nn.Conv2d(64, 64, 3, device="meta")
    assert count(network, torch.empty(1, 64, 1002, 1002, device="meta")).macs == 64 * 64 * 9 * 10**6
