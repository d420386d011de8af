"""The registry as tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table

from avsal.zoo.cache import is_cached
from avsal.zoo.registry import STATUS, Checkpoint, Scores


def human_size(size: int | None) -> str:
    """Return bytes as text for people."""
    if size is None:
        return "–"
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def headline(scores: Iterable[Scores]) -> str:
    """Return the first metric of every data set: CC for saliency, F1 for gaze."""
    found = list(scores)
    if not found:
        return "–"
    metric = next(iter(found[0].metrics))
    values = [f"{score.data} {score.metrics[metric]:g}" for score in found if metric in score.metrics]
    return f"{metric}: " + ", ".join(values)


def checkpoint_table(chosen: Iterable[Checkpoint]) -> RenderableType:
    """Return a table of entries: name, task, data, weights' licence, size, status, and scores."""
    table = Table(show_lines=False, pad_edge=False, box=None, header_style="bold")
    for title, options in (
        ("name", {"no_wrap": True}),
        ("task", {}),
        ("data", {}),
        ("licence", {}),
        ("size", {"justify": "right", "no_wrap": True}),
        ("status", {"no_wrap": True}),
        ("paper's scores", {}),
        ("measured", {}),
    ):
        table.add_column(title, **options)
    statuses = set()
    for entry in chosen:
        statuses.add(entry.status)
        data = ", ".join(entry.data) + (f", fold {entry.fold}" if entry.fold else "")
        table.add_row(
            entry.name,
            entry.task,
            data,
            entry.licence.weights,
            human_size(entry.size),
            "cached" if is_cached(entry) else entry.status,
            headline(entry.published),
            headline(entry.measured),
        )
    return table


def as_text(table: RenderableType, width: int = 160) -> str:
    """Return a table as plain text."""
    target = io.StringIO()
    Console(file=target, width=width, color_system=None).print(table)
    return target.getvalue().rstrip()


def status_legend() -> str:
    """Return what the words of the status column mean."""
    return "\n".join(f"  {name}: {text}" for name, text in {"cached": "on this machine", **STATUS}.items())
