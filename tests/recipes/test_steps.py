"""One optimiser step of MSPI and CSTS: which parameters move, at which rate, with which decay and clipping."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from avsal.models.csts import CSTSModule
from avsal.models.mspi import MSPIModule


def test_mspi_moves_what_is_not_frozen_by_the_rate_without_decay() -> None:
    module = MSPIModule(size=(64, 96), width=0.1, image_encoder="mobilenetv2_035")
    optimizer = module.configure_optimizers()["optimizer"]
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    for p in module.network.parameters():
        p.grad = torch.full_like(p, -3.0)
    optimizer.step()
    for name, p in module.network.named_parameters():
        moved = 0.0 if name.startswith(("audio_encoder.", "image_encoder.")) else 1e-4
        torch.testing.assert_close(p.detach(), before[name] + moved, rtol=0, atol=2e-7, msg=name)


def test_csts_decays_what_has_two_dimensions_and_starts_at_its_rate() -> None:
    module = CSTSModule(
        size=(32, 32), embed_dim=8, depths=(1, 1, 1, 1), contrast_dim=8, spectrogram=(128, 32), frames=4
    )
    module._trainer = SimpleNamespace(estimated_stepping_batches=100, max_epochs=1)  # type: ignore[assignment]
    found = module.configure_optimizers()
    optimizer = found["optimizer"]
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    for p in module.network.parameters():
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    for name, p in module.network.named_parameters():
        flat = p.ndim <= 1 or name.endswith(".bias")
        expected = before[name] * (1 - 1e-4 * (0.0 if flat else 0.05)) - 1e-4
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=2e-7, msg=name)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
