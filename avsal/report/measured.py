"""Results files to one number for each model, data set and metric: folds joined, with intervals."""

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
from avsal.report import grouping
from avsal.report.published import PERCENT, SIX
from avsal.report.records import Record, read
from avsal.report.statistics import DRAWS, FloatArray, Units, f1_of, interval, resamples


@dataclass
class Score:
    """One number of one model.

    Attributes:
        value: as the papers average it.
        low, high: 95 % interval of a bootstrap over videos; NaN for one video, and where their scores are not known.
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
    """One measured model on one data set.

    Attributes:
        records: its results, one for each fold.
        scores: by metric.
        units: the videos behind each metric, for paired differences; of gaze also `recall_step1` … .
        cost: of the network, where the files say.
        apart: why it is not comparable with the first table of its data set; "" in that table.
    """

    records: list[Record]
    scores: dict[str, Score]
    units: dict[str, Units]
    cost: Cost | None
    apart: str = ""

    def __post_init__(self) -> None:
        first = self.records[0]
        self.label, self.modality, self.sound = first.label, first.modality, first.sound
        self.data, self.system = first.data, first.system

    @property
    def title(self) -> str:
        """What tables print: the paper's name for it, or the label; folds that have no result are stated."""
        own = self.system is not None and self.label == self.system.name
        title = self.system.label if self.system is not None and own else self.label
        if self.missing:
            folds = ", ".join(str(record.fold) for record in self.records)
            title += f", fold{'s' if len(self.records) > 1 else ''} {folds} of {len(self.records) + len(self.missing)}"
        return title + (", sound swapped" if self.sound != "own" else "")

    @property
    def missing(self) -> list[int]:
        """The folds that have no result."""
        present = {record.fold for record in self.records}
        wanted = (
            (1, 2, 3) if self.data in SIX else range(1, max(present) + 1) if len(present) > 1 else present
        )
        return sorted(set(wanted) - present)


@dataclass
class Board:
    """All measured models.

    Attributes:
        entries: in the order of data sets, tables and models.
        notes: what was left out, and why.
    """

    entries: list[Entry]
    notes: list[str]

    def of(self, data: str, apart: str = "") -> list[Entry]:
        """Return the entries of a data set's first table, or of the one that is apart for this reason."""
        return [entry for entry in self.entries if (entry.data, entry.apart) == (data, apart)]

    @property
    def tables(self) -> list[tuple[str, str]]:
        """The (data set, apart) of each table."""
        return list(dict.fromkeys((entry.data, entry.apart) for entry in self.entries))

    @property
    def sets(self) -> list[str]:
        """The data sets, the six audio-visual ones first."""
        return list(dict.fromkeys(entry.data for entry in self.entries))


def board(paths: Iterable[Path], *, draws: int = DRAWS, seed: int = 0) -> Board:
    """Return every measured model with its scores.

    Args:
        paths: results files and folders.
        draws, seed: of the bootstrap.
    """
    notes: list[str] = []
    entries: list[Entry] = []
    first: dict[str, Record] = {}
    for table in grouping.tables(grouping.usable(read(paths, notes), notes)):
        one = table[0][0]
        head = first.setdefault(one.data, one)
        why = (grouping.difference(a, head) for model in table for a in model)
        apart = "" if head is one else next(filter(None, why), "other folds")
        entries += [entry_of(model, draws, seed, apart) for model in table]
    places = {apart: k for k, apart in enumerate(dict.fromkeys(entry.apart for entry in entries))}

    def order(entry: Entry) -> tuple[int, str, int, str, str]:
        place = SIX.index(entry.data) if entry.data in SIX else len(SIX)
        return place, entry.data, places[entry.apart], entry.label, entry.sound

    return Board(sorted(entries, key=order), notes)


# -- scores ----------------------------------------------------------------------------------------------------


def entry_of(records: Sequence[Record], draws: int = DRAWS, seed: int = 0, apart: str = "") -> Entry:
    """Return the scores of one model's folds on one data set."""
    first, data = records[0], records[0].data
    names = [m for m in first.results.metrics if all(m in r.results.metrics for r in records)]
    count = min(len(r.results.steps) for r in records)
    names += [f"{m}_step{k + 1}" for k in range(count) for m in ("recall", "precision")]
    units = {metric: gather(records, metric) for metric in names}
    values = {metric: unit.mean() for metric, unit in units.items()}
    if first.gaze:
        values = {m: float(first.results.metrics[m]) for m in ("f1", "recall", "precision")}
    samples = {
        m: units[m].draws(resamples(len(units[m].names), draws=draws, seed=seed, data=data)) for m in values
    }
    if first.gaze:  # recall and precision are means over frames at one threshold; F1 comes from them (CSTS)
        samples["f1"] = f1_of(samples["recall"], samples["precision"])
    scores = {}
    for metric, value in values.items():
        videos = len(units[metric].names)
        low, high = interval(samples[metric]) if videos > 1 else (math.nan, math.nan)
        scores[metric] = Score(value, low, high, samples[metric], videos)
    cost = next((r.results.cost for r in records if r.results.cost is not None), None) or _counted(first)
    return Entry(list(records), scores, units, cost, apart)


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
    by_frames = records[0].results.protocol.get("average") == "frame" or records[0].gaze
    step = metric[metric.find("_step") :] if "_step" in metric else ""

    def pair(row: Mapping[str, float]) -> tuple[float, float]:
        frames = row.get(f"frames_{metric}", row.get(f"frames{step}", 1))
        return float(row.get(metric, math.nan)), float(frames) if by_frames else 1.0

    names = tuple(sorted({name for record in records for name in record.videos}))
    if len(records) > 1 and all(len(record.videos) == len(names) for record in records):
        table = np.array([[pair(record.videos[name]) for record in records] for name in names])
        return Units(names, table[..., 0], table[..., 1], "folds")
    values, weights = np.full((len(names), 1), math.nan), np.ones((len(names), 1))
    for row, name in enumerate(names):
        # A video in the test lists of two folds (AVAD) counts twice, and is drawn or not drawn with both its copies.
        copies = np.array([pair(record.videos[name]) for record in records if name in record.videos])
        copies = copies[~np.isnan(copies[:, 0])]
        if (total := copies[:, 1].sum()) > 0:
            values[row], weights[row] = copies[:, 0] @ copies[:, 1] / total, total
    return Units(names, values, weights)


def shown(metric: str, value: float) -> float:
    """Return a score as tables print it: gaze scores in per cent."""
    return value * 100 if metric in PERCENT else value
