"""A figure for each table: accuracy against cost, a score over the time of one video, and comparisons by video."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avsal.errors import ConfigError
from avsal.evaluation.results import frames_path
from avsal.files import writing
from avsal.models import class_named
from avsal.report.measured import Board, Entry, shown
from avsal.report.published import LABELS
from avsal.report.records import Record
from avsal.report.statistics import paired

#: Colours that people with any colour vision tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKS = {"AV": "o", "V": "s", "none": "^", "": "D"}


def draw_all(
    board: Board, folder: Path, *, metric: str = "nss", video: str | None = None
) -> list[tuple[str, Path]]:
    """Draw what the results allow, and return captions and files.

    For each data set: accuracy against cost, and for each audio-visual system with a visual-only twin the comparison
    video by video, and NSS over the time of one video where the scores of single frames are there.

    Args:
        board: the measured systems.
        folder: for the PNG files.
        metric: of the figures; gaze sets take F1.
        video: the video to draw over time (a part of its name is enough); by default the one where the twins
            differ most.

    Raises:
        ConfigError: no measured video is called so.
    """
    if video is not None:
        _check_video(board, video)
    made: list[tuple[str, Path]] = []
    for data, apart in board.tables:
        entries = board.of(data, apart)
        name = metric if any(metric in e.scores for e in entries) else "f1"
        stem = re.sub(r"\W+", "-", f"{data} {apart}").strip("-").lower()[:100]
        with_cost = [e for e in entries if name in e.scores and (e.cost is not None or e.modality == "none")]
        if any(e.cost and e.cost.multiply_adds for e in with_cost):
            caption = f"{data}: {LABELS.get(name, name)} against multiply-adds; bars are 95 % intervals."
            path = folder / f"{stem}-{name}-against-cost.png"
            made.append((caption, accuracy_against_cost(with_cost, name, data, path)))
        for first, second in twins(entries):
            pair = re.sub(r"[^\w.-]+", "_", f"{stem}-{first.label}-{second.label}")
            caption = f"{data}: {first.title} audio-visual against visual-only, a point for each video."
            made.append((caption, scatter(first, second, name, folder / f"{pair}-{name}-videos.png")))
            over = _over_time(first, second, name, video, folder / f"{pair}-time.png")
            made += [over] if over else []
    return made


def _check_video(board: Board, video: str) -> None:
    names = sorted({name for e in board.entries for r in e.records for name in r.videos})
    if any(video in name for name in names):
        return
    short = {name.rsplit("/", 1)[-1].casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(video.rsplit("/", 1)[-1].casefold(), short, n=5, cutoff=0.5)
    shown = [short[n] for n in near] or names[:5]
    raise ConfigError(
        f"--video {video}: no measured video is called so; "
        + (f"near: {', '.join(shown)}." if near else f"there are {len(names)}, such as {', '.join(shown)}.")
    )


def twins(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Return (audio-visual, visual-only) pairs of one model, and of the same architecture otherwise."""

    def architecture(entry: Entry) -> tuple[str | None, str]:
        results = entry.records[0].results
        shared = class_named(results.model).visual_part(results.arguments)
        return results.model, str(sorted((k, str(v)) for k, v in shared.items()))

    own = [(e, architecture(e)) for e in entries if e.sound == "own" and e.modality in ("AV", "V")]
    return [
        (a, b)
        for a, shape in own
        for b, other in own
        if (a.modality, b.modality) == ("AV", "V") and shape == other
    ]


