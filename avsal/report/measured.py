"""Results files to one number for each system, data set and metric: screened, folds joined, with intervals.

Nothing is mixed silently: what does not belong together is left out, and `Board.notes` says what and why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from avsal.errors import AvsalError
from avsal.evaluation.results import Cost
from avsal.report.published import PERCENT, SIX
from avsal.report.records import Record, read
from avsal.report.screening import (
    all_folds,
    newest_of,
    one_content,
    one_protocol,
    own_folds,
    own_weights,
    whole,
)
from avsal.report.statistics import DRAWS, FloatArray, Units, f1_of, interval, resamples
from avsal.report.systems import System


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
        units: the videos behind each metric, for paired differences; of gaze also `recall_step1` … .
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


def board(paths: Iterable[Path], *, draws: int = DRAWS, seed: int = 0) -> Board:
    """Return every measured system with its scores.

    Args:
        paths: results files and folders.
        draws, seed: of the bootstrap.
    """
    notes: list[str] = []
    records = own_folds(whole(read(paths, notes), notes), notes)
    entries: list[Entry] = []
    by_data: dict[str, list[Record]] = {}
    for record in records:
        by_data.setdefault(record.data, []).append(record)
    for data, members in by_data.items():
        kept = one_protocol(data, members, notes)
        kept = newest_of(kept, notes)
        kept = own_weights(kept, notes)
        kept = one_content(data, kept, notes)
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in kept:
            groups.setdefault(record.key, []).append(record)
        for group in groups.values():
            complete = all_folds(data, group, notes)
            if complete:
                entries.append(entry_of(data, complete, draws, seed))
    result = Board(entries, notes)
    order = {name: k for k, name in enumerate(result.sets)}
    entries.sort(key=lambda e: (order[e.data], e.label, e.sound))
    return result


# -- scores ----------------------------------------------------------------------------------------------------


def entry_of(data: str, records: Sequence[Record], draws: int = DRAWS, seed: int = 0) -> Entry:
    """Return the scores of one system's folds on one data set."""
    first = records[0]
    names = [m for m in first.results.metrics if all(m in r.results.metrics for r in records)]
    count = min(len(r.results.steps) for r in records)
    names += [f"{m}_step{k + 1}" for k in range(count) for m in ("recall", "precision")]
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
    cost = next((r.results.cost for r in records if r.results.cost is not None), None) or _counted(first)
    return Entry(
        first.label,
        title,
        first.modality,
        first.sound,
        data,
        first.system,
        scores,
        units,
        cost,
        list(records),
    )


def _counted(record: Record) -> Cost | None:
    """Return the size of a network that a results file names without its cost; None where that is not known."""
    model, arguments = record.results.model, json.dumps(record.results.arguments, sort_keys=True)
    return _count(model, arguments) if model is not None else None


@cache
def _count(model: str, arguments: str) -> Cost | None:
    from avsal.models import class_named
    from avsal.zoo.show import network_cost

    try:
        cost = network_cost(class_named(model)(**json.loads(arguments)).network)
    except (AvsalError, AttributeError, TypeError):  # of another version or program, or made of ground truth
        return None
    return Cost(parameters=cost.params, multiply_adds=cost.macs)


def gather(records: Sequence[Record], metric: str) -> Units:
    """Return the videos of all folds.

    Folds with the same test videos (DIEM) keep a column each, and their means are averaged; folds with videos of their
    own are pooled, as STAViS does.
    """
    pooled_frames = records[0].results.protocol.get("average") == "frame" or records[0].gaze

    step = metric[metric.find("_step") :] if "_step" in metric else ""

    def weight(row: Mapping[str, float]) -> float:
        return float(row.get(f"frames_{metric}", row.get(f"frames{step}", 1))) if pooled_frames else 1.0

    same = len(records) > 1 and all(set(r.videos) == set(records[0].videos) for r in records)
    if same:
        names = sorted(records[0].videos)
        values = [[float(r.videos[n].get(metric, math.nan)) for r in records] for n in names]
        weights = [[weight(r.videos[n]) for r in records] for n in names]
        return Units(tuple(names), np.array(values), np.array(weights), "folds")
    rows: dict[str, list[Mapping[str, float]]] = {}
    for record in records:
        for name, row in record.videos.items():
            rows.setdefault(name, []).append(row)
    names = sorted(rows)
    # A video in the test lists of two folds (AVAD) counts twice, and is drawn or not drawn with both its copies.
    pairs = [_joined([(float(row.get(metric, math.nan)), weight(row)) for row in rows[n]]) for n in names]
    return Units(tuple(names), np.array([[v] for v, _ in pairs]), np.array([[w] for _, w in pairs]))


def _joined(copies: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of a video's copies and what they count together; those without a score do not."""
    used = [(value, weight) for value, weight in copies if not math.isnan(value)]
    total = sum(weight for _, weight in used)
    return (sum(v * w for v, w in used) / total, total) if total else (math.nan, 1.0)


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
    for metric in ("f1", "recall", "precision"):
        samples = parts[metric]
        scores[metric] = Score(float(metrics[metric]), *interval(samples), samples, len(any_units.names))
    return scores


def shown(metric: str, value: float) -> float:
    """Return a score as tables print it: gaze scores in per cent."""
    return value * 100 if metric in PERCENT else value
