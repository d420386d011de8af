"""The LightningDataModule that every data set shares: items in, batches out.

A data set subclasses `SaliencyDataModule` and says in `items(split)` which videos it holds; windows, sound, maps,
samplers and loaders are made here from the model's `ClipSpec`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L

from avsal.data.clips import TrainingClips, VideoBatches
from avsal.data.items import Counts, VideoItem
from avsal.data.loading import ClipLoader, EpochSampler, ShareSampler, collate
from avsal.data.windows import SEGMENT
from avsal.errors import AvsalError, ConfigError, DataError
from avsal.types import ClipSpec, Coverage

Split = Literal["train", "val", "test"]


class SaliencyDataModule(L.LightningDataModule, ABC):
    """Base of the data sets.

    Args:
        root: folder of the data set, or a file that `avsal data pack` made of it.
        batch_size: clips of a training batch.
        eval_batch_size: windows of one video at once in validation and test; `batch_size` by default.
        num_workers: worker processes; by default one for each core but one, at most 8.
        seed: seed of all random choices in training.
        segment: frames of the segments that training clips are drawn from; None draws one clip from each video
            and epoch.
        flip: probability of mirroring a training clip.
        val_stride: distance of the frames scored in validation; 1 scores every frame.
        test_stride: the same for test.
        coverage: "full" scores every frame in validation and test; "authors" those that the paper's authors scored.
        test_split: the videos that are tested: those of "test", "val" or "train", or "all".
        negatives: whether test batches hold the negatives of shuffled AUC.
        strict: stop at the first video that cannot be read; otherwise skip it and warn at the end.
        swap_sound: give every test video the sound of another one of its set (see `swapped_sound`).
        limit: use only the first so many videos of each split, for a quick look.
        spec: the clip to deliver; taken from the model when it trains or tests.

    Attributes:
        name: the data set's name in `avsal data list`.
        left_out: sentences about videos that were skipped.
    """

    name: str | None = None

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        segment: int | None = SEGMENT,
        flip: float = 0.5,
        val_stride: int = 1,
        test_stride: int = 1,
        coverage: Coverage = "full",
        test_split: Literal["train", "val", "test", "all"] = "test",
        negatives: bool = True,
        strict: bool = False,
        swap_sound: bool = False,
        limit: int | None = None,
        spec: ClipSpec | None = None,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser() if root is not None else None
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.seed, self.segment, self.flip, self.limit = seed, segment, flip, limit
        self.val_stride, self.test_stride, self.coverage = val_stride, test_stride, coverage
        self.negatives, self.strict, self.swap_sound = negatives, strict, swap_sound
        self.test_split = test_split
        self.left_out: dict[str, str] = {}
        self._spec = spec
        self._items: dict[str, list[VideoItem]] = {}
        self._loaders: list[ClipLoader] = []
        for option in ("batch_size", "eval_batch_size", "num_workers", "val_stride", "test_stride", "limit"):
            value, least = getattr(self, option), 0 if option == "num_workers" else 1
            if value is not None and value < least:
                raise ConfigError(f"{option}={value} must be at least {least}.")
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip={flip} is a probability: give 0 to 1.")

    # -- what a data set defines --------------------------------------------------------------------------

    @abstractmethod
    def items(self, split: Split) -> Sequence[VideoItem]:
        """Return the videos of a split; data sets define it.

        Raises:
            DataError: the folder does not hold the data set.
        """

    # -- specification ------------------------------------------------------------------------------------

    @property
    def spec(self) -> ClipSpec:
        """The clip to deliver: given, set by `use_spec`, or that of the model in training."""
        if self._spec is not None:
            return self._spec
        model = getattr(self.trainer, "lightning_module", None) if self.trainer is not None else None
        found = getattr(model, "spec", None)
        if found is None:
            raise ConfigError(
                f"{type(self).__name__} does not know what clips to make: train with a model of avsal, call "
                "use_spec(model.spec), or pass spec=."
            )
        return found

    def use_spec(self, spec: ClipSpec) -> None:
        """Set the clip to deliver, usually `model.spec`."""
        self._spec = spec

    # -- items --------------------------------------------------------------------------------------------

    def require_root(self) -> Path:
        """Return the root folder.

        Raises:
            DataError: it was not given or is not there.
        """
        known = f" ('avsal data info {self.name}' says how to get the data)" if self.name else ""
        if self.root is None:
            raise DataError(f"{type(self).__name__} needs root=, the folder of the data set{known}.")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: there is no such folder; give the data set's root{known}.")
        return self.root

    def report(self, message: str) -> None:
        """Note a video that is left out."""
        self.left_out.setdefault(message.split(":", 1)[0], message)

    def leave_out(self, message: str, error: AvsalError | None = None) -> None:
        """Note a video that is left out; with `strict` raise `error`, or a `DataError` with the message, instead."""
        if self.strict:
            raise error or DataError(message)
        self.report(message)

    def split_items(self, split: Split) -> list[VideoItem]:
        """Return the videos of a split with known lengths, found once; unreadable ones are left out or raised.

        Raises:
            DataError: none is left.
        """
        if split not in self._items:
            kept: list[VideoItem] = []
            counts = Counts(self.root)
            for item in self._listed(split):
                if self.limit is not None and len(kept) >= self.limit:
                    break
                try:
                    kept.append(counts.counted(item))
                except AvsalError as error:
                    self.leave_out(f"{item.name}: {error}", error)
            if not kept:
                reason = next(iter(self.left_out.values()), "the list is empty")
                raise DataError(f"{type(self).__name__}: no usable video in the {split} split ({reason}).")
            counts.save()
            self._items[split] = kept
        found = self._items[split]
        return swapped_sound(found) if self.swap_sound and split == "test" else found

    def pack(
        self,
        out: str | Path,
        spec: ClipSpec | None = None,
        *,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> list[str]:
        """Write the training, validation and test videos into one file for `root` (see `avsal.data.pack`).

        Args:
            out: the file to make; it must not exist.
            spec: the network's clip, whose frame size and sound rate are stored; that of the module by default.
            progress: called with (videos done, videos in all, name).

        Returns:
            Sentences about videos that could not be read and are left out.

        Raises:
            ConfigError: `out` exists, or the network takes frames of the video's own aspect ratio.
            DataError: no video could be read.
        """
        from avsal.data.pack import pack

        skipped = pack(self.split_items, out, spec or self.spec, strict=self.strict, progress=progress)
        return [*skipped, *self.left_out.values()]

    def _listed(self, split: Split) -> Sequence[VideoItem]:
        if split != "test" or self.test_split == "test":
            return self._packed(split) or self.items(split)
        wanted: tuple[Split, ...] = (
            ("train", "val", "test") if self.test_split == "all" else (self.test_split,)
        )
        found = {item.name: item for one in wanted for item in self._packed(one) or self.items(one)}
        return [found[name] for name in sorted(found)]

    def _packed(self, split: Split) -> list[VideoItem]:
        """Return the videos of a pack (`avsal data pack`), if `root` is one."""
        if self.root is None or not self.root.is_file():
            return []
        from avsal.data.pack import packed_items

        return packed_items(self.root, split, self.spec)

    def setup(self, stage: str) -> None:
        """Find the videos of a stage, and read one clip of a few of them, so that errors come before training."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            self._try(split)

    def _try(self, split: Split) -> None:
        """Open three videos of a split: the pictures, and the ground truth of one frame."""
        items, errors = self.split_items(split), []
        places = sorted({0, len(items) // 2, len(items) - 1})
        for place in places:
            opened = None
            try:
                opened = items[place].open(sound=False)
                middle = opened.count // 2
                opened.frames.read([middle])
                if opened.annotation is not None:
                    size = opened.annotation.size
                    density = opened.annotation.density(middle)
                    if density is not None and density.shape != tuple(size):
                        raise DataError(f"maps of {density.shape} and {size} in one video.")
                    opened.annotation.fixations(middle)
            except AvsalError as error:
                if self.strict:
                    raise
                errors.append(f"{items[place].name}: {error}")
            finally:
                if opened is not None:
                    opened.close()
        if len(errors) == len(places):
            raise DataError(f"{type(self).__name__}: none of the videos tried can be read. {errors[0]}")
        for message in errors:
            self.report(message)

    # -- loaders ------------------------------------------------------------------------------------------

    def train_dataset(self) -> TrainingClips:
        """Return the random clips of the training videos."""
        return TrainingClips(
            self.split_items("train"),
            self.spec,
            seed=self.seed,
            segment=self.segment,
            flip=self.flip,
            strict=self.strict,
        )

    def eval_dataset(self, split: Split) -> VideoBatches:
        """Return the windows of the validation or test videos, a batch at a time."""
        test = split == "test"
        return VideoBatches(
            self.split_items(split),
            self.spec,
            batch_size=self.eval_batch_size,
            stride=self.test_stride if test else self.val_stride,
            coverage=self.coverage,
            native=test,
            negatives=self.negatives and test,
            strict=self.strict,
        )

    def train_dataloader(self) -> ClipLoader:
        """Return the training loader."""
        return self._loader(
            self.train_dataset(), shuffle=True, batch_size=self.batch_size, collate_fn=collate
        )

    def val_dataloader(self) -> ClipLoader:
        """Return the validation loader."""
        return self._eval_loader("val")

    def test_dataloader(self) -> ClipLoader:
        """Return the test loader: maps of the annotation's own size, one video at a time."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> ClipLoader:
        """Return the test videos' windows."""
        return self._eval_loader("test")

    def _eval_loader(self, split: Split) -> ClipLoader:
        return self._loader(self.eval_dataset(split), shuffle=False, batch_size=None)

    def _loader(self, dataset: Any, *, shuffle: bool, batch_size: int | None, **options: Any) -> ClipLoader:
        """Return a loader of this rank's share; `batch_size` None is for items that are whole batches."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        sampler: EpochSampler | ShareSampler
        if shuffle:
            sampler = EpochSampler(len(dataset), seed=self.seed, rank=rank, world_size=world)
            # The last, smaller batch is dropped (batch normalisation), unless it is the only one.
            options["drop_last"] = batch_size is not None and len(sampler) >= batch_size
        else:
            sampler = ShareSampler(len(dataset), rank=rank, world_size=world)
        loader = ClipLoader(
            dataset,
            sampler=sampler,
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=trainer is not None and type(trainer.accelerator).__name__ == "CUDAAccelerator",
            **options,
        )
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """Warn once of the videos that were skipped."""
        for loader in self._loaders:
            self.left_out.update(loader.skipped)
        self._loaders.clear()
        if self.left_out:
            shown = list(self.left_out.values())[:10]
            if len(self.left_out) > 10:
                shown.append(f"… and {len(self.left_out) - 10} more")
            warnings.warn(
                f"{type(self).__name__}: {len(self.left_out)} videos were skipped (strict=True stops instead):\n  "
                + "\n  ".join(shown),
                stacklevel=2,
            )


def in_split(names: Sequence[str], split: Split, *, test: float = 0.0, val: float = 0.0) -> set[str]:
    """Return the names of a split, dealt by their hashes: the same on every machine.

    Args:
        names: the videos that are not in another split.
        split: the split.
        test: share of the names that is tested.
        val: share of the others that validates.
    """
    tested = _held_out(names, test)
    others = [name for name in names if name not in tested]
    validating = _held_out(others, val)
    return {"test": tested, "val": validating, "train": set(others) - validating}[split]


def items_in_split(
    items: Sequence[VideoItem], split: Split, *, test: float = 0.0, val: float = 0.0
) -> list[VideoItem]:
    """Return the items of a split by `in_split`."""
    chosen = in_split([item.name for item in items], split, test=test, val=val)
    return [item for item in items if item.name in chosen]


def _held_out(names: Sequence[str], fraction: float) -> set[str]:
    """Return a share of the names, at least one of two or more."""
    count = round(len(names) * fraction)
    if fraction > 0 and len(names) > 1:
        count = max(1, count)
    return set(sorted(names, key=hash_of)[:count])


def hash_of(name: str) -> str:
    """Return the key by which videos are dealt: an order without meaning, the same on every machine."""
    return hashlib.sha256(name.encode()).hexdigest()


def swapped_sound(items: Sequence[VideoItem]) -> list[VideoItem]:
    """Return the videos in their order, each with the sound of another video of its set.

    The videos of a set, sorted by name, are shifted by half their number. Videos without sound take part: they get
    another video's sound, and another video falls silent. Gaze sets, whose clips are cut from recordings, pair their
    clips themselves (`GazeDataModule`).

    Raises:
        DataError: a set has one video only.
    """
    sets: dict[str, list[VideoItem]] = {}
    for item in sorted(items, key=lambda item: item.name):
        sets.setdefault(item.set, []).append(item)
    other: dict[str, VideoItem] = {}
    for name, members in sets.items():
        if len(members) < 2:
            raise DataError(f"{name} has one test video only: there is no other sound to give it.")
        shift = len(members) // 2
        other |= {
            own.name: heard for own, heard in zip(members, members[shift:] + members[:shift], strict=True)
        }
    return [
        replace(item, audio=other[item.name].audio, open_audio=other[item.name].open_audio) for item in items
    ]


def default_workers() -> int:
    """Return one worker for each core but one, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores - 1))
