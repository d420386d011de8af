"""A figure for each table: accuracy against cost, a score over the time of one video, and comparisons by video."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avsal.errors import ConfigError, DataError
from avsal.evaluation.shards import frames_path
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
            path = folder / f"{stem}-{name}-against-cost.png"
            accuracy_against_cost(with_cost, name, data, path)
            made.append(
                (f"{data}: {LABELS.get(name, name)} against multiply-adds; bars are 95 % intervals.", path)
            )
        for first, second in twins(entries):
            pair = f"{stem}-{_safe(first.label)}-{_safe(second.label)}"
            path = folder / f"{pair}-{name}-videos.png"
            scatter(first, second, name, path)
            made.append(
                (f"{data}: {first.title} audio-visual against visual-only, a point for each video.", path)
            )
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
    own = [e for e in entries if e.sound == "own"]
    found = []
    for first in (e for e in own if e.modality == "AV"):
        model, rest = _architecture(first)
        for second in (e for e in own if e.modality == "V"):
            if _architecture(second) == (model, rest):
                found.append((first, second))
    return found


def _architecture(entry: Entry) -> tuple[str | None, str]:
    results = entry.records[0].results
    shared = class_named(results.model).visual_part(results.arguments)
    return results.model, str(sorted((k, str(v)) for k, v in shared.items()))


def accuracy_against_cost(entries: Sequence[Entry], metric: str, data: str, path: Path) -> Path:
    """Draw each system's score and its interval over the multiply-adds of one clip; return the file."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for number, entry in enumerate(entries):
        score, cost = entry.scores[metric], entry.cost
        value, low, high = (shown(metric, v) for v in (score.value, score.low, score.high))
        error = None if np.isnan(low) else [[max(0.0, value - low)], [max(0.0, high - value)]]
        if cost is None or cost.multiply_adds == 0:  # a map that no network computes
            axes.axhline(
                value, color="0.6", linestyle=_LINES[number % len(_LINES)], linewidth=1, label=_name(entry)
            )
            continue
        axes.errorbar(
            cost.multiply_adds / 1e9, value, yerr=error, fmt=_MARKS.get(entry.modality, "D"),
            color=COLOURS[number % len(COLOURS)],
            capsize=3, markersize=7, label=_name(entry), markerfacecolor="none" if entry.sound != "own" else None,
        )  # fmt: skip
    costs = [e.cost.multiply_adds for e in entries if e.cost is not None and e.cost.multiply_adds]
    if costs and max(costs) > 3 * min(costs):  # close costs would crowd a logarithmic axis with labels
        axes.set_xscale("log")
    axes.set(xlabel="multiply-adds of one clip, in 10⁹")
    axes.set(ylabel=_unit(metric), title=data)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _save(figure, path)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], metric: str, title: str, path: Path
) -> Path:
    """Draw lines of (x, value, low, high), each with its name and its 95 % intervals; return the file."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for place, (name, points) in enumerate(lines.items()):
        x, value, low, high = np.array(points).T
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(x, value, marker="o", color=colour, linestyle=_LINES[place % len(_LINES)], label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="step" if "moment" in title else title, ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _save(figure, path)


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
    plt = _pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(7.5, 3.6), layout="constrained")
    for row, (maps, sound) in enumerate(zip(rows, ("its own sound", "another clip's sound"), strict=True)):
        axes[row, 0].imshow(picture)
        axes[row, 0].set_ylabel(sound, fontsize=8)
        for column in (0, 1):
            both = np.stack([r[column] for r in rows])
            scaled = (maps[column] - both.min()) / max(float(np.ptp(both)), 1e-12)
            axes[row, column + 1].imshow(scaled, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axes[row, column + 1].set_title(("Ret_A", "Ret_V")[column], fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    return _save(figure, path)


def scatter(first: Entry, second: Entry, metric: str, path: Path) -> Path:
    """Draw one system's score over another's for each video that both have; return the file."""
    plt = _pyplot()
    a, b = (
        dict(zip(e.units[metric].names, e.units[metric].values.mean(1), strict=True)) for e in (first, second)
    )
    names = sorted(set(a) & set(b))
    x, y = (np.array([shown(metric, d[n]) for n in names]) for d in (b, a))
    gap, low, high = (shown(metric, v) for v in paired(first.units[metric], second.units[metric]))
    figure, axes = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
    axes.plot(x, y, "o", color=COLOURS[0], markersize=5, alpha=0.8)
    values = np.concatenate([x, y])
    values = values[~np.isnan(values)]
    ends = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.05 * (ends[1] - ends[0] or 1.0)
    span = (ends[0] - margin, ends[1] + margin)
    axes.plot(span, span, color="0.5", linewidth=1)
    axes.set(xlim=span, ylim=span, aspect="equal", xlabel=f"{_unit(metric)}, {_name(second)}")
    better = int((y > x).sum())
    axes.set_title(
        f"{first.data}: {gap:+.3f} [{low:+.3f}, {high:+.3f}]\n{better} of {len(names)} videos gain",
        fontsize=10,
    )
    axes.set_ylabel(f"{_unit(metric)}, {_name(first)}")
    axes.grid(alpha=0.3)
    return _save(figure, path)


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
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8.0, 3.0), layout="constrained")
    for number, (name, (frames, scores)) in enumerate(curves.items()):
        time = frames / fps if fps else frames
        mean = np.nanmean(scores)
        axes.plot(
            time,
            scores,
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.4,
            label=f"{name}: mean {mean:.3f}",
        )
    axes.set(xlabel="seconds" if fps else "frame", ylabel=_unit(metric), title=video)
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _save(figure, path)


def frame_scores(record: Record, video: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames (n,) and scores (n,) of one video.

    Raises:
        DataError: the scores of single frames were not kept, or do not hold the video or the metric.
    """
    path = frames_path(record.path)
    if not path.is_file():
        raise DataError(f"{path}: there are no scores of single frames; `avsal reproduce` writes them.")
    with np.load(path, allow_pickle=False) as content:
        names, metrics = content["videos"].tolist(), content["metrics"].tolist()
        if video not in names or metric not in metrics:
            raise DataError(f"{path} has no {metric} of {video}.")
        rows = content["video"] == names.index(video)
        frames, scores = content["frame"][rows], content["scores"][rows, metrics.index(metric)]
    order = np.argsort(frames)
    return frames[order], scores[order]