def accuracy_against_cost(entries: Sequence[Entry], metric: str, data: str, path: Path) -> Path:
    """Draw each model's score and its interval over the multiply-adds of one clip; return the file."""
    costs = [e.cost.multiply_adds for e in entries if e.cost is not None and e.cost.multiply_adds]
    with _axes(path, (6.4, 4.2)) as axes:
        for place, entry in enumerate(entries):
            score, cost = entry.scores[metric], entry.cost
            value, low, high = (shown(metric, v) for v in (score.value, score.low, score.high))
            if cost is None or cost.multiply_adds == 0:  # a map that no network computes
                style = _LINES[place % len(_LINES)]
                axes.axhline(value, color="0.6", linestyle=style, linewidth=1, label=_name(entry))
                continue
            axes.errorbar(
                cost.multiply_adds / 1e9, value, fmt=_MARKS.get(entry.modality, "D"), capsize=3, markersize=7,
                yerr=None if np.isnan(low) else [[max(0.0, value - low)], [max(0.0, high - value)]],
                color=COLOURS[place % len(COLOURS)], label=_name(entry),
                markerfacecolor="none" if entry.sound != "own" else None,
            )  # fmt: skip
        if costs and max(costs) > 3 * min(costs):  # close costs would crowd a logarithmic axis with labels
            axes.set_xscale("log")
        axes.set(xlabel="multiply-adds of one clip, in 10⁹", ylabel=_unit(metric), title=data)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return path


def curves(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], metric: str, title: str, path: Path
) -> Path:
    """Draw lines of (x, value, low, high), each with its name and its 95 % intervals; return the file."""
    with _axes(path, (6.4, 4.2)) as axes:
        for place, (name, points) in enumerate(lines.items()):
            x, value, low, high = np.array(points).T
            colour, style = COLOURS[place % len(COLOURS)], _LINES[place % len(_LINES)]
            axes.plot(x, value, marker="o", color=colour, linestyle=style, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="step" if "moment" in title else title, ylabel=metric)
        axes.legend(fontsize=8)
    return path


