"""Results files to one number for each system, data set and metric: screened, folds joined, with intervals.

Nothing is mixed silently: what does not belong together is left out, and `Board.notes` says what and why.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avsal.errors import AvsalError, DataError
from avsal.report.papers import System, system_of
from avsal.report.published import PERCENT, SETS, SIX, ZERO_SHOT
from avsal.report.statistics import DRAWS, FloatArray, Units, f1_of, interval, resamples
from avsal.results import Cost, Results, fingerprint

#: Entries of a results file's protocol that say how it was made, not what was measured.
_NOT_PROTOCOL = {"predictions", "format", "sound", "protocol"}
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
    """

    path: Path
    results: Results
    data: str
    videos: Mapping[str, Mapping[str, float]]
    system: System | None
    sound: str

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
        """How tables call it: the paper's name for it, else model and weights."""
        r = self.results
        weights = re.sub(r"-fold\d+$", "", r.checkpoint.name) if r.checkpoint else None
        if weights and _TRAINED.fullmatch(weights):  # the file name of every training
            weights = "own training"
        if self.system is not None and weights in (None, self.system.name):
            return self.system.name
        name = self.system.name if self.system else r.model
        return f"{name}, {weights}" if weights == "own training" else weights or name or self.path.stem

    @property
    def modality(self) -> str:
        """ "AV", "V", "none" for baselines, "" where it is not known."""
        if self.system is not None:
            return self.system.modality
        return modality(self.results.model, self.results.arguments)

    @property
    def protocol(self) -> str:
        """Everything that two results must share to stand in one table, as text."""
        r = self.results
        fields = {k: v for k, v in r.protocol.items() if k not in _NOT_PROTOCOL}
        return json.dumps([fields, dict(r.conventions)], sort_keys=True, default=str)

    @property
    def fold(self) -> int:
        """Number of the fold; 1 where there are none."""
        return self.results.data.fold or 1

    @property
    def contents(self) -> str:
        """A hash of which videos, with how many frames, were scored."""
        return fingerprint({name: row.get("frames") for name, row in self.videos.items()})

    @property
    def where(self) -> str:
        """How messages call it."""
        return f"{self.path.name} ({self.label}{', sound swapped' if self.sound != 'own' else ''}, {self.data})"


def modality(model: str | None, arguments: Mapping[str, Any]) -> str:
    """Return "AV", "V" or "none" of a model as results files describe it; "" if it is not known."""
    if model is None:
        return ""
    if model == "Baseline":
        return "none"
    hears = arguments.get("audiovisual", arguments.get("audio", True))
    silent = model == "ISP" or not hears or arguments.get("fusion") == "vision-only"
    return "V" if silent else "AV"


@dataclass
class Score:
    """One number of one system.

    Attributes:
        value: as the papers average it.
        low, high: 95 % interval of a bootstrap over videos; NaN where the values per video are not known.
        samples: the bootstrap's draws, for means over data sets.
        videos: how many are behind it.
    """

    value: float
    low: float
    high: float
    samples: FloatArray = field(repr=False)
    videos: int


@dataclass
class Entry:
    """One measured system on one data set.

    Attributes:
        label: see `Record.label`.
        title: what tables print.
        modality: "AV", "V", "none" or "".
        sound: "own" or "swapped".
        data: the data set.
        system: of a paper, or None.
        scores: by metric.
        units: the videos behind each metric, for paired differences.
        cost: of the network, where the files say.
        records: the files behind it.
    """

    label: str
    title: str
    modality: str
    sound: str
    data: str
    system: System | None
    scores: dict[str, Score]
    units: dict[str, Units]
    cost: Cost | None
    records: list[Record]


@dataclass
class Board:
    """All measured systems.

    Attributes:
        entries: in the order of data sets and systems.
        notes: what was left out, and why.
    """

    entries: list[Entry]
    notes: list[str]

    def of(self, data: str) -> list[Entry]:
        """Return the entries of a data set."""
        return [entry for entry in self.entries if entry.data == data]

    @property
    def sets(self) -> list[str]:
        """The data sets, the six audio-visual ones first."""
        found = list(dict.fromkeys(entry.data for entry in self.entries))
        return sorted(found, key=lambda name: (SIX.index(name) if name in SIX else len(SIX), name))


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
        name = results.checkpoint.name if results.checkpoint else None
        system = system_of(name, results.model, results.arguments)
        sound = str(results.protocol.get("sound") or "own")
        parts: dict[str, dict[str, Mapping[str, float]]] = {}
        for video, row in results.videos.items():
            prefix = video.split("/", 1)[0] if "/" in video else results.data.name
            parts.setdefault(SETS.get(prefix, prefix), {})[video] = row
        if not parts:
            notes.append(f"left out: {path.name} has no scores of single videos.")
        if "f1" in results.metrics:  # names of gaze clips need not begin with their set
            own = results.data.name
            whole = {v: row for part in parts.values() for v, row in part.items()}
            parts = {SETS.get(own, own): whole} if len(parts) != 1 else parts
        if "f1" in results.metrics:
            parts = {gaze_task(d, name, results.arguments): part for d, part in parts.items()}
        for data, videos in parts.items():
            records.append(Record(path, results, data, videos, system, sound))
    return records


