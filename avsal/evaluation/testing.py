"""One test of one checkpoint on one data set: resumable, on any number of processes, written as results.

`lightning test`, `avsal evaluate --checkpoint`, `avsal reproduce` and notebooks all call `evaluate`. The scores of each
finished video are kept on disk, a few numbers for each frame. An interrupted test goes on with the next video, and the
results are made of those files alone: how many processes wrote them makes no difference.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import WeakKeyDictionary

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import Metric

from avsal.data.check import open_data
from avsal.data.clips import VideoBatches
from avsal.data.loading import ClipLoader, ShareSampler
from avsal.data.module import SaliencyDataModule
from avsal.data.readers import OpenVideo
from avsal.errors import ConfigError, DataError
from avsal.evaluation.provenance import changed_arguments, checkpoint_of, data_of, video_names, weights_hash
from avsal.evaluation.results import Checkpoint, Cost, Failure, Results
from avsal.files import explained, writing
from avsal.metrics.gaze import GazeMetrics
from avsal.metrics.saliency import SaliencyMetrics

if TYPE_CHECKING:
    from avsal.models.base import SaliencyModule
    from avsal.types import SaliencyOutput

#: "paper": the frames, the metric code and the post-processing of the model's authors; "full": every frame of every
#: video and avsal's own conventions, the same for all models.
Protocol = Literal["paper", "full"]


def use_protocol(module: SaliencyModule, data: Any, protocol: Protocol) -> None:
    """Let a module and a data set validate and test under a protocol; gaze models have one protocol, their paper's."""
    module.protocol = protocol
    module._metrics.clear()
    data.coverage = "authors" if protocol == "paper" else "full"


