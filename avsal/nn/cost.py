"""Size and cost of a network: parameters and multiply-adds of one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """What `count` returns: parameters, and multiply-adds of convolutions and matrix products."""

    params: int
    macs: int


def count(network: nn.Module, *inputs: Any, method: str = "forward") -> Cost:
    """Count a network's parameters and the multiply-adds of one call, in eval mode without gradients.

    Convolutions, linear layers, matrix products, attention and `nn.Bilinear` count; element-wise work,
    norms, pooling, interpolation and Fourier transforms do not.

    Args:
        network: parameters of the whole network count, whether the call uses them or not.
        *inputs: arguments of the call.
        method: name of the method to call, such as "core".

    Returns:
        `Cost(params, macs)`.
    """
    bilinear = 0

    def add(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal bilinear
        assert isinstance(layer, nn.Bilinear)
        bilinear += layer.in1_features * layer.in2_features * output.numel()

    hooks = [
        layer.register_forward_hook(add) for layer in network.modules() if isinstance(layer, nn.Bilinear)
    ]
    training = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        # Only the plain backend shows attention as matrix products on every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            getattr(network, method)(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in training.items():
            layer.training = mode
    params = sum(parameter.numel() for parameter in network.parameters())
    return Cost(params, counter.get_total_flops() // 2 + bilinear)
