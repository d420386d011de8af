"""Results of a test or an evaluation: one JSON schema, with everything that is needed to trust a number.

Written by `avsal evaluate` and `lightning test`, read by `avsal leaderboard`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from avsal.errors import DataError
from avsal.files import sha256_of, write_text

if TYPE_CHECKING:
    import torch
    from lightning import LightningDataModule, Trainer
    from torch import Tensor

    from avsal.data.items import VideoItem
    from avsal.models.base import SaliencyModule

#: Version of the schema; readers refuse files of a newer one.
SCHEMA = 1

#: A number that may be not-a-number, which JSON writes as null.
Score = Annotated[
    float,
    BeforeValidator(lambda v: math.nan if v is None else v),
    PlainSerializer(lambda v: None if math.isnan(v) else v, return_type=float | None, when_used="json"),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GitState(_Part):
    """Commit of the source tree that avsal runs from, and whether it has changes."""

    commit: str
    dirty: bool


class Checkpoint(_Part):
    """The weights behind the predictions.

    Attributes:
        name: registry name, repository or file name; None for weights that are known to come from none, such as
            random ones or those of a module that was trained on in memory.
        sha256: of the file, None if there is no file. Older files of `avsal reproduce` have `weights` here.
        weights: hash of the entries as the module holds them (`weights_hash`), whatever file they came from.
    """

    name: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    weights: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @property
    def hashes(self) -> set[str]:
        """Everything that the weights can be known by."""
        return {h for h in (self.weights, self.sha256) if h is not None}

    def same(self, other: Checkpoint) -> bool:
        """Say whether two are known to be the same weights."""
        if self.weights is not None and other.weights is not None:
            return self.weights == other.weights
        return bool(self.hashes & other.hashes)


class Data(_Part):
    """What was scored.

    Attributes:
        name: the data set.
        split: "test", "val", ... or None.
        fold: number of the fold, None without folds.
        fingerprint: hash of the videos' names, numbers of frames and rates.
        annotations: hash of the annotation files' names and sizes, None where the files are not known (packs).
        videos: how many videos the split has; a result with fewer scored and failed ones is a part of it.
    """

    name: str
    split: str | None = None
    fold: int | None = None
    fingerprint: str | None = None
    annotations: str | None = None
    videos: int | None = None


class Failure(_Part):
    """An item that could not be scored and why."""

    item: str
    error: str


class Hardware(_Part):
    """What it ran on.

    Attributes:
        system, processor, cores: of the first machine.
        accelerator: name of the GPU, None on the processor.
        devices: processes that shared the work on one machine.
        nodes: machines.
        python, torch: versions.
    """

    system: str
    processor: str
    cores: int
    accelerator: str | None = None
    devices: int = 1
    nodes: int = 1
    python: str
    torch: str


class Cost(_Part):
    """What the network costs.

    Attributes:
        parameters: of the network.
        multiply_adds: of one clip, as `avsal info` counts them.
        maps_per_second: maps that the network itself made per second (no decoding, no metrics), None if not measured.
    """

    parameters: int
    multiply_adds: int
    maps_per_second: float | None = None


class Results(_Part):
    """One run's results.

    Attributes:
        schema_version: of this file format.
        kind: the command that wrote it: "evaluate" or "test".
        created: UTC time, ISO 8601.
        avsal: version of the package.
        git: state of its source tree, None for an installed package.
        model: class or name of the model, as far as known.
        arguments: constructor arguments of the model that differ from their defaults.
        checkpoint: the weights, None for maps of unknown origin.
        data: what was scored.
        protocol: how frames were chosen, averaged and prepared (free-form names, plain values).
        conventions: how each metric was computed (`avsal.metrics.Conventions.describe`).
        metrics: the data set's score by metric; null where no frame could be scored.
        frames: frames used for each metric (`frames_<metric>`), all frames, failed frames, videos.
        videos: scores and frame numbers of each video; of gaze also for each anticipation step (`recall_step1` …).
        steps: scores of each anticipation step of gaze, at the threshold of all steps; empty for saliency.
        failed: items that could not be scored.
        notes: what else a reader of the numbers should know.
        cost: size and speed of the network, None for maps of unknown origin.
        hardware: what it ran on.
        seconds: wall-clock time.
        command: the command line.
    """

    schema_version: int = SCHEMA
    kind: Literal["evaluate", "test"]
    created: str
    avsal: str
    git: GitState | None = None
    model: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    data: Data
    protocol: dict[str, Any]
    conventions: dict[str, Any]
    metrics: dict[str, Score]
    frames: dict[str, int]
    videos: dict[str, dict[str, Score]]
    steps: list[dict[str, Score]] = Field(default_factory=list)
    failed: list[Failure] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    cost: Cost | None = None
    hardware: Hardware
    seconds: float = Field(ge=0)
    command: list[str]

    @property
    def weights_name(self) -> str | None:
        """What the weights are called, None where that is not known."""
        return self.checkpoint.name if self.checkpoint is not None else None

    @property
    def complete(self) -> bool:
        """Whether every video of the split was scored or is named as failed; True where their number is not known."""
        known = {*self.videos, *(failure.item for failure in self.failed)}
        return self.data.videos is None or len(known) >= self.data.videos

    def check_scored(self) -> None:
        """Refuse results in which a metric scored no frame at all.

        Raises:
            DataError: names these metrics and the likely cause. Nothing is said where every video failed: the failures
                say it.
        """
        empty = [name for name in self.metrics if self.frames.get(f"frames_{name}") == 0]
        count = self.frames.get("frames", 0)
        if not empty or (count == 0 and self.failed):
            return
        if count and self.frames.get("frames_failed") == count:
            cause = "all predictions hold NaN or infinite values"
        else:
            cause = "no frame has the ground truth that they need (fixations; for sauc, also those of other frames)"
        raise DataError(
            f"{self.data.name}: {', '.join(empty)} scored none of {count} frames: {cause}. Check its files, "
            "or leave these metrics out."
        )

    @classmethod
    def make(
        cls,
        kind: Literal["evaluate", "test"],
        *,
        accelerator: str | None = None,
        devices: int = 1,
        nodes: int = 1,
        **fields: Any,
    ) -> Results:
        """Return results with the time, versions, git state, hardware and command line filled in."""
        from avsal import __version__

        return cls(
            kind=kind,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            avsal=__version__,
            git=git_state(),
            hardware=hardware(accelerator, devices, nodes),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            **fields,
        )

    def write(self, target: Path) -> Path:
        """Write the JSON file, under a temporary name first.

        Args:
            target: a file ending in .json, or a folder, where the file is named after model, data, split,
                fold and time.

        Returns:
            The file.
        """
        target = Path(target)
        if target.suffix != ".json":
            parts = [
                self.model,
                self.weights_name,
                self.data.name,
                self.data.split,
            ]
            parts.append(f"fold{self.data.fold}" if self.data.fold is not None else None)
            parts.append(re.sub(r"[^0-9T]", "", self.created.partition("+")[0]))
            stem = "-".join(
                re.sub(r"[^\w.-]+", "_", Path(p).stem if p is parts[1] else p) for p in parts if p
            )
            return write_text(target / f"{stem}.json", self.model_dump_json(indent=1) + "\n", unique=True)
        return write_text(target, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read and check a results file.

        Raises:
            DataError: it is missing, damaged, of a newer schema, or not such a file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the results cannot be read ({error}).") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA:
            raise DataError(
                f"{path}: written by a newer avsal (schema {version}, known: {SCHEMA}); update avsal."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"]) or "file"
            raise DataError(f"{path}: no results file of avsal ({place}: {first['msg']}).") from error


def fingerprint(names: Mapping[str, Any]) -> str:
    """Return a short hash of names and what describes them (sizes, counts), independent of their order."""
    text = json.dumps({str(k): names[k] for k in sorted(names, key=str)}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def git_state(folder: Path | None = None) -> GitState | None:
    """Return the commit of the source tree that avsal is imported from; None outside a checkout."""
    folder = folder or Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(done.stdout.strip())
    return GitState(commit=answers[0], dirty=bool(answers[1]))


def file_fingerprint(paths: Iterable[Path]) -> str | None:
    """Return a short hash of the names and sizes of files and of the files directly in folders; None without any.

    Nothing is read: annotations of thousands of files are compared by one listing of each folder.
    """
    found: dict[str, int] = {}
    for path in paths:
        try:
            if path.is_dir():
                with os.scandir(path) as entries:
                    found |= {f"{path.name}/{e.name}": e.stat().st_size for e in entries if _counts(e)}
            elif path.is_file():
                found[path.name] = path.stat().st_size
        except OSError:
            continue
    return fingerprint(found) if found else None


def _counts(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and not entry.name.startswith(".")


def hardware(accelerator: str | None = None, devices: int = 1, nodes: int = 1) -> Hardware:
    """Return what this process runs on."""
    import torch

    return Hardware(
        system=platform.platform(terse=True),
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        python=platform.python_version(),
        torch=torch.__version__,
    )


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name; on Linux from `cpuinfo`, since `platform` knows only its architecture there."""
    known = platform.processor()
    if known and known != platform.machine():
        return known
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else known or platform.machine()