def evaluate(
    module: SaliencyModule | str | Path,
    data: L.LightningDataModule | str | Path,
    *,
    checkpoint: Checkpoint | str | None = None,
    sha256: str | None = None,
    out: Path | None = None,
    work: Path | None = None,
    protocol: Protocol | None = "full",
    sound: Literal["own", "swapped"] = "own",
    trainer: L.Trainer | dict[str, Any] | None = None,
) -> Results | None:
    """Test a module on a data set's test split.

    Args:
        module: a module with its weights, or what `from_pretrained` takes.
        data: the data set, or what `open_data` takes; its `eval_batch_size` and `test_stride` hold. A test on a
            LightningDataModule that is no `SaliencyDataModule` cannot be resumed.
        checkpoint: the weights, or their name in the results; by default what the module was filled from.
        sha256: of the weights' file, if there is one and `checkpoint` is a name.
        out: where the results are written (see `Results.write`); None leaves that to the caller.
        work: folder for the scores of finished videos; several nodes must share it. What an interrupted test of
            the same weights, data and protocol left there is used, and removed once the results are written. By
            default `.partial` beside `out`; without `out` a folder that does not outlive the call.
        protocol: see `Protocol`; None leaves module and data set as they are configured.
        sound: "swapped" gives every video the sound of another one of its set.
        trainer: Lightning's Trainer, or arguments for one (`accelerator`, `devices`, `num_nodes`, `strategy`, …).

    Returns:
        The results with the scores of every frame, whose `path` is the file; None on every process but the first.

    Raises:
        DataError: the data set is not there, or no video could be scored.
        ConfigError: an option does not fit the data.
    """
    if work is None and out is None:
        with TemporaryDirectory(prefix="avsal-") as here:
            return evaluate(
                module, data, checkpoint=checkpoint, sha256=sha256, work=Path(here), protocol=protocol, sound=sound,
                trainer=trainer,
            )  # fmt: skip
    if isinstance(module, str | Path):
        from avsal.zoo import from_pretrained

        module = cast("SaliencyModule", from_pretrained(module))
    data = open_data(data) if isinstance(data, str | Path) else data
    began = time.perf_counter()
    if isinstance(data, SaliencyDataModule):
        data.use_spec(module.spec)
    if protocol is not None:
        use_protocol(module, data, protocol)
    if sound == "swapped" and module.spec.audio is None:
        raise ConfigError(
            f"{checkpoint or type(module).__name__} has no audio input: swapping the sound changes nothing. Use "
            "sound='own'."
        )
    swap = sound == "swapped" or getattr(data, "swap_sound", False)
    if swap and module.network.follows_film:
        raise ConfigError(
            f"{type(module).__name__} takes pictures and sound from one file: they are not swapped."
        )
    data.swap_sound = swap  # type: ignore[attr-defined]
    module._metrics["test"] = metric = module.build_metrics("test", data)
    weights = weights_hash(module)
    if checkpoint is None:
        checkpoint = checkpoint_of(module, weights)
    elif not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(name=checkpoint, sha256=sha256, weights=weights)
    data.prepare_data()
    if not isinstance(trainer, L.Trainer):
        options = {"enable_progress_bar": False, **(trainer or {})}
        trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **options)
    batches: Units | None = None
    if isinstance(data, SaliencyDataModule):
        batches = Units(data.eval_dataset("test"), data.eval_batch_size)
    wanted = _limited(trainer, len(batches)) if batches is not None else 0
    partial = (
        work or (out.parent if out is not None and out.suffix == ".json" else out or Path()) / ".partial"
    )
    folder = partial / _key(module, data, metric, weights, wanted)
    if batches is None and trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
    with explained(folder, everything=True):
        folder.mkdir(parents=True, exist_ok=True)
    pending = sorted(set(range(wanted)) - Shards(folder).units)
    if pending or batches is None:
        collect = Collect(folder)
        trainer.callbacks.append(collect)  # type: ignore[attr-defined]
        if module.network.follows_film:
            module.test_step = Films(module, data).step  # type: ignore[method-assign, assignment]
        try:
            given = data if batches is None else _Pending(cast("SaliencyDataModule", data), batches, pending)
            trainer.test(module, datamodule=given, verbose=False)
        finally:
            trainer.callbacks.remove(collect)  # type: ignore[attr-defined]
            vars(module).pop("test_step", None)
        if trainer.global_rank != 0:
            return None
        wanted = wanted if batches is not None else collect.batches
    shards = Shards(folder)
    if not shards.arrays:
        raise DataError(
            f"{checkpoint.name or type(module).__name__}: no video of {_name(data)} could be scored."
            + "".join(f"\n  {message}" for message in list(shards.skipped.values())[:3])
        )
    module._metrics["test"] = shards.fill(copy.deepcopy(metric).cpu())
    module.cpu()
    results = results_of(
        module, data, checkpoint, names=shards.names, failed=shards.skipped,
        whole=len(shards.units) >= (len(batches) if batches is not None else wanted),
        cost=cost_of(module, shards.maps, shards.spent),
        seconds=round(shards.elapsed or time.perf_counter() - began, 3),
    )  # fmt: skip
    if out is not None:
        results.write(out)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another test is still at work
            partial.rmdir()
    return results


_REMARKS = (
    ".*does not have many workers.*", ".*sync_dist.*", ".*LeafSpec.*", ".*ReduceLROnPlateau conditioned.*",
    ".*in eval mode at the start of training.*",
)  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks about hardware and logging from the tables."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _REMARKS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _limited(trainer: L.Trainer, count: int) -> int:
    """Return how many of `count` batches `limit_test_batches` leaves, and let the trainer run all that it is given."""
    limit = trainer.limit_test_batches
    trainer.limit_test_batches = 1.0
    return count if limit is None else int(count * limit) if isinstance(limit, float) else min(count, limit)


def _name(data: L.LightningDataModule) -> str:
    return getattr(data, "name", None) or type(data).__name__


