"""Saliency metrics over a whole data set: frame, then video, then data set, on any number of processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from avsal.metrics.conventions import CARD, METRICS, Conventions, Frames, Preset
from avsal.metrics.inputs import Maps, MetricInputError, as_tensor
from avsal.metrics.resize import postprocess, resize_maps

#: Pixels that are scored at once, which bounds the memory for resized maps.
_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 26}


class FrameMetric(Metric):
    """Base of metrics that keep a few numbers per frame as columns, whatever the number of processes.

    Args:
        columns: name of each state -> shape of one frame's entry and its type.
        **options: torchmetrics' own arguments.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, columns: Mapping[str, tuple[tuple[int, ...], torch.dtype]], **options: Any) -> None:
        super().__init__(**options)
        self._columns = dict(columns)
        for name in columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget every frame."""
        super().reset()
        # A rank that sees no frame still has to take part in the exchange, with the right shape and type.
        for name, (shape, dtype) in self._columns.items():
            setattr(self, name, [torch.zeros((0, *shape), dtype=dtype, device=self.device)])

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the frames of another metric of the same kind."""
        super().merge_state(incoming_state)
        self._update_count += 1  # torchmetrics warns of metrics without updates otherwise
        self._computed = None

    def _append(self, **values: Tensor) -> None:
        for name, rows in values.items():
            getattr(self, name).append(rows.to(self.device))

    def _joined(self, name: str) -> Tensor:
        state: list[Tensor] | Tensor = getattr(self, name)
        return (torch.cat(state) if isinstance(state, list) else state).cpu()


