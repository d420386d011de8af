"""From samples to batches: collating, samplers for ranks and epochs, a loader that can be resumed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from avsal.errors import AvsalError, DataError
from avsal.types import Batch

Sample = dict[str, Any]


def instead(get: Callable[[int], Any], index: int, length: int, strict: bool) -> Any:
    """Return `get(index)`; where that cannot be read, the next one that can, with what was skipped."""
    skipped: dict[str, str] = {}
    # Clips of one broken video are neighbours: growing steps leave it soon.
    for attempt in range(24):
        try:
            found = get((index + attempt * (attempt + 1) // 2) % length)
        except AvsalError as error:
            if strict:
                raise
            message = str(error)
            skipped[message.split(":", 1)[0]] = message
            continue
        if skipped:
            found["skipped"] = skipped
        return found
    raise DataError("Too many videos in a row cannot be read: " + " | ".join(list(skipped.values())[:3]))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a `Batch`; sound is padded with zeros, points with -1.

    A key that some samples lack is left out, except ground truth of image sets and videos mixed: those must agree.
    """
    keys = set.intersection(*(set(sample) for sample in samples))
    batch: dict[str, Any] = {}
    for key in ("video", "density", "labelled", "frame", "frame_times", "gaze", "gaze_type"):
        if key in keys:
            batch[key] = torch.stack([sample[key] for sample in samples])
    if "audio" in keys:
        waves = [sample["audio"] for sample in samples]
        batch["audio"] = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        if batch["audio"].shape[1] == 0:
            batch["audio"] = torch.zeros(len(waves), 1)
        batch["audio_length"] = torch.tensor([len(wave) for wave in waves])
        batch["audio_rate"] = torch.tensor([sample["audio_rate"] for sample in samples])
        batch["has_audio"] = torch.tensor([sample["has_audio"] for sample in samples])
    for key in ("fixations", "negatives"):
        if key in keys:
            batch[key] = _pad([sample[key] for sample in samples], 2)
    if "observer" in keys:
        batch["observer"] = _pad([sample["observer"] for sample in samples], 0)
    skipped = {name: text for sample in samples for name, text in sample.get("skipped", {}).items()}
    if skipped:
        batch["skipped"] = skipped
    batch["video_id"] = torch.tensor([sample["video_id"] for sample in samples])
    batch["video_name"] = [sample["video_name"] for sample in samples]
    return batch  # type: ignore[return-value]


def _pad(lists: list[list[Tensor]], width: int) -> Tensor:
    """Return (B, T_out, N[, width]) int64 from ragged points, padded with -1."""
    most = max((len(p) for points in lists for p in points), default=0)
    shape = (len(lists), len(lists[0]), max(most, 1), *([width] if width else []))
    out = torch.full(shape, -1, dtype=torch.int64)
    for b, points in enumerate(lists):
        for t, p in enumerate(points):
            out[b, t, : len(p)] = p
    return out


class EpochSampler(DistributedSampler[Any]):
    """Shuffled (epoch, index) keys of one rank, so that a worker gets the epoch with the index.

    Every rank gets equally many; the last ones are filled from the start where the number does not divide.

    Args:
        length: size of the data set.
        seed: seed of the order.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.rank, self.num_replicas = length, seed, rank, world_size
        self.epoch = 0
        #: (epoch, items) that the next iteration leaves out if it belongs to that epoch.
        self.resume: tuple[int, int] = (-1, 0)

    @property
    def skip(self) -> int:
        """Items of this epoch that were used up before."""
        return self.resume[1] if self.resume[0] == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration belongs to."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.num_replicas)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, self.epoch))))
        order = random.permutation(self.length)
        order = np.resize(order, len(self) * self.num_replicas)[self.rank :: self.num_replicas]
        skip, self.resume = self.skip, (-1, 0)
        return iter([(self.epoch, int(k)) for k in order[skip:]])


class ShareSampler(DistributedSampler[Any]):
    """A contiguous share of the items for each rank, in order; the last rank's is filled up with repetitions.

    A repeated frame is known by its (video_id, frame), and metrics count it once.
    """

    def __init__(self, length: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.rank, self.num_replicas = length, rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the order is always the same."""

    def __len__(self) -> int:
        return -(-self.length // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        begin = self.rank * len(self)
        return iter([min(k, self.length - 1) for k in range(begin, begin + len(self))])


class ClipLoader(DataLoader[Batch]):
    """A DataLoader that can go on in the middle of an epoch, and collects the names of skipped items.

    Attributes:
        skipped: message of each item that could not be read, by its name.
    """

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, **options)
        self.skipped: dict[str, str] = {}
        self._yielded = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        sampler = self.sampler
        begin = 0
        if isinstance(sampler, EpochSampler) and self.batch_size:
            begin = sampler.skip // self.batch_size
        self._yielded = begin
        # A forked worker must never collect what its parent left behind: closing a decoder there waits for
        # threads that exist in the parent only.
        if self.num_workers:
            gc.collect()
            gc.freeze()
        try:
            batches = super().__iter__()
        finally:
            gc.unfreeze()
        for batch in batches:
            self._yielded += 1
            self.skipped.update(batch.pop("skipped", {}))
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where in which epoch the loader is."""
        epoch = self.sampler.epoch if isinstance(self.sampler, EpochSampler) else 0
        return {"epoch": epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on after the batches of `state`, if it belongs to the same epoch."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.resume = (state["epoch"], state["batches"] * (self.batch_size or 1))
