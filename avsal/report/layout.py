"""A paper's table as it prints it: its rows and columns in their order, with what was measured below each print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from avsal.report.measured import Entry, Score, shown
from avsal.report.papers import KEYS, SYSTEMS, PaperTable, Row
from avsal.report.published import PAPERS, Cell, cells
from avsal.report.statistics import FloatArray, gaze_f1, interval
from avsal.report.tables import LINES, Table, Value, lines, number, protocol_notes, text
from avsal.report.testing import Options

#: (network, data set) -> what was measured.
Found = Mapping[tuple[str, str], Entry]
#: (data set, heading) of a column; counts have no data set.
Column = tuple[str, str]
#: The cells of a row: those of each column, by line.
Cells = dict[Column, dict[str, Value]]


def paper_table(
    table: PaperTable, found: Found, options: Options, sets: Sequence[str] | None = None
) -> Table:
    """Return a table of a paper with the numbers that it prints and those that were measured.

    Args:
        table: its description.
        found: what was measured.
        options: with `fast`, counts are those of small networks.
        sets: only these data sets.
    """
    columns, counts = _columns(table, found, sets), [("", heading) for heading in table.counts]
    rows = [
        {c: _number(table, row, c, found) for c in columns}
        | {c: _count(table, row, c, found, options) for c in counts}
        for row in table.rows
    ]
    body: list[list[Value]] = []

    def add(start: Sequence[str], row: Row, values: Cells, among: Sequence[Column]) -> None:
        used = [line for line in LINES if any(values[c][line].text for c in among)]
        for line in used or LINES[:1]:
            body.append([*map(text, (*start, *row.labels, line)), *(values[c][line] for c in among)])

    if table.form == "turned":
        for column in columns:
            for line in LINES:
                if any(values[column][line].text for values in rows):
                    body.append([*map(text, (*column, line)), *(values[column][line] for values in rows)])
        unit = table.heads[0].removesuffix("s")
        heads = ["Data", "Metric", "line", *(f"{unit} {row.labels[-1]}" for row in table.rows)]
    elif table.form == "long":
        for data in dict.fromkeys(data for data, _ in columns):
            for row, values in zip(table.rows, rows, strict=True):
                add([data], row, values, [*counts, *(c for c in columns if c[0] == data)])
        heads = ["Data", *table.heads, "line", *table.counts, *dict.fromkeys(metric for _, metric in columns)]
    else:
        for row, values in zip(table.rows, rows, strict=True):
            add([], row, values, [*counts, *columns])
        heads = [*table.heads, "line", *table.counts, *map(" ".join, columns)]
    source = next((c.source for c in cells() if c.paper == PAPERS[table.paper]), "")
    notes = [f"published: {PAPERS[table.paper]}, {table.name}, {source}.", *filter(None, [table.note])]
    return Table(f"{table.name}: {table.title}", heads, body, notes + protocol_notes([*found.values()]))


def points(
    table: PaperTable, metric: str, found: Found
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return the lines of a figure: name -> (x, value, low, high) as shown, by data set and, over steps, by row."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    steps, key = table.form == "steps", KEYS[metric]
    for place, row in enumerate(table.rows):
        for data, heading in _columns(table, found, None):
            score = _score(table, row, (data, heading), key, found) if steps or heading == metric else None
            if score is not None and not math.isnan(score.value):
                label = row.labels[0]
                x = int(heading.split()[1]) if steps else int(label) if label.isdigit() else place
                bounds = (shown(key, v) for v in (score.value, score.low, score.high))
                curves.setdefault(f"{label}, {data}" if steps else data, []).append((float(x), *bounds))  # type: ignore[arg-type]
    return curves


def _columns(table: PaperTable, found: Found, sets: Sequence[str] | None) -> list[Column]:
    kept = [data for data in table.sets if not sets or data in sets]
    if table.mean:
        return [(table.mean, metric) for metric in table.metrics]
    if table.form != "steps":
        return [(data, metric) for data in kept for metric in table.metrics]
    units = [e.units for (_, data), e in found.items() if data in kept]
    steps = max((sum(name.startswith("recall_step") for name in u) for u in units), default=0)
    return [(data, f"step {k + 1}") for data in kept for k in range(steps)]


def _number(table: PaperTable, row: Row, column: Column, found: Found) -> dict[str, Value]:
    metric = "f1" if table.form == "steps" else KEYS[column[1]]
    return lines(metric, _printed(table, row, metric, column[0]), _score(table, row, column, metric, found))


def _printed(table: PaperTable, row: Row, metric: str, data: str | None = None) -> Cell | None:
    wanted = (PAPERS[table.paper], *row.cell)
    same = (c for c in cells() if c.row == wanted and (c.table, c.metric) == (table.number, metric))
    return next((c for c in same if data in (None, c.data)), None)


def _score(table: PaperTable, row: Row, column: Column, metric: str, found: Found) -> Score | None:
    if not table.mean:
        entry = found.get((row.systems.get(column[0], ""), column[0]))
        if entry is None or table.form != "steps":
            return entry.scores.get(metric) if entry is not None else None
        step = column[1].replace("step ", "_step")
        if f"recall{step}" not in entry.units:
            return None
        parts = (entry.units[f"recall{step}"], entry.units[f"precision{step}"])
        return Score(*gaze_f1(parts, data=entry.data), np.empty(0), len(parts[0].names))
    entries = [found.get((row.systems.get(data, ""), data)) for data in table.sets]
    scores = [e.scores[metric] for e in entries if e is not None and metric in e.scores]
    if len(scores) < len(table.sets):
        return None
    # "overall" is the mean over all videos, "average of six" that over the sets.
    shares = np.array([s.videos if table.mean == "overall" else 1 for s in scores], dtype=float)
    shares /= shares.sum()
    samples: FloatArray = np.tensordot(shares, np.stack([s.samples for s in scores]), 1)
    value = float(shares @ [s.value for s in scores])
    return Score(value, *interval(samples), samples, sum(s.videos for s in scores))


def _count(table: PaperTable, row: Row, column: Column, found: Found, options: Options) -> dict[str, Value]:
    """Return the size that the paper prints, in its unit, and that of our network."""
    what = table.counts[column[1]]
    cell = _printed(table, row, "macs" if what == "multiply-adds" else "params")
    entry = next((e for (name, _), e in found.items() if name in row.systems.values()), None)
    count: int | None = None
    if entry is not None and what == "decoder":
        count = _parameters(SYSTEMS[next(iter(row.systems.values()))].name, what, options)
    elif entry is not None and entry.cost is not None:
        count = entry.cost.multiply_adds if what == "multiply-adds" else entry.cost.parameters
    scale = 1e9 if what == "multiply-adds" else 1e6
    return dict.fromkeys(LINES, Value()) | {
        "published": number(cell.value, cell.digits) if cell else Value(),
        "measured": number(count / scale, 2) if count else Value(),
    }


def _parameters(name: str, part: str, options: Options) -> int:
    """Return the parameters of a part of a network, counted without computing it."""
    import torch

    from avsal.models import create_model
    from avsal.report.recipes import Training

    if options.fast:
        network = Training(SYSTEMS[name], 1, options).small().network
    else:
        with torch.device("meta"):
            network = create_model(SYSTEMS[name].model, **SYSTEMS[name].arguments).network
    return sum(p.numel() for p in network.get_submodule(part).parameters())
