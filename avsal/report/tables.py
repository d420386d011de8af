"""Leaderboard tables: published, measured and difference on lines of their own, so that none passes for another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from avsal.report.measured import Board, Entry, shown
from avsal.report.published import (
    LABELS,
    METRICS,
    PAPER_NAMES,
    SIX,
    Cell,
    cells,
    cited_benchmarks,
    cited_models,
)
from avsal.report.statistics import average, interval

DIGITS = dict(METRICS.values())
#: What the lines of intervals are called.
INTERVAL = "95 % interval"
#: Two spellings of one model.
_SAME = {"TASED": "TASED-Net"}


@dataclass(frozen=True)
class Value:
    """What stands in a cell.

    Attributes:
        text: as printed.
        sort: what a sortable table sorts by; None sorts last.
        bounds: both ends of an interval, as shown.
    """

    text: str = ""
    sort: float | str | None = None
    bounds: tuple[float, float] | None = None


@dataclass
class Table:
    """A table in no particular format.

    Attributes:
        title: one line.
        columns: headings.
        rows: as many values each as there are columns.
        notes: sentences below it.
        names: headings of further columns that say what a row is about.
    """

    title: str
    columns: list[str]
    rows: list[list[Value]]
    notes: list[str] = field(default_factory=list)
    names: tuple[str, ...] = ()


def number(value: float, digits: int, sign: bool = False) -> Value:
    """Return a number as a cell; empty for NaN."""
    if math.isnan(value):
        return Value()
    return Value(f"{value:{'+' if sign else ''}.{digits}f}", value)


def span(metric: str, low: float, high: float) -> Value:
    """Return an interval as a cell; empty for NaN."""
    if math.isnan(low):
        return Value()
    low, high = shown(metric, low), shown(metric, high)
    return Value(f"{low:.{_d(metric)}f}…{high:.{_d(metric)}f}", low, (low, high))


def text(words: str) -> Value:
    """Return words as a cell."""
    return Value(words, words.casefold())


def millions(count: int | None) -> Value:
    """Return a count in millions."""
    return Value() if count is None else Value(f"{count / 1e6:.2f} M", count)


def giga(count: int | None) -> Value:
    """Return a count in thousand millions."""
    return Value() if count is None else Value(f"{count / 1e9:.2f} G", count)


def leaderboard(
    board: Board,
    *,
    data: Sequence[str] = (),
    metrics: Sequence[str] = (),
    everything: bool = False,
    published: bool = True,
) -> list[Table]:
    """Return a table for each data set, one for the mean over the six sets, and the newer models.

    Args:
        board: the measured systems.
        data: only these data sets; by default those that were measured, or all published ones if none was.
        metrics: only these; by default all.
        everything: also rows that one paper copied from another, and the papers' ablations.
        published: with rows of other people's models.

    Returns:
        The tables; empty ones are left out.
    """
    public = [c for c in cells() if c.metric in DIGITS and (everything or c.main)]
    known = list(dict.fromkeys([*board.sets, *(c.board for c in public)]))
    # Benchmarks that nothing here measures stay beside the sets that were measured.
    papers = {c.board for c in public if c.paper in PAPER_NAMES}
    newer = [c.board for c in public if c.board not in papers] if published else []
    wanted = (
        [name for name in known if chosen(name, data)] if data else list(dict.fromkeys([*board.sets, *newer]))
    )
    wanted = wanted if data or board.sets else known
    tables = []
    for name in wanted:
        table = _data_table(
            name,
            board.of(name),
            [c for c in public if c.board == name] if published else [],
            metrics,
            everything,
        )
        if table.rows:
            tables.append(table)
    mean = _mean_table(board, metrics)
    if mean is not None and not data:
        tables.append(mean)
    if published and not data:
        tables += [newer_models(), benchmarks()]
    return tables


def chosen(name: str, data: Sequence[str]) -> bool:
    """Say whether a table's name is one of the data sets asked for; the tasks of a gaze set belong to it."""
    return any(
        name.casefold() == d.casefold() or name.casefold().startswith(f"{d.casefold()},") for d in data
    )


def _metric_names(entries: Sequence[Entry], public: Sequence[Cell], wanted: Sequence[str]) -> list[str]:
    present = {m for e in entries for m in e.scores} | {c.metric for c in public}
    names = [m for m in DIGITS if m in present] + sorted(
        m for m in present if m not in DIGITS and m != "threshold"
    )
    return [m for m in names if not wanted or m in wanted]


def _data_table(
    name: str, entries: Sequence[Entry], public: Sequence[Cell], wanted: Sequence[str], everything: bool
) -> Table:
    metrics = _metric_names(entries, public, wanted)
    heads = [
        "model",
        "mod.",
        "line",
        *(LABELS.get(m, m) for m in metrics),
        "videos",
        "parameters",
        "multiply-adds",
        "maps/s",
        "source",
    ]
    rows: list[list[Value]] = []
    ours: set[tuple[str, str, str, str]] = set()
    for entry in entries:
        printed: dict[str, Cell] = {}
        if entry.system is not None and entry.sound == "own":
            printed = {c.metric: c for c in entry.system.published(name.split(",")[0])}
            ours |= {(c.paper, c.model, c.modality, c.pretraining) for c in printed.values()}
        rows += entry_rows(entry, printed, metrics)
    rows += _public_rows(_rest(public, ours, everything), metrics)
    return Table(name, heads, rows, _table_notes(entries))


