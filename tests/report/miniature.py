"""Every data set of the five papers in miniature: a few tiny clips in the layouts of the real sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.media import picture, tone, write_clip

SIX = ("DIEM", "Coutrot_db1", "Coutrot_db2", "AVAD", "ETMD_av", "SumMe")
FRAMES, FPS, HEIGHT, WIDTH = 36, 25, 48, 64


def make(root: Path) -> Path:
    """Write all sets below one folder and return it."""
    rng = np.random.default_rng(0)
    clip = write_clip(
        root / "clip.mp4", frames=FRAMES, fps=FPS, height=HEIGHT, width=WIDTH, rate=22050,
        sound=tone(FRAMES / FPS, 22050),
    )  # fmt: skip
    _six(root, clip, rng)
    _dhf1k(root / "DHF1K", clip, rng)
    _salicon(root / "SALICON", rng)
    _mit1003(root / "MIT1003", rng)
    _gaze(root)
    return root


def _points(rng: np.random.Generator, count: int = 4) -> np.ndarray:
    return np.stack([rng.integers(8, HEIGHT - 8, count), rng.integers(8, WIDTH - 8, count)], 1)


def _six(root: Path, clip: Path, rng: np.random.Generator) -> None:
    (root / "fold_lists").mkdir()
    for name in SIX:
        (root / "video" / name).mkdir(parents=True)
        videos = [f"{name.lower()}{k}" for k in range(5)]
        for video in videos:
            (root / "video" / name / f"{video}.mp4").symlink_to(clip)
            folder = root / "annotations" / name / video
            folder.mkdir(parents=True)
            lines = ["frame,x,y,observer"]
            for frame in range(FRAMES):
                lines += [f"{frame},{x},{y},{k}" for k, (y, x) in enumerate(_points(rng))]
            (folder / "fixations.csv").write_text("\n".join(lines) + "\n")
        line = f" {FRAMES} {FPS}.0\n"
        for fold in ("",) if name == "DIEM" else ("_1", "_2", "_3"):
            for split, chosen in (("train", videos[:3]), ("test", videos[3:])):
                path = root / "fold_lists" / f"{name}_list_{split}{fold}_fps.txt"
                path.write_text("".join(video + line for video in chosen))


def _map(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A density of 8 bits and a binary map of its points."""
    points = np.zeros((HEIGHT, WIDTH), np.uint8)
    density = np.zeros((HEIGHT, WIDTH))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for row, column in _points(rng):
        points[row, column] = 255
        density += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 32)
    return (density / density.max() * 255).astype(np.uint8), points


def _png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _dhf1k(root: Path, clip: Path, rng: np.random.Generator) -> None:
    (root / "video").mkdir(parents=True)
    for number in (1, 2, 601):
        (root / "video" / f"{number:03d}.mp4").symlink_to(clip)
        for frame in range(FRAMES):
            density, points = _map(rng)
            folder = root / "annotation" / f"{number:04d}"
            _png(folder / "maps" / f"{frame + 1:04d}.png", density)
            _png(folder / "fixation" / f"{frame + 1:04d}.png", points)


def _salicon(root: Path, rng: np.random.Generator) -> None:
    from scipy.io import savemat

    for part, count in (("train", 2), ("val", 3)):
        (root / "fixations" / part).mkdir(parents=True)
        for k in range(count):
            density, points = _map(rng)
            stem = f"COCO_{part}2014_{k:012d}"
            _png(root / "images" / f"{stem}.jpg", picture(k))
            _png(root / "maps" / part / f"{stem}.png", density)
            gaze = np.empty(1, dtype=[("location", object), ("timestamp", object), ("fixations", object)])
            gaze[0] = (np.zeros((0, 2)), np.zeros(0), np.argwhere(points)[:, ::-1] + 1.0)
            content = {"image": stem, "resolution": [HEIGHT, WIDTH], "gaze": gaze}
            savemat(root / "fixations" / part / f"{stem}.mat", content)


def _mit1003(root: Path, rng: np.random.Generator) -> None:
    for k in range(20):
        density, points = _map(rng)
        _png(root / "ALLSTIMULI" / f"i{k}.jpeg", picture(k))
        _png(root / "ALLFIXATIONMAPS" / f"i{k}_fixMap.jpg", density)
        (root / "ALLFIXATIONMAPS" / f"i{k}_fixPts.jpg").parent.mkdir(exist_ok=True)
        Image.fromarray(points).save(root / "ALLFIXATIONMAPS" / f"i{k}_fixPts.jpg", quality=95)


def _gaze(root: Path) -> None:
    """One clip of Ego4D and one of Aria, as the authors' scripts leave them, in both lists."""
    for dataset, folder, video, clip, fps, start in (
        ("ego4d", "clips.gaze", "a", "a_t5_t10", 30, 5), ("aria", "clips", "movie_7", "movie_7_t2_t6", 20, 2),
    ):  # fmt: skip
        base = root / {"ego4d": "Ego4D", "aria": "Aria"}[dataset]
        for part in (f"{folder}/{video}", "gaze_frame_label"):
            (base / part).mkdir(parents=True)
        write_clip(
            base / folder / video / f"{clip}.mp4", frames=5 * fps, fps=fps, height=64, width=64, rate=24000,
            sound=tone(5, 24000),
        )  # fmt: skip
        frames = np.arange((start + 5) * fps)
        x, y = 0.2 + 0.03 * frames / fps, np.full(len(frames), 0.4)
        rows = [[str(f), f"{a:.6f}", f"{b:.6f}", "0"] for f, a, b in zip(frames, x, y, strict=True)]
        header = ["frame", "x", "y", "gaze_type"]
        if dataset == "aria":
            header = ["frame", "timestamps_ns", "x", "y", "gaze_type"]
            rows = [[row[0], str(k * 50_000_000), *row[1:]] for k, row in enumerate(rows)]
        name = f"{video}_frame_label.csv" if dataset == "ego4d" else f"{video}.csv"
        text = "\n".join(",".join(row) for row in [header, *rows])
        (base / "gaze_frame_label" / name).write_text(text)
        for split in ("train", "test"):
            (base / f"{split}_{dataset}_gaze.csv").write_text(f"{video}/{clip}.mp4\n")
