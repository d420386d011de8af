"""One optimiser step of MSPI and CSTS against the authors' code (README.md); rates, decay and clipping by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsal.models.base import SaliencyModule
from avsal.models.csts import CSTSModule
from avsal.models.mspi import MSPIModule, rename_published
from tests.golden.fill import fill, normal_input
from tests.golden.mspi import MSPIGolden


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


# -- against the authors' code -----------------------------------------------------------------------------


def described(
    reference: Any, tensors: Mapping[str, Tensor | None], rename: Callable[[str], str | None]
) -> NDArray[np.float64]:
    """Return (n, 2): each tensor's norm, and its product with `normal_input("step:<name>")`, in the authors' order."""
    rows = []
    for name in map(str, reference["step_names"]):
        value = tensors[rename(name) or name]
        assert value is not None, name
        direction = torch.from_numpy(normal_input(f"step:{name}", tuple(value.shape))).double()
        rows.append((float(value.double().norm()), float((value.double() * direction).sum())))
    return np.array(rows)


def close(found: NDArray[np.float64], reference: Any, key: str, relative: float) -> None:
    """Compare norms and products relative to each tensor's norm, and to 1e-6 of the largest one's."""
    expected, gradients = reference[key], reference["step_gradients"][:, 0]
    limit = relative * expected[:, :1] + 1e-6 * expected[:, 0].max()
    good = (np.abs(found - expected) <= limit).all(1)
    if key == "step_changes":
        # A bias in front of a normalisation has no gradient but rounding, and Adam steps by its sign. (Where single
        # values of a weight turn so, 0.02 % of them change its product by 3 % of its norm.)
        chance = gradients < 1e-6 * np.linalg.norm(gradients)
        assert chance.sum() < 0.06 * len(chance)
        good |= chance
    worst = (np.abs(found - expected) / limit).max(1)
    assert good.all(), [(reference["step_names"][k], worst[k]) for k in np.flatnonzero(~good)]


def step(module: SaliencyModule, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Take the step; return by how much each parameter changed."""
    before = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    optimizer.step()
    return {name: p.detach().double() - before[name] for name, p in module.network.named_parameters()}


@pytest.mark.slow
def test_gradients_and_step_of_mspi_are_the_authors() -> None:
    """S3D, 2 clips of 64 x 96, the loss with its audio-visual part, frozen encoders in eval mode."""
    reference = np.load(Path(__file__).with_name("mspi.npz"))
    module = MSPIModule.from_authors(MSPIGolden("s3d").state_dict(), encoder="s3d", size=(64, 96)).train()
    clip, spectrogram = (
        torch.from_numpy(normal_input(name, shape))
        for name, shape in (("clip", (2, 3, 16, 64, 96)), ("spectrogram", (2, 1, 257, 111)))
    )
    density = torch.from_numpy(np.exp(2 * normal_input("density", (2, 64, 96))))[:, None]
    density = density / density.amax((2, 3), keepdim=True)
    terms = module.loss_terms(module.network.core(clip, spectrogram), {"density": density})  # type: ignore[typeddict-item]
    found = [terms[name].item() for name in ("kl", "cc", "av", "loss")]
    np.testing.assert_allclose(found, reference["step_losses"], rtol=1e-4, atol=2e-6)
    terms["loss"].backward()
    rename = rename_published
    gradients = {name: p.grad for name, p in module.network.named_parameters()}
    trained = {rename(name) or name for name in map(str, reference["step_names"])}
    assert trained == {name for name, gradient in gradients.items() if gradient is not None}
    close(described(reference, gradients, rename), reference, "step_gradients", 1e-3)
    changes = step(module, module.configure_optimizers()["optimizer"])  # type: ignore[index, call-overload, arg-type]
    close(described(reference, changes, rename), reference, "step_changes", 3e-2)


def test_gradients_and_step_of_csts_are_the_authors() -> None:
    """The released network with an eighth of its channels and 5 video blocks; both losses, clipped to 1."""
    reference = np.load(Path(__file__).with_name("csts.npz"))
    module = CSTSModule(
        size=(64, 64), embed_dim=8, depths=(1, 2, 1, 1), drop_path=0.0, spectrogram=(64, 64), window=60
    ).train()
    module.network.load_state_dict(
        {name: torch.from_numpy(fill(name, tuple(p.shape))) for name, p in module.network.named_parameters()},
        strict=False,
    )
    video, audio = (
        torch.from_numpy(normal_input(n, (3, c, 8, 64, 64))) for n, c in (("video", 3), ("audio", 1))
    )
    heat = torch.softmax(3 * torch.from_numpy(normal_input("heat", (3, 8, 256))), -1).view(3, 8, 16, 16)
    terms = module.loss_terms(module.network.core(video, audio), {"density": heat})  # type: ignore[typeddict-item]
    found = [terms[name].item() for name in ("kl", "contrastive", "loss")]
    np.testing.assert_allclose(found, reference["step_losses"][:3], rtol=1e-5)
    terms["loss"].backward()
    gradients = {name: p.grad for name, p in module.network.named_parameters()}
    assert set(map(str, reference["step_names"])) == set(gradients)
    close(described(reference, gradients, lambda name: None), reference, "step_gradients", 1e-3)
    norm = torch.nn.utils.clip_grad_norm_(module.network.parameters(), module.hparams["clip_norm"])
    assert norm.item() == pytest.approx(reference["step_losses"][3], rel=1e-4)
    module._trainer = SimpleNamespace(estimated_stepping_batches=100, max_epochs=1)  # type: ignore[assignment]
    changes = step(module, module.configure_optimizers()["optimizer"])
    close(described(reference, changes, lambda name: None), reference, "step_changes", 3e-2)
