"""A paper's table as it prints it: its rows and columns in their order, with what was measured below each print."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avsal.report.measured import Entry, shown
from avsal.report.papers import KEYS, SYSTEMS, PaperTable, Row
from avsal.report.published import PAPERS, Cell, cells
from avsal.report.statistics import FloatArray, gaze_f1, interval
from avsal.report.tables import DIGITS, INTERVAL, Table, Value, number, span, text

Found = Mapping[tuple[str, str], Entry]
LINES = ("published", "measured", INTERVAL, "difference")


@dataclass(frozen=True)
class _Number:
    value: float
    low: float
    high: float


def paper_table(
    table: PaperTable, found: Found, args: argparse.Namespace, sets: Sequence[str] | None = None
) -> Table:
    """Return a table of a paper with the numbers that it prints and those that were measured.

    Args:
        table: its description.
        found: (system, data set) -> what was measured.
        args: `fast`: the counts are those of small networks.
        sets: only these data sets.
    """
    columns = _columns(table, found, sets)
    blocks: list[tuple[Row, dict[str, dict[tuple[str, str], Value]], dict[str, list[Value]]]] = []
    for row in table.rows:
        lines = {line: dict.fromkeys(columns, Value()) for line in LINES}
        for column in columns:
            for line, value in zip(LINES, _cell(table, row, column, found), strict=True):
                lines[line][column] = value
        blocks.append((row, lines, _counts(table, row, found, args)))
    body: list[list[Value]] = []
    heads = list(table.heads)
    counts = list(table.counts)
    names_shown: tuple[str, ...] = table.heads

    def used(
        lines: Mapping[str, Mapping[Any, Value]],
        sizes: Mapping[str, list[Value]],
        among: Sequence[tuple[str, str]],
    ) -> list[str]:
        values = {line: [*(lines[line][c] for c in among), *sizes.get(line, [])] for line in LINES}
        return [line for line in LINES if any(v.text for v in values[line])] or [LINES[0]]

    if table.form == "turned":
        names = [row.labels[-1] for row in table.rows]
        for column in columns:
            for line in LINES:
                values = [lines[line][column] for _, lines, _ in blocks]
                if any(v.text for v in values):
                    body.append([text(column[0]), text(column[1]), text(line), *values])
        columns_shown = ["Data", "Metric", "line", *(f"{heads[0].removesuffix('s')} {n}" for n in names)]
        names_shown = ("Data", "Metric")
    elif table.form == "long":
        metrics = list(dict.fromkeys(metric for _, metric in columns))
        for data in dict.fromkeys(data for data, _ in columns):
            for row, lines, sizes in blocks:
                for line in used(lines, sizes, [c for c in columns if c[0] == data]):
                    head = [
                        text(data),
                        *map(text, row.labels),
                        text(line),
                        *sizes.get(line, [Value()] * len(counts)),
                    ]
                    body.append([*head, *(lines[line][data, metric] for metric in metrics)])
        columns_shown, names_shown = ["Data", *heads, "line", *counts, *metrics], ("Data", *heads)
    else:
        for row, lines, sizes in blocks:
            for line in used(lines, sizes, columns):
                head = [*map(text, row.labels), text(line), *sizes.get(line, [Value()] * len(counts))]
                body.append([*head, *(lines[line][c] for c in columns)])
        columns_shown = [*heads, "line", *counts, *(" ".join(filter(None, c)) for c in columns)]
    source = next((c.source for c in cells() if c.paper == PAPERS[table.paper]), "")
    notes = [
        f"published: {PAPERS[table.paper]}, {table.name}, {source}.",
        *filter(None, [table.note]),
    ]
    notes += _protocol([e for e in found.values() if e.records])
    return Table(f"{table.name}: {table.title}", columns_shown, body, notes, names_shown)


def _columns(table: PaperTable, found: Found, sets: Sequence[str] | None) -> list[tuple[str, str]]:
    kept = [data for data in table.sets if not sets or data in sets]
    if table.mean:
        return [(table.mean, metric) for metric in table.metrics]
    if table.form != "steps":
        return [(data, metric) for data in kept for metric in table.metrics]
    units = [e.units for (_, data), e in found.items() if data in kept]
    steps = max((sum(name.startswith("recall_step") for name in u) for u in units), default=0)
    return [(data, f"step {k + 1}") for data in kept for k in range(steps)]


def _cell(
    table: PaperTable, row: Row, column: tuple[str, str], found: Found
) -> tuple[Value, Value, Value, Value]:
    """Return what the paper prints, what was measured, its interval, and the difference."""
    data, heading = column
    metric = "f1" if table.form == "steps" else KEYS[heading]
    cell = _published(table, row, data, metric)
    printed = Value()
    if cell is not None:
        mark = "?" if "doubtful" in cell.note else ""
        value = shown(metric, cell.value)
        printed = Value(f"{value:.{cell.digits}f}{mark}", value)
    score = _score(table, row, column, metric, found)
    if score is None or math.isnan(score.value):
        return printed, Value(), Value(), Value()
    digits = max(DIGITS.get(metric, 4), cell.digits if cell else 0)
    gap = Value()
    if cell is not None:
        distance = shown(metric, score.value - cell.value)
        outside = not score.low <= cell.value <= score.high and not math.isnan(score.low)
        gap = Value(f"{distance:+.{digits}f}{'*' if outside else ''}", distance)
    return printed, number(shown(metric, score.value), digits), span(metric, score.low, score.high), gap


def _published(table: PaperTable, row: Row, data: str, metric: str) -> Cell | None:
    for c in cells():
        if (c.paper, c.table, c.data, c.metric) == (PAPERS[table.paper], table.number, data, metric) and (
            c.model, c.modality, c.pretraining
        ) == row.cell:  # fmt: skip
            return c
    return None


def _score(table: PaperTable, row: Row, column: tuple[str, str], metric: str, found: Found) -> _Number | None:
    if not table.mean:
        entry = found.get((row.systems.get(column[0], ""), column[0]))
        if entry is None:
            return None
        if table.form == "steps":
            step = column[1].replace("step ", "_step")
            if f"recall{step}" not in entry.units:
                return None
            return _Number(
                *gaze_f1((entry.units[f"recall{step}"], entry.units[f"precision{step}"]), data=entry.data)
            )
        score = entry.scores.get(metric)
        return None if score is None else _Number(score.value, score.low, score.high)
    entries = [found.get((row.systems.get(data, ""), data)) for data in table.sets]
    scores = [e.scores[metric] for e in entries if e is not None and metric in e.scores]
    if len(scores) < len(table.sets):
        return None
    # "overall" is the mean over all videos, "average of six" that over the sets.
    shares = np.array([s.videos if table.mean == "overall" else 1 for s in scores], dtype=float)
    shares /= shares.sum()
    samples: FloatArray = np.tensordot(shares, np.stack([s.samples for s in scores]), 1)
    return _Number(float(shares @ [s.value for s in scores]), *interval(samples))


def _counts(table: PaperTable, row: Row, found: Found, args: argparse.Namespace) -> dict[str, list[Value]]:
    """Return the sizes that the paper prints and those of our network."""
    lines: dict[str, list[Value]] = {"published": [], "measured": []}
    for heading, what in table.counts.items():
        metric = "macs" if what == "multiply-adds" else "params"
        in_print = [
            c for c in cells() if (c.paper, c.table, c.metric) == (PAPERS[table.paper], table.number, metric)
        ]
        cell = next((c for c in in_print if (c.model, c.modality, c.pretraining) == row.cell), None)
        lines["published"].append(number(cell.value, cell.digits) if cell else Value())
        entry = next((e for (name, _), e in found.items() if name in row.systems.values()), None)
        count = None
        if entry is not None and what == "decoder":
            count = _part(row, args, what)
        elif entry is not None and entry.cost is not None:
            count = entry.cost.multiply_adds if what == "multiply-adds" else entry.cost.parameters
        scale = 1e9 if what == "multiply-adds" else 1e6
        lines["measured"].append(number(count / scale, 2) if count else Value())
        assert heading
    return lines


def _part(row: Row, args: argparse.Namespace, part: str) -> int:
    """Return the parameters of a part of a row's network, counted without computing it."""
    import torch

    from avsal.models import create_model
    from avsal.report.recipes import Training

    system = SYSTEMS[next(iter(row.systems.values()))]
    if args.fast:
        network = Training(system, 1, args).small().network
    else:
        with torch.device("meta"):
            network = create_model(system.model, **system.arguments).network
    return sum(p.numel() for p in network.get_submodule(part).parameters())