def _key(
    module: SaliencyModule, data: L.LightningDataModule, metric: Metric, weights: str, units: int
) -> str:
    """Return a name for everything that the scores depend on."""
    conventions = getattr(metric, "conventions", None)
    options = ("fold", "coverage", "test_stride", "test_split", "eval_batch_size", "swap_sound")
    items = data.split_items("test") if hasattr(data, "split_items") else []
    what = {
        "weights": weights,
        "arguments": {k: str(v) for k, v in dict(module.hparams).items()},
        "data": [_name(data), units, *(getattr(data, option, None) for option in options)],
        "videos": [[item.name, item.frames, item.fps] for item in items],
        "annotations": data_of(data).annotations,
        "conventions": str(
            conventions.describe() if conventions is not None else getattr(metric, "levels", None)
        ),
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


class Films:
    """Test steps of a network that follows whole films: its maps come from `predict_video`, in step with the batches.

    Args:
        module: its network `follows_film`.
        data: whose videos are files.
    """

    def __init__(self, module: SaliencyModule, data: L.LightningDataModule) -> None:
        if not isinstance(data, SaliencyDataModule):
            raise ConfigError(f"{type(module).__name__} is tested on the data sets of avsal only.")
        self.module, self.data, self.items = module, data, data.split_items("test")
        self.video = -1

    def step(self, batch: Any, batch_idx: int) -> None:
        """Add the maps of a batch's frames, which are of one video and rise, to the test metrics."""
        if (video := int(batch["video_id"][0])) != self.video:
            opener = self.items[video].open_frames
            if not isinstance(opener, OpenVideo):
                raise ConfigError(
                    f"{self.items[video].name}: {type(self.module).__name__} follows the film and its sound: it needs "
                    "the video file, not a folder of frames or a pack."
                )
            self.video, self.index = video, -1
            data = self.data
            self.maps = iter(
                self.module.predict_video(
                    opener.path,
                    batch_size=data.eval_batch_size,
                    coverage=data.coverage,
                    stride=data.test_stride,
                )
            )
        found = []
        for frame in batch["frame"].flatten().tolist():
            while self.index < frame:
                made = next(self.maps, None)
                if made is None:
                    raise DataError(f"{self.items[video].name}: the film ends before frame {frame}.")
                self.index, self.map = made.index, made.map
            found.append(self.map)
        maps = torch.stack(found).unsqueeze(1).to(self.module.device)
        self.module._update("test", cast("SaliencyOutput", SimpleNamespace(saliency=lambda: maps)), batch)


# -- scores of finished videos on disk ---------------------------------------------------------------------------


class Timing:
    """Time that a network takes, without decoding and metrics.

    Attributes:
        maps: maps made since the last `reset`.
        spent: seconds for them.

    Args:
        network: the network; `close` removes the hooks.
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
        """Remove the hooks from the network."""
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


def _wait(inputs: Any) -> None:
    """Wait for the GPU, so that the clock measures its time."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)


_COUNTED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def cost_of(module: SaliencyModule, maps: int, spent: float) -> Cost | None:
    """Return a network's size, and its speed from maps and seconds; None for a map that is made of ground truth."""
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
        self.folder, self.batches = folder, 0

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin with nothing."""
        self.loader: Any = trainer.test_dataloaders
        sampler = getattr(self.loader, "sampler", None)
        self.order = list(sampler) if isinstance(sampler, _Share) else None
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
        names = batch.get("video_name", [str(k) for k in batch["video_id"].tolist()])
        if self.video is not None and names[0] != self.video:
            self._write(trainer, metric)
        self.video = names[0]
        self.units.append(batch_idx if self.order is None else self.order[batch_idx])
        self.names.update(zip(batch["video_id"].tolist(), names, strict=True))
        self.end = len(getattr(metric, states_of(metric)[0]))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the last video, and wait until every process has done so."""
        self._write(trainer, pl_module.metrics("test"))
        self.timing.close()
        loader = trainer.test_dataloaders
        self.batches = len(loader) if hasattr(loader, "__len__") else 0  # type: ignore[arg-type]
        trainer.strategy.barrier()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Keep what was scored until now."""
        if hasattr(self, "units"):
            self._write(trainer, pl_module.metrics("test"))
            self.timing.close()

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


def states_of(metric: Metric) -> list[str]:
    """Return the names of a metric's states."""
    return list(metric._defaults)


def _alone() -> bool:
    return False


class Shards:
    """The scores of finished videos in a folder.

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

    def fill(self, metric: Any) -> Any:
        """Put all scores into a metric."""
        metric.reset()
        # The files hold what all processes scored, and only the first process computes.
        metric.distributed_available_fn = _alone
        metric.merge_state({k: [torch.from_numpy(np.concatenate(v))] for k, v in self.arrays.items()})
        return metric


def frame_arrays(
    metric: Metric, names: Mapping[int, str], rates: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return the scores of every frame as arrays; empty for gaze, whose threshold is chosen over all frames.

    Args:
        metric: with the scores.
        names: the videos' names by their number.
        rates: frames per second by name, where they are known.

    Returns:
        `videos` (V,) names, `fps` (V,) frames per second or NaN, `metrics` (M,) names, `video` (N,) index into
        `videos`, `frame` (N,) 0-based, `scores` (N, M) float32.
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


# -- results -----------------------------------------------------------------------------------------------------


def results_of(
    module: SaliencyModule,
    data: L.LightningDataModule,
    checkpoint: Checkpoint,
    *,
    whole: bool = True,
    names: Mapping[int, str] | None = None,
    failed: Mapping[str, str] | None = None,
    cost: Cost | None = None,
    seconds: float = 0.0,
) -> Results:
    """Gather the results of a finished test.

    Args:
        module: the tested module; its `metrics("test")` hold the scores.
        data: what it was tested on.
        checkpoint: its weights.
        whole: whether all batches were run.
        names: the videos by their `video_id`, where the data set does not tell.
        failed: messages about videos that could not be read, beside those that the data set reports.
        cost: size and speed of the network.
        seconds: duration of the test.
    """
    metric: Any = module.metrics("test")
    gaze = metric if isinstance(metric, GazeMetrics) else None
    names = {**(names or {}), **video_names(data)}
    per_video = metric.per_video(names) if gaze is None else gaze.per_video(names, steps=True)
    videos = {str(k): v for k, v in per_video.items()}
    trainer = module._trainer
    left_out = getattr(data, "left_out", {}) or {}
    left_out = left_out if isinstance(left_out, Mapping) else {str(f): str(f) for f in left_out}
    errors = {str(k): str(v) for k, v in {**left_out, **(failed or {})}.items()}
    if whole:
        # Videos without any ground truth take part and leave no score.
        unscored = sorted({*names.values()} - {*videos, *errors})
        errors |= {name: f"{name}: no frame of it has ground truth." for name in unscored}
    coverage = getattr(data, "coverage", None)
    known = (module.protocol == "paper") == (coverage == "authors")
    items = data.split_items("test") if hasattr(data, "split_items") else []
    rates = {item.name: item.fps for item in items if item.fps is not None}
    accelerator = None
    if trainer is not None and trainer.strategy.root_device.type == "cuda":
        accelerator = torch.cuda.get_device_name(trainer.strategy.root_device)
    return Results.make(
        "test",
        accelerator=accelerator,
        devices=trainer.num_devices if trainer is not None else 1,
        nodes=trainer.num_nodes if trainer is not None else 1,
        model=type(module).__name__.removesuffix("Module"),
        arguments=changed_arguments(module),
        checkpoint=checkpoint,
        data=data_of(data),
        protocol={
            "average": getattr(metric, "average", "frame"),
            "coverage": coverage,
            "stride": getattr(data, "test_stride", 1),
            "negatives": "video",
            "sound": "swapped" if getattr(data, "swap_sound", False) else "own",
        }
        | ({"protocol": module.protocol} if known else {}),
        conventions=metric.conventions.describe() if hasattr(metric, "conventions") else {"name": "csts"},
        metrics=metric.compute(),
        frames=metric.frames_used(),
        videos=videos,
        steps=gaze.per_step() if gaze is not None else [],
        failed=[Failure(item=item, error=error) for item, error in errors.items()],
        cost=cost,
        seconds=seconds,
        frame_scores=frame_arrays(metric, names, rates),
    )
