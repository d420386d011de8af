"""Tables as text for terminals, Markdown, CSV, LaTeX, or one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import math
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from avsal.files import csv_cells
from avsal.report.tables import INTERVAL, Table, Value

FORMATS = ("terminal", "markdown", "csv", "latex", "html")
_LEFT = {
    "model",
    "mod.",
    "line",
    "source",
    "venue",
    "inputs",
    "what its page states",
    "weights and licence",
    "condition",
    "minus",
    "F1 (%)",
    "benchmark",
    "what",
    "licence",
    "scores",
}
#: Columns that say what a row is about.
_NAMES = ("model", "mod.", "line", "minus", "F1 (%)", "benchmark")
_KINDS = {
    "published": "published", "measured": "measured", "difference": "difference", "published only": "published-only",
}  # fmt: skip


def render(
    tables: Sequence[Table],
    form: str,
    *,
    title: str = "Leaderboard",
    notes: Sequence[str] = (),
    left_out: Sequence[str] = (),
    figures: Sequence[tuple[str, Path]] = (),
    width: int = 200,
    folder: Path = Path(),
) -> str:
    """Return the tables as text.

    Args:
        tables: in order.
        form: one of `FORMATS`.
        title: of the page.
        notes: sentences that hold for all tables.
        left_out: sentences about results that are in no table.
        figures: captions and PNG files, for Markdown (by their path) and HTML (inside the page).
        width: characters of a terminal's line.
        folder: where the text will lie; Markdown's paths lead from there.
    """
    if form == "csv":
        return _csv(tables)
    if form == "html":
        return _html(tables, title, notes, left_out, figures)
    if form == "latex":
        return _latex(tables, notes, left_out)
    if form == "markdown":
        return _markdown(tables, title, notes, left_out, figures, folder)
    return _terminal(tables, notes, width)


def _terminal(tables: Sequence[Table], notes: Sequence[str], width: int) -> str:
    from rich.console import Console
    from rich.text import Text

    target = io.StringIO()

    def console(width: int) -> Console:
        return Console(file=target, width=width, color_system=None, highlight=False, markup=False)

    for table in tables:
        console(width).print(Text(table.title, style="bold"))
        for columns in _fitting(table, width):
            # One column may need more than the line has: a line that the terminal wraps loses nothing.
            console(max(width, _needed(table, columns))).print(_grid(table, columns))
        for note in table.notes:
            console(width).print(f"  {note}")
        console(width).print()
    for note in notes:
        console(width).print(note)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def _is_name(table: Table, k: int) -> bool:
    """Say whether a column says what its row is about."""
    return table.columns[k] in (*_NAMES, *table.names)


def _is_text(table: Table, k: int) -> bool:
    return table.columns[k] in _LEFT or table.columns[k] in table.names


def _fitting(table: Table, width: int) -> list[list[int]]:
    """Return the columns in blocks that fit side by side, each with the columns that name the row."""
    names = [k for k in _used(table) if _is_name(table, k)]
    blocks = [list(names)]
    for k in (k for k in _used(table) if k not in names):
        if len(blocks[-1]) > len(names) and _needed(table, [*blocks[-1], k]) > width:
            blocks.append(list(names))
        blocks[-1].append(k)
    return blocks


def _needed(table: Table, columns: Sequence[int]) -> int:
    """Return how many characters the columns need when words may be folded and numbers may not."""
    widths = [
        10
        if _folds(table.columns[k])
        else max([len(table.columns[k]), *(len(r[k].text) for r in table.rows)])
        for k in columns
    ]
    return sum(widths) + 2 * len(widths)


def _folds(column: str) -> bool:
    return column in _LEFT and column not in ("line", "mod.")


def _grid(table: Table, columns: Sequence[int]) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for k in columns:
        shown.add_column(
            table.columns[k], justify="left" if _is_text(table, k) else "right",
            no_wrap=not _folds(table.columns[k]), overflow="fold", min_width=10 if _folds(table.columns[k]) else None,
        )  # fmt: skip
    previous: list[str] = []
    for row in table.rows:
        name = [row[0].text, row[1].text]
        words = [row[k].text for k in columns]
        if not any(row[k].text for k in columns if not _is_name(table, k)):
            continue  # another block of columns holds all of this line
        if name == previous and "line" in table.columns:
            words = ["" if k in (0, 1) else w for k, w in zip(columns, words, strict=True)]
        previous = name
        shown.add_row(*(Text(w) for w in words))
    return shown


def _used(table: Table) -> list[int]:
    """Return the columns that hold anything."""
    return [k for k in range(len(table.columns)) if k < 1 or any(row[k].text for row in table.rows)]


def _markdown(
    tables: Sequence[Table],
    title: str,
    notes: Sequence[str],
    left_out: Sequence[str],
    figures: Sequence[tuple[str, Path]],
    folder: Path,
) -> str:
    def link(path: Path) -> str:
        return quote(Path(os.path.relpath(path, folder)).as_posix())

    def cell(words: str) -> str:
        return words.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")

    lines = [f"# {title}", ""] if title else []
    for table in tables:
        columns = _used(table)
        lines += [f"## {table.title}", ""] if len(tables) > 1 or title else []
        lines.append("| " + " | ".join(table.columns[k] for k in columns) + " |")
        lines.append("|" + "|".join("---" if _is_text(table, k) else "--:" for k in columns) + "|")
        lines += ["| " + " | ".join(cell(row[k].text) for k in columns) + " |" for row in table.rows]
        lines += ["", *(f"- {cell(note)}" for note in table.notes), ""]
    lines += [f"![{caption}]({link(path)})\n" for caption, path in figures]
    if notes:
        lines += ["## How to read this" if title else "", "", *(f"- {cell(note)}" for note in notes), ""]
    if left_out:
        lines += ["## Left out", "", *(f"- {cell(note)}" for note in left_out), ""]
    return "\n".join(lines).strip() + "\n"


def _csv(tables: Sequence[Table]) -> str:
    """One line for each number: table, the row's words, column, value as a number, and as printed.

    An interval is two lines, one for each bound.
    """
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["table", "model", "modality", "line", "column", "value", "printed", "source"])
    for table in tables:
        place = {name: k for k, name in enumerate(table.columns)}
        for row in table.rows:
            head = [row[place[name]].text if name in place else "" for name in ("model", "mod.", "line")]
            source = row[place["source"]].text if "source" in place else ""
            for k, value in enumerate(row):
                if _is_text(table, k) or not value.text:
                    continue
                lines = [(head[2], value.sort if isinstance(value.sort, int | float) else "")]
                if value.bounds is not None and not math.isnan(value.bounds[0]):
                    lines = [] if head[2] == INTERVAL else lines
                    lines += [
                        (f"{INTERVAL}, {end}", v)
                        for end, v in zip(("low", "high"), value.bounds, strict=True)
                    ]
                for line, exact in lines:
                    words = (table.title, *head[:2], line, table.columns[k])
                    writer.writerow([*csv_cells(words), exact, value.text, *csv_cells([source])])
    return target.getvalue()


_TEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "…": r"--", "×": r"$\times$", "−": "-",
})  # fmt: skip


def _latex(tables: Sequence[Table], notes: Sequence[str], left_out: Sequence[str]) -> str:
    lines = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        columns = _used(table)
        aligned = "".join("l" if _is_text(table, k) else "r" for k in columns)
        lines += [r"\begin{table}", r"\centering\small", rf"\caption{{{table.title.translate(_TEX)}}}"]
        lines += [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule"]
        lines.append(" & ".join(table.columns[k].translate(_TEX) for k in columns) + r" \\")
        lines.append(r"\midrule")
        lines += [" & ".join(row[k].text.translate(_TEX) for k in columns) + r" \\" for row in table.rows]
        lines += [
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {note.translate(_TEX)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    lines += [rf"\noindent{{\footnotesize {note.translate(_TEX)}\par}}" for note in notes]
    lines += ["% " + " ".join(note.split()) for note in left_out]
    return "\n".join(lines) + "\n"


def _html(
    tables: Sequence[Table],
    title: str,
    notes: Sequence[str],
    left_out: Sequence[str],
    figures: Sequence[tuple[str, Path]],
) -> str:
    from jinja2 import Environment

    def shown(table: Table) -> dict[str, Any]:
        columns = _used(table)
        return {
            "title": table.title,
            "notes": table.notes,
            "columns": [{"name": table.columns[k], "words": _is_text(table, k)} for k in columns],
            # The lines of one system stay together when the table is sorted.
            "groups": [
                [(kind, [_cell(row[k], table.columns[k]) for k in columns]) for kind, row in group]
                for group in _groups(table)
            ],
        }

    page = (files("avsal.report") / "page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, keep_trailing_newline=True).from_string(page).render(
        title=title, notes=notes, left_out=left_out, tables=[shown(table) for table in tables],
        figures=[(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in figures],
    )  # fmt: skip


def _groups(table: Table) -> list[list[tuple[str, list[Value]]]]:
    """Return the rows with their kinds, those of one system together."""
    line = table.columns.index("line") if "line" in table.columns else None
    groups: list[list[tuple[str, list[Value]]]] = []
    before = ""
    for row in table.rows:
        kind = "" if line is None else _KINDS.get(row[line].text, "interval")
        follows = kind in ("interval", "difference") or (kind == "measured" and before == "published")
        if follows and groups:
            groups[-1].append((kind, row))
        else:
            groups.append([(kind, row)])
        before = kind
    return groups


def _cell(value: Value, column: str) -> dict[str, Any]:
    return {
        "text": value.text,
        "sort": value.sort,
        "link": column == "source" and value.text.startswith(("http://", "https://")),
        "kind": ("words long" if len(value.text) > 40 else "words") if column in _LEFT else "",
    }
