"""Leaderboard tables: published, measured and difference on lines of their own, so that none passes for another."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from avsal.report import grouping
from avsal.report.measured import Board, Entry, Score, shown
from avsal.report.published import LABELS, METRICS, PAPER_NAMES, SIX, Cell, cells
from avsal.report.statistics import average, interval

DIGITS = dict(METRICS.values())
INTERVAL = "95 % interval"
#: What a measured number is shown with, from top to bottom.
LINES = ("published", "measured", INTERVAL, "difference")
#: Two spellings of one model.
_SAME = {"TASED": "TASED-Net"}
_MEAN = "Mean of the six sets"
#: Models and benchmarks without numbers: file, title, headings that differ from the file's, note.
_CITED: tuple[tuple[str, str, dict[str, str], str], ...] = (
    ("cited_models.csv", "Newer models (cited, not measured)",
     {"stated": "what its page states", "weights": "weights and licence"},
     "Their own tables were not open beside us: no numbers are given."),
    ("cited_benchmarks.csv", "Benchmarks (cited, not measured)", {},
     "Numbers are given where a page that was read states them: NTIRE 2026 and DHF1K have tables of their own; the "
     "ranking of AIM 2024 could not be read."),
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """The content of a cell.

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
    """

    title: str
    columns: list[str]
    rows: list[list[Value]]
    notes: list[str] = field(default_factory=list)


def text(content: str) -> Value:
    """Return a text as a cell."""
    return Value(content, content.casefold())


def number(value: float | None, digits: int, sign: str = "", unit: str = "") -> Value:
    """Return a number as a cell; empty for None and NaN."""
    if value is None or math.isnan(value):
        return Value()
    return Value(f"{value:{sign}.{digits}f}{unit}", value)


def costs(entry: Entry) -> list[Value]:
    """Return the cells of a network's parameters, multiply-adds of one clip, and maps per second."""
    cost = entry.cost
    if cost is None:
        return [Value()] * 3
    counts = ((cost.parameters, 1e6, " M"), (cost.multiply_adds, 1e9, " G"))
    cells = [Value() if n is None else Value(f"{n / scale:.2f}{unit}", n) for n, scale, unit in counts]
    return [*cells, number(cost.maps_per_second or None, 1)]


def lines(metric: str, printed: Cell | None, score: Score | None) -> dict[str, Value]:
    """Return the cells of one number: as its paper prints it, as measured, its interval, and the difference."""
    found = dict.fromkeys(LINES, Value())
    digits = max(DIGITS.get(metric, 4), printed.digits if printed else 0)
    if printed is not None:
        value = shown(metric, printed.value)
        found["published"] = Value(
            f"{value:.{printed.digits}f}{'?' if 'doubtful' in printed.note else ''}", value
        )
    if score is None or math.isnan(score.value):
        return found
    found["measured"] = number(shown(metric, score.value), digits)
    low, high = shown(metric, score.low), shown(metric, score.high)
    if not math.isnan(low):
        found[INTERVAL] = Value(f"{low:.{digits}f}…{high:.{digits}f}", low, (low, high))
    if printed is not None:
        outside = not math.isnan(low) and not score.low <= printed.value <= score.high
        gap = shown(metric, score.value - printed.value)
        found["difference"] = number(gap, digits, "+", "*" if outside else "")
    return found


def leaderboard(
    board: Board,
    *,
    data: Sequence[str] = (),
    metrics: Sequence[str] = (),
    everything: bool = False,
    published: bool = True,
) -> list[Table]:
    """Return the tables of each data set, those of the mean over the six sets, and the newer models.

    Args:
        board: the measured models.
        data: only these data sets; by default those that were measured, or all published ones if none was.
        metrics: only these; by default all.
        everything: also rows that one paper copied from another, and the papers' ablations.
        published: with rows of other people's models. Benchmarks and models that nothing here measures are left out
            where none of the measured data sets has published numbers.

    Returns:
        The tables; empty ones are left out.
    """
    public = [c for c in cells() if c.metric in DIGITS and (everything or c.main)]
    known = dict.fromkeys(c.board for c in public)
    own = {c.board for c in public if c.paper in PAPER_NAMES}
    related = published and (everything or not board.entries or any(name in known for name in board.sets))
    wanted = [*board.tables]
    if data:
        wanted += [(name, "") for name in known]
    elif not board.entries:
        wanted = [(name, "") for name in known]
    elif related:
        wanted += [(name, "") for name in known if name not in own]
    found = [
        _data_table(
            (name, apart),
            board.of(name, apart),
            [c for c in public if c.board == name] if published and not apart else [],
            metrics,
            everything,
        )
        for name, apart in dict.fromkeys(wanted)
        if not data or chosen(name, data)
    ]
    found = [table for table in found if table.rows]
    if not data:
        found += _mean_tables(board, metrics)
        found += [_cited(*one) for one in _CITED] if related else []
    return found