def frame_rate(record: Record, video: str) -> float | None:
    """Return the frames per second of a video; None where the file of frames' scores does not say."""
    with np.load(frames_path(record.path), allow_pickle=False) as content:
        if "fps" not in content.files:
            return None
        rate = float(content["fps"][content["videos"].tolist().index(video)])
    return None if np.isnan(rate) else rate


def _over_time(
    first: Entry, second: Entry, metric: str, video: str | None, path: Path
) -> tuple[str, Path] | None:
    a, b = (
        dict(zip(e.units[metric].names, e.units[metric].values.mean(1), strict=True)) for e in (first, second)
    )
    both = [n for n in a if n in b and not np.isnan(a[n] - b[n])]
    names = [n for n in both if video is None or video in n]
    if not names:
        return None
    chosen = max(names, key=lambda n: abs(a[n] - b[n]))
    records = [next(r for r in e.records if chosen in r.videos) for e in (first, second)]
    try:
        curves = {
            _name(e): frame_scores(r, chosen, metric) for e, r in zip((first, second), records, strict=True)
        }
    except DataError:
        return None
    over_time(curves, metric, chosen, path, fps=frame_rate(records[0], chosen))
    reason = "" if video else ", where the two differ most"
    return f"{LABELS.get(metric, metric)} over the time of {chosen}{reason}.", path


def _name(entry: Entry) -> str:
    return f"{entry.title} ({entry.modality})" if entry.modality in ("AV", "V") else entry.title


def _unit(metric: str) -> str:
    return LABELS.get(metric, metric) + (" (%)" if metric in ("f1", "recall", "precision") else "")


def _safe(label: str) -> str:
    return re.sub(r"[^\w.-]+", "_", label)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> Path:
    try:
        with writing(path) as partial:
            figure.savefig(partial, dpi=130, format="png", bbox_inches="tight")
    finally:
        _pyplot().close(figure)
    return path
