"""Clips per second of the training loader: the JPEG folders of the research code, original videos, a pack.

    python -m benchmarks.data [--clips 12] [--seconds 6] [--size 480 640] [--repeats 3] [--json FILE]

The same SynthAV content, enlarged to a usual video size, is written as research folders (one JPEG for each frame, a
wav, a map JPEG and a fixation .mat for each frame) and as H.264 files. The baseline does what the papers' loaders do
for one clip: open 16 JPEG files with Pillow, resize each to 320x240 and 112x112, read the target's map and .mat, and
cut the sound out of a waveform in memory. Every way makes 16-frame clips at 112x112 from the same random places, in one
process, one after the other in each repeat; ratios are of CPU time, medians over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from avsal.data.fixations import density_from_fixations
from avsal.data.items import Counts, VideoItem
from avsal.data.layout import read_fold_list
from avsal.data.readers import Pictures
from avsal.data.sets.audiovisual import LayoutDataModule
from avsal.data.synthetic import FPS, RATE, SIGMA, render, write_media
from avsal.types import AudioSpec, ClipSpec

SPEC = ClipSpec(
    frames=16, size=(112, 112), target=8, mean=(114.7748, 107.7354, 99.4750), std=(1.0, 1.0, 1.0), via=(240, 320),
    authors_coverage="cyclic", audio=AudioSpec(None, 0.5, 0.5, window="hann"),
)  # fmt: skip
SET = "Bench"


def write_sets(root: Path, clips: int, seconds: float, size: tuple[int, int]) -> tuple[Path, Path]:
    """Write the same clips as research folders and as original videos with the same annotation."""
    folders, videos = root / "folders", root / "videos"
    for target in (folders, videos):
        (target / "fold_lists").mkdir(parents=True)
    lines = []
    for index in range(clips):
        clip = render("congruent", index, "medium", seconds=seconds)
        big = [
            np.asarray(Image.fromarray(f).resize(size[::-1], Image.Resampling.BICUBIC)) for f in clip.frames
        ]
        name = clip.name
        lines.append(f"{name} {len(big)} {FPS:.6f}\n")
        (videos / "video" / SET).mkdir(parents=True, exist_ok=True)
        write_media(videos / "video" / SET / f"{name}.mp4", np.stack(big), clip.waveform)
        frames = folders / "video_frames" / SET / name
        annotation = folders / "annotations" / SET / name
        (annotation / "maps").mkdir(parents=True)
        frames.mkdir(parents=True)
        scale = np.array([size[1] / 160, size[0] / 120])
        for k, image in enumerate(big):
            Image.fromarray(image).save(frames / f"img_{k + 1:05d}.jpg", quality=95)
            points = clip.fixations[clip.fixations[:, 0] == k, 1:3] * scale
            binary = np.zeros(size, dtype=np.uint8)
            binary[points[:, 1].astype(int), points[:, 0].astype(int)] = 1
            savemat(annotation / f"fixMap_{k + 1:05d}.mat", {"eyeMap": binary}, do_compression=True)
            density = density_from_fixations(points[:, ::-1], size, SIGMA * float(scale[0]))
            Image.fromarray(np.rint(density * 255).astype(np.uint8)).save(
                annotation / "maps" / f"eyeMap_{k + 1:05d}.jpg", quality=95
            )
        if not (videos / "annotations").exists():
            (videos / "annotations").symlink_to(folders / "annotations")
        _write_wav(folders / "video_audio" / SET / name / f"{name}.wav", clip.waveform)
    for target in (folders, videos):
        (target / "fold_lists" / f"{SET}_list_train_1_fps.txt").write_text("".join(lines))
        (target / "fold_lists" / f"{SET}_list_test_1_fps.txt").write_text(lines[0])
    return folders, videos


def _write_wav(path: Path, wave: np.ndarray | None) -> None:
    import wave as wav

    path.parent.mkdir(parents=True)
    assert wave is not None
    with wav.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(wave.astype("<i2").tobytes())


def research_clip(root: Path, name: str, start: int, sound: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Load one clip as the papers' loaders do: images and annotation from their own files, one by one."""
    frames, mean = [], torch.tensor(SPEC.mean).view(3, 1, 1)
    for k in range(start, start + 16):
        with Image.open(root / "video_frames" / SET / name / f"img_{k + 1:05d}.jpg") as image:
            small = image.convert("RGB").resize((320, 240)).resize((112, 112), Image.Resampling.BILINEAR)
        frames.append(torch.from_numpy(np.asarray(small, dtype=np.float32)).permute(2, 0, 1) - mean)
    annotation = root / "annotations" / SET / name
    with Image.open(annotation / "maps" / f"eyeMap_{start + 9:05d}.jpg") as image:
        density = np.asarray(
            image.convert("L").resize((320, 240)).resize((112, 112), Image.Resampling.BILINEAR)
        )
    binary = loadmat(annotation / f"fixMap_{start + 9:05d}.mat")["eyeMap"].astype(np.float32)
    fixed = Image.fromarray(binary).resize((320, 240), Image.Resampling.BILINEAR)
    fixations = np.asarray(fixed) > 0
    begin = max(0, int((start - 0.5) * RATE / FPS))
    return (
        torch.stack(frames, 1),
        torch.from_numpy(sound[begin : begin + 14113]),
        torch.from_numpy(density.copy()),
        fixations,
    )


