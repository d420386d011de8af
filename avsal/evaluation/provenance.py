"""What a number is known by: weights, data, code and machine, as names and hashes for the results file."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch
    from lightning import LightningDataModule
    from torch import Tensor

    from avsal.data.items import VideoItem
    from avsal.models.base import SaliencyModule


class Part(BaseModel):
    """Base of what results files hold: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class GitState(Part):
    """Commit of the source tree that avsal runs from, and whether it has changes."""

    commit: str
    dirty: bool


class Checkpoint(Part):
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
        """Return whether two are known to be the same weights."""
        if self.weights is not None and other.weights is not None:
            return self.weights == other.weights
        return bool(self.hashes & other.hashes)


class Data(Part):
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


class Hardware(Part):
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
    """Return the processor's name; on Linux from `cpuinfo`, since `platform` gives only its architecture there."""
    known = platform.processor()
    if known and known != platform.machine():
        return known
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else known or platform.machine()


def checkpoint_of(module: SaliencyModule, weights: str | None = None) -> Checkpoint:
    """Return what the weights that a module holds are known by.

    Name and sha256 of what the module was filled from are given only if it still holds exactly these entries: a module
    that was trained on is known by its entries alone.

    Args:
        module: the module.
        weights: its `weights_hash`, if it is known.
    """
    weights = weights or weights_hash(module)
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


def data_of(datamodule: LightningDataModule) -> Data:
    """Return what a test is about: the split's name, fold, fingerprints, and how many videos a whole result has."""
    items = datamodule.split_items("test") if hasattr(datamodule, "split_items") else []
    names = video_names(datamodule)
    left_out = getattr(datamodule, "left_out", {}) or {}
    return Data(
        name=getattr(datamodule, "name", None) or type(datamodule).__name__,
        split=getattr(datamodule, "test_split", "test"),
        fold=getattr(datamodule, "fold", None),
        fingerprint=fingerprint({i.name: [i.frames, i.fps] for i in items}) if items else None,
        annotations=_annotations(datamodule, items),
        videos=len({*names.values(), *left_out}) if names else None,
    )


def video_names(datamodule: LightningDataModule) -> dict[int, str]:
    """Return the names of the test videos by their `video_id`: of gaze sets the recordings, not the clips."""
    if hasattr(datamodule, "video_names"):
        return dict(datamodule.video_names("test"))
    items = datamodule.split_items("test") if hasattr(datamodule, "split_items") else []
    return {number: item.name for number, item in enumerate(items)}


def _annotations(datamodule: LightningDataModule, items: Sequence[VideoItem]) -> str | None:
    root = getattr(datamodule, "root", None)
    if root is None or root.is_file():  # a pack holds the same annotations in other files
        return None
    found = {item.name: file_fingerprint(annotation_paths(item)) for item in items}
    return fingerprint(found) if any(found.values()) else None


def annotation_paths(item: VideoItem) -> list[Path]:
    """Return the files and folders that an item's ground truth is read from."""
    places: list[Path] = []
    for opener in (item.open_annotation, item.open_gaze):
        given: Mapping[str, Any] = {}
        if isinstance(opener, partial):
            given = inspect.signature(opener.func).bind_partial(*opener.args, **opener.keywords).arguments
        elif is_dataclass(opener):
            given = vars(opener)
        # The pictures give the size of the grid; they are no annotation.
        values = [v for name, v in given.items() if name not in ("video", "images", "frames")]
        flat = [part for v in values for part in (v if isinstance(v, tuple) else (v,))]
        places += [part for part in flat if isinstance(part, Path)]
    gaze_file = getattr(item, "gaze_file", None)
    places += [gaze_file] if gaze_file is not None else []
    return [path for place in places for path in with_parts(place)]


def with_parts(place: Path) -> list[Path]:
    """Return a file, or a folder and those in it that annotations lie in."""
    return [place, *(folder for folder in (place / "maps", place / "fixation") if folder.is_dir())]


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
