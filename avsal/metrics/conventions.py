"""Named sets of metric conventions, so that published numbers can be reproduced and labelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from avsal.metrics import crowdsal, functional as fn
from avsal.metrics.inputs import Comparison, Constant, Empty, Maps, MetricInputError, Points
from avsal.metrics.resize import Filter, Pipeline

Preset = Literal["default", "matlab", "published", "pysaliency", "crowdsal", "crowdsal-stream"]

#: The metrics of the collection, in the order of a model card, and whether larger is better.
METRICS: dict[str, bool] = {
    "cc": True,
    "nss": True,
    "auc_judd": True,
    "sauc": True,
    "sim": True,
    "kl": False,
    "ig": True,
    "auc_borji": True,
}
CARD: tuple[str, ...] = ("cc", "nss", "auc_judd", "sauc", "sim")


@dataclass(frozen=True)
class Conventions:
    """How each metric is computed; the fields are the options of `avsal.metrics.functional`.

    Attributes:
        name: the preset that it started from.
        nss_ddof: degrees of freedom of NSS's standard deviation.
        duplicates: whether coinciding fixations count each (NSS, IG, rank AUCs, sAUC).
        sim_norm: how maps become distributions for SIM.
        kl: convention of KL.
        ig: convention of the information gain.
        auc_judd_method: "judd", "rank" or "rank_all".
        auc_judd_ties: "expected", "matlab" or "jitter".
        sauc_method: "step", "exact" or "sampled".
        auc_borji_method: "step" or "sampled".
        step: distance of the thresholds of sAUC and AUC-Borji.
        endpoint: whether sAUC's thresholds include 1.
        splits: draws of the sampled forms.
        seed: of the sampled forms and the jitter.
        constant: what a constant prediction scores.
        empty: what an all-zero ground truth scores (SIM, KL). "nan" leaves a frame without fixations out of
            every metric.
        filter: how predictions are resized to the ground truth's grid.
        postprocess: the published post-processing that predictions go through first, None for none.
        quantised: whether the predictions went through 8-bit files already (see `postprocess`).
    """

    name: str = "default"
    nss_ddof: int = 1
    duplicates: bool = False
    sim_norm: fn.Norm = "minmax"
    kl: fn.KLConvention = "mit"
    ig: fn.GainConvention = "mit"
    auc_judd_method: fn.JuddMethod = "judd"
    auc_judd_ties: fn.Ties = "expected"
    sauc_method: fn.SplitMethod = "step"
    auc_borji_method: Literal["step", "sampled"] = "step"
    step: float = 0.1
    endpoint: bool = True
    splits: int = 100
    seed: int = 0
    constant: Constant = "chance"
    empty: Empty = "nan"
    filter: Filter = "bicubic"
    postprocess: Pipeline | None = None
    quantised: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            choices = [
                v for part in (kind, *get_args(kind)) if get_origin(part) is Literal for v in get_args(part)
            ]
            value = getattr(self, name)
            if choices and value not in choices and not (value is None and type(None) in get_args(kind)):
                raise MetricInputError(
                    f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}."
                )

    @classmethod
    def of(cls, preset: Preset | Conventions = "default", **changes: Any) -> Conventions:
        """Return a preset with some fields changed.

        Args:
            preset: "default"; "matlab", the MIT code without jitter and with what it prints on degenerate
                frames; "published", the MIT code as the papers ran it (jitter, 100 random splits, constant
                maps dropped); "pysaliency"; "crowdsal", the public scorer of AViMoS, NTIRE 2026 and CrowdSAL,
                whose formulas are fixed.
            **changes: fields to replace.

        Raises:
            MetricInputError: for an unknown preset or field.
        """
        if isinstance(preset, Conventions):
            base = preset
        elif preset in _PRESETS:
            base = cls(name=preset, **_PRESETS[preset])
        else:
            raise MetricInputError(
                f"conventions {preset!r} are not known; choose one of {', '.join(_PRESETS)}."
            )
        unknown = sorted(set(changes) - set(asdict(base)))
        if unknown:
            raise MetricInputError(
                f"{', '.join(unknown)}: no such convention; there are {', '.join(asdict(base))}."
            )
        return replace(base, **changes) if changes else base

    def describe(self) -> dict[str, Any]:
        """Return the fields as plain values, for results files."""
        return asdict(self)

    def kernels(self) -> dict[str, Callable[[Frames], Tensor]]:
        """Return a function for each metric that scores prepared frames, shape (B,)."""
        if self.name.startswith("crowdsal"):
            return {m: _public_scorer(m, self.name) for m in ("cc", "nss", "auc_judd", "sim")}
        c = self.constant
        return {
            "cc": lambda f: fn._cc(f.pred, f.need("density"), c, f.comparison),
            "nss": lambda f: fn._nss(f.pred, f.points(self.duplicates), self.nss_ddof, c),
            "sim": lambda f: fn._sim(f.pred, f.need("density"), self.sim_norm, c, self.empty, f.comparison),
            "kl": lambda f: fn._kl(f.pred, f.need("density"), fn.EPS, self.kl, c, self.empty),
            "ig": lambda f: fn._ig(f.pred, f.points(self.duplicates), f.need("baseline"), self.ig, c),
            "auc_judd": self._auc_judd,
            "auc_borji": self._auc_borji,
            "sauc": self._sauc,
        }

    def _auc_judd(self, f: Frames) -> Tensor:
        pred, ties = f.pred, self.auc_judd_ties
        if ties == "jitter" and self.auc_judd_method == "judd":
            from avsal.metrics.sampling import jittered

            pred, ties = jittered(pred, self.seed), "matlab"
        points = f.points(self.duplicates and self.auc_judd_method != "judd")
        return fn._auc_judd(pred, points, ties, self.auc_judd_method, self.constant)

    def _auc_borji(self, f: Frames) -> Tensor:
        points = f.points(False)
        if self.auc_borji_method == "step":
            return fn._auc_borji(f.pred, points, self.step, self.constant)
        maps = f.pred.raw.reshape(-1, *f.pred.size)
        return fn.auc_borji(
            maps,
            f.fixations,
            method="sampled",
            step=self.step,
            splits=self.splits,
            seed=self.seed,
            constant=self.constant,
        )

    def _sauc(self, f: Frames) -> Tensor:
        if self.sauc_method != "sampled":
            return fn._sauc(
                f.pred,
                f.points(self.duplicates),
                f.others(self.duplicates),
                self.sauc_method,
                self.step,
                self.endpoint,
                self.constant,
            )
        return fn.sauc(
            f.pred.raw.reshape(-1, *f.pred.size),
            f.fixations,
            f.negatives,
            method="sampled",
            step=self.step,
            endpoint=self.endpoint,
            splits=self.splits,
            seed=self.seed,
            duplicates=self.duplicates,
            constant=self.constant,
        )


_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "matlab": {"auc_judd_ties": "matlab", "constant": "mit", "empty": "mit"},
    "published": {
        "auc_judd_ties": "jitter",
        "auc_borji_method": "sampled",
        "sauc_method": "sampled",
        "constant": "nan",
        "empty": "mit",
    },
    "pysaliency": {
        "nss_ddof": 0,
        "duplicates": True,
        "sim_norm": "pysaliency",
        "kl": "pysaliency",
        "ig": "pysaliency",
        "auc_judd_method": "rank_all",
        "sauc_method": "exact",
        "empty": "uniform",
    },
    "crowdsal": {
        "nss_ddof": 0,
        "duplicates": True,
        "sim_norm": "sum",
        "auc_judd_ties": "matlab",
        "filter": "bilinear",
    },
    "crowdsal-stream": {"nss_ddof": 0, "duplicates": True, "sim_norm": "sum"},
}


class Missing(Exception):
    """A metric's ground truth is not in the batch."""


