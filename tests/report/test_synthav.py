"""The tables of SynthAV from results files without any model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from avsal.evaluation.results import Results
from avsal.report.measured import board
from avsal.report.statistics import resamples
from avsal.report.synthav import synthav_tables
from tests.report.fake import results, write

STEPS, VIDEOS = 3, 8


def gaze(name: str, level: float, seed: int, sound: str = "own", **arguments: object) -> Results:
    """Gaze results of each anticipation step; a video counts by its number of frames."""
    random, shared = np.random.default_rng(seed), np.random.default_rng(99)
    videos: dict[str, dict[str, float]] = {}
    for k in range(VIDEOS):
        frames = shared.integers(5, 40, STEPS)
        parts = {m: np.clip(level + random.normal(0, 0.05, STEPS) - 0.05 * np.arange(STEPS), 0, 1)
                 for m in ("recall", "precision")}  # fmt: skip
        row = {m: float(np.average(values, weights=frames)) for m, values in parts.items()}
        row |= {"f1": 0.0, "frames": int(frames.sum())}
        for step in range(STEPS):
            row |= {f"{m}_step{step + 1}": float(values[step]) for m, values in parts.items()}
            row |= {f"frames_step{step + 1}": int(frames[step])}
        videos[f"SynthAV_ego/v{k}"] = row
    run = results(
        "synthav", None, name=name, model="CSTS", arguments=arguments, protocol={"sound": sound}, videos=videos,
        steps=[{"f1": 0.0}] * STEPS,
    )  # fmt: skip
    run.metrics = dict.fromkeys(("recall", "precision"), level) | {"f1": level}
    return run


def by_hand(run: Results, ending: str, drawn: np.ndarray) -> float:
    """F1 from the frames of the drawn videos."""
    rows = [list(run.videos.values())[k] for k in drawn]
    frames = [row[f"frames{ending}"] for row in rows]
    recall, precision = (
        np.average([r[f"{m}{ending}"] for r in rows], weights=frames) for m in ("recall", "precision")
    )
    return float(100 * 2 * recall * precision / (recall + precision + 1e-6))


def test_f1_of_each_moment_and_what_the_sound_adds_there(tmp_path: Path) -> None:
    av = gaze("tiny", 0.6, 0)
    v = gaze("tiny-visual", 0.5, 1, fusion="vision-only")
    swapped = gaze("tiny", 0.45, 2, sound="swapped")
    found = board(write(tmp_path, av, v, swapped))
    assert found.notes == []
    table = next(t for t in synthav_tables(found) if "each moment" in t.title)
    assert table.columns == ["F1 (%)", "all moments", "moment 1", "moment 2", "moment 3"]
    rows = {row[0].text: row[1:] for row in table.rows}
    everything = np.arange(VIDEOS)
    data = found.entries[0].data
    draws = [np.repeat(everything, row.astype(int)) for row in resamples(VIDEOS, data=data)[:, :]]
    single = {"tiny": av, "tiny-visual": v, "tiny, sound swapped": swapped}
    pairs = {
        "tiny minus its twin without sound": (av, v),
        "tiny minus itself, sound swapped": (av, swapped),
    }
    assert set(rows) == {*single, *pairs}
    for k, ending in enumerate(("", "_step1", "_step2", "_step3")):
        for title, run in single.items():
            assert rows[title][k].sort == pytest.approx(by_hand(run, ending, everything))
        for title, (first, second) in pairs.items():
            cell = rows[title][k]
            gap = by_hand(first, ending, everything) - by_hand(second, ending, everything)
            assert cell.sort == pytest.approx(gap)
            assert cell.text.startswith(f"{gap:+.1f} [")
    ending, (first, second) = "_step2", pairs["tiny minus its twin without sound"]
    slow = [by_hand(first, ending, d) - by_hand(second, ending, d) for d in draws[:10_000:10]]
    low, high = np.quantile(slow, [0.025, 0.975])
    assert rows["tiny minus its twin without sound"][2].bounds == pytest.approx((low, high), abs=0.5)


def test_gaze_without_steps_has_f1_of_all_moments_only(tmp_path: Path) -> None:
    run = gaze("tiny", 0.6, 0)
    run.steps = []
    alone = next(t for t in synthav_tables(board(write(tmp_path / "alone", run))) if "each moment" in t.title)
    assert alone.columns == ["F1 (%)", "all moments"]
    assert [row[0].text for row in alone.rows] == ["tiny"]
    other = gaze("other", 0.5, 1)
    both = next(
        t for t in synthav_tables(board(write(tmp_path / "both", run, other))) if "each moment" in t.title
    )
    rows = {row[0].text: [value.text != "" for value in row] for row in both.rows}
    assert rows == {"other": [True] * 5, "tiny": [True, True, False, False, False]}


def test_swapped_sound_alone_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    found = board(write(tmp_path, gaze("tiny", 0.6, 0, sound="swapped")))
    table = next(t for t in synthav_tables(found) if "each moment" in t.title)
    assert [row[0].text for row in table.rows] == ["tiny, sound swapped"]


@pytest.mark.parametrize("words", [["--clips", "12"], ["--clips", "1", "--dry-run"]])
def test_too_few_clips_are_refused_before_anything_runs(words, tmp_path, monkeypatch, capsys):
    from avsal import cli

    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "synthav", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "two test clips" in line
    least = re.search(r"at least (\d+) clips", line)
    assert least is not None
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["reproduce", "synthav", "--clips", least[1], "--dry-run"]) == 0
