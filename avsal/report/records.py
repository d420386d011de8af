"""Results files as records: one for each data set that a file is about."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from avsal.errors import AvsalError, DataError
from avsal.evaluation.provenance import fingerprint
from avsal.evaluation.results import Results
from avsal.models import class_named
from avsal.report.papers import System, system_of
from avsal.report.published import SETS, ZERO_SHOT

#: Entries of a results file's protocol that say how it was made, not what was measured.
NOT_PROTOCOL = {"predictions", "format", "sound", "protocol"}
_TRAINED = re.compile(r"(best|last)\b.*\.ckpt")


@dataclass(frozen=True)
class Record:
    """The part of one results file that is about one data set.

    Attributes:
        path: the file.
        results: all of it.
        data: the data set, as tables call it.
        videos: each video's scores.
        system: of a paper, None for others.
        sound: "own", or "swapped" where every clip heard another's sound.
        variant: what tells its architecture from others of the same name, "" if nothing has to.
    """

    path: Path
    results: Results
    data: str
    videos: Mapping[str, Mapping[str, float]]
    system: System | None
    sound: str
    variant: str = ""

    @property
    def gaze(self) -> bool:
        """Whether the scores are those of gaze, whose F1 is not a mean over videos."""
        return "f1" in self.results.metrics

    @property
    def key(self) -> tuple[str, str]:
        """What is the same for all folds of a system: its name and how it was heard."""
        return self.label, self.sound

    @property
    def label(self) -> str:
        """How tables call it: the paper's name for it, else model and weights; then what tells it from namesakes."""
        return f"{self._name}, {self.variant}" if self.variant else self._name

    @property
    def _name(self) -> str:
        r = self.results
        if r.weights_name is None and (r.kind == "test" or r.model == "Baseline"):
            kind = r.arguments.get("kind", "centre")
            fitted = r.kind == "test" and kind in ("fitted_centre", "shuffled")
            return f"baseline-{kind}" if r.model == "Baseline" and not fitted else f"{r.model}, no checkpoint"
        weights = re.sub(r"-fold\d+$", "", r.weights_name or "")
        if self.system is not None and weights in ("", self.system.name):
            return self.system.name
        name = self.system.name if self.system else r.model
        if _TRAINED.fullmatch(weights):  # the file name of every training
            return f"{name}, own training"
        return weights or name or self.path.stem

    @property
    def architecture(self) -> dict[str, Any] | None:
        """The model and the arguments that say what it is; None where they are not known (maps of any program)."""
        r = self.results
        if r.kind == "evaluate" or r.model is None:
            return None
        return {"model": r.model, **class_named(r.model).architecture(r.arguments)}

    @property
    def modality(self) -> str:
        """ "AV", "V", "none" for baselines, "" where it is not known."""
        if self.system is not None:
            return self.system.modality
        cls = class_named(self.results.model)
        known = cls.__name__.removesuffix("Module") == self.results.model  # not a class of the user's own
        return cls.modality(self.results.arguments) if known else ""

    @cached_property
    def protocol(self) -> str:
        """Everything that two results must share to be in one table, as text."""
        r = self.results
        fields = {k: v for k, v in r.protocol.items() if k not in NOT_PROTOCOL}
        return json.dumps([fields, dict(r.conventions)], sort_keys=True, default=str)

    @property
    def fold(self) -> int:
        """Number of the fold; 1 where there are none."""
        return self.results.data.fold or 1

    @property
    def weights_fold(self) -> int | None:
        """The fold that the name of the weights states, None without."""
        found = re.search(r"-fold(\d+)(\.\w+)?$", self.results.weights_name or "")
        return int(found[1]) if found else None

    @cached_property
    def contents(self) -> str:
        """A hash of which videos, with how many frames, were scored."""
        return fingerprint({name: row.get("frames") for name, row in self.videos.items()})

    @property
    def version(self) -> str | None:
        """The fingerprint of the data; None for a file about several sets, which are compared by their videos."""
        alone = len({video.split("/", 1)[0] for video in self.results.videos}) == 1
        return self.results.data.fingerprint if alone else None

    @property
    def where(self) -> str:
        """How messages call it."""
        return (
            f"{self.path.name} ({self.label}{', sound swapped' if self.sound != 'own' else ''}, {self.data})"
        )


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the results files among files and folders (their `*.json`, at any depth).

    Raises:
        DataError: a path is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: there are no results; `avsal test` and `avsal evaluate` write them.")
    return list(dict.fromkeys(found))


def read(paths: Iterable[Path], notes: list[str]) -> list[Record]:
    """Read results files; what cannot be read is noted. A file about several sets gives a record for each."""
    records: list[Record] = []
    for path in find_files(paths):
        try:
            results = Results.read(path)
        except AvsalError as error:
            notes.append(f"left out: {error}")
            continue
        name, own = results.weights_name, SETS.get(results.data.name, results.data.name)
        stated = results.kind == "evaluate" or name is not None
        system = system_of(name, results.model, results.arguments) if stated else None
        sound = str(results.protocol.get("sound") or "own")
        parts: dict[str, dict[str, Mapping[str, float]]] = {}
        for video, row in results.videos.items():
            prefix = video.split("/", 1)[0] if "/" in video else own
            parts.setdefault(SETS.get(prefix, prefix), {})[video] = row
        if not parts:
            notes.append(f"left out: {path.name} has no scores of single videos.")
        if (
            "f1" in results.metrics
        ):  # names of gaze clips need not begin with their set, which has a table for each task
            parts = {own: dict(results.videos)} if len(parts) != 1 else parts
            zero_shot = (name or "").startswith("csts-ego4d")
            task = results.arguments.get("task", "anticipation")
            parts = {
                ZERO_SHOT if data == "Aria" and zero_shot else f"{data}, {task}": part
                for data, part in parts.items()
            }
        records += [Record(path, results, data, videos, system, sound) for data, videos in parts.items()]
    return _told_apart(records)


def _told_apart(records: list[Record]) -> list[Record]:
    """Give architectures that share a name a variant each: only folds of one architecture make a mean."""
    known: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.architecture is not None:
            known.setdefault(record.label, []).append(record.architecture)

    def variant(record: Record) -> str:
        own, others = record.architecture or {}, known.get(record.label, [])
        differing = [k for k in sorted(own) if len({str(one.get(k)) for one in others}) > 1]
        return ", ".join(own[k] if k == "model" else f"{k} {own[k]}" for k in differing)

    return [replace(record, variant=variant(record)) for record in records]
