"""Re-framing on HEVC-33: the share of real fixations inside a 9:16 crop, for crops that move and crops that do not.

    python -m benchmarks.reframe FOLDER [--checkpoint NAME] [--aspect 9:16] [--out FILE]

FOLDER holds HEVC-33 (`video_database.mat` and the clips). The checkpoint must not have seen these clips: the default
was trained on photographs; `{fold}` in a name stands for the fold (1 to 4) that holds the clip out. A fixation counts
where it begins. "observers' best path" is the path under the same bounds that is best for the very fixations that are
counted; "half of the observers" is the path of every second observer, scored on the others. Intervals are percentile
bootstraps over the clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

import avsal
from avsal.applications.attention import computed
from avsal.applications.paths import FloatArray, Motion, grid, kept
from avsal.applications.reframe import Reframed, crop_path, read_aspect
from avsal.data import HEVC33DataModule
from avsal.data.items import VideoItem
from avsal.files import write_text
from avsal.io.video import VideoReader
from avsal.models.base import SaliencyModule
from avsal.report.statistics import interval, resamples

SIZE = (54, 96)  #: of the observers' maps


def held_out(folder: Path, checkpoint: str, folds: int = 4) -> Iterator[tuple[VideoItem, SaliencyModule]]:
    """Yield every clip with the checkpoint; `{fold}` in its name is the fold, from 1, that holds the clip out."""
    for fold in range(1, folds + 1):
        module = avsal.from_pretrained(checkpoint.replace("{fold}", str(fold))).eval()
        for item in HEVC33DataModule(str(folder), fold=fold, folds=folds).split_items("test"):
            yield item, module


def points_of(item: VideoItem) -> tuple[FloatArray, FloatArray]:
    """Return the frames' times, and rows (frame, y, x, observer) of the fixations with y and x in 0..1."""
    assert item.open_annotation is not None
    annotation = item.open_annotation()
    with VideoReader(item.files[0]) as reader:
        times = reader.times
    rows = []
    for frame in range(len(times)):
        if (found := annotation.fixations(frame)) is not None:
            for (row, column), observer in zip(found[0], found[1], strict=True):
                rows.append(
                    (frame, (row + 0.5) / annotation.size[0], (column + 0.5) / annotation.size[1], observer)
                )
    return times, np.array(rows, float)


def observed(times: FloatArray, points: FloatArray) -> Iterator[tuple[float, FloatArray]]:
    """Yield the time and the density of the fixations that begin there, of each frame; its sum is their number."""
    frames, cells = points[:, 0].astype(int), (points[:, 1:3] * SIZE).astype(int).clip(0, np.array(SIZE) - 1)
    for frame, time in enumerate(times.tolist()):
        density = np.zeros(SIZE)
        np.add.at(density, tuple(cells[frames == frame].T), 1.0)
        yield time, gaussian_filter(density, 1.0)  # sigma is 1/96 of the width


def inside(found: Reframed, begin: FloatArray, points: FloatArray) -> float:
    """Return the share of fixations inside a crop that begins at `begin` (one place for each frame)."""
    place = begin[points[:, 0].astype(int).clip(0, len(begin) - 1)]
    along = points[:, 1 + found.axis]
    return float(((along >= place) & (along < place + found.length)).mean())


def score(item: VideoItem, module: SaliencyModule, aspect: float) -> dict[str, float]:
    """Return the share of fixations inside each crop of one clip, and the path's jitter."""
    film = item.files[0]
    times, points = points_of(item)
    fps = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    stride = max(1, round(fps / 6))
    attention = list(computed(module, film, stride=stride))
    ours = crop_path(film, aspect, attention)
    jumping = crop_path(film, aspect, attention, motion=Motion(speed=10, acceleration=100, calm=0))
    best = crop_path(film, aspect, observed(times, points), motion=Motion(calm=0))
    odd = points[:, 3].astype(int) % 2 == 1
    half = crop_path(film, aspect, observed(times, points[odd]), motion=Motion(calm=0))
    still = np.ones_like(ours.path)
    positions = grid(ours.length)
    counts = np.histogram(points[:, 1 + ours.axis], bins=96, range=(0, 1))[0]
    static = positions[
        kept(np.concatenate([[0], np.cumsum(counts / counts.sum())]), positions, ours.length).argmax()
    ]
    return {
        "centre crop": inside(ours, still * (1 - ours.length) / 2, points),
        "path of the maps": inside(ours, ours.path, points),
        "the same, free to jump": inside(ours, jumping.path, points),
        "best crop that does not move": inside(ours, still * static, points),
        "half of the observers": inside(ours, half.path, points[~odd]),
        "observers' best path": inside(ours, best.path, points),
        "jitter: path of the maps": ours.jitter,
        "jitter: free to jump": jumping.jitter,
        "jitter: observers' best path": best.jitter,
    }


def main(argv: list[str] | None = None) -> None:
    """Score all clips and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reframe", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="isp-lite-openfix", help="name, file or folder")
    parser.add_argument("--aspect", default="9:16")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reframe.md"))
    args = parser.parse_args(argv)
    rows = {}
    for item, module in held_out(args.folder, args.checkpoint):
        rows[item.name] = score(item, module, read_aspect(args.aspect))
        print(item.name, {k: round(v, 3) for k, v in rows[item.name].items()}, flush=True)
    names = [name for name in next(iter(rows.values())) if not name.startswith("jitter")]
    draws = resamples(len(rows), data="HEVC-33")

    def mean(values: FloatArray) -> str:
        low, high = interval(draws @ values / draws.sum(1))
        return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"

    table = {name: np.array([row[name] for row in rows.values()]) for name in next(iter(rows.values()))}
    lines = ["# Re-framing", "", *__doc__.partition("\n\n")[2].strip().splitlines(), ""]
    lines += [f"{len(rows)} clips, {args.aspect}, maps of `{args.checkpoint}` about six times a second.", ""]
    lines += ["| crop | fixations inside | less the centre crop, paired |", "|---|---|---|"]
    for name in names:
        lines.append(f"| {name} | {mean(table[name])} | {mean(table[name] - table['centre crop'])} |")
    jitter = ", ".join(
        f"{name.partition(': ')[2]} {table[name].mean():.3f}" for name in table if name not in names
    )
    lines += ["", f"Jitter (mean acceleration, picture widths per second squared): {jitter}.", ""]
    lines += ["| clip | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {clip} | " + " | ".join(f"{row[n]:.3f}" for n in names) + " |" for clip, row in rows.items()
    ]
    write_text(args.out, "\n".join(lines) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
