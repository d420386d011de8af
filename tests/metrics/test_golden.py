"""Every number of the reference codes that a convention claims to reproduce (tests/golden/metrics.*)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avsal.metrics import functional as F

GOLDEN = Path(__file__).parents[1] / "golden"
META = json.loads((GOLDEN / "metrics.json").read_text())
ARRAYS = dict(np.load(GOLDEN / "metrics.npz"))
CASES = sorted(META["cases"])
#: The resized prediction is stored in float32, which moves every value by up to 1e-8.
RESIZED = "resize_28x50_to_180x320_n30"
CONSTANT = ("const03_36x64_n10", "zeros_36x64_n10")


class Case:
    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.name, self.values = name, META["cases"][name]["values"]
        pred = ARRAYS.get(f"{name}/pred_resized", ARRAYS[f"{name}/pred"])
        self.pred = torch.from_numpy(pred.astype(np.float64)).to(dtype)
        self.density = torch.from_numpy(ARRAYS[f"{name}/density"] / 255.0).to(dtype)
        self.fix = torch.from_numpy(ARRAYS[f"{name}/fix"].astype(np.int64))
        self.other = torch.from_numpy(ARRAYS[f"{name}/other"].astype(np.int64))
        height, width = self.pred.shape
        self.baseline = torch.from_numpy(ARRAYS[f"baseline/{height}x{width}"] / 255.0).to(dtype)

    def reference(self, key: str) -> float | None:
        value = self.values.get(key)
        return None if value is None or str(value).startswith("error") else float(value)


#: reference value -> (our call, absolute tolerance).
SAME: dict[str, tuple[Callable[[Case], Tensor], float]] = {
    "octave_mit/cc": (lambda c: F.cc(c.pred, c.density, constant="mit"), 1e-9),
    "octave_mit/nss": (lambda c: F.nss(c.pred, c.fix, constant="mit"), 1e-9),
    "octave_mit/sim": (lambda c: F.sim(c.pred, c.density, constant="mit", empty="mit"), 1e-9),
    "octave_mit/kl": (lambda c: F.kl_div(c.pred, c.density, constant="mit", empty="mit"), 1e-9),
    "octave_mit/ig": (lambda c: F.information_gain(c.pred, c.fix, c.baseline, constant="mit"), 1e-9),
    "octave_mit/auc_judd": (lambda c: F.auc_judd(c.pred, c.fix, ties="matlab"), 1e-12),
    "pysaliency/cc": (lambda c: F.cc(c.pred, c.density), 1e-9),
    "pysaliency/nss": (lambda c: F.nss(c.pred, c.fix, ddof=0, duplicates=True), 1e-9),
    "pysaliency/model_nss": (lambda c: F.nss(c.pred, c.fix, ddof=0, duplicates=True), 1e-9),
    "pysaliency/sim": (lambda c: F.sim(c.pred, c.density, norm="pysaliency", empty="uniform"), 1e-9),
    "pysaliency/kl_mit": (
        lambda c: F.kl_div(c.pred, c.density, convention="pysaliency_mit", empty="uniform"),
        1e-9,
    ),
    "pysaliency/kl_1e-20": (
        lambda c: F.kl_div(c.pred, c.density, convention="pysaliency", empty="uniform"),
        1e-9,
    ),
    "pysaliency/auc_uniform": (
        lambda c: F.auc_judd(c.pred, c.fix, method="rank_all", duplicates=True),
        1e-12,
    ),
    "pysaliency/model_auc": (lambda c: F.auc_judd(c.pred, c.fix, method="rank_all", duplicates=True), 1e-12),
    "pysaliency/auc_unfixated": (lambda c: F.auc_judd(c.pred, c.fix, method="rank", duplicates=True), 1e-12),
    "pysaliency/sauc": (lambda c: F.sauc(c.pred, c.fix, c.other, method="exact", duplicates=True), 1e-12),
    "pysaliency/model_sauc": (
        lambda c: F.sauc(c.pred, c.fix, c.other, method="exact", duplicates=True),
        1e-12,
    ),
    "pysaliency/ig_bits": (
        lambda c: F.information_gain(c.pred, c.fix, c.baseline, convention="pysaliency", duplicates=True),
        1e-9,
    ),
    "sklearn/auc_unfixated": (lambda c: F.auc_judd(c.pred, c.fix, method="rank"), 1e-12),
    "sklearn/sauc": (lambda c: F.sauc(c.pred, c.fix, c.other, method="exact"), 1e-12),
    "mspi/cc": (lambda c: F.cc(c.pred, c.density, constant="nan"), 1e-9),
    "mspi/sim": (lambda c: F.sim(c.pred, c.density, constant="nan"), 1e-9),
    "mspi/nss": (lambda c: F.nss(c.pred, c.fix), 1e-9),
    "mspi/nss_countmap": (lambda c: F.nss(c.pred, c.fix, duplicates=True), 1e-9),
    "mspi/ig_nats": (lambda c: F.information_gain(c.pred, c.fix, c.baseline, convention="mspi"), 1e-9),
    "unisal/cc": (lambda c: F.cc(c.pred, c.density, constant="nan"), 1e-9),
    "unisal/sim": (lambda c: F.sim(c.pred, c.density, norm="sum", constant="mit", empty="mit"), 1e-9),
    "closed/auc_judd_matlab": (lambda c: F.auc_judd(c.pred, c.fix, ties="matlab"), 1e-12),
    "closed/auc_judd_expected": (lambda c: F.auc_judd(c.pred, c.fix), 1e-12),
    "closed/auc_mw_unfixated": (lambda c: F.auc_judd(c.pred, c.fix, method="rank"), 1e-12),
    "closed/auc_mw_all_pixels": (lambda c: F.auc_judd(c.pred, c.fix, method="rank_all"), 1e-12),
    "closed/sauc_exact": (lambda c: F.sauc(c.pred, c.fix, c.other, method="exact"), 1e-12),
    "closed/auc_borji_expected": (lambda c: F.auc_borji(c.pred, c.fix, min_fixations=1), 1e-12),
    "closed/sauc_step01_expected": (lambda c: F.sauc(c.pred, c.fix, c.other), 1e-12),
    "closed/sauc_step001_expected": (lambda c: F.sauc(c.pred, c.fix, c.other, step=0.01), 1e-12),
    "closed/sauc_step01_noend_expected": (lambda c: F.sauc(c.pred, c.fix, c.other, endpoint=False), 1e-12),
}
#: What a reference prints where it divides zero by zero or returns a made-up value, and no convention copies
#: it: MSPI's information gain of a zero map (0/0; ours is that of the uniform map), UNISAL's SIM of a
#: constant map (as uniform, where the MIT code, whose option stands here, gives NaN).
NOT_COPIED = {("mspi/ig_nats", "zeros_36x64_n10"), ("unisal/sim", "const03_36x64_n10")}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("key", SAME)
def test_reference_value(name: str, key: str) -> None:
    case = Case(name)
    expected = case.reference(key)
    if expected is None or (key, name) in NOT_COPIED:
        assert expected is None or name in CONSTANT
        return
    ours, tolerance = SAME[key]
    if name == RESIZED and "auc" not in key:
        tolerance = 1e-8
    assert float(ours(case)) == pytest.approx(expected, abs=tolerance, rel=0, nan_ok=True)


@pytest.mark.parametrize("name", [n for n in CASES if n not in CONSTANT])
def test_float32_is_within_the_stated_tolerance(name: str) -> None:
    case = Case(name, torch.float32)
    pairs = {
        "octave_mit/cc": F.cc(case.pred, case.density),
        "octave_mit/nss": F.nss(case.pred, case.fix),
        "octave_mit/sim": F.sim(case.pred, case.density, empty="mit"),
        "octave_mit/kl": F.kl_div(case.pred, case.density, empty="mit"),
        "closed/auc_judd_expected": F.auc_judd(case.pred, case.fix),
        "closed/sauc_step01_expected": F.sauc(case.pred, case.fix, case.other),
        "closed/sauc_exact": F.sauc(case.pred, case.fix, case.other, method="exact"),
    }
    for key, value in pairs.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(case.reference(key), abs=2e-5, rel=0, nan_ok=True), key


@pytest.mark.parametrize("name", CASES)
def test_sampled_forms_within_four_standard_errors(name: str) -> None:
    case, splits = Case(name), 1500
    for key, sample in (
        ("sauc", lambda: F.sauc(case.pred, case.fix, case.other, method="sampled", splits=splits, seed=3)),
        ("auc_borji", lambda: F.auc_borji(case.pred, case.fix, method="sampled", splits=splits, seed=3)),
    ):
        expected, ours = case.reference(f"octave_mit/{key}_mean"), float(sample())
        error = case.reference(f"octave_mit/{key}_se")
        if expected is None or name in CONSTANT:
            continue
        if math.isnan(expected):
            assert math.isnan(ours)
            continue
        assert error is not None
        spread = case.reference(f"octave_mit/{key}_100splits_sd")
        assert spread is not None
        both = math.hypot(error, spread * math.sqrt(100 / splits))
        assert abs(ours - expected) <= 4 * both + 1e-9, key


@pytest.mark.parametrize("name", ["fivelevels_36x64_n30", "peaky8bit_180x320_n25", "quant8_112x112_n50"])
def test_expected_ties_are_the_mean_of_jittered_runs(name: str) -> None:
    case = Case(name)
    runs = torch.stack([F.auc_judd(case.pred, case.fix, ties="jitter", seed=s) for s in range(30)])
    expected = F.auc_judd(case.pred, case.fix)
    assert abs(runs.mean() - expected) < 4 * runs.std() / math.sqrt(len(runs)) + 1e-12
    mean, sd = (case.reference(f"octave_mit/auc_judd_jitter_{k}") for k in ("mean", "sd"))
    assert mean is not None
    assert sd is not None
    assert abs(float(expected) - mean) < 4 * sd / math.sqrt(50) + 1e-12


def test_seed_decides_the_sampled_values() -> None:
    case = Case("quant8_112x112_n50")
    first, again, other = (
        F.sauc(case.pred, case.fix, case.other, method="sampled", splits=20, seed=s) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


class TestVideo:
    """Six frames under the STAViS protocol, without its smoothing."""

    pred = torch.from_numpy(ARRAYS["video/pred"].astype(np.float64))
    density = torch.from_numpy(ARRAYS["video/density"] / 255.0)
    rows = torch.from_numpy(ARRAYS["video/fix"].astype(np.int64))

    @classmethod
    def fixations(cls) -> Tensor:
        binary = torch.zeros(cls.pred.shape, dtype=torch.bool)
        binary[tuple(cls.rows.T)] = True
        return F.fixation_points(binary)

    @staticmethod
    def negatives(fixations: Tensor) -> Tensor:
        from avsal.metrics.negatives import video_negatives

        return video_negatives(fixations)

    def check(self, ours: Tensor, expected: list, tolerance: float = 1e-9) -> None:
        assert ours.tolist() == pytest.approx([float(v) for v in expected], abs=tolerance, rel=0, nan_ok=True)

    def test_mit_conventions(self) -> None:
        golden, fix = META["video"]["octave_mit"], self.fixations()
        self.check(F.cc(self.pred, self.density, constant="mit"), golden["cc"])
        self.check(F.sim(self.pred, self.density, constant="mit", empty="mit"), golden["sim"])
        self.check(F.nss(self.pred, fix, constant="mit"), golden["nss"])
        self.check(F.auc_judd(self.pred, fix, ties="matlab"), golden["auc_judd"], 1e-12)

    def test_closed_forms(self) -> None:
        golden, fix = META["video"]["closed"], self.fixations()
        negatives = self.negatives(fix)
        self.check(F.auc_judd(self.pred, fix), golden["auc_judd_expected"], 1e-12)
        self.check(F.auc_judd(self.pred, fix, ties="matlab"), golden["auc_judd_matlab"], 1e-12)
        self.check(F.sauc(self.pred, fix, negatives, constant="nan"), golden["sauc_step01_expected"], 1e-12)
        self.check(F.sauc(self.pred, fix, negatives, method="exact"), golden["sauc_exact"], 1e-12)
