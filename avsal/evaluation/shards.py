"""The scores of finished videos on disk: what lets a test go on where it stopped, and several processes share it."""

from __future__ import annotations

import copy
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import Metric

from avsal.errors import ConfigError
from avsal.files import writing
from avsal.metrics.saliency import SaliencyMetrics

if TYPE_CHECKING:
    from avsal.evaluation.results import Cost
    from avsal.models.base import SaliencyModule


def states_of(metric: Metric) -> list[str]:
    """Return the names of a metric's states."""
    return list(metric._defaults)


class Timing:
    """Time that a network takes, without decoding and metrics.

    Attributes:
        maps: maps made since the last `reset`.
        spent: seconds for them.

    Args:
        network: the network; `close` takes the hooks off again.
    """

    def __init__(self, network: nn.Module) -> None:
        self.calls = 0
        self.reset()
        self._hooks = [
            network.register_forward_pre_hook(self._before),
            network.register_forward_hook(self._after),
        ]

    def reset(self) -> None:
        """Count from 0."""
        self.spent, self.maps = 0.0, 0

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, network: Any, inputs: Any) -> None:
        _wait(inputs)
        self._started = time.perf_counter()

    def _after(self, network: Any, inputs: Any, output: Any) -> None:
        _wait(inputs)
        self.calls += 1
        if self.calls > 1:  # the first call allocates and compiles
            self.spent += time.perf_counter() - self._started
            self.maps += output.logits.shape[0] * output.logits.shape[1]


_COUNTED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def cost_of(module: SaliencyModule, maps: int, spent: float) -> Cost | None:
    """Return a network's size, and its speed from maps and seconds; None for a map that is made of ground truth."""
    from avsal.evaluation.results import Cost
    from avsal.zoo.show import network_cost

    if module.network not in _COUNTED:  # one network is tested on several sets
        # The count runs on the processor, whatever the test ran on.
        network = module.network if module.device.type == "cpu" else copy.deepcopy(module.network).cpu()
        try:
            _COUNTED[module.network] = network_cost(network)
        except ConfigError:
            return None
    cost = _COUNTED[module.network]
    speed = round(maps / spent, 2) if spent > 0 else None
    return Cost(parameters=cost.params, multiply_adds=cost.macs, maps_per_second=speed)


class Collect(Callback):
    """Write the scores of each finished video, on every process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin with nothing."""
        self.loader: Any = trainer.test_dataloaders
        self.order = list(trainer.test_dataloaders.sampler)  # type: ignore[union-attr]
        self.units: list[int] = []
        self.names: dict[int, str] = {}
        self.video: str | None = None
        self.begin = self.end = 0
        self.clock = time.perf_counter()
        self.timing = Timing(pl_module.network)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch; write the video before it when a new one begins."""
        metric = pl_module.metrics("test")
        name = batch["video_name"][0]
        if self.video is not None and name != self.video:
            self._write(trainer, metric)
        self.video = name
        self.units.append(self.order[batch_idx])
        self.names.update(zip(batch["video_id"].tolist(), batch["video_name"], strict=True))
        self.end = len(getattr(metric, states_of(metric)[0]))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the last video, and wait until every process has done so."""
        self._write(trainer, pl_module.metrics("test"))
        self.timing.close()
        trainer.strategy.barrier()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Keep what was scored until now."""
        if hasattr(self, "units"):
            self._write(trainer, pl_module.metrics("test"))

    def _write(self, trainer: L.Trainer, metric: Metric) -> None:
        if not self.units:
            return
        now = time.perf_counter()
        arrays = {
            name: torch.cat(getattr(metric, name)[self.begin : self.end]).cpu().numpy()
            for name in states_of(metric)
        }
        extra = {
            "names": {str(k): v for k, v in self.names.items()},
            "skipped": dict(getattr(self.loader, "skipped", {})),
            "spent": self.timing.spent, "maps": self.timing.maps, "elapsed": now - self.clock,
            "rank": trainer.global_rank,
        }  # fmt: skip
        with writing(self.folder / f"{trainer.global_rank}-{uuid.uuid4().hex}.npz") as path:
            np.savez(path, units=np.array(self.units), extra=np.array(json.dumps(extra)), **arrays)  # type: ignore[arg-type]
        self.units, self.begin, self.clock = [], self.end, now
        self.timing.reset()


def _wait(inputs: Any) -> None:
    """Let a GPU finish, so that the clock tells its time."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)