def checkpoint_of(module: SaliencyModule, file: str | Path | None = None) -> Checkpoint:
    """Return what the weights that a module holds are known by.

    A name and the sha256 of a file are given only if that file holds exactly these weights: one that was written
    again since, or a module that was trained on, is known by its entries alone.

    Args:
        module: the module.
        file: the Lightning checkpoint it was filled from; by default what `from_pretrained` filled it from.
    """
    weights = weights_hash(module)
    if file is not None and Path(file).is_file():
        from avsal.checkpoints.file import read_pickle

        # The sum first: a file that is replaced in between does not have the entries then.
        sha256 = sha256_of(Path(file))
        same = weights_hash(read_pickle(Path(file))["state_dict"]) == weights
        return Checkpoint(name=Path(file).name, sha256=sha256 if same else None, weights=weights)
    if module.weights_from is not None and module.weights_from[2] == weights:
        return Checkpoint(name=module.weights_from[0], sha256=module.weights_from[1], weights=weights)
    return Checkpoint(weights=weights)


def weights_hash(module: torch.nn.Module | Mapping[str, Tensor]) -> str:
    """Return the sha256 of a module's or a state dict's entries, names and bytes, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    state = module if isinstance(module, Mapping) else module.state_dict()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_of(datamodule: LightningDataModule, split: str = "test") -> Data:
    """Return what a split holds: its name, fold, fingerprints, and how many videos a whole result is about."""
    items = datamodule.split_items(split) if hasattr(datamodule, "split_items") else []
    names = video_names(datamodule, split)
    left_out = getattr(datamodule, "left_out", {}) or {}
    return Data(
        name=getattr(datamodule, "name", None) or type(datamodule).__name__,
        split=split,
        fold=getattr(datamodule, "fold", None),
        fingerprint=fingerprint({i.name: [i.frames, i.fps] for i in items}) if items else None,
        annotations=_annotations(datamodule, items),
        videos=len({*names.values(), *left_out}) if names else None,
    )


def video_names(datamodule: LightningDataModule, split: str = "test") -> dict[int, str]:
    """Return the names of the videos by the `video_id` of the batches: of gaze sets the recordings, not the clips."""
    if hasattr(datamodule, "video_names"):
        return dict(datamodule.video_names(split))
    items = datamodule.split_items(split) if hasattr(datamodule, "split_items") else []
    return {number: item.name for number, item in enumerate(items)}


def _annotations(datamodule: LightningDataModule, items: Sequence[VideoItem]) -> str | None:
    root = getattr(datamodule, "root", None)
    if root is None or root.is_file():  # a pack holds the same annotations in other files
        return None
    found = {item.name: file_fingerprint(annotation_paths(item)) for item in items}
    return fingerprint(found) if any(found.values()) else None


def annotation_paths(item: VideoItem) -> list[Path]:
    """Return the files and folders that an item's ground truth is read from."""
    import dataclasses

    places: list[Path] = []
    for opener in (item.open_annotation, item.open_gaze):
        if dataclasses.is_dataclass(opener):
            for part in dataclasses.fields(opener):
                value = getattr(opener, part.name)
                # The pictures say how large the grid is; they are no annotation.
                if part.name not in ("video", "images", "frames"):
                    places += [
                        v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Path)
                    ]
    gaze_file = getattr(item, "gaze_file", None)
    places += [gaze_file] if gaze_file is not None else []
    return [path for place in places for path in with_parts(place)]


