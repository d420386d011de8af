"""Egocentric gaze metrics over a whole data set: F1, recall and precision at an adaptive threshold (CSTS)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from avsal.metrics.egocentric import (
    GazeGrid,
    GazeScore,
    best_f1,
    gaze_auc,
    gaze_counts,
    gaze_thresholds,
    rescale_gaze,
)
from avsal.metrics.inputs import MetricInputError, as_tensor
from avsal.metrics.saliency import FrameMetric


class GazeMetrics(FrameMetric):
    """F1, recall and precision of gaze maps, all fixation frames of the test set pooled, as CSTS is
    evaluated.

    For every frame the counts of predicted and truly predicted cells at each threshold are kept, never the
    map (some 250 bytes a frame for 31 thresholds): the means of CSTS's code, which holds every thresholded
    map at once, come out exactly, in any order, on any number of processes, and a clip that a padded sampler
    repeats counts once.

    Args:
        thresholds: "ego4d_forecast", "aria_forecast", "estimation", "full", or rising values.
        fixation_type: the gaze type that is scored: 0 in Ego4D and Aria, 1 in EGTEA.
        positive: target values above this are positive cells.
        auc: whether to add the AUC of the centre of mass (`avsal.metrics.gaze_auc`); `update` then needs
            `gaze`.
        rescale: whether maps are min-max scaled first, as CSTS does; False for maps that are already.
        **options: torchmetrics' own arguments.
    """

    higher_is_better = True
    _keys: list[Tensor] | Tensor
    _counts: list[Tensor] | Tensor
    _auc: list[Tensor] | Tensor

    def __init__(
        self,
        thresholds: GazeGrid | Sequence[float] | Tensor = "ego4d_forecast",
        *,
        fixation_type: int = 0,
        positive: float = 1e-3,
        auc: bool = False,
        rescale: bool = True,
        **options: Any,
    ) -> None:
        levels = gaze_thresholds(thresholds)
        columns = {
            "_keys": ((4,), torch.int64), "_counts": ((2 * len(levels) + 1,), torch.int32), "_auc": ((), torch.float64),
        }  # fmt: skip
        super().__init__(columns, **options)
        self.grid = thresholds if isinstance(thresholds, str) else "own"
        self.levels = levels
        self.fixation_type, self.positive, self.auc, self.rescale = fixation_type, positive, auc, rescale
        self._frames = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores."""
        return ("f1", "recall", "precision", "threshold", *(("auc",) if self.auc else ()))

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        gaze_type: Tensor | None = None,
        video_id: Tensor | int = 0,
        frame: Tensor | None = None,
        gaze: Tensor | None = None,
        labelled: Tensor | None = None,
    ) -> None:
        """Add a batch of clips.

        Args:
            pred: (B, T_out, h, w) maps, softmax over the pixels of each frame.
            target: (B, T_out, h, w) ground-truth heat maps that sum to 1.
            gaze_type: (B, T_out) int64: 0 fixation, 1 saccade, 2 outside the image, 3 untracked; None if all
                count.
            video_id: (B,) int64, the same on all ranks.
            frame: (B, T_out) int64 frame of each map in its video; by default clips follow those already seen
                of the same video, for use in one process.
            gaze: (B, T_out, 2) x and y in 0..1, origin top left, for the AUC.
            labelled: (B, T_out) bool; frames without ground truth are left out.

        Raises:
            MetricInputError: for shapes that do not fit or NaN predictions.
        """
        pred, target = as_tensor(pred, "pred"), as_tensor(target, "target")
        gaze_type = None if gaze_type is None else as_tensor(gaze_type, "gaze_type")
        gaze = None if gaze is None else as_tensor(gaze, "gaze")
        labelled = None if labelled is None else as_tensor(labelled, "labelled")
        video_id = as_tensor(video_id, "video_id", whole=True)
        frame = None if frame is None else as_tensor(frame, "frame", whole=True)
        if pred.ndim != 4 or target.shape != pred.shape:
            raise MetricInputError(
                f"pred is {tuple(pred.shape)}, target {tuple(target.shape)}; both are (B, T_out, h, w) on one grid."
            )
        clips, steps = pred.shape[:2]
        if self.auc and gaze is None:
            raise MetricInputError("auc=True needs gaze=, the gaze points (B, T_out, 2).")
        maps = rescale_gaze(pred.detach()) if self.rescale else pred.detach()
        counts = gaze_counts(maps, target, self.levels, positive=self.positive)
        rows = torch.cat((counts.hits, counts.predicted, counts.positives.unsqueeze(-1)), -1).int()
        if video_id.numel() not in (1, clips):
            raise MetricInputError(
                f"video_id is {tuple(video_id.shape)}; it is one number for each of {clips} clips."
            )
        video = video_id.to("cpu", torch.int64).reshape(-1).expand(clips)
        if frame is None:
            seen = self._joined("_keys")
            start = int(seen[:, 1].max()) + 1 if len(seen) else 0
            frame = torch.arange(start, start + clips).unsqueeze(-1).expand(clips, steps)
        kept = torch.ones((clips, steps), dtype=torch.bool)
        if gaze_type is not None:
            kept = gaze_type.cpu() == self.fixation_type
        present = torch.ones_like(kept) if labelled is None else labelled.cpu().bool()
        step = torch.arange(steps).expand(clips, steps)
        keys = torch.stack((video.unsqueeze(-1).expand(clips, steps), frame.cpu(), step, kept.long()), -1)
        auc = gaze_auc(maps, gaze) if self.auc and gaze is not None else torch.zeros((clips, steps)).double()
        columns = {"_keys": keys, "_counts": rows, "_auc": auc}
        self._append(**{name: values[present.to(values.device)] for name, values in columns.items()})

    def compute(self) -> dict[str, float]:
        """Return `f1`, `recall`, `precision`, the `threshold` that maximises F1 and, if asked for, `auc`."""
        self._table = self._kept()
        _, counts, auc = self._table
        if len(counts) == 0:
            warnings.warn("no frame is a fixation; every gaze metric is NaN.", stacklevel=2)
            return dict.fromkeys(self.metrics, torch.nan)
        result = dict(best_f1(*self._means(counts), self.levels)._asdict())
        if self.auc:
            result["auc"] = float(auc.nanmean())
        return result

    def curve(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (K,) thresholds, mean recall and mean precision."""
        self.compute()
        return self.levels, *self._means(self._table[1])

    def per_step(self, threshold: Literal["pooled", "own"] = "pooled") -> list[dict[str, float]]:
        """Return the scores of each anticipation step (output frame), in order.

        Args:
            threshold: "pooled" scores every step at the threshold that is best for all steps together; "own"
                chooses one for each.
        """
        self.compute()
        keys, counts, auc = self._table
        steps = range(int(keys[:, 2].max()) + 1) if len(keys) else range(0)
        return [self._group(keys[:, 2] == step, counts, auc, threshold) for step in steps]

    def per_video(
        self, names: Mapping[int, str] | None = None, *, steps: bool = False
    ) -> dict[int | str, dict[str, float]]:
        """Return each video's scores at the pooled threshold, and its fixation `frames`.

        Args:
            names: what to call the videos instead of their numbers. In a distributed run call `compute` on
                every rank first.
            steps: add `recall_step1`, `precision_step1` and `frames_step1`, and so on, of each anticipation step.
        """
        self.compute()
        keys, counts, auc = self._table
        result: dict[int | str, dict[str, float]] = {}
        for video in keys[:, 0].unique().tolist():
            own = keys[:, 0] == video
            row = self._group(own, counts, auc, "pooled")
            for step in range(int(keys[:, 2].max()) + 1) if steps else ():
                part = self._group(own & (keys[:, 2] == step), counts, auc, "pooled")
                row |= {f"{name}_step{step + 1}": part[name] for name in ("recall", "precision", "frames")}
            result[(names or {}).get(video, video)] = row
        return result

    def frames_used(self) -> dict[str, int]:
        """Return `frames` (all), `frames_f1` (those that are fixations and count) and their `videos`."""
        self.compute()
        keys = self._table[0]
        return {"frames": self._frames, "frames_f1": len(keys), "videos": len(keys[:, 0].unique())}

    def plot(self, val: Any = None, ax: Any = None) -> tuple[Any, Any]:
        """Draw recall, precision and F1 over the thresholds, with the chosen one, and F1 of every video.

        Args:
            val: not used.
            ax: two matplotlib axes; new ones by default.

        Returns:
            The matplotlib figure and its axes.
        """
        import matplotlib.pyplot as plt
        import numpy as np

        if ax is None:
            figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained", width_ratios=(2, 1))
        else:
            axes = np.asarray(ax, dtype=object)
            figure = axes.flat[0].figure
        levels, recall, precision = self.curve()
        best = self.compute()
        axes[0].plot(levels, recall, label="recall")
        axes[0].plot(levels, precision, label="precision")
        axes[0].plot(levels, 2 * recall * precision / (recall + precision + 1e-6), label="F1")
        axes[0].axvline(best["threshold"], color="0.6", linestyle=":")
        axes[0].set(xlabel="threshold", title=f"F1 {best['f1']:.4f} at {best['threshold']:.4g}", ylim=(0, 1))
        axes[0].legend()
        videos = [v["f1"] for v in self.per_video().values()]
        axes[1].plot(np.random.default_rng(0).uniform(-0.12, 0.12, len(videos)), videos, ".", color="0.25")
        axes[1].axhline(best["f1"], color="C2", linewidth=1)
        axes[1].set(title=f"F1 of {len(videos)} videos", xticks=[], xlim=(-0.6, 0.6), ylim=(0, 1))
        return figure, axes

    # -- from counts to scores -----------------------------------------------------------------------

    def _kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, counts and AUC of the fixation frames, each frame of a clip once, in order."""
        keys, counts, auc = (self._joined(name) for name in ("_keys", "_counts", "_auc"))
        self._frames = 0
        if len(keys) == 0:
            return keys, counts, auc
        _, member, count = keys[:, :3].unique(dim=0, return_inverse=True, return_counts=True)
        order = member.argsort(stable=True)
        first = order[torch.cat((count.new_zeros(1), count.cumsum(0)[:-1]))]
        self._frames = len(first)
        first = first[keys[first, 3] == 1]
        return keys[first], counts[first], auc[first]

    def _means(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        k = len(self.levels)
        hits, predicted, positives = counts[:, :k].double(), counts[:, k : 2 * k], counts[:, -1:]
        return (hits / (positives + 1e-6)).mean(0), (hits / (predicted + 1e-6)).mean(0)

    def _group(
        self, member: Tensor, counts: Tensor, auc: Tensor, threshold: Literal["pooled", "own"]
    ) -> dict[str, float]:
        if not bool(member.any()):
            return {**dict.fromkeys(self.metrics, torch.nan), "frames": 0}
        recall, precision = self._means(counts[member])
        if threshold == "own":
            score = best_f1(recall, precision, self.levels)
        else:
            pooled = best_f1(*self._means(counts), self.levels).threshold
            at = int((self.levels - pooled).abs().argmin())
            score = GazeScore(*best_f1(recall[at : at + 1], precision[at : at + 1], self.levels[at : at + 1]))
        result = {**score._asdict(), "frames": int(member.sum())}
        if self.auc:
            result["auc"] = float(auc[member].nanmean())
        return result