def points(
    table: PaperTable, metric: str, found: Found
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return the lines of a figure: name -> (x, value, low, high) as shown, by data set and, over steps, by row."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    key = KEYS[metric]
    for place, row in enumerate(table.rows):
        for column in _columns(table, found, None):
            if table.form != "steps" and column[1] != metric:
                continue
            score = _score(table, row, column, key, found)
            if score is None or math.isnan(score.value):
                continue
            steps = table.form == "steps"
            name = f"{row.labels[0]}, {column[0]}" if steps else column[0]
            x = (
                float(column[1].split()[1])
                if steps
                else float(row.labels[0] if row.labels[0].isdigit() else place)
            )
            value, low, high = (shown(key, v) for v in (score.value, score.low, score.high))
            lines.setdefault(name, []).append((x, value, low, high))
    return lines


def _protocol(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    first = entries[0].records[0].results
    kept = {k: v for k, v in first.protocol.items() if v is not None and k not in ("predictions", "sound")}
    machines = dict.fromkeys(
        f"{r.results.hardware.accelerator or r.results.hardware.processor}"
        for e in entries
        for r in e.records
    )
    return [
        f"Protocol: {', '.join(f'{k} {v}' for k, v in kept.items())}; metric conventions "
        f"{first.conventions.get('name')}. Measured on {', '.join(machines)}."
    ]