def chosen(name: str, data: Sequence[str]) -> bool:
    """Return whether a table's name is one of these data sets; the tasks of a gaze set belong to it."""
    return any(f"{name},".casefold().startswith(f"{one},".casefold()) for one in data)


def _metric_names(entries: Sequence[Entry], public: Sequence[Cell], wanted: Sequence[str]) -> list[str]:
    present = {m for e in entries for m in e.scores} | {c.metric for c in public}
    names = [m for m in DIGITS if m in present] + sorted(present - {*DIGITS, "threshold"})
    return [m for m in names if not wanted or m in wanted]


def _data_table(
    name: tuple[str, str],
    entries: Sequence[Entry],
    public: Sequence[Cell],
    wanted: Sequence[str],
    everything: bool,
) -> Table:
    metrics = _metric_names(entries, public, wanted)
    heads = ["model", "mod.", "line", *(LABELS.get(m, m) for m in metrics)]
    heads += ["videos", "parameters", "multiply-adds", "maps/s", "source"]
    rows: list[list[Value]] = []
    ours: set[tuple[str, ...]] = set()
    for entry in entries:
        printed: dict[str, Cell] = {}
        if entry.system is not None and entry.sound == "own" and not entry.missing:
            printed = {c.metric: c for c in entry.system.published(entry.data.split(",")[0])}
            ours |= {c.row for c in printed.values()}
        rows += _entry_rows(entry, printed, metrics)
    rows += _public_rows(_rest(public, ours, everything), metrics)
    data, apart = name
    notes = [f"Not comparable with the first table of {data}: {apart}."] if apart else []
    return Table(f"{data} ({apart})" if apart else data, heads, rows, notes + _notes(entries))


def _entry_rows(entry: Entry, printed: Mapping[str, Cell], metrics: Sequence[str]) -> list[list[Value]]:
    numbers = [lines(m, printed.get(m), entry.scores.get(m)) for m in metrics]
    files, others = entry.records[0].path.name, len(entry.records) - 1
    videos = max((entry.scores[m].videos for m in metrics if m in entry.scores), default=None)
    empty = [Value()] * 4
    further = {
        "published": [*empty, text("; ".join(dict.fromkeys(c.place for c in printed.values())))],
        "measured": [
            number(videos, 0),
            *costs(entry),
            text(files + (f" and {others} more" if others else "")),
        ],
    }
    return [
        [text(entry.title), text(entry.modality), text(line), *(n[line] for n in numbers),
         *further.get(line, [*empty, text("")])]
        for line in LINES
        if line == "measured" or any(n[line].text for n in numbers)
    ]  # fmt: skip


def _rest(public: Sequence[Cell], ours: set[tuple[str, ...]], everything: bool) -> list[Cell]:
    """Return the published numbers that no measured row has beside it: a model's own paper before its copies."""
    left = [c for c in public if c.row not in ours]
    if everything:
        return left

    def who(cell: Cell) -> tuple[str, str]:
        return _SAME.get(cell.model, cell.model), cell.modality

    own = {who(c) for c in public if not c.copied}
    first = {who(c): c.paper for c in reversed(public)}
    return [c for c in left if not c.copied or (who(c) not in own and first[who(c)] == c.paper)]


def _public_rows(public: Sequence[Cell], metrics: Sequence[str]) -> list[list[Value]]:
    groups: dict[tuple[str, ...], dict[str, Cell]] = {}
    for c in public:
        tables = "" if c.paper == "MSPI" else c.table  # MSPI prints parts of one row in three tables
        groups.setdefault((tables, *c.row), {}).setdefault(c.metric, c)
    rows = []
    for group in groups.values():
        values = [lines(m, group.get(m), None)["published"] for m in metrics]
        if any(v.text for v in values):
            c = next(iter(group.values()))
            title = f"{c.model} (DHF1K first)" if c.pretraining == "DHF1K" else c.model
            places = "; ".join(dict.fromkeys(c.place for c in group.values()))
            places += ", copied" if c.note.startswith("copied") else ""
            head = [text(title), text(c.modality), text("published only")]
            rows.append([*head, *values, *[Value()] * 4, text(places)])
    return rows