def gaze_task(data: str, weights: str | None, arguments: Mapping[str, Any]) -> str:
    """Return a gaze set's name with the task, since one set has several tables.

    Args:
        data: the data set.
        weights: name of the weights.
        arguments: the model's constructor arguments.
    """
    if data == "Aria" and weights is not None and weights.startswith("csts-ego4d"):
        return ZERO_SHOT
    return f"{data}, {arguments.get('task', 'anticipation')}"


def board(paths: Iterable[Path], *, draws: int = DRAWS, seed: int = 0) -> Board:
    """Return every measured system with its scores.

    Args:
        paths: results files and folders.
        draws, seed: of the bootstrap.
    """
    notes: list[str] = []
    records = read(paths, notes)
    entries: list[Entry] = []
    by_data: dict[str, list[Record]] = {}
    for record in records:
        by_data.setdefault(record.data, []).append(record)
    for data, members in by_data.items():
        kept = _one_protocol(members, notes)
        kept = _newest(kept, notes)
        kept = _one_content(kept, notes)
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in kept:
            groups.setdefault(record.key, []).append(record)
        for group in groups.values():
            complete = _folds(data, group, notes)
            if complete:
                entries.append(_entry(data, complete, draws, seed))
    result = Board(entries, notes)
    order = {name: k for k, name in enumerate(result.sets)}
    entries.sort(key=lambda e: (order[e.data], e.label, e.sound))
    return result


# -- screening -----------------------------------------------------------------------------------------------


def _one_protocol(records: list[Record], notes: list[str]) -> list[Record]:
    """Keep the protocol that most systems of a data set have (then: the newest result's), and name the others."""
    systems: dict[str, set[Any]] = {}
    for record in records:
        systems.setdefault(record.protocol, set()).add((record.key, record.fold))
    if len(systems) == 1:
        return records
    newest = {p: max(r.results.created for r in records if r.protocol == p) for p in systems}
    chosen = max(systems, key=lambda p: (len(systems[p]), newest[p]))
    example = next(r for r in records if r.protocol == chosen)
    for record in records:
        if record.protocol != chosen:
            difference = "; ".join(_differences(record, example))
            notes.append(f"left out: {record.where} has another protocol than {example.path.name}: {difference}.")
    return [r for r in records if r.protocol == chosen]


def _differences(record: Record, other: Record) -> list[str]:
    found = []
    for part in ("protocol", "conventions"):
        a, b = getattr(record.results, part), getattr(other.results, part)
        for key in sorted({*a, *b} - (_NOT_PROTOCOL if part == "protocol" else set())):
            if a.get(key) != b.get(key):
                found.append(f"{key} is {a.get(key)}, not {b.get(key)}")
    return found


def _newest(records: list[Record], notes: list[str]) -> list[Record]:
    """Keep the newest of several results of the same system, data set and fold, and name the others."""
    chosen: dict[Any, Record] = {}
    for record in sorted(records, key=lambda r: (r.results.created, str(r.path)), reverse=True):
        known = chosen.setdefault((record.key, record.fold), record)
        if known is record:
            continue
        a, b = record.results.checkpoint, known.results.checkpoint
        same = a is not None and b is not None and a.sha256 == b.sha256
        gap = max(
            (abs(record.results.metrics[m] - v) for m, v in known.results.metrics.items()
             if m in record.results.metrics and not math.isnan(v) and not math.isnan(record.results.metrics[m])),
            default=0.0,
        )  # fmt: skip
        kind = "the same weights" if same else "other weights"
        notes.append(
            f"left out: {record.where} repeats {known.path.name}, which is newer ({kind}, metrics differ by up to "
            f"{gap:.4f})."
        )
    return [r for r in records if chosen[r.key, r.fold] is r]


def _one_content(records: list[Record], notes: list[str]) -> list[Record]:
    """In each fold keep the results of the videos that most systems were scored on, and name the others."""
    kept: list[Record] = []
    for fold in sorted({r.fold for r in records}):
        members = [r for r in records if r.fold == fold]
        votes = Counter((r.contents, _version(r)) for r in members)
        newest = {c: max(r.results.created for r in members if (r.contents, _version(r)) == c) for c in votes}
        chosen = max(votes, key=lambda c: (votes[c], newest[c]))
        example = next(r for r in members if (r.contents, _version(r)) == chosen)
        for record in members:
            if (record.contents, _version(record)) == chosen:
                kept.append(record)
                continue
            missing, extra = set(example.videos) - set(record.videos), set(record.videos) - set(example.videos)
            reason = "other versions of the videos or annotations (the fingerprints differ)"
            if missing or extra:
                reason = f"{len(missing)} videos missing and {len(extra)} others"
            elif record.contents != example.contents:
                reason = "other numbers of scored frames"
            notes.append(
                f"left out: {record.where} was scored on other data than {example.path.name}: {reason}."
            )
    return kept


