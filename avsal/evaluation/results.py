"""Results of a test or an evaluation: one JSON schema, with everything that is needed to trust a number.

Written by `avsal evaluate` and `lightning test`, read by `avsal leaderboard`.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, PlainSerializer, PrivateAttr, ValidationError

from avsal.errors import DataError
from avsal.evaluation.provenance import Checkpoint, Data, GitState, Hardware, Part, git_state, hardware
from avsal.files import write_text, writing

#: Version of the schema; readers refuse files of a newer one.
SCHEMA = 1

#: A number that may be not-a-number, which JSON writes as null.
Score = Annotated[
    float,
    BeforeValidator(lambda v: math.nan if v is None else v),
    PlainSerializer(lambda v: None if math.isnan(v) else v, return_type=float | None, when_used="json"),
]


class Failure(Part):
    """An item that could not be scored and why."""

    item: str
    error: str


class Cost(Part):
    """What the network costs.

    Attributes:
        parameters: of the network.
        multiply_adds: of one clip, as `avsal info` counts them.
        maps_per_second: maps that the network itself made per second (no decoding, no metrics), None if not measured.
    """

    parameters: int
    multiply_adds: int
    maps_per_second: float | None = None


class Results(Part):
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
        notes: caveats that apply to the numbers.
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
    _frame_scores: dict[str, np.ndarray] = PrivateAttr(default_factory=dict)
    _path: Path | None = PrivateAttr(default=None)

    @property
    def path(self) -> Path | None:
        """The file that the results were read from or last written to."""
        return self._path

    @property
    def frame_scores(self) -> Mapping[str, np.ndarray]:
        """The scores of every frame, written to `*.frames.npz`; empty for gaze and for results read from a file.

        `videos` (V,) names, `fps` (V,) frames per second or NaN, `metrics` (M,) names, `video` (N,) index into
        `videos`, `frame` (N,) 0-based, `scores` (N, M) float32.
        """
        return self._frame_scores

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
            DataError: names these metrics and the likely cause. Not raised where every video failed: the failures
                are reported on their own.
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
        frame_scores: dict[str, np.ndarray] | None = None,
        **fields: Any,
    ) -> Results:
        """Return results with the time, versions, git state, hardware and command line filled in."""
        from avsal import __version__

        made = cls(
            kind=kind,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            avsal=__version__,
            git=git_state(),
            hardware=hardware(accelerator, devices, nodes),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            **fields,
        )
        made._frame_scores = frame_scores or {}
        return made

    def write(self, target: Path) -> Path:
        """Write the JSON file, under a temporary name first, and beside it the scores of single frames, if any.

        Args:
            target: a file ending in .json, or a folder, where the file is named after model, data, split,
                fold and time.

        Returns:
            The JSON file.
        """
        target, text = Path(target), self.model_dump_json(indent=1) + "\n"
        if target.suffix == ".json":
            write_frames(self._frame_scores, target)  # first: a finished result has them
            self._path = write_text(target, text)
            return self._path
        weights = Path(self.weights_name).stem if self.weights_name else None
        fold = f"fold{self.data.fold}" if self.data.fold is not None else None
        time = re.sub(r"[^0-9T]", "", self.created.partition("+")[0])
        parts = (self.model, weights, self.data.name, self.data.split, fold, time)
        stem = "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts if part)
        self._path = write_text(target / f"{stem}.json", text, unique=True)
        write_frames(self._frame_scores, self._path)
        return self._path

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
            found = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"]) or "file"
            raise DataError(f"{path}: no results file of avsal ({place}: {first['msg']}).") from error
        found._path = Path(path)
        return found


def write_frames(frames: Mapping[str, np.ndarray], results: Path) -> None:
    """Write the scores of every frame (see `Results.frame_scores`) beside a results file, if there are any."""
    if frames:
        with writing(frames_path(results)) as path:
            np.savez_compressed(path, **frames)  # type: ignore[arg-type]


def frames_path(results: Path) -> Path:
    """Return where the frames' scores of a results file are."""
    return results.with_suffix(".frames.npz")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, to the millisecond."""
        return round(time.perf_counter() - self._began, 3)