def with_parts(place: Path) -> list[Path]:
    """Return a file, or a folder and those in it that annotations lie in."""
    return [place, *(folder for folder in (place / "maps", place / "fixation") if folder.is_dir())]


def from_test(
    module: SaliencyModule,
    datamodule: LightningDataModule,
    *,
    checkpoint: Checkpoint | str | Path | None = None,
    seconds: float | None = None,
    split: str = "test",
    whole: bool | None = None,
    failed: Mapping[str, str] | None = None,
    cost: Cost | None = None,
) -> Results:
    """Gather the results of a finished test; call it on every rank.

    Args:
        module: the tested module; its `metrics("test")` hold the scores.
        datamodule: what it was tested on.
        checkpoint: its weights, or the file that they were loaded from; by default see `checkpoint_of`.
        seconds: duration of the test, if it was measured.
        split: the split that was scored.
        whole: whether all batches were run; by default the trainer is asked.
        failed: messages about videos that could not be read, beside those that the data set knows.
        cost: size and speed of the network, if it was measured.
    """
    from avsal.metrics.gaze import GazeMetrics

    metric = module.metrics("test")
    scores, used = metric.compute(), metric.frames_used()
    data = data_of(datamodule, split)
    names = video_names(datamodule, split)
    gaze = metric if isinstance(metric, GazeMetrics) else None
    per_video = metric.per_video(names) if gaze is None else gaze.per_video(names, steps=True)
    videos = {str(k): v for k, v in per_video.items()}
    conventions = metric.conventions.describe() if hasattr(metric, "conventions") else {"name": "csts"}
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint_of(module, checkpoint)
    accelerator = None
    if module.device.type == "cuda":
        import torch

        accelerator = torch.cuda.get_device_name(module.device)
    trainer = module._trainer
    left_out = getattr(datamodule, "left_out", {}) or {}
    left_out = left_out if isinstance(left_out, Mapping) else {str(f): str(f) for f in left_out}
    errors = {str(k): str(v) for k, v in {**left_out, **(failed or {})}.items()}
    if ran_whole(trainer) if whole is None else whole:
        # Videos without any ground truth take part and leave no score.
        unscored = sorted({*names.values()} - {*videos, *errors})
        errors |= {name: f"{name}: no frame of it has ground truth." for name in unscored}
    return Results.make(
        "test",
        accelerator=accelerator,
        devices=trainer.num_devices if trainer is not None else 1,
        nodes=trainer.num_nodes if trainer is not None else 1,
        model=type(module).__name__.removesuffix("Module"),
        arguments=changed_arguments(module),
        checkpoint=checkpoint,
        data=data,
        protocol={
            "average": getattr(metric, "average", "frame"),
            "coverage": getattr(datamodule, "coverage", None),
            "stride": getattr(datamodule, "test_stride", 1),
            "negatives": "video",
            "sound": "swapped" if getattr(datamodule, "swap_sound", False) else "own",
        },
        conventions=conventions,
        metrics=scores,
        frames=used,
        videos=videos,
        steps=gaze.per_step() if gaze is not None else [],
        failed=[Failure(item=item, error=error) for item, error in errors.items()],
        cost=cost,
        seconds=seconds if seconds is not None else 0.0,
    )


def ran_whole(trainer: Trainer | None) -> bool:
    """Say whether a trainer ran all batches of its test loader (no `limit_test_batches`)."""
    if trainer is None or trainer.test_dataloaders is None:
        return True
    return sum(trainer.num_test_batches) >= len(trainer.test_dataloaders)


def changed_arguments(module: SaliencyModule) -> dict[str, Any]:
    """Return the constructor arguments that a module was made with and that are not the defaults, as plain values."""
    defaults = type(module).arguments()
    given = {k: _plain(v) for k, v in dict(module.hparams).items() if k in defaults}
    return {k: v for k, v in given.items() if v != _plain(defaults[k])}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, to the millisecond."""
        return round(time.perf_counter() - self._began, 3)
