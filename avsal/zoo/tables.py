"""The registry as tables for the terminal; without torch, so that `avsal zoo list` answers at once."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, RenderableType
from rich.table import Table

from avsal.checkpoints.fetch import is_cached
from avsal.checkpoints.registry import STATUS, Checkpoint, entries
from avsal.errors import plain


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


def headline(entry: Checkpoint) -> str:
    """Return the first metric of every data set (CC for saliency, F1 for gaze), measured where we have measured."""
    scores = entry.measured or entry.published
    if not scores:
        return "–"
    metric = next(iter(scores[0].metrics))
    values = [f"{score.data} {score.metrics[metric]:g}" for score in scores if metric in score.metrics]
    return f"{metric}: {', '.join(values)} ({'measured' if entry.measured else 'paper'})"


def checkpoint_table(chosen: Iterable[Checkpoint], width: int = 160) -> RenderableType:
    """Return a table of entries: name, task, data, weights' licence, size, status, and scores.

    Args:
        chosen: the entries.
        width: columns of the terminal; a narrow one leaves out task, data and licence.
    """
    wide = width >= 120
    table = Table(show_lines=False, pad_edge=False, box=None, header_style="bold")
    table.add_column("name", no_wrap=True)
    if wide:
        table.add_column("task", no_wrap=True)
        table.add_column("trained on", ratio=3)
        table.add_column("licence", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("scores", ratio=4)
    for entry in chosen:
        data = ", ".join(entry.data) + (f"; fold {entry.fold}" if entry.fold else "")
        middle = (entry.task, data, entry.licence.weights) if wide else ()
        status = "cached" if is_cached(entry) and entry.status != "shipped" else entry.status
        table.add_row(entry.name, *middle, human_size(entry.size), status, headline(entry))
    return table


def recommended_table(chosen: Iterable[Checkpoint], speed: Mapping[str, float]) -> RenderableType:
    """Return the answer to "which checkpoint for my video?" as a table.

    Args:
        chosen: recommended entries.
        speed: frames per second on this machine, by name.
    """
    table = Table(show_lines=False, pad_edge=False, box=None, header_style="bold")
    for column in ("purpose", "name", "hears?", "trained on", "input", "fps here", "licence", "offline?"):
        narrow = column in ("hears?", "fps here", "offline?", "name")
        table.add_column(column, no_wrap=narrow, justify="right" if column == "fps here" else "left")
    for entry in chosen:
        rate = f"{speed[entry.name]:.0f}" if entry.name in speed else "–"
        offline = "yes" if entry.status == "shipped" or is_cached(entry) else "no"
        table.add_row(
            entry.recommended_for,
            entry.name,
            "yes" if entry.hears else "no",
            ", ".join(entry.data),
            entry.input,
            rate,
            entry.licence.weights,
            offline,
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


class CheckpointList(Mapping[str, Checkpoint]):
    """Entries by name; it prints as a table."""

    def __init__(self, chosen: Mapping[str, Checkpoint]) -> None:
        self._chosen = dict(chosen)

    def __getitem__(self, name: str) -> Checkpoint:
        return self._chosen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def __repr__(self) -> str:
        return as_text(checkpoint_table(self._chosen.values()))


def list_checkpoints(
    *, model: str | None = None, data: str | None = None, task: str | None = None, recommended: bool = False
) -> CheckpointList:
    """Return the registry's entries by name; the result prints as a table.

    Args:
        model: only this model's, such as "stavis".
        data: only those trained on, or with numbers for, this data set, such as "DIEM".
            Names match without regard to case and hyphens.
        task: "saliency", "gaze-anticipation", "gaze-estimation" or "backbone".
        recommended: only those that avsal recommends for a job (`recommended_for`).
    """

    def fits(entry: Checkpoint) -> bool:
        sets = {*entry.data, *(scores.data for scores in (*entry.published, *entry.measured))}
        return (
            (not recommended or entry.recommended_for is not None)
            and (model is None or plain(entry.model) == plain(model))
            and (task is None or plain(entry.task) == plain(task))
            and (data is None or plain(data) in {plain(name) for name in sets})
        )

    return CheckpointList({name: entry for name, entry in entries().items() if fits(entry)})
