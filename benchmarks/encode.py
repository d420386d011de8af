"""Saliency-weighted encoding on HEVC-33: quality where real observers look, at the plain encode's size.

    python -m benchmarks.encode FOLDER [--checkpoint NAME] [--codec libx264] [--crf 32] [--out FILE]

FOLDER holds HEVC-33 (`video_database.mat` and the clips). The bits follow the checkpoint's maps, which must not have
seen these clips (the default was trained on photographs); the quality is weighted by the observers' fixations, which
the encoder does not get. "gaze-driven" is the encode whose bits follow these fixations themselves: the upper bound.
Intervals are percentile bootstraps over the clips.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from avsal.applications.attention import computed
from avsal.applications.encode import Encoded, compare
from avsal.applications.paths import FloatArray
from avsal.data.items import VideoItem
from avsal.files import write_text
from avsal.io.video import VideoReader
from avsal.models.base import SaliencyModule
from avsal.report.statistics import interval, resamples
from benchmarks.reframe import held_out, points_of

SIZE = (54, 96)  #: of the observers' maps
SPREAD = 1 / 30  #: their standard deviation in widths, about one degree


def gaze(item: VideoItem) -> list[tuple[float, FloatArray]]:
    """Return (seconds, shares) of the fixations that began in the last second."""
    from scipy.ndimage import gaussian_filter

    times, points = points_of(item)
    began = times[points[:, 0].astype(int).clip(0, len(times) - 1)]
    cells = (points[:, 1:3] * SIZE).astype(int).clip(0, np.array(SIZE) - 1)
    found = []
    for time in np.arange(times[0], times[-1], 0.25):
        density = np.zeros(SIZE)
        np.add.at(density, tuple(cells[(began > time - 0.75) & (began <= time + 0.25)].T), 1.0)
        if density.any():
            density = gaussian_filter(density, SPREAD * SIZE[1])
            found.append((float(time), density / density.sum()))
    return found


def score(item: VideoItem, module: SaliencyModule, codec: str, crf: float, folder: Path) -> dict[str, float]:
    """Return what weighting gains on one clip."""
    film, eyes = item.files[0], gaze(item)
    with VideoReader(film) as reader:
        stride = max(1, round(reader.fps / 4))
    maps = list(computed(module, film, stride=stride))

    def run(attention: list[tuple[float, FloatArray]], equal: str) -> Encoded:
        return compare(film, folder / "out.mp4", attention, codec=codec, crf=crf, equal=equal, judged=eyes)  # type: ignore[arg-type]

    size, quality, bound = run(maps, "size"), run(maps, "quality"), run(eyes, "quality")
    return {
        "eye-PSNR gain at equal size, dB": size.weighted.eye_psnr - size.plain.eye_psnr,
        "eye-SSIM gain at equal size": size.weighted.eye_ssim - size.plain.eye_ssim,
        "PSNR change at equal size, dB": size.weighted.psnr - size.plain.psnr,
        "bytes saved at equal eye-PSNR, %": 100 * quality.saving,
        "the same, gaze-driven, %": 100 * bound.saving,
    }


def main(argv: list[str] | None = None) -> None:
    """Score all clips and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encode", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="isp-lite-openfix")
    parser.add_argument("--codec", choices=("libx264", "libx265"), default="libx264")
    parser.add_argument("--crf", type=float, default=32)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th clip")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encode.md"))
    args = parser.parse_args(argv)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for item, module in list(held_out(args.folder, args.checkpoint))[:: args.every]:
            rows[item.name] = score(item, module, args.codec, args.crf, Path(folder))
            print(item.name, {k: round(v, 3) for k, v in rows[item.name].items()}, flush=True)
    names = list(next(iter(rows.values())))
    draws = resamples(len(rows), data="HEVC-33")
    lines = ["# Saliency-weighted encoding", "", *__doc__.partition("\n\n")[2].strip().splitlines(), ""]
    lines += [
        f"{len(rows)} clips (416 pixels wide), {args.codec}, plain rate factor {args.crf:g}, `{args.checkpoint}`.",
        "",
    ]
    lines += ["| | mean over clips |", "|---|---|"]
    for name in names:
        values = np.array([row[name] for row in rows.values()])
        low, high = interval(draws @ values / draws.sum(1))
        lines.append(f"| {name} | {values.mean():.3f} [{low:.3f}, {high:.3f}] |")
    lines += ["", "| clip | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {clip} | " + " | ".join(f"{row[n]:.3f}" for n in names) + " |" for clip, row in rows.items()
    ]
    write_text(args.out, "\n".join(lines) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
