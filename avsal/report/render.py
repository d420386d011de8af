"""Tables as text for terminals, Markdown, CSV, LaTeX, or one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from avsal.files import csv_cells, write_text
from avsal.report.tables import INTERVAL, LINES, Table, Value, legend

#: Format -> the endings of its files.
FORMATS = {
    "terminal": (".txt",), "markdown": (".md",), "csv": (".csv",), "latex": (".tex",), "html": (".html", ".htm"),
}  # fmt: skip


def output(
    tables: list[Table],
    *,
    title: str,
    form: str | None = None,
    out: Path | None = None,
    notes: Sequence[str] | None = None,
    left_out: Sequence[str] = (),
    figures: Sequence[tuple[str, Path]] = (),
) -> None:
    """Print tables or write them to a file. What the format has no place for goes to stderr.

    Args:
        tables: in order.
        title: of the page.
        form: one of `FORMATS`; None takes it from the file's ending.
        out: the file; None for the terminal.
        notes: sentences for all tables; by default the legend.
        left_out: what is in no table.
        figures: captions and files.
    """
    if form is None:
        ending = out.suffix.lower() if out is not None else ""
        form = next((name for name, endings in FORMATS.items() if ending in endings), "terminal")
    notes = legend() if notes is None else notes
    width = shutil.get_terminal_size().columns if out is None and sys.stdout.isatty() else 200
    page = render(
        tables, form, title=title, notes=notes, left_out=left_out, figures=figures, width=width,
        folder=out.parent if out is not None else Path(),
    )  # fmt: skip
    if out is None:
        print(page)
    else:
        write_text(out, page.rstrip("\n") + "\n")
        print(f"written: {out}", file=sys.stderr)
    beside = [f"{table.title}: {note}" for table in tables for note in table.notes] if form == "csv" else []
    for line in [*beside, *(notes if form == "csv" else ()), *left_out]:
        print(line, file=sys.stderr)


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
        tables, form, title, notes, left_out: see `output`.
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


def _is_text(table: Table, k: int) -> bool:
    return not any(isinstance(row[k].sort, int | float) for row in table.rows)


def _used(table: Table) -> list[int]:
    """Return the columns that hold anything."""
    return [k for k in range(len(table.columns)) if k < 1 or any(row[k].text for row in table.rows)]


# -- terminal --------------------------------------------------------------------------------------------------


def _terminal(tables: Sequence[Table], notes: Sequence[str], width: int) -> str:
    from rich.console import Console

    target = io.StringIO()

    def show(what: Any, width: int = width) -> None:
        Console(file=target, width=width, color_system=None, highlight=False, markup=False).print(what)

    for table in tables:
        show(table.title)
        for columns in _blocks(table, width):
            # One column may need more than the line has: a line that the terminal wraps loses nothing.
            show(_grid(table, columns), max(width, _needed(table, columns)))
        for note in [*(f"  {note}" for note in table.notes), ""]:
            show(note)
    for note in notes:
        show(note)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def _names(table: Table) -> list[int]:
    """Return the columns that say what a row is about: those before the first number."""
    used = _used(table)
    return used[: next((place for place, k in enumerate(used) if not _is_text(table, k)), 2)]


def _blocks(table: Table, width: int) -> Iterator[list[int]]:
    """Yield the columns in blocks that fit side by side, each with the columns that name the row."""
    names = _names(table)
    block = list(names)
    for k in _used(table)[len(names) :]:
        if len(block) > len(names) and _needed(table, [*block, k]) > width:
            yield block
            block = list(names)
        block.append(k)
    yield block


def _folds(table: Table, k: int) -> bool:
    return _is_text(table, k) and table.columns[k] not in ("line", "mod.")


def _needed(table: Table, columns: Iterable[int]) -> int:
    """Return how many characters the columns need when words may be folded and numbers may not."""
    return sum(
        2
        + (
            10
            if _folds(table, k)
            else max(len(w) for w in (table.columns[k], *(r[k].text for r in table.rows)))
        )
        for k in columns
    )


def _grid(table: Table, columns: Sequence[int]) -> Any:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=None, pad_edge=False, show_edge=False)
    for k in columns:
        folds = _folds(table, k)
        shown.add_column(
            table.columns[k], justify="left" if _is_text(table, k) else "right", no_wrap=not folds, overflow="fold",
            min_width=10 if folds else None,
        )  # fmt: skip
    previous: list[Value] = []
    names = _names(table)
    for row in table.rows:
        if any(row[k].text for k in columns if k not in names):  # else another block holds all of this line
            same = row[:2] == previous and "line" in table.columns
            shown.add_row(*(Text("" if same and k < 2 else row[k].text) for k in columns))
            previous = row[:2]
    return shown


# -- files -----------------------------------------------------------------------------------------------------


def _markdown(
    tables: Sequence[Table],
    title: str,
    notes: Sequence[str],
    left_out: Sequence[str],
    figures: Sequence[tuple[str, Path]],
    folder: Path,
) -> str:
    def cell(words: str) -> str:
        return words.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")

    def listed(heading: str, sentences: Sequence[str]) -> list[str]:
        return [heading, "", *(f"- {cell(sentence)}" for sentence in sentences), ""] if sentences else []

    lines = [f"# {title}", ""] if title else []
    for table in tables:
        columns = _used(table)
        lines += [f"## {table.title}", ""] if len(tables) > 1 or title else []
        lines.append("| " + " | ".join(table.columns[k] for k in columns) + " |")
        lines.append("|" + "|".join("---" if _is_text(table, k) else "--:" for k in columns) + "|")
        lines += ["| " + " | ".join(cell(row[k].text) for k in columns) + " |" for row in table.rows]
        lines += ["", *(f"- {cell(note)}" for note in table.notes), ""]
    for caption, path in figures:
        lines.append(f"![{caption}]({quote(Path(os.path.relpath(path, folder)).as_posix())})\n")
    lines += [*listed("## How to read this" if title else "", notes), *listed("## Left out", left_out)]
    return "\n".join(lines).strip() + "\n"


def _csv(tables: Sequence[Table]) -> str:
    """One line for each number: table, the row's words, column, value as a number, and as printed.

    An interval is two lines, one for each bound.
    """
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["table", "model", "modality", "line", "column", "value", "printed", "source"])
    for table in tables:
        for row in table.rows:
            named = dict(zip(table.columns, (value.text for value in row), strict=True))
            model, modality, line, source = (
                named.get(name, "") for name in ("model", "mod.", "line", "source")
            )
            for k, value in enumerate(row):
                if _is_text(table, k) or not value.text:
                    continue
                found = [] if line == INTERVAL else [(line, value.sort)]
                if value.bounds is not None:
                    found += zip((f"{INTERVAL}, low", f"{INTERVAL}, high"), value.bounds, strict=True)
                for kind, exact in found:
                    words = (table.title, model, modality, kind, table.columns[k])
                    writer.writerow([*csv_cells(words), exact, value.text, *csv_cells([source])])
    return target.getvalue()


_TEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "…": r"--", "×": r"$\times$", "−": "-",
})  # fmt: skip


def _latex(tables: Sequence[Table], notes: Sequence[str], left_out: Sequence[str]) -> str:
    def row(words: Iterable[str]) -> str:
        return " & ".join(word.translate(_TEX) for word in words) + r" \\"

    lines = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        columns = _used(table)
        aligned = "".join("l" if _is_text(table, k) else "r" for k in columns)
        lines += [r"\begin{table}", r"\centering\small", rf"\caption{{{table.title.translate(_TEX)}}}"]
        lines += [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", row(table.columns[k] for k in columns)]
        lines += [r"\midrule", *(row(one[k].text for k in columns) for one in table.rows)]
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [*(rf"\par\footnotesize {note.translate(_TEX)}" for note in table.notes), r"\end{table}", ""]
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
        columns = [(k, table.columns[k], _is_text(table, k)) for k in _used(table)]
        return {
            "title": table.title,
            "notes": table.notes,
            "columns": columns,
            # The lines of one model stay together when the table is sorted.
            "groups": [
                [
                    (kind, [(row[k], words, name == "source") for k, name, words in columns])
                    for kind, row in group
                ]
                for group in _groups(table)
            ],
        }

    page = (files("avsal.report") / "page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, keep_trailing_newline=True).from_string(page).render(
        title=title, notes=notes, left_out=left_out, tables=[shown(table) for table in tables],
        figures=[(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in figures],
    )  # fmt: skip


def _groups(table: Table) -> list[list[tuple[str, list[Value]]]]:
    """Return the rows with their kinds, those of one model together."""
    line = table.columns.index("line") if "line" in table.columns else None
    groups: list[list[tuple[str, list[Value]]]] = []
    before = ""
    for row in table.rows:
        kind = "" if line is None else row[line].text
        if groups and (kind in LINES[2:] or (kind, before) == ("measured", "published")):
            groups[-1].append((kind, row))
        else:
            groups.append([(kind, row)])
        before = kind
    kinds = {INTERVAL: "interval", "published only": "published-only"}
    return [[(kinds.get(kind, kind), row) for kind, row in group] for group in groups]
