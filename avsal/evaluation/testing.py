"""One test of one checkpoint on one data set: resumable, on any number of processes, written as results.

What a process has scored is kept on disk video by video, as a few numbers for each frame. An interrupted test goes on
where it stopped, and the results are made of those files alone: how many processes wrote them makes no difference.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
from torch.utils.data import Dataset
from torchmetrics import Metric

from avsal.data.clips import VideoBatches
from avsal.data.loading import ClipLoader, ShareSampler
from avsal.data.module import SaliencyDataModule
from avsal.errors import ConfigError, DataError
from avsal.evaluation.results import Checkpoint, Results, data_of, from_test, weights_hash
from avsal.evaluation.shards import Collect, Shards, cost_of
from avsal.files import explained
from avsal.metrics.saliency import SaliencyMetrics

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule

#: "paper": the frames, the metric code and the post-processing of the model's authors; "common": every frame of every
#: video and avsal's own conventions, the same for all models.
Protocol = Literal["paper", "common"]


def evaluate(
    module: SaliencyModule,
    data: SaliencyDataModule,
    *,
    checkpoint: str,
    sha256: str | None = None,
    work: Path,
    protocol: Protocol = "common",
    sound: Literal["own", "swapped"] = "own",
    trainer: dict[str, Any] | None = None,
) -> tuple[Results, dict[str, np.ndarray]] | None:
    """Test a module on a data set's test split.

    Args:
        module: with its weights.
        data: the data set; its `eval_batch_size` and `test_stride` hold.
        checkpoint: name of the weights in the results.
        sha256: of the weights' file, if there is one.
        work: folder for the scores of finished videos; several nodes must share it. What an interrupted test of
            the same weights, data and protocol left there is used. Remove it with `forget` once the results are
            written.
        protocol: see `Protocol`; gaze models have one protocol, their paper's.
        sound: "swapped" lets every clip hear another clip of its set.
        trainer: arguments of Lightning's Trainer (`accelerator`, `devices`, `num_nodes`, `strategy`, …).

    Returns:
        The results, and the scores of every frame (see `avsal.evaluation.shards.write_frames`); None on every process
        but the first.

    Raises:
        DataError: the data set is not there, or no video could be scored.
        ConfigError: an option does not fit the data.
    """
    began = time.perf_counter()
    data.use_spec(module.spec)
    data.coverage = "authors" if protocol == "paper" else "full"
    if sound == "swapped":
        if module.spec.audio is None:
            raise ConfigError(
                f"{checkpoint} hears nothing: swapping the sound changes nothing. Use sound='own'."
            )
        data.swap_sound = True
    metric = test_metric(module, protocol, data)
    module._metrics["test"] = metric  # type: ignore[assignment]
    data.prepare_data()
    units = Units(data.eval_dataset("test"), data.eval_batch_size)
    weights = weights_hash(module)
    folder = work / _key(module, data, metric, weights, len(units))
    with explained(folder, everything=True):
        folder.mkdir(parents=True, exist_ok=True)
    pending = sorted(set(range(len(units))) - Shards(folder).units)
    if pending:
        runner = L.Trainer(
            logger=False, enable_checkpointing=False, enable_model_summary=False,
            callbacks=[Collect(folder)], **{"enable_progress_bar": False, **(trainer or {})},
        )  # fmt: skip
        runner.test(module, datamodule=_Pending(data, units, pending), verbose=False)
        if runner.global_rank != 0:
            return None
    shards = Shards(folder)
    source = Checkpoint(name=checkpoint, sha256=sha256, weights=weights)
    results, filled = _assemble(module, data, metric, shards, source, len(units))
    protocol_fields = {**results.protocol, "protocol": protocol}
    results = results.model_copy(
        update={
            "protocol": protocol_fields,
            "cost": cost_of(module, shards.maps, shards.spent),
            "seconds": round(shards.elapsed or time.perf_counter() - began, 3),
        }
    )
    rates = {item.name: item.fps for item in data.split_items("test") if item.fps is not None}
    return results, shards.frames(filled, rates)


def forget(work: Path) -> None:
    """Remove the scores of finished videos, once the results are safely written."""
    shutil.rmtree(work, ignore_errors=True)


def test_metric(module: SaliencyModule, protocol: Protocol, data: SaliencyDataModule | None) -> Metric:
    """Return the metrics of a protocol on a data set; gaze models keep their own."""
    metric = module.build_metrics("test", data)
    if isinstance(metric, SaliencyMetrics) and protocol == "paper":
        metric = SaliencyMetrics(metric.metrics, conventions="published", postprocess=module.postprocess)
    return metric


def _key(module: SaliencyModule, data: SaliencyDataModule, metric: Metric, weights: str, units: int) -> str:
    """Return a name for everything that the scores depend on."""
    conventions = getattr(metric, "conventions", None)
    what = {
        "weights": weights,
        "arguments": {k: str(v) for k, v in dict(module.hparams).items()},
        "data": [
            data.name,
            getattr(data, "fold", None),
            data.coverage,
            data.test_stride,
            data.eval_batch_size,
            units,
        ],
        "videos": [[item.name, item.frames, item.fps] for item in data.split_items("test")],
        "annotations": data_of(data).annotations,
        "conventions": str(conventions.describe()) if conventions is not None else str(metric.levels),
        "sound": "swapped" if data.swap_sound else "own",
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:24]


# -- data ----------------------------------------------------------------------------------------------------


class Units(Dataset[Any]):
    """A test data set in fixed batches, so that a batch holds the same clips however many processes share them.

    Args:
        dataset: `VideoBatches`, whose items are batches already, or clips of a gaze set.
        batch_size: clips of a batch, for the latter.
    """

    def __init__(self, dataset: Dataset[Any], batch_size: int) -> None:
        self.dataset = dataset
        self.size = 1 if isinstance(dataset, VideoBatches) else batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.size)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.dataset, VideoBatches):
            return self.dataset[index]
        from avsal.data.gaze.clips import collate_gaze

        clips = range(index * self.size, min((index + 1) * self.size, len(self.dataset)))  # type: ignore[arg-type]
        return collate_gaze([self.dataset[k] for k in clips])


class _Share(ShareSampler):
    """A rank's share of some units, in order."""

    def __init__(self, units: Sequence[int], *, rank: int, world_size: int) -> None:
        super().__init__(len(units), rank=rank, world_size=world_size)
        self.units = list(units)

    def __iter__(self) -> Any:
        return iter([self.units[k] for k in super().__iter__()])


class _Pending(L.LightningDataModule):
    """The units that are left to do."""

    def __init__(self, data: SaliencyDataModule, units: Units, pending: Sequence[int]) -> None:
        super().__init__()
        self.data, self.units, self.pending = data, units, list(pending)

    def test_dataloader(self) -> ClipLoader:
        """Return this process's share."""
        assert self.trainer is not None
        sampler = _Share(self.pending, rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        return ClipLoader(
            self.units, sampler=sampler, batch_size=None, num_workers=self.data.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )  # fmt: skip


# -- results -----------------------------------------------------------------------------------------------------


def _assemble(
    module: SaliencyModule,
    data: SaliencyDataModule,
    metric: Metric,
    shards: Shards,
    checkpoint: Checkpoint,
    units: int,
) -> tuple[Results, Metric]:
    if not shards.arrays:
        raise DataError(f"{checkpoint.name}: no video of {data.name or type(data).__name__} could be scored.")
    fresh = shards.fill(copy.deepcopy(metric).cpu())
    module._metrics["test"] = fresh  # type: ignore[assignment]
    module.cpu()
    whole = len(shards.units) >= units
    return from_test(module, data, checkpoint=checkpoint, whole=whole, failed=shards.skipped), fresh