class SaliencyMetrics(FrameMetric):
    """The set of saliency metrics of a model card, averaged as the papers do: frame, video, data set.

    Each frame's scores are kept with its video and frame number (a few numbers per frame, never a map), so
    per-video values are exact, the order of frames and their distribution over processes do not matter, and a
    frame that a padded distributed sampler repeats counts once.

    Args:
        metrics: names among "cc", "nss", "auc_judd", "sauc", "sim", "kl", "ig", "auc_borji".
        conventions: a preset's name or `Conventions`; further keyword arguments replace its fields
            (`auc_judd_ties="matlab"`).
        average: "video" averages a video's frames, then the videos (STAViS); "frame" averages all frames
            (DHF1K).
        nan: what a prediction with NaN or infinite values does: "count" leaves the frame out of every mean,
            warns once and counts it as failed; "raise" stops.
        baseline: (H, W) baseline density of the information gain, resized to the ground truth where needed.
        **options: fields of `Conventions`, and torchmetrics' own arguments.
    """

    higher_is_better = None
    _keys: list[Tensor] | Tensor
    _scores: list[Tensor] | Tensor

    def __init__(
        self,
        metrics: Sequence[str] = CARD,
        *,
        conventions: Preset | Conventions = "default",
        average: Literal["video", "frame"] = "video",
        nan: Literal["count", "raise"] = "count",
        baseline: Tensor | None = None,
        **options: Any,
    ) -> None:
        fields = Conventions.__dataclass_fields__
        columns = {"_keys": ((3,), torch.int64), "_scores": ((len(metrics),), torch.float64)}
        super().__init__(columns, **{k: v for k, v in options.items() if k not in fields})
        self.conventions = Conventions.of(conventions, **{k: v for k, v in options.items() if k in fields})
        self.metrics = tuple(metrics)
        self._kernel_names = tuple(self.conventions.kernels())
        unknown = [m for m in self.metrics if m not in self._kernel_names]
        if unknown or not self.metrics:
            raise MetricInputError(
                f"metrics {unknown or '()'} are not known under the conventions {self.conventions.name!r};"
                f" choose among {', '.join(self._kernel_names)}."
            )
        if average not in ("video", "frame") or nan not in ("count", "raise"):
            raise MetricInputError(
                f"average={average!r}, nan={nan!r}: give 'video' or 'frame', 'count' or 'raise'."
            )
        if "ig" in self.metrics and baseline is None:
            raise MetricInputError(
                "the information gain needs baseline=, a density (H, W) such as a centre prior."
            )
        self.average, self.nan, self.baseline = average, nan, baseline
        self._warned = False
        self._summary: dict[str, Any] = {}

    def update(
        self,
        pred: Tensor,
        density: Tensor | None = None,
        fixations: Tensor | None = None,
        negatives: Tensor | None = None,
        video_id: Tensor | int = 0,
        frame: Tensor | int | None = None,
        labelled: Tensor | None = None,
    ) -> None:
        """Score a batch of frames.

        Args:
            pred: (B, T_out, h, w) or (B, h, w) predictions, resized here to the ground truth's grid. Here and below,
                NumPy arrays serve as well as tensors.
            density: the same with the ground truth's (H, W); None if there is none.
            fixations: (B, T_out, N, 2) or (B, N, 2) int64 (row, column), padded with -1; None if there are
                none.
            negatives: like fixations, for sAUC.
            video_id: (B,) int64, the same on all ranks; one number for all.
            frame: (B, T_out) or (B,) int64 index in the video; by default the frames follow those already
                seen of the same video, for use in one process.
            labelled: (B, T_out) or (B,) bool; frames without ground truth are left out.

        Raises:
            MetricInputError: for shapes that do not fit, fixations outside the map, or NaN predictions with
                nan="raise".
        """
        pred = as_tensor(pred, "pred")
        density = None if density is None else as_tensor(density, "density")
        fixations = None if fixations is None else as_tensor(fixations, "fixations")
        negatives = None if negatives is None else as_tensor(negatives, "negatives")
        labelled = None if labelled is None else as_tensor(labelled, "labelled")
        if pred.ndim not in (3, 4):
            raise MetricInputError(
                f"pred has the shape {tuple(pred.shape)}; it is (B, T, h, w) or (B, h, w)."
            )
        if density is None and fixations is None:
            raise MetricInputError("there is neither a density nor fixations to score against.")
        lead, device = pred.shape[:-2], pred.device
        count = int(torch.Size(lead).numel())
        video, index = self._identify(lead, video_id, frame)
        keep = torch.ones(count, dtype=torch.bool, device=device)
        if labelled is not None:
            keep = _expand(labelled.to(device), lead, "labelled").bool()
        truth = {"density": (density, 2), "fixations": (fixations, 2), "negatives": (negatives, 2)}
        flat = {
            name: None if value is None else _flatten(value, lead, trailing, name).to(device)
            for name, (value, trailing) in truth.items()
        }
        maps = pred.detach().reshape(count, *pred.shape[-2:])
        keys = torch.stack((video, index, torch.zeros_like(video)), -1).to(device)
        if not bool(keep.all()):
            flat = {name: None if value is None else value[keep] for name, value in flat.items()}
            maps, keys = maps[keep], keys[keep]
        pixels = (flat["density"] if flat["density"] is not None else maps).shape[-2:].numel()
        step = max(1, _CHUNK.get(device.type, _CHUNK["cpu"]) // max(pixels, 1))
        scores = [torch.zeros((0, len(self.metrics)), dtype=torch.float64, device=device)]
        for begin in range(0, len(maps), step):
            part = slice(begin, begin + step)
            values, failed = self._score(maps[part], *(None if v is None else v[part] for v in flat.values()))
            scores.append(values)
            keys[part, 2] = failed.long()
        self._append(_keys=keys, _scores=torch.cat(scores))

    def compute(self) -> dict[str, float]:
        """Return the mean of every metric by name; NaN for a metric that no frame could be scored with."""
        keys, scores = _once(self._joined("_keys"), self._joined("_scores"))
        names, member = keys[:, 0].unique(return_inverse=True)
        used = (~scores.isnan()).long()
        sums = torch.zeros((len(names), len(self.metrics)), dtype=torch.float64)
        sums.index_add_(0, member, scores.nan_to_num(0.0))
        frames = torch.zeros((len(names), len(self.metrics)), dtype=torch.int64).index_add_(0, member, used)
        means = sums / frames
        if self.average == "video":
            scored = frames > 0
            total = means.nan_to_num(0.0).sum(0) / scored.sum(0)
        else:
            total = sums.sum(0) / frames.sum(0)
        if len(keys) == 0:
            warnings.warn("no frame was scored; every metric is NaN.", stacklevel=2)
        self._summary = {
            "total": total,
            "videos": names.tolist(),
            "means": means,
            "frames": frames,
            "all": torch.bincount(member, minlength=len(names)),
            "failed": torch.bincount(member, weights=keys[:, 2].double(), minlength=len(names)).long(),
        }
        return {metric: float(value) for metric, value in zip(self.metrics, total, strict=True)}

    def frames_used(self) -> dict[str, int]:
        """Return how many frames stand behind each mean.

        Returns:
            `frames_<metric>` for each metric, `frames` (all that were given), `frames_failed` (predictions
            with NaN) and `videos`. In a distributed run call `compute` on every rank first.
        """
        self.compute()
        s = self._summary
        used = {f"frames_{m}": int(n) for m, n in zip(self.metrics, s["frames"].sum(0), strict=True)}
        return {
            **used,
            "frames": int(s["all"].sum()),
            "frames_failed": int(s["failed"].sum()),
            "videos": len(s["videos"]),
        }

    def per_video(self, names: Mapping[int, str] | None = None) -> dict[int | str, dict[str, float]]:
        """Return each video's means and numbers of frames, by video id.

        Args:
            names: what to call the videos instead of their numbers.

        Returns:
            For each video its metrics, `frames`, `frames_failed` and `frames_<metric>`. In a distributed run
            call `compute` on every rank first.
        """
        self.compute()
        s = self._summary
        return {
            (names or {}).get(video, video): {
                **dict(zip(self.metrics, s["means"][row].tolist(), strict=True)),
                "frames": int(s["all"][row]),
                "frames_failed": int(s["failed"][row]),
                **{f"frames_{m}": int(n) for m, n in zip(self.metrics, s["frames"][row], strict=True)},
            }
            for row, video in enumerate(s["videos"])
        }

    def per_frame(self) -> tuple[Tensor, Tensor]:
        """Return (R, 2) int64 video and frame numbers in rising order, and their (R, metrics) float64 scores.

        Covers what this process saw.
        """
        keys, scores = _once(self._joined("_keys"), self._joined("_scores"))
        return keys[:, :2], scores

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Draw the distribution over videos of every metric: one panel each, a point per video, a line at the
        mean.

        Args:
            val: not used; the values are those of `per_video`.
            ax: an array of as many matplotlib axes as metrics; new ones by default.

        Returns:
            The matplotlib figure and its axes.
        """
        import matplotlib.pyplot as plt
        import numpy as np

        values = self.per_video()
        means = dict(zip(self.metrics, self._summary["total"].tolist(), strict=True))
        if ax is None:
            figure, axes = plt.subplots(
                1,
                len(self.metrics),
                figsize=(2.2 * len(self.metrics), 3.2),
                layout="constrained",
                squeeze=False,
            )
        else:
            axes = np.atleast_2d(np.asarray(ax, dtype=object))
            figure = axes.flat[0].figure
        for panel, metric in zip(axes.flat, self.metrics, strict=True):
            points = np.array([v[metric] for v in values.values()])
            points = np.sort(points[~np.isnan(points)])
            if len(points) > 1:
                panel.violinplot(points, positions=[0], showextrema=False, widths=0.8)
            spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(points))
            panel.plot(spread, points, ".", color="0.25", markersize=4)
            panel.axhline(means[metric], color="C1", linewidth=1)
            panel.set(title=f"{metric}\n{means[metric]:.4f}", xticks=[], xlim=(-0.6, 0.6))
        figure.suptitle(f"{len(values)} videos", fontsize=9)
        return figure, axes

    # -- one batch -----------------------------------------------------------------------------------

    def _score(
        self, maps: Tensor, density: Tensor | None, fixations: Tensor | None, negatives: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (B, metrics) scores of predictions (B, h, w) and (B,) whether the prediction failed."""
        rules, given = self.conventions, maps
        pred = Maps(maps, check=False)
        failed = ~pred.finite
        if bool(failed.any()):
            if self.nan == "raise":
                Maps(maps)
            if not self._warned:
                warnings.warn(
                    f"{int(failed.sum())} prediction(s) with NaN or infinite values have no score; they are left out"
                    " of every mean and counted in frames_failed.",
                    stacklevel=3,
                )
                self._warned = True
            maps = torch.where(failed[:, None, None], torch.zeros_like(maps), maps)
        if rules.postprocess is not None:
            maps = postprocess(maps, rules.postprocess, quantise=not rules.quantised)
        if rules.name == "crowdsal" and density is not None:
            from avsal.metrics.crowdsal import prepare

            maps, density = prepare(maps, density)
        elif rules.name == "crowdsal-stream":
            if density is not None and density.shape != maps.shape:
                raise MetricInputError(
                    f"predictions of {tuple(maps.shape[-2:])} pixels for a ground truth of {tuple(density.shape[-2:])}:"
                    ' CrowdSAL\'s later scorer does not resize; use the conventions "crowdsal".'
                )
        elif density is not None:
            maps = resize_maps(maps, (density.shape[-2], density.shape[-1]), filter=rules.filter)
        if maps.data_ptr() != given.data_ptr() or maps.shape != given.shape:
            pred = Maps(maps, check=False)
        truth = None if density is None else Maps(density.to(pred.raw.dtype), "density")
        baseline = None
        if self.baseline is not None:
            prior = resize_maps(self.baseline.to(pred.raw), pred.size).clamp(min=0)
            baseline = Maps(prior.expand(len(pred), -1, -1), "baseline")
        frames = Frames(pred, truth, fixations, negatives, baseline)
        scores = frames.score(rules.kernels(), self.metrics)
        nobody = torch.zeros_like(failed)
        if fixations is not None and rules.empty == "nan":
            nobody = frames.points(False).count == 0
        return scores.masked_fill((failed | nobody).unsqueeze(-1), torch.nan), failed

    def _identify(
        self, lead: torch.Size, video_id: Tensor | int, frame: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        video = _expand(as_tensor(video_id, "video_id", whole=True).to("cpu", torch.int64), lead, "video_id")
        if frame is not None:
            numbers = as_tensor(frame, "frame", whole=True).to("cpu", torch.int64)
            return video, _expand(numbers, lead, "frame")
        seen = self._joined("_keys")
        index = torch.zeros_like(video)
        for one in video.unique():
            mine = video == one
            before = seen[seen[:, 0] == one, 1]
            start = int(before.max()) + 1 if len(before) else 0
            index[mine] = torch.arange(start, start + int(mine.sum()))
        return video, index


class _Single(SaliencyMetrics):
    """One metric; `compute` returns a float64 tensor."""

    metric = ""

    def __init__(self, **options: Any) -> None:
        super().__init__((self.metric,), **options)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean over videos (or frames) as a float64 scalar."""
        return torch.tensor(super().compute()[self.metric], dtype=torch.float64)

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Whether larger is better."""
        return METRICS[self.metric]


class CC(_Single):
    """Linear correlation coefficient; see `avsal.metrics.cc` and `SaliencyMetrics`."""

    metric = "cc"


class NSS(_Single):
    """Normalised scanpath saliency; see `avsal.metrics.nss` and `SaliencyMetrics`."""

    metric = "nss"


class SIM(_Single):
    """Similarity; see `avsal.metrics.sim` and `SaliencyMetrics`."""

    metric = "sim"


class KLDiv(_Single):
    """Kullback-Leibler divergence; see `avsal.metrics.kl_div` and `SaliencyMetrics`."""

    metric = "kl"


class AUCJudd(_Single):
    """AUC-Judd; see `avsal.metrics.auc_judd` and `SaliencyMetrics`."""

    metric = "auc_judd"


class AUCBorji(_Single):
    """AUC-Borji; see `avsal.metrics.auc_borji` and `SaliencyMetrics`."""

    metric = "auc_borji"


class ShuffledAUC(_Single):
    """Shuffled AUC; see `avsal.metrics.sauc` and `SaliencyMetrics`."""

    metric = "sauc"


class InformationGain(_Single):
    """Information gain over `baseline`; see `avsal.metrics.information_gain` and `SaliencyMetrics`."""

    metric = "ig"


def fold_mean(folds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average the results of several folds, each fold counting once (DIEM in STAViS's tables).

    Where the folds' test videos are different ones (AVAD and others), update one `SaliencyMetrics` with all
    of them
    instead: STAViS pools the videos.

    Args:
        folds: what `SaliencyMetrics.compute` returned for each fold.

    Returns:
        The mean of every metric that all folds have; NaN if it is NaN in one.
    """
    results = list(folds)
    if not results:
        raise MetricInputError("there are no folds to average.")
    names = [m for m in results[0] if all(m in fold for fold in results)]
    return {m: math.fsum(fold[m] for fold in results) / len(results) for m in names}


def _expand(values: Tensor, lead: torch.Size, name: str) -> Tensor:
    """Bring a number, (B,) or (B, T) values to the flattened frames."""
    if values.ndim < len(lead) and values.ndim > 0:
        values = values.reshape(*values.shape, *[1] * (len(lead) - values.ndim))
    try:
        return values.expand(lead).reshape(-1)
    except RuntimeError as error:
        raise MetricInputError(
            f"{name} has the shape {tuple(values.shape)}, the frames {tuple(lead)}."
        ) from error


def _flatten(values: Tensor, lead: torch.Size, trailing: int, name: str) -> Tensor:
    if values.shape[:-trailing] != lead:
        raise MetricInputError(
            f"{name} has the shape {tuple(values.shape)}; its leading dimensions are those of the prediction,"
            f" {tuple(lead)}."
        )
    return values.reshape(lead.numel(), *values.shape[-trailing:])


def _once(keys: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sort frames by video and number, and merge repeated ones into the mean of their scores."""
    if len(keys) == 0:
        return keys, scores
    unique, member, count = keys[:, :2].unique(dim=0, return_inverse=True, return_counts=True)
    order = member.argsort(stable=True)
    first = order[torch.cat((count.new_zeros(1), count.cumsum(0)[:-1]))]
    merged = scores[first].clone()
    if len(unique) < len(keys):
        # Mean as first + mean difference, so that equal repetitions give exactly their value.
        rest = torch.zeros_like(merged).index_add_(0, member, scores - merged[member])
        merged += rest / count.unsqueeze(-1)
    failed = (torch.bincount(member, weights=keys[:, 2].double()) > 0).long()
    return torch.cat((unique, failed.unsqueeze(-1)), -1), merged
