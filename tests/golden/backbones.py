"""Reading the backbone golden files (S3D, SoundNet, VGGish, ViNet): filled state dicts and stored outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.fill import fill, normal_input

FOLDER = Path(__file__).parent


class Golden:
    """One golden pair NAME.json / NAME.npz."""

    def __init__(self, name: str) -> None:
        self.meta: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.arrays = np.load(FOLDER / f"{name}.npz")

    def state_dict(self) -> dict[str, Tensor]:
        """Every entry filled by name, under the published names."""
        return {
            name: torch.from_numpy(np.asarray(fill(name, tuple(shape), self.meta["seed"])))
            for name, shape in self.meta["state_dict"].items()
        }

    def input(self, name: str) -> Tensor:
        """The standard-normal input of that name."""
        return torch.from_numpy(normal_input(name, tuple(self.meta["inputs"][name]), self.meta["seed"]))

    def check(self, name: str, value: Tensor) -> float:
        """Assert that `value` is the stored output; return the largest error over the largest value."""
        stored = torch.from_numpy(self.arrays[name])
        entry = self.meta["outputs"][name]
        assert list(value.shape) == entry["shape"]
        ours = value[tuple(slice(None, None, step) for step in entry["stored_stride"])]
        tolerance = self.meta["tolerance"]
        torch.testing.assert_close(
            ours.float(),
            stored,
            rtol=tolerance["rtol"],
            atol=tolerance["atol_times_max"] * float(stored.abs().max()),
        )
        assert float(value.double().mean()) == pytest.approx(entry["mean"], rel=1e-4, abs=1e-5)
        return float((ours - stored).abs().max() / stored.abs().max())