def _version(record: Record) -> str | None:
    """Return the data set's fingerprint; files about several sets are compared by their videos alone."""
    data = record.results.data
    alone = len({video.split("/", 1)[0] for video in record.results.videos}) == 1
    return f"{SETS.get(data.name, data.name)}:{data.fingerprint}" if alone and data.fingerprint else None


def _folds(data: str, group: list[Record], notes: list[str]) -> list[Record]:
    """Return a system's folds if all are there; a data set without folds has one."""
    present = sorted(record.fold for record in group)
    wanted = [1, 2, 3] if data in SIX else present[:1]
    if data not in SIX and len(present) > 1:
        wanted = list(range(1, max(present) + 1))
    missing = [fold for fold in wanted if fold not in present]
    if missing:
        notes.append(
            f"left out: {group[0].label} on {data}: the mean is over folds {', '.join(map(str, wanted))}; there is no "
            f"result of {', '.join(map(str, missing))} (there is: {', '.join(r.path.name for r in group)})."
        )
        return []
    protocols = {record.protocol for record in group}
    assert len(protocols) == 1
    return sorted(group, key=lambda record: record.fold)


# -- scores ----------------------------------------------------------------------------------------------------


def _entry(data: str, records: Sequence[Record], draws: int, seed: int) -> Entry:
    first = records[0]
    names = [m for m in first.results.metrics if all(m in r.results.metrics for r in records)]
    scores: dict[str, Score] = {}
    units: dict[str, Units] = {}
    for metric in names:
        units[metric] = gather(records, metric)
    if first.gaze:
        scores = _gaze_scores(data, records, units, draws, seed)
    else:
        for metric, unit in units.items():
            samples = unit.draws(resamples(len(unit.names), draws=draws, seed=seed, data=data))
            scores[metric] = Score(unit.mean(), *interval(samples), samples, len({*unit.names}))
    title = first.system.label if first.system else first.label
    if first.system and first.label != first.system.name:
        title = first.label
    if first.sound != "own":
        title += ", sound swapped"
    cost = next((r.results.cost for r in records if r.results.cost is not None), None)
    return Entry(first.label, title, first.modality, first.sound, data, first.system, scores, units, cost, list(records))


def gather(records: Sequence[Record], metric: str) -> Units:
    """Return the videos of all folds.

    Folds with the same test videos (DIEM) keep a column each, and their means are averaged; folds with videos of their
    own are pooled, as STAViS does.
    """
    pooled_frames = records[0].results.protocol.get("average") == "frame" or records[0].gaze

    def weight(row: Mapping[str, float]) -> float:
        return float(row.get(f"frames_{metric}", row.get("frames", 1))) if pooled_frames else 1.0

    same = len(records) > 1 and all(set(r.videos) == set(records[0].videos) for r in records)
    if same:
        names = sorted(records[0].videos)
        values = [[float(r.videos[n].get(metric, math.nan)) for r in records] for n in names]
        weights = [[weight(r.videos[n]) for r in records] for n in names]
        return Units(tuple(names), np.array(values), np.array(weights), "folds")
    rows = [(name, row) for r in records for name, row in sorted(r.videos.items())]
    values = [[float(row.get(metric, math.nan))] for _, row in rows]
    return Units(tuple(n for n, _ in rows), np.array(values), np.array([[weight(row)] for _, row in rows]))


def _gaze_scores(
    data: str, records: Sequence[Record], units: Mapping[str, Units], draws: int, seed: int
) -> dict[str, Score]:
    """Recall and precision are means over frames at one threshold; F1 comes from them (CSTS)."""
    metrics = records[0].results.metrics
    any_units = units["recall"]
    counts = resamples(len(any_units.names), draws=draws, seed=seed, data=data)
    parts = {m: units[m].draws(counts) for m in ("recall", "precision")}
    parts["f1"] = f1_of(parts["recall"], parts["precision"])
    scores = {}
    for metric, samples in parts.items():
        scores[metric] = Score(float(metrics[metric]), *interval(samples), samples, len(any_units.names))
    return {m: scores[m] for m in ("f1", "recall", "precision")}


def shown(metric: str, value: float) -> float:
    """Return a score as tables print it: gaze scores in per cent."""
    return value * 100 if metric in PERCENT else value