def _notes(entries: Sequence[Entry]) -> list[str]:
    notes = []
    for entry in entries:
        if entry.missing:
            folds = ", ".join(map(str, entry.missing))
            notes.append(
                f"{entry.title}: there is no result of fold {folds}; the mean is over other videos than the others'."
            )
        failed = sum(len(r.results.failed) for r in entry.records)
        if failed:
            notes.append(f"{entry.title}: {failed} videos could not be scored and are not in the mean.")
        weights = [r.results.checkpoint for r in entry.records]
        if len(weights) > 1 and weights[0] is not None and any(w and w.same(weights[0]) for w in weights[1:]):
            notes.append(
                f"{entry.title}: one checkpoint on several folds; the mean holds if it was trained on none of them."
            )
    return notes + protocol_notes(entries)


def protocol_notes(entries: Sequence[Entry]) -> list[str]:
    """Return the protocol that entries share, how their folds are joined, and what they were measured on."""
    if not entries:
        return []
    first = entries[0].records[0].results
    how = {"pool": "the videos of all folds are pooled", "folds": "the means of the folds are averaged"}
    rules = dict.fromkeys(how[next(iter(e.units.values())).rule] for e in entries if e.units)
    kept = [
        f"{k} {v}" for k, v in first.protocol.items() if v is not None and k not in ("predictions", "sound")
    ]
    machines = (r.results.hardware for e in entries for r in e.records)
    return [
        f"Protocol: {', '.join(kept)}; metric conventions {first.conventions.get('name')}; {', '.join(rules)}.",
        f"Measured on {', '.join(dict.fromkeys(m.accelerator or m.processor for m in machines))}.",
    ]


def _mean_tables(board: Board, wanted: Sequence[str]) -> list[Table]:
    """Return the mean over the six sets of every model that has all of them, a table for each protocol."""
    groups: dict[str, dict[tuple[str, str], dict[str, Entry]]] = {}
    for entry in board.entries:
        if entry.data in SIX and not entry.missing:
            own = groups.setdefault(entry.records[0].protocol, {}).setdefault((entry.label, entry.sound), {})
            own.setdefault(entry.data, entry)
    tables: list[Table] = []
    first: Entry | None = None
    for models in groups.values():
        complete = [sets for sets in models.values() if len(sets) == len(SIX)]
        notes = [
            f"{label} is not in this mean: no result on {', '.join(name for name in SIX if name not in sets)}."
            for (label, _), sets in models.items()
            if len(sets) < len(SIX)
        ]
        if complete:
            some = complete[0][SIX[0]]
            first = first or some
            apart = grouping.difference(some.records[0], first.records[0])
            metrics = _metric_names([e for sets in complete for e in sets.values()], [], wanted)
            rows = [row for sets in complete for row in _mean_rows(sets, metrics)]
            notes.append("Every data set counts once; the published line is our mean of the printed numbers.")
            heads = ["model", "mod.", "line", *(LABELS.get(m, m) for m in metrics)]
            tables.append(Table(f"{_MEAN} ({apart})" if apart else _MEAN, heads, rows, notes))
    return tables


def _mean_rows(sets: Mapping[str, Entry], metrics: Sequence[str]) -> list[list[Value]]:
    numbers = []
    for metric in metrics:
        parts = [e.scores[metric] for e in sets.values() if metric in e.scores]
        cell = dict.fromkeys(LINES, Value())
        if len(parts) == len(SIX):
            samples = average([p.samples for p in parts])
            mean = sum(p.value for p in parts) / len(SIX)
            cell = lines(metric, None, Score(mean, *interval(samples), samples, 0))
        printed = [
            c.value for d, e in sets.items() if e.system for c in e.system.published(d) if c.metric == metric
        ]
        if len(printed) == len(SIX) == len(parts):
            cell["published"] = number(sum(printed) / len(SIX), DIGITS.get(metric, 4))
        numbers.append(cell)
    head = [text(sets[SIX[0]].title), text(sets[SIX[0]].modality)]
    return [
        [*head, text(line), *(n[line] for n in numbers)]
        for line in LINES
        if any(n[line].text for n in numbers)
    ]


def _cited(file: str, title: str, heads: Mapping[str, str], note: str) -> Table:
    rows = list(csv.DictReader((files("avsal.report") / file).read_text(encoding="utf-8").splitlines()))
    first, *others = rows[0]

    def cell(name: str, word: str) -> Value:
        return number(int(word), 0) if name == "year" else text(word)

    body = [[text(row[first]), text("published only"), *(cell(n, row[n]) for n in others)] for row in rows]
    return Table(title, [first, "line", *(heads.get(n, n) for n in others)], body, [note])


def legend() -> list[str]:
    """Return what the lines of the tables mean."""
    return [
        "published: printed by the model's own paper. measured: by avsal, from results files. The two are never "
        "averaged or ranked together.",
        "95 % interval: bootstrap over videos. difference: measured minus published; * where the published "
        "number lies outside the interval.",
        "published only: printed numbers of models that were not measured here. ? marks a doubtful cell.",
    ]