def entry_rows(entry: Entry, printed: dict[str, Cell], metrics: Sequence[str]) -> list[list[Value]]:
    """Return a measured system's lines: published, measured, interval, difference."""
    head = [text(entry.title), text(entry.modality)]
    empty = [Value()] * 4
    rows = []
    if printed:
        values = [_printed(printed.get(m)) for m in metrics]
        places = "; ".join(dict.fromkeys(c.place for c in printed.values()))
        rows.append([*head, text("published"), *values, *empty, text(places)])
    scores = [entry.scores.get(m) for m in metrics]
    cost, others = entry.cost, len(entry.records) - 1
    files = entry.records[0].path.name + (f" and {others} more" if others else "")
    rows.append([
        *head, text("measured"),
        *(number(shown(m, s.value), DIGITS.get(m, 4)) if s else Value() for m, s in zip(metrics, scores, strict=True)),
        number(max((s.videos for s in scores if s), default=math.nan), 0),
        millions(cost.parameters if cost else None), giga(cost.multiply_adds if cost else None),
        number(cost.maps_per_second, 1) if cost and cost.maps_per_second else Value(), text(files),
    ])  # fmt: skip
    intervals = [span(m, s.low, s.high) if s else Value() for m, s in zip(metrics, scores, strict=True)]
    rows.append([*head, text(INTERVAL), *intervals, *empty, text("")])
    if printed:
        gaps = []
        for metric, score in zip(metrics, scores, strict=True):
            cell = printed.get(metric)
            if cell is None or score is None or math.isnan(score.value):
                gaps.append(Value())
                continue
            gap = shown(metric, score.value - cell.value)
            outside = not score.low <= cell.value <= score.high and not math.isnan(score.low)
            gaps.append(Value(f"{gap:+.{_d(metric)}f}{'*' if outside else ''}", gap))
        rows.append([*head, text("difference"), *gaps, *empty, text("")])
    return rows


def _d(metric: str) -> int:
    return DIGITS.get(metric, 4)


def _printed(cell: Cell | None) -> Value:
    if cell is None:
        return Value()
    mark = "?" if "doubtful" in cell.note else ""
    return Value(f"{shown(cell.metric, cell.value):.{cell.digits}f}{mark}", shown(cell.metric, cell.value))


def _rest(public: Sequence[Cell], ours: set[tuple[str, str, str, str]], everything: bool) -> list[Cell]:
    """Return the published numbers that stand on lines of their own: a model's own paper before its copies."""
    left = [c for c in public if (c.paper, c.model, c.modality, c.pretraining) not in ours]
    if everything:
        return left

    def who(cell: Cell) -> tuple[str, str]:
        return _SAME.get(cell.model, cell.model), cell.modality

    own = {who(c) for c in public if not c.copied}
    first: dict[tuple[str, str], str] = {}
    for c in public:
        first.setdefault(who(c), c.paper)
    return [c for c in left if not c.copied or (who(c) not in own and first[who(c)] == c.paper)]


def _public_rows(public: Sequence[Cell], metrics: Sequence[str]) -> list[list[Value]]:
    groups: dict[tuple[str, str, str, str, str], dict[str, Cell]] = {}
    for c in public:
        tables = "" if c.paper == "MSPI" else c.table  # MSPI prints parts of one row in three tables
        groups.setdefault((c.paper, tables, c.model, c.modality, c.pretraining), {}).setdefault(c.metric, c)
    rows = []
    for (_, _, model, modality, pretraining), group in groups.items():
        values = [_printed(group.get(m)) for m in metrics]
        if not any(v.text for v in values):
            continue
        title = f"{model} (DHF1K first)" if pretraining == "DHF1K" else model
        cell = next(iter(group.values()))
        places = "; ".join(dict.fromkeys(c.place for c in group.values())) + (
            ", copied" if cell.note.startswith("copied") else ""
        )
        rows.append(
            [text(title), text(modality), text("published only"), *values, *[Value()] * 4, text(places)]
        )
    return rows


