"""What the metrics see under the papers' protocol is what the authors' scripts write, done here by SciPy and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch.nn import functional as F

from avsal.metrics import SaliencyMetrics
from avsal.models import create_model
from avsal.models.base import SaliencyModule
from avsal.types import SaliencyOutput

SIZE = (72, 96)


def blurred(image: np.ndarray, radius: int, mode: str) -> np.ndarray:
    """Return an image under a Gaussian of sigma 2."""
    weight = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 2.0) ** 2)
    weight /= weight.sum()
    return correlate1d(correlate1d(image, weight, 0, mode=mode), weight, 1, mode=mode)


def stretched(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / (image.max() - image.min())


def mspi(logits: np.ndarray) -> np.ndarray:
    """Blur the log map, exp, 640 x 480, min-max, round to 8 bit."""
    log = logits - np.log(np.exp(logits).sum())
    dense = torch.from_numpy(np.exp(blurred(log, 5, "mirror")))[None, None]
    large = F.interpolate(dense, (480, 640), mode="bilinear", align_corners=False)[0, 0].numpy()
    return np.round(stretched(large) * 255) / 255


def stavis(logits: np.ndarray) -> np.ndarray:
    """Sigmoid, min-max, truncate to 8 bit; divide by the maximum, min-max, Gaussian with repeated borders."""
    eight = np.floor(stretched(1 / (1 + np.exp(-logits))) * 255) / 255
    return blurred(stretched(eight / eight.max()), 6, "reflect")


TINY: dict[str, dict[str, Any]] = {
    "mspi": {"size": (64, 96), "width": 0.1, "audio": False, "image_stream": "none"},
    "stavis": {
        "audiovisual": False,
        "size": (32, 32),
        "width": 4,
        "blocks": (1, 1, 1),
        "dsam_maps": 2,
        "frames": 8,
    },
    "caspnet": {
        "audiovisual": False,
        "size": (32, 32),
        "width": 0.1,
        "channels": 8,
        "growth": 4,
        "decoder_width": 8,
    },
    "avrsp": {"audiovisual": False, "size": (64, 64), "width": 0.1, "channels": 8, "heads": 2},
}


@pytest.mark.parametrize(
    ("model", "theirs"), [("mspi", mspi), ("stavis", stavis), ("caspnet", stavis), ("avrsp", stavis)]
)
def test_the_paper_protocol_scores_the_maps_that_the_authors_write(model: str, theirs: Any) -> None:
    module: SaliencyModule = create_model(model, **TINY[model])
    random = np.random.default_rng(3)
    logits = random.normal(0, 1.5, SIZE) + 3 * stretched(blurred(random.random(SIZE), 6, "reflect"))  # sharp
    density = stretched(np.exp(blurred(logits, 6, "reflect")))
    rows, columns = np.unravel_index(np.argsort(logits.ravel())[-60::5], SIZE)
    truth = {
        "density": torch.from_numpy(density)[None, None].float(),
        "fixations": torch.from_numpy(np.stack([rows, columns], 1))[None, None],
        "video_id": torch.tensor([0]),
        "frame": torch.tensor([[0]]),
    }

    def scores(metric: SaliencyMetrics, update: Any) -> dict[str, float]:
        metric.reset()
        update(metric)
        return metric.compute()

    module.protocol = "paper"
    paper = module.build_metrics("test")
    assert isinstance(paper, SaliencyMetrics)
    module._metrics["test"] = paper
    output = SaliencyOutput(torch.from_numpy(logits)[None, None], module.network.activation)
    found = scores(paper, lambda _: module._update("test", output, truth))  # type: ignore[arg-type]
    plain = SaliencyMetrics(paper.metrics, conventions="published")
    file = torch.from_numpy(theirs(logits))[None, None]
    expected = scores(plain, lambda metric: metric.update(file, **truth))
    for name in ("cc", "nss", "sim"):
        assert found[name] == pytest.approx(expected[name], abs=2e-4), name
    assert found["auc_judd"] == pytest.approx(expected["auc_judd"], abs=2e-3)
    # The full protocol scores the map as it is.
    common = scores(SaliencyMetrics(("cc", "nss")), lambda m: m.update(output.saliency(), **truth))
    assert abs(common["nss"] - expected["nss"]) > 0.02