class Frames:
    """A few frames ready for scoring: predictions on the ground truth's grid, and the ground truth."""

    def __init__(
        self,
        pred: Maps,
        density: Maps | None,
        fixations: Tensor | None,
        negatives: Tensor | None,
        baseline: Maps | None,
    ) -> None:
        self.pred, self.density, self.baseline = pred, density, baseline
        self._fixations, self._negatives = fixations, negatives
        self._points: dict[tuple[str, bool], Points] = {}
        #: The public scorer's four scores, once one of them is asked for.
        self.public: dict[str, Tensor] = {}
        #: Whether SIM is asked for beside CC.
        self.overlap = False

    @property
    def fixations(self) -> Tensor:
        """(B, N, 2) fixations."""
        if self._fixations is None:
            raise Missing
        return self._fixations

    @property
    def negatives(self) -> Tensor:
        """(B, M, 2) negatives."""
        if self._negatives is None:
            raise Missing
        return self._negatives

    def need(self, name: Literal["density", "baseline"]) -> Maps:
        """Return the named maps."""
        maps = getattr(self, name)
        if maps is None:
            raise Missing
        return maps

    @cached_property
    def comparison(self) -> Comparison:
        """What CC and SIM share."""
        return Comparison(self.pred, self.need("density"), overlap=self.overlap)

    def points(self, duplicates: bool) -> Points:
        """Return the fixations as pixel indices, prepared once."""
        return self._cached("fixations", self.fixations, duplicates)

    def others(self, duplicates: bool) -> Points:
        """Return the negatives as pixel indices."""
        return self._cached("negatives", self.negatives, duplicates)

    def _cached(self, name: str, points: Tensor, duplicates: bool) -> Points:
        if (name, duplicates) not in self._points:
            self._points[name, duplicates] = Points(points, self.pred, name, duplicates=duplicates)
        return self._points[name, duplicates]

    def score(self, kernels: dict[str, Callable[[Frames], Tensor]], metrics: tuple[str, ...]) -> Tensor:
        """Return (B, metrics) float64 scores; NaN where a frame or the batch lacks the ground truth."""
        self.overlap = "sim" in metrics
        out = torch.full(
            (len(self.pred), len(metrics)), torch.nan, dtype=torch.float64, device=self.pred.raw.device
        )
        for column, metric in enumerate(metrics):
            try:
                out[:, column] = kernels[metric](self).double()
            except Missing:
                continue
        return out


def _public_scorer(metric: str, edition: str) -> Callable[[Frames], Tensor]:
    def kernel(f: Frames) -> Tensor:
        if not f.public:
            pred, density = (m.raw.reshape(-1, *f.pred.size) for m in (f.pred, f.need("density")))
            scorer = crowdsal.scores if edition == "crowdsal" else crowdsal.stream_scores
            f.public = scorer(pred, density, f.fixations)
        return f.public[metric]

    return kernel
