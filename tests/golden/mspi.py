"""Reading the MSPI golden files: the authors' state dict filled by name, inputs, outputs and stages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden.fill import fill, normal_input

FOLDER = Path(__file__).parent


class MSPIGolden:
    """One golden pair mspi_<encoder>.json / .npz."""

    def __init__(self, encoder: str) -> None:
        self.meta: dict[str, Any] = json.loads((FOLDER / f"mspi_{encoder}.json").read_text())
        self.arrays = np.load(FOLDER / f"mspi_{encoder}.npz")

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """The entries whose names begin with `prefix`, filled, under the authors' names."""
        return {
            name: torch.from_numpy(self._value(name, tuple(shape)))
            for name, shape in self.meta["state_dict"]
            if name.startswith(prefix) and name not in self.meta["not_filled"]
        }

    def _value(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        value = fill(name, shape, self.meta["seed"])
        for override in self.meta["fill_overrides"]:
            if re.search(override["pattern"], name):
                value = value * np.float32(override["multiply"])
        return np.asarray(value)

    def input(self, name: str) -> Tensor:
        """The standard-normal input of that name."""
        return torch.from_numpy(normal_input(name, tuple(self.meta["inputs"][name]), self.meta["seed"]))