def _alone() -> bool:
    return False


class Shards:
    """What a folder holds of finished videos.

    Attributes:
        units: the batches that are done.
        names: videos by their number.
        skipped: messages about videos that could not be read.
        maps, spent: maps made, and seconds in the network.
        elapsed: seconds of the slowest process.
    """

    def __init__(self, folder: Path) -> None:
        self.units: set[int] = set()
        self.names: dict[int, str] = {}
        self.skipped: dict[str, str] = {}
        self.maps, self.spent = 0, 0.0
        self.arrays: dict[str, list[np.ndarray]] = {}
        times: dict[int, float] = {}
        for path in sorted(folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as content:
                extra = json.loads(str(content["extra"]))
                self.units |= set(content["units"].tolist())
                for name in content.files:
                    if name not in ("units", "extra"):
                        self.arrays.setdefault(name, []).append(content[name])
            self.names |= {int(k): v for k, v in extra["names"].items()}
            self.skipped |= extra["skipped"]
            self.maps, self.spent = self.maps + extra["maps"], self.spent + extra["spent"]
            times[extra["rank"]] = times.get(extra["rank"], 0.0) + extra["elapsed"]
        self.elapsed = max(times.values(), default=0.0)

    def fill(self, metric: Metric) -> Metric:
        """Put all scores into a metric."""
        metric.reset()
        # The files hold what all processes scored, and only the first process computes.
        metric.distributed_available_fn = _alone
        for name in states_of(metric):
            setattr(metric, name, [torch.from_numpy(np.concatenate(self.arrays[name]))])
        metric._update_count = max(1, metric._update_count)
        return metric

    def frames(self, metric: Metric, rates: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Return the arrays of `write_frames`; see `frame_arrays`."""
        return frame_arrays(metric, self.names, rates)


def frame_arrays(
    metric: Metric, names: Mapping[int, str], rates: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return the arrays of `write_frames`; empty for gaze, whose threshold is chosen over all frames.

    Args:
        metric: with the scores.
        names: the videos' names by their number.
        rates: frames per second by name, where they are known.
    """
    if not isinstance(metric, SaliencyMetrics):
        return {}
    keys, scores = metric.per_frame()
    ids = sorted({int(k) for k in keys[:, 0]})
    place = {video: row for row, video in enumerate(ids)}
    videos = [names.get(k, str(k)) for k in ids]
    return {
        "videos": np.array(videos),
        "fps": np.array([rates.get(name, np.nan) for name in videos], dtype=np.float64),
        "metrics": np.array(metric.metrics),
        "video": np.array([place[int(k)] for k in keys[:, 0]], dtype=np.int32),
        "frame": keys[:, 1].numpy().astype(np.int32),
        "scores": scores.numpy().astype(np.float32),
    }


def write_frames(frames: dict[str, np.ndarray], results: Path) -> Path | None:
    """Write the scores of every frame beside a results file, as `<name>.frames.npz`.

    Entries: `videos` (V,) names, `fps` (V,) frames per second or NaN, `metrics` (M,) names, `video` (N,) index into
    `videos`, `frame` (N,) 0-based, `scores` (N, M) float32.

    Returns:
        The file; None where there is nothing to write.
    """
    if not frames:
        return None
    with writing(frames_path(results)) as path:
        np.savez_compressed(path, **frames)  # type: ignore[arg-type]
    return frames_path(results)


def frames_path(results: Path) -> Path:
    """Return where the frames' scores of a results file are."""
    return results.with_suffix(".frames.npz")