def _table_notes(entries: Sequence[Entry]) -> list[str]:
    notes = []
    for entry in entries:
        failed = sum(len(r.results.failed) for r in entry.records)
        if failed:
            notes.append(f"{entry.title}: {failed} videos could not be scored and are not in the mean.")
        weights = [r.results.checkpoint for r in entry.records]
        if len(weights) > 1 and weights[0] is not None and any(w and w.same(weights[0]) for w in weights[1:]):
            notes.append(
                f"{entry.title}: one checkpoint on several folds; the mean holds if it was trained on none of them."
            )
    if entries:
        first = entries[0].records[0].results
        rules = dict.fromkeys(e.units[next(iter(e.units))].rule for e in entries if e.units)
        how = {"pool": "the videos of all folds are pooled", "folds": "the means of the folds are averaged"}
        kept = {
            k: v for k, v in first.protocol.items() if v is not None and k not in ("predictions", "sound")
        }
        notes.append(
            f"Protocol: {', '.join(f'{k} {v}' for k, v in kept.items())}; metric conventions "
            f"{first.conventions.get('name')}; {', '.join(how[r] for r in rules)}."
        )
        hardware = dict.fromkeys(
            f"{r.results.hardware.accelerator or r.results.hardware.processor}"
            for e in entries
            for r in e.records
        )
        notes.append(f"Measured on {', '.join(hardware)}.")
    return notes


def _mean_table(board: Board, wanted: Sequence[str]) -> Table | None:
    groups: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in board.entries:
        if entry.data in SIX:
            groups.setdefault((entry.label, entry.sound), {})[entry.data] = entry
    rows: list[list[Value]] = []
    notes = []
    complete = {key: sets for key, sets in groups.items() if len(sets) == len(SIX)}
    for (label, _), sets in groups.items():
        if len(sets) < len(SIX):
            missing = ", ".join(name for name in SIX if name not in sets)
            notes.append(f"{label} is not in this mean: no result on {missing}.")
    for key, sets in list(complete.items()):
        if len({entry.records[0].protocol for entry in sets.values()}) > 1:
            del complete[key]
            notes.append(
                f"{key[0]} is not in this mean: its data sets were scored under different protocols."
            )
    protocols = Counter(next(iter(sets.values())).records[0].protocol for sets in complete.values())
    chosen = protocols.most_common(1)[0][0] if protocols else None
    for key, sets in list(complete.items()):
        if next(iter(sets.values())).records[0].protocol != chosen:
            del complete[key]
            notes.append(
                f"{key[0]} is not in this mean: it was scored under another protocol than the others."
            )
    if not complete:
        return None
    entries = [e for sets in complete.values() for e in sets.values()]
    metrics = _metric_names(entries, [], wanted)
    for sets in complete.values():
        first = sets[SIX[0]]
        head = [text(first.title), text(first.modality)]
        printed: list[Value] = []
        means: list[Value] = []
        spans: list[Value] = []
        for metric in metrics:
            parts = [e.scores.get(metric) for e in sets.values()]
            there = [p for p in parts if p is not None]
            if len(there) < len(SIX):
                means.append(Value())
                spans.append(Value())
                printed.append(Value())
                continue
            low, high = interval(average([p.samples for p in there]))
            means.append(number(sum(p.value for p in there) / len(there), _d(metric)))
            spans.append(span(metric, low, high))
            found = [
                c.value
                for name, e in sets.items()
                if e.system
                for c in e.system.published(name)
                if c.metric == metric
            ]
            printed.append(number(sum(found) / len(found), _d(metric)) if len(found) == len(SIX) else Value())
        if any(v.text for v in printed):
            rows.append([*head, text("published"), *printed])
        rows += [[*head, text("measured"), *means], [*head, text(INTERVAL), *spans]]
    notes.append("Every data set counts once; the published line is our mean of the printed numbers.")
    return Table(
        "Mean of the six sets", ["model", "mod.", "line", *(LABELS.get(m, m) for m in metrics)], rows, notes
    )


def newer_models() -> Table:
    """Return the models that came after the five papers, with what their pages state."""
    rows = [
        [
            text(m.model),
            text("published only"),
            number(m.year, 0),
            text(m.venue),
            text(m.inputs),
            text(m.stated),
            text(m.weights),
            text(m.source),
        ]
        for m in cited_models()
    ]
    return Table(
        "Newer models (cited, not measured)",
        ["model", "line", "year", "venue", "inputs", "what its page states", "weights and licence", "source"],
        rows,
        ["Their own tables were not open beside us: no numbers are given."],
    )


def benchmarks() -> Table:
    """Return benchmarks beside the six sets, with what their pages state."""
    rows = [
        [
            text(b.benchmark),
            text("published only"),
            *(text(w) for w in (b.what, b.licence, b.scores, b.source)),
        ]
        for b in cited_benchmarks()
    ]
    return Table(
        "Benchmarks (cited, not measured)", ["benchmark", "line", "what", "licence", "scores", "source"], rows,
        ["Numbers are given where a page that was read states them: NTIRE 2026 and DHF1K have tables of their own; the "
            "ranking of AIM 2024 could not be read."],
    )  # fmt: skip


def legend() -> list[str]:
    """Return what the lines of the tables mean."""
    return [
        "published: printed by the model's own paper. measured: by avsal, from results files. The two are never "
        "averaged or ranked together.",
        "95 % interval: bootstrap over videos. difference: measured minus published; * where the published "
        "number lies outside the interval.",
        "published only: printed numbers of models that were not measured here. ? marks a doubtful cell.",
    ]
