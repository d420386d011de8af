"""CASP-Net and AVRSP, whose authors published no code: values worked out by hand from the papers' formulae."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avsal.data import DIEMDataModule
from avsal.evaluation.testing import use_protocol
from avsal.models import create_model
from avsal.nn.waveform import windowed_excerpt
from avsal.types import SaliencyOutput
from tests.recipes.miniature import EMPTY, FPS, FRAMES, audiovisual, density, sound

TINY: dict[str, dict[str, Any]] = {
    "caspnet": {"width": 0.1, "channels": 8, "growth": 4, "decoder_width": 8, "audio_encoder": "small"},
    "avrsp": {"width": 0.1, "channels": 8, "heads": 2, "audio_width": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audiovisual(tmp_path_factory.mktemp("recipes") / "av")


@pytest.mark.parametrize(
    ("model", "similarity"),
    # Min-max, then divided by the sum: 1/2 + 1/6 + 0 + 0. Divided by the sum only: 0.4 + 0.2 + 0.1 + 0.
    [("caspnet", 2 / 3), ("avrsp", 0.7)],
)
def test_the_loss_of_four_pixels(model: str, similarity: float) -> None:
    module = create_model(model, audiovisual=False, size=(64, 64), **TINY[model])
    saliency = torch.tensor([[0.8, 0.4], [0.2, 0.6]])[None, None]
    truth = torch.tensor([[1.0, 0.5], [0.5, 0.0]])[None, None]
    terms = module.loss_terms(SaliencyOutput(saliency.logit()), {"density": truth})
    # P = 0.4, 0.2, 0.1, 0.3 and Q = 0.5, 0.25, 0.25, 0: three quarters of ln 1.25 and a quarter of ln 2.5.
    kl = 0.75 * np.log(1.25) + 0.25 * np.log(2.5)
    # Deviations 0.3, -0.1, -0.3, 0.1 and 0.5, 0, 0, -0.5.
    cc = 0.1 / np.sqrt(0.2 * 0.5)
    assert float(terms["kl"]) == pytest.approx(kl, abs=1e-6)
    assert float(terms["cc"]) == pytest.approx(cc, abs=1e-6)
    assert float(terms["sim"]) == pytest.approx(similarity, abs=1e-6)
    assert float(terms["loss"]) == pytest.approx(kl - 0.1 * cc - 0.1 * similarity, abs=1e-6)


@pytest.mark.parametrize(("model", "decay"), [("caspnet", 0.0), ("avrsp", 1e-5)])
def test_the_first_step_of_adam_is_the_rate_times_the_sign(model: str, decay: float) -> None:
    options = {"weight_decay": decay} if decay else {}
    module = create_model(model, audiovisual=False, size=(64, 64), **TINY[model], **options)
    optimizer = module.configure_optimizers()["optimizer"]
    weight = max((p for p in module.network.parameters() if p.requires_grad), key=lambda p: p.numel())
    before = weight.detach().clone()
    weight.grad = torch.where(torch.arange(weight.numel()).view_as(weight) % 3 == 0, 2.0, -0.5)
    optimizer.step()
    expected = before * (1 - 1e-4 * decay) - 1e-4 * weight.grad.sign()
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize(
    ("model", "frames", "target", "buffer", "first"),
    # CASP-Net: frame 8 of 16. AVRSP: the last of 32, with the sound of STAViS's rule in 70560 zeros.
    [("caspnet", 16, 8, None, 10), ("avrsp", 32, 31, 70560, 3)],
)
def test_a_training_clip_of_the_miniature(
    root: Path, model: str, frames: int, target: int, buffer: int | None, first: int
) -> None:
    module = create_model(model, size=(64, 96), **TINY[model])
    data = DIEMDataModule(root, val_fraction=0.0, flip=0.0, num_workers=0)
    data.use_spec(module.spec)
    clips = data.train_dataset()
    sample = clips._sample(clips._open[0], 0, first, first + frames, np.random.default_rng(0), flip=False)
    assert sample["video"].shape == (3, frames, 64, 96)
    assert sample["frame"].tolist() == [first + target]
    cell = density(first + target + 1)[81:84, 144:147].mean() / 255  # of 64 x 96 cells; JPEG changes a little
    assert float(sample["density"][0, 32, 48]) == pytest.approx(cell, abs=0.03)
    wave = sound(FRAMES / FPS, 22050)[0].astype(np.float32) / 32768
    if buffer is None:
        assert sample["audio_rate"] == 16000
        assert len(sample["audio"]) == round(frames / FPS * 16000)
        return
    begin, end = ((first - 0.5) * 882, (first + frames - 0.5) * 882)  # 22050 / 25 samples a frame
    excerpt = wave[int(begin) : int(end) + 1]
    heard = windowed_excerpt(sample["audio"][None], None, None, samples=buffer)[0].numpy()
    place = buffer // 2 - len(excerpt) // 2
    expected = np.zeros(buffer, np.float32)
    expected[place : place + len(excerpt)] = np.hanning(len(excerpt)) * excerpt * 256
    np.testing.assert_allclose(heard, expected, atol=2e-3)


def test_a_frame_with_an_empty_map_counts_with_a_similarity_of_0_under_the_paper_protocol(root: Path) -> None:
    module = create_model("caspnet", audiovisual=False, size=(64, 64), **TINY["caspnet"]).eval()
    counted = {}
    for protocol in ("paper", "full"):
        data = DIEMDataModule(root, num_workers=0, eval_batch_size=4)
        use_protocol(module, data, protocol)  # type: ignore[arg-type]
        data.use_spec(module.spec)
        batches = data.eval_dataset("test")
        k = next(k for k in range(len(batches)) if EMPTY - 1 in batches[k]["frame"].flatten().tolist())
        metric: Any = module.build_metrics("test", data)
        module._metrics["test"] = metric
        batch = batches[k]
        module._update("test", SaliencyOutput(torch.rand(len(batch["frame"]), 1, 64, 64)), batch)
        keys, scores = metric.per_frame()
        row = keys[:, 1].tolist().index(EMPTY - 1) if EMPTY - 1 in keys[:, 1].tolist() else None
        counted[protocol] = (
            None if row is None else dict(zip(metric.metrics, scores[row].tolist(), strict=True))
        )
    assert counted["paper"] is not None
    assert counted["paper"]["sim"] == 0
    assert np.isnan([counted["paper"][name] for name in ("cc", "nss", "auc_judd", "sauc")]).all()
    assert counted["full"] is None or np.isnan(list(counted["full"].values())).all()
