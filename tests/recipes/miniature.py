"""Miniatures of the papers' data in the layouts that their authors' loaders read, made of formulae."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
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


def ego4d_gaze(root: Path, seconds: float = 6.0) -> Path:
    """Write raw gaze as Ego4D has it, 45 samples a second until half a second before the video ends.

    Some samples lie at (0, 0), some outside the picture; between 2.5 and 3.1 s there are none.
    """
    rows = []
    for k in range(round((seconds - 0.5) * 45)):
        time = 0.004 + k / 45
        if 2.5 < time < 3.1:
            continue
        x, y = 0.5 + 0.3 * np.sin(2 * time), 0.5 + 0.2 * np.cos(3 * time)
        if 1.0 < time < 1.1 or k % 37 == 0:
            x, y = 0.0, 0.0
        if 4.0 < time < 4.2:
            x = 1.25
        rows.append(f"uid,{time:.4f},{time:.4f},1.0,{k},{x:.5f},{y:.5f}")
    path = root / "gaze" / "miniature.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = "video_uid,canonical_timestamp_s,component_timestamp_s,confidence,index,norm_pos_x,norm_pos_y"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def csts_clips(root: Path) -> Path:
    """Write the pre-processed layout that CSTS's loader reads: a clip of 5 s, labels, a stored spectrogram."""
    size, name = (96, 120), "miniature"
    for folder in ("clips.gaze", "clips.gaze.audio_stft"):
        (root / folder / name).mkdir(parents=True)
    (root / "gaze_frame_label").mkdir()
    with av.open(str(root / "clips.gaze" / name / f"{name}_t0_t5.mp4"), "w") as out:
        stream: Any = out.add_stream("libx264", rate=30, options={"crf": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(150):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24").reformat(
                format="yuv420p"
            )
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    frames = np.arange(150)
    x, y = 0.5 + 0.6 * np.sin(0.07 * frames), 0.5 + 0.3 * np.cos(0.05 * frames)
    kinds = np.where((x < 0) | (x > 1), 2, (frames % 20 == 0).astype(int))
    rows = zip(frames, x.clip(0, 1), y, kinds, strict=True)
    lines = ["frame,x,y,gaze_type", *(f"{f},{a:.6f},{b:.6f},{k}" for f, a, b, k in rows)]
    (root / "gaze_frame_label" / f"{name}_frame_label.csv").write_text("\n".join(lines) + "\n")
    bins, columns = np.mgrid[:256, :1000]
    stored = (-8 + 4 * np.sin(0.05 * bins) * np.cos(0.013 * columns)).astype(np.float32)
    np.save(root / "clips.gaze.audio_stft" / name / f"{name}_t0_t5.npy", stored)
    for split in ("train", "test"):
        (root / f"{split}_ego4d_gaze.csv").write_text(f"{name}/{name}_t0_t5.mp4\n")
    return root