def retention(module: Any, data: Any, path: Path) -> Path:
    """Draw Ret_A and Ret_V of a clip with its own and with another clip's sound (AVRSP, Figure 6); return the file.

    Args:
        module: an audio-visual AVRSP with RAVF.
        data: a data set with two test videos or more: the frame in the middle of the first one is taken.
        path: of the PNG file.

    Raises:
        DataError: there is one test video only.
    """
    import torch

    from avsal.data.clips import VideoBatches
    from avsal.data.module import swapped_sound

    data.use_spec(module.spec)
    items = data.split_items("test")
    rows, picture = [], None
    for heard in (items, swapped_sound(items)):
        windows = VideoBatches(heard[:1], module.spec, batch_size=4, native=False, negatives=False)
        batch: Any = windows[len(windows) // 2]
        with torch.inference_mode():
            aux = module(batch).aux
        place = len(batch["video"]) // 2
        rows.append(
            [aux[name][place].float().mean((0, 1, 2, 3)).cpu().numpy() for name in ("Ret_A", "Ret_V")]
        )
        if picture is None:
            spec = module.spec
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
            frame = batch["video"][place, :, spec.target_index].float() * std + mean
            picture = (frame / 255).clamp(0, 1).permute(1, 2, 0).numpy()
    with _axes(path, (7.5, 3.6), 2, 3) as axes:
        for row, (maps, sound) in enumerate(
            zip(rows, ("its own sound", "another clip's sound"), strict=True)
        ):
            axes[row, 0].imshow(picture)
            axes[row, 0].set_ylabel(sound, fontsize=8)
            for column, name in enumerate(("Ret_A", "Ret_V")):
                both = np.stack([r[column] for r in rows])
                scaled = (maps[column] - both.min()) / max(float(np.ptp(both)), 1e-12)
                axes[row, column + 1].imshow(scaled, vmin=0, vmax=1, cmap="viridis", aspect="auto")
                axes[row, column + 1].set_title(name, fontsize=8)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
    return path


def scatter(first: Entry, second: Entry, metric: str, path: Path) -> Path:
    """Draw one model's score over another's for each video that both have; return the file."""
    a, b = _by_video(first, metric), _by_video(second, metric)
    names = sorted(set(a) & set(b))
    x, y = (np.array([shown(metric, d[n]) for n in names]) for d in (b, a))
    gap, low, high = (shown(metric, v) for v in paired(first.units[metric], second.units[metric]))
    values = np.concatenate([x, y])
    values = values[~np.isnan(values)]
    ends = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (ends[1] - ends[0] or 1.0)
    span = (ends[0] - margin, ends[1] + margin)
    with _axes(path, (4.6, 4.6)) as axes:
        axes.plot(x, y, "o", color=COLOURS[0], markersize=5, alpha=0.8)
        axes.plot(span, span, color="0.5", linewidth=1)
        axes.set(xlim=span, ylim=span, aspect="equal")
        axes.set(xlabel=f"{_unit(metric)}, {_name(second)}", ylabel=f"{_unit(metric)}, {_name(first)}")
        axes.set_title(
            f"{first.data}: {gap:+.3f} [{low:+.3f}, {high:+.3f}]\n{int((y > x).sum())} of {len(names)} videos gain",
            fontsize=10,
        )
    return path


def over_time(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    metric: str,
    video: str,
    path: Path,
    fps: float | None = None,
) -> Path:
    """Draw a score over the time of one video (STAViS, Figures 4 and 5); return the file.

    Args:
        curves: name -> frames (n,) and scores (n,), NaN where a frame has none.
        metric: of the scores.
        video: for the title.
        path: of the PNG file.
        fps: to label the axis in seconds instead of frames.
    """
    with _axes(path, (8.0, 3.0)) as axes:
        for place, (name, (frames, scores)) in enumerate(curves.items()):
            label = f"{name}: mean {np.nanmean(scores):.3f}"
            axes.plot(
                frames / (fps or 1), scores, color=COLOURS[place % len(COLOURS)], linewidth=1.4, label=label
            )
        axes.set(xlabel="seconds" if fps else "frame", ylabel=_unit(metric), title=video)
        axes.margins(x=0.01)
        axes.legend(fontsize=8)
    return path


def frame_scores(
    record: Record, video: str, metric: str
) -> tuple[np.ndarray, np.ndarray, float | None] | None:
    """Return the frames (n,) and scores (n,) of a video, and its rate in 1/s if stored; None without them."""
    path = frames_path(record.path)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as content:
        names, metrics = content["videos"].tolist(), content["metrics"].tolist()
        if video not in names or metric not in metrics:
            return None
        place = names.index(video)
        rows = content["video"] == place
        frames, scores = content["frame"][rows], content["scores"][rows, metrics.index(metric)]
        fps = float(content["fps"][place]) if "fps" in content.files else np.nan
    order = np.argsort(frames)
    return frames[order], scores[order], None if np.isnan(fps) else fps


def _over_time(
    first: Entry, second: Entry, metric: str, video: str | None, path: Path
) -> tuple[str, Path] | None:
    a, b = _by_video(first, metric), _by_video(second, metric)
    names = [n for n in a if n in b and not np.isnan(a[n] - b[n]) and (video is None or video in n)]
    if not names:
        return None
    chosen = max(names, key=lambda n: abs(a[n] - b[n]))
    found = {}
    for entry in (first, second):
        scores = frame_scores(next(r for r in entry.records if chosen in r.videos), chosen, metric)
        if scores is None:
            return None
        found[_name(entry)] = scores
    over_time({name: one[:2] for name, one in found.items()}, metric, chosen, path, found[_name(first)][2])
    reason = "" if video else ", where the two differ most"
    return f"{LABELS.get(metric, metric)} over the time of {chosen}{reason}.", path


def _by_video(entry: Entry, metric: str) -> dict[str, float]:
    units = entry.units[metric]
    return dict(zip(units.names, units.values.mean(1).tolist(), strict=True))


def _name(entry: Entry) -> str:
    return f"{entry.title} ({entry.modality})" if entry.modality in ("AV", "V") else entry.title


def _unit(metric: str) -> str:
    return LABELS.get(metric, metric) + (" (%)" if metric in ("f1", "recall", "precision") else "")


@contextmanager
def _axes(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Yield the axes of a new figure, which is written to a PNG file afterwards."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
    try:
        if rows == columns == 1:
            axes.grid(alpha=0.3)
        yield axes
        _save(figure, path)
    finally:
        plt.close(figure)


def _save(figure: Any, path: Path) -> None:
    with writing(path) as partial:
        figure.savefig(partial, dpi=130, format="png", bbox_inches="tight")