def rate(load: Callable[[tuple[int, int]], object], keys: list[tuple[int, int]]) -> float:
    """Return items per second of CPU time, which other programs on the machine disturb less than the clock."""
    began = time.process_time()
    for key in keys:
        load(key)
    return len(keys) / (time.process_time() - began)


def indexing(count: int, root: Path) -> dict[str, float]:
    """Return the seconds to index `count` files whose numbers of frames are remembered, and to plan their clips."""
    from avsal.data.clips import TrainingClips

    files = []
    for k in range(count):
        path = root / f"{k:05d}.jpg"
        if k == 0:
            Image.new("RGB", (8, 8)).save(path)
        else:
            os.link(files[0], path)
        files.append(path)

    def index() -> list[VideoItem]:
        counts = Counts(root)
        items = [
            VideoItem(f"s/{p.stem}", None, None, partial(Pictures, (p,) * 300), files=(p,)) for p in files
        ]
        found = [counts.counted(item) for item in items]
        counts.save()
        return found

    index()
    began = time.perf_counter()
    again = index()
    middle = time.perf_counter()
    clips = TrainingClips(again, SPEC)
    assert len(clips) == 4 * count
    return {"index_again_s": middle - began, "plan_clips_s": time.perf_counter() - middle}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=24, help="clips loaded for each way and repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["AVSAL_CACHE"] = str(root / "cache")
        folders, videos = write_sets(root, options.clips, options.seconds, tuple(options.size))
        arguments = {"sets": [SET], "val_fraction": 0, "spec": SPEC, "num_workers": 0}
        modules = {"jpeg_folder_avsal": LayoutDataModule(folders, **arguments)}
        modules["original_videos"] = LayoutDataModule(videos, **arguments)
        modules["original_videos"].pack(root / "set.h5", SPEC)
        modules["pack"] = LayoutDataModule(root / "set.h5", **arguments)
        data = {name: module.train_dataset() for name, module in modules.items()}
        entries = read_fold_list(folders / "fold_lists" / f"{SET}_list_train_1_fps.txt")
        waves = {}
        for entry in entries:
            raw = (folders / "video_audio" / SET / entry.name / f"{entry.name}.wav").read_bytes()[44:]
            waves[entry.name] = np.frombuffer(raw, "<i2").astype(np.float32) / 32768
        length = len(data["pack"])
        plan = np.random.default_rng(0).permutation(
            np.resize(np.arange(length), options.repeats * options.count)
        )

        def research(key: tuple[int, int]) -> object:
            sample = data["pack"][key]  # the same place; its cost is taken off below
            entry = next(e for e in entries if sample["video_name"].endswith(e.name))
            start = min(max(int(sample["frame"][0]) - 8, 0), entry.frames - 16)
            return research_clip(folders, entry.name, start, waves[entry.name])

        rates: dict[str, list[float]] = {name: [] for name in ("research_jpeg_folder", *data)}
        for repeat in range(options.repeats):
            chosen = plan[repeat * options.count : (repeat + 1) * options.count].tolist()
            keys = [(repeat, k) for k in chosen]
            for name, dataset in data.items():
                rates[name].append(rate(dataset.__getitem__, keys))
            both = rate(research, keys)
            rates["research_jpeg_folder"].append(1 / (1 / both - 1 / rates["pack"][-1]))
        (root / "many").mkdir()
        index = indexing(5000, root / "many")
    base = rates["research_jpeg_folder"]
    size = "x".join(map(str, options.size))
    print(
        f"{options.clips} clips of {options.seconds:g} s, {size}, 16 frames to 112x112; CPU time, one process"
    )
    print(
        f"{'way':24} {'clips/s':>8} {'ratio':>7}  (median of {options.repeats}; ratio to the research code)"
    )
    ratios = {}
    for name, values in rates.items():
        ratios[name] = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"{name:24} {statistics.median(values):8.1f} {ratios[name]:6.2f}x")
    print(
        f"index 5000 videos again {index['index_again_s']:.2f} s; plan their clips {index['plan_clips_s']:.3f} s"
    )
    if options.json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        setting = {"torch": torch.__version__, "size": list(options.size)}
        result = {"ratios": ratios, "clips_per_second": rates, **index, **machine, **setting}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
