"""Miniatures of the papers' data in the layouts that their authors' loaders read, made of formulae."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

#: Height and width of the pictures, frames and frames per second of a video.
SIZE, FRAMES, FPS = (162, 288), 40, 25.0
#: The frame (from 1) whose map and fixations are empty.
EMPTY = 31


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the (h, w, 3) uint8 picture of a frame, from 1: three waves that move."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    waves = [np.sin(9 * x + 5 * y + 0.31 * number * (c + 1) + c) * np.cos(7 * y - c) for c in range(3)]
    return (127.5 + 120 * np.stack(waves, -1)).round().astype(np.uint8)


def gaze(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the (12, 2) fixated rows and columns of a frame, from 1."""
    k = np.arange(12)
    rows = size[0] * (0.5 + 0.3 * np.sin(0.2 * number + 0.8 * k))
    columns = size[1] * (0.5 + 0.4 * np.cos(0.15 * number + 1.7 * k))
    return np.stack([rows, columns], 1).astype(np.int64)


def density(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the (h, w) uint8 map of a frame, from 1: Gaussians around the fixations."""
    y, x = np.mgrid[: size[0], : size[1]]
    spots = [np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * 11.0**2)) for r, c in gaze(number, size)]
    total = np.sum(spots, 0)
    return (255 * total / total.max()).round().astype(np.uint8)


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Return (channels, samples) int16 sound: a tone that rises, another one in each further channel."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * (220 * (c + 1) * t + 90 * t**2)) * (0.5 - 0.2 * c) for c in range(channels)]
    return (np.stack(tones) * 32767).round().astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write (channels, samples) int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(samples.T).tobytes())


def audiovisual(root: Path, *, rate: int = 22050, channels: int = 1) -> Path:
    """Write the layout of STAViS, which CASP-Net, MSPI and AVRSP read too: a video of DIEM, in both lists.

    The lists name a second video without files, because the authors' loader of STAViS leaves the sound of the last
    video of a list out.
    """
    name = "waves_288x162"
    video, annotation = root / "video_frames" / "DIEM" / name, root / "annotations" / "DIEM" / name
    (annotation / "maps").mkdir(parents=True)
    video.mkdir(parents=True)
    for number in range(1, FRAMES + 1):
        Image.fromarray(picture(number)).save(video / f"img_{number:05d}.jpg", quality=95)
        here, points = density(number), np.zeros(SIZE, np.uint8)
        points[tuple(gaze(number).T)] = 1
        if number == EMPTY:
            here, points = np.zeros_like(here), np.zeros_like(points)
        Image.fromarray(here).save(annotation / "maps" / f"eyeMap_{number:05d}.jpg", quality=95)
        savemat(annotation / f"fixMap_{number:05d}.mat", {"eyeMap": points}, do_compression=True)
    write_wav(root / "video_audio" / "DIEM" / name / f"{name}.wav", sound(FRAMES / FPS, rate, channels), rate)
    (root / "fold_lists").mkdir()
    for split in ("train", "test"):
        (root / "fold_lists" / f"DIEM_list_{split}_fps.txt").write_text(f"{name} {FRAMES} {FPS:f}\n")
    return root
