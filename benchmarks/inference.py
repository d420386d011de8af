"""Frames per second of `predict_video` against the plain sliding window of the research code, in one run.

    python -m benchmarks.inference [--model stavis caspnet avrsp mspi] [--clip FILE] [--seconds 10] [--frames N]
                                   [--encoder s3d] [--quick] [--out benchmarks/results/inference.md]

The plain way makes every map by itself: one window, batch 1, the network as its equations are written.

- STAViS: the window's 16 frames are opened as JPEG files and resized (320x240, then 112x112) again for every map,
  as the released loader does; the bilinear layer works at every position.
- MSPI: the image-saliency encoder and the audio encoder run on the whole window of every map.
- CASP-Net and AVRSP (no code was released): nothing is reused, ASPP multiplies all its padding, AVIM follows the
  printed order. For these two and MSPI each JPEG file is opened once, and for all models the sound is decoded once
  and before the clock starts, so the plain way is at its best there.

Both ways go through the same video in turns, a batch of maps each, so that other load on the machine meets both; the
ratio of CPU time is the steadier one on a busy machine. The first batch only warms up and does not count. Both must
print the same maps: the largest difference of the logits, as a share of their range, is in the table, and more than
1e-4 is an error. The networks have random weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from avsal.data.frames import FramePreprocessor
from avsal.data.synthetic import FPS, render, write_media
from avsal.evaluation.provenance import git_state
from avsal.files import write_text
from avsal.inference.video import VideoPrediction, predict_video
from avsal.io.audio import load_audio
from avsal.io.video import VideoStream
from avsal.models import create_model
from avsal.models.base import SaliencyModule
from avsal.models.stavis import SoundLocalisation
from avsal.nn.aspp import ASPP
from avsal.nn.avim import AVIM

RATE = 25
SIZE = (360, 640)
TOLERANCE = 1e-4
#: Smallest ratio aimed at: measured for STAViS and from the papers' arithmetic for the others (MSPI: 90 % of it).
AIMS = {
    "stavis": 2.0,
    "caspnet": 1.3,
    "avrsp": 1.25,
    "mspi s3d": 0.9 * 2.32,
    "mspi x3dl": 0.9 * 2.36,
    "mspi morphmlps": 0.9 * 1.68,
    "mspi mvitv2s": 0.9 * 1.70,
}
#: Maps and windows per forward pass. The large networks take seconds for each map.
RUNS = {"stavis": (None, 8), "caspnet": (20, 4), "avrsp": (20, 4), "mspi": (20, 4)}
#: Networks that are through in seconds, to see that the benchmark works; their ratios mean nothing.
QUICK: dict[str, dict[str, Any]] = {
    "stavis": {"width": 8, "blocks": (1, 1, 1), "dsam_maps": 4, "hidden": 16, "audio_width": 4},
    "caspnet": {"size": (64, 96), "width": 0.125, "channels": 16, "growth": 4, "decoder_width": 8},
    "avrsp": {"size": (64, 96), "width": 0.125, "channels": 16, "heads": 4, "audio_width": 4},
    "mspi": {"size": (64, 96), "width": 0.125, "image_encoder": "mobilenetv2_035"},
}


@dataclass
class Clock:
    """Seconds in the network and in all."""

    network: float = 0.0
    total: float = 0.0
    cpu: float = 0.0
    maps: int = 0

    @property
    def rate(self) -> float:
        """Maps per second."""
        return self.maps / self.total

    @property
    def outside(self) -> float:
        """Share of the time that passes outside the network and its audio front end."""
        return 1 - self.network / self.total

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count what runs inside as time in the network."""
        began = time.perf_counter()
        yield
        self.network += time.perf_counter() - began

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside."""
        began, cpu = time.perf_counter(), time.process_time()
        yield
        self.total += time.perf_counter() - began
        self.cpu += time.process_time() - cpu


@dataclass
class Row:
    """One line of the table."""

    model: str
    maps: int
    plain: Clock
    ours: Clock
    difference: float
    aim: float | None = None
    loads: int = field(default=1)

    def cells(self) -> list[str]:
        """Return the line's cells as text."""
        cpu = (self.plain.cpu / self.plain.maps) / (self.ours.cpu / self.ours.maps)
        return [
            self.model, str(self.maps), f"{self.plain.rate:.2f}", f"{self.ours.rate:.2f}",
            f"{self.ours.rate / self.plain.rate:.2f}x", f"{cpu:.2f}x", "" if self.aim is None else f"{self.aim:.2f}x",
            str(self.loads), f"{self.plain.outside:.1%}", f"{self.ours.outside:.1%}", f"{self.difference:.1e}",
        ]  # fmt: skip


HEADER = [
    "network", "maps", "plain, frames/s", "avsal, frames/s", "ratio", "ratio, CPU time", "aim", "plain: files per map",
    "plain: outside the network", "avsal: outside the network", "difference",
]  # fmt: skip


# -- material --------------------------------------------------------------------------------------------


def make_clip(path: Path, seconds: float) -> Path:
    """Write a 640x360 H.264 video at 25 frames per second with AAC sound, the same on every machine."""
    clip = render("congruent", 0, "medium", seconds=max(seconds, 1.0) * RATE / FPS)
    noise = np.random.default_rng(0).normal(
        0, 4, (8, *SIZE, 3)
    )  # so that decoding costs what it does in real video
    frames = np.empty((len(clip.frames), *SIZE, 3), np.uint8)
    for k, frame in enumerate(clip.frames):
        large = np.asarray(Image.fromarray(frame).resize(SIZE[::-1], Image.Resampling.BICUBIC), np.float64)
        frames[k] = np.clip(large + noise[k % 8], 0, 255).round()
    write_media(path, frames, clip.waveform, fps=RATE)
    return path


def build(model: str, encoder: str, quick: bool) -> SaliencyModule:
    """Return a network with seeded random weights of a size that lets differences through to the map."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"encoder": encoder} if model == "mspi" else {}
    module = create_model(model, **options, **(QUICK[model] if quick else {}))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and float(parameter.std()) < 0.005:
                nn.init.kaiming_normal_(parameter)
    return module.eval()


# -- the plain way ---------------------------------------------------------------------------------------


def everywhere(layer: SoundLocalisation, visual: Tensor, audio: Tensor) -> Tensor:
    """STAViS's localisation as released: the bilinear layer on every position's own copy of the sound."""
    h_v = layer.visual(visual.movedim(1, -1)).relu()
    h_a = layer.audio(audio).relu()[:, None, None].expand_as(h_v)
    return layer.product(h_v.contiguous(), h_a.contiguous()).movedim(-1, 1)


@contextmanager
def as_written(module: SaliencyModule) -> Iterator[None]:
    """Let the network compute without the exact short cuts that cost no accuracy."""
    changed = []
    for part in module.modules():
        if isinstance(part, SoundLocalisation):
            part.forward = partial(everywhere, part)  # type: ignore[method-assign]
        elif isinstance(part, ASPP):
            part.forward = part.plain  # type: ignore[method-assign]
        elif isinstance(part, AVIM):
            part.forward = part.literal  # type: ignore[method-assign]
        else:
            continue
        changed.append(part)
    try:
        yield
    finally:
        for part in changed:
            del part.forward


class Plain:
    """One window for each map, from JPEG files.

    Args:
        module: the network.
        clip: the video, of constant frame rate.
        folder: where the frames lie as JPEG files.
        reload: open the whole window's files for every map, not only the new one.
    """

    def __init__(self, module: SaliencyModule, clip: Path, folder: Path, count: int, reload: bool) -> None:
        self.module, self.spec, self.folder, self.reload = module, module.spec, folder, reload
        self.offset = self.spec.target_index
        self.mean = torch.tensor(self.spec.mean).view(3, 1, 1)
        self.std = torch.tensor(self.spec.std).view(3, 1, 1)
        preprocess = FramePreprocessor(self.spec)
        self.exact: list[Tensor] = []
        with VideoStream(clip) as stream:
            self.fps = stream.info.fps
            for frame in stream:
                if len(self.exact) == count + self.spec.frames:
                    break
                self.exact.append(preprocess(frame.image[None])[:, 0])
                file = folder / f"{frame.index:05d}.jpg"
                if not file.exists():
                    Image.fromarray(frame.image).save(file, quality=95)
        self.wave = None
        if self.spec.audio is not None:
            self.wave, self.rate, self.has_audio = load_audio(clip, rate=self.spec.audio.sample_rate)
        self.recent: dict[int, Tensor] = {}
        self.error = 0.0
        self.logits: Tensor | None = None

    def __call__(self, target: int, clock: Clock) -> Tensor:
        """Return the logits for frame `target`."""
        last = len(self.exact) - 1
        places = [min(max(target - self.offset + i, 0), last) for i in range(self.spec.frames)]
        with clock.running():
            if self.reload:
                frames = [self.load(k) for k in places]
            else:
                self.recent = {k: self.recent[k] if k in self.recent else self.load(k) for k in places}
                frames = [self.recent[k] for k in places]
            video = torch.stack(frames, 1)[None]
            sound = self.sound(target) if self.wave is not None else None
        # JPEG is lossy: the network gets the decoder's own pixels, which is not on the clock.
        exact = torch.stack([self.exact[k] for k in places], 1)[None]
        self.error = float(((video - exact).abs().mean((0, 2, 3, 4)) * self.std.view(3)).max())
        with torch.inference_mode(), clock.running():
            with clock.inside():
                network = self.module.network
                heard = network.frontend(*sound) if sound is not None else None
                output = network.core(exact, heard)
            output.saliency()
        clock.maps += 1
        return output.logits

    def load(self, k: int) -> Tensor:
        """Open, resize and normalise one JPEG file with Pillow."""
        with Image.open(self.folder / f"{k:05d}.jpg") as opened:
            image = opened.convert("RGB")
        if self.spec.via is not None:
            resample = (
                Image.Resampling.NEAREST if self.spec.via_filter == "nearest" else Image.Resampling.BICUBIC
            )
            image = image.resize(self.spec.via[::-1], resample)
        image = image.resize(self.spec.size[::-1], Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)
        return (pixels - self.mean) / self.std

    def sound(self, target: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cut the window's sound out of the waveform in memory."""
        assert self.spec.audio is not None
        assert self.wave is not None
        times = [(target - self.offset + i) / self.fps for i in range(self.spec.frames)]
        begin, end = self.spec.audio.samples(times[0], times[-1], self.fps, self.rate)
        inside = self.wave[max(begin, 0) : max(end, 0)]
        before = max(-begin, 0)
        wave = F.pad(inside, (before, end - begin - before - len(inside)))[None]
        return (
            wave,
            torch.tensor([end - begin]),
            torch.tensor([self.has_audio]),
            torch.tensor([times], dtype=torch.float64) - begin / self.rate,
        )


# -- avsal's way -----------------------------------------------------------------------------------------


class Watched:
    """`predict_video` with a clock on its network and its logits kept."""

    def __init__(self, module: SaliencyModule, clip: Path, batch: int) -> None:
        self.clock = Clock()
        self.logits: list[Tensor] = []
        with self.clock.running():
            self.prediction: VideoPrediction = predict_video(module, clip, batch_size=batch)
        run, listen = self.prediction._runner, self.prediction._audio_input
        frontend = module.network.frontend

        def heard(*arguments: Any) -> Any:
            with self.clock.inside():
                return frontend(*arguments)

        def listening(*arguments: Any) -> Any:
            module.network.frontend = heard  # type: ignore[method-assign, assignment]
            try:
                return listen(*arguments)
            finally:
                del module.network.frontend

        def running(*arguments: Any) -> Any:
            with self.clock.inside():
                output = run(*arguments)
            self.logits += list(output.logits)
            return output

        self.prediction._runner = running  # type: ignore[assignment]
        self.prediction._audio_input = listening  # type: ignore[method-assign, assignment]

    def batch(self, size: int) -> list[int]:
        """Run until the next `size` maps are out and return their frames' indices."""
        with self.clock.running():
            indices = [result.index for _, result in zip(range(size), self.prediction, strict=False)]
        self.clock.maps += len(indices)
        return indices


def measure(model: str, encoder: str, clip: Path, folder: Path, frames: int | None, quick: bool) -> Row:
    """Run both ways in turns and return their line of the table.

    Raises:
        SystemExit: they print different maps.
    """
    module = build(model, encoder, quick)
    default, batch = RUNS[model]
    with VideoStream(clip) as stream:
        there = sum(1 for _ in stream)
    count = min(frames or default or there, there)
    count = min(count, 4 * batch) if quick else count
    plain = Plain(module, clip, folder, count, reload=model == "stavis")
    ours, clock, warm = Watched(module, clip, batch), Clock(), count > 2 * batch
    difference = 0.0
    done = 0
    while done < count:
        indices = ours.batch(min(batch, count - done))
        for index in indices[: 1 if warm and not done else None]:
            with as_written(module):
                expected = plain(index, clock)[0]
            got = ours.logits[index]
            difference = max(
                difference, float((got - expected).abs().max() / (expected.max() - expected.min()))
            )
            if plain.error > 8:
                sys.exit(
                    f"{model}: frame {index} of the JPEG files is not that of the video ({plain.error:.1f})"
                )
        done += len(indices)
        if warm and done == len(indices):
            clock, ours.clock = Clock(), Clock()
    ours.prediction.close()
    if not difference <= TOLERANCE:
        sys.exit(
            f"{model}: the two ways differ by {difference:.1e} of the logits' range (at most {TOLERANCE:g})"
        )
    label = f"mspi {encoder}" if model == "mspi" else model
    height, width = module.spec.size
    return Row(
        f"{label} {module.spec.frames}x{height}x{width}" + (" (quick)" if quick else ""), clock.maps, clock,
        ours.clock, difference, None if quick else AIMS.get(label), module.spec.frames if plain.reload else 1,
    )  # fmt: skip


# -- the table -------------------------------------------------------------------------------------------


def machine() -> str:
    """Return one line about processor, threads and versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(path: Path, rows: list[Row], about: str, clip: str) -> None:
    """Put the rows into a report: they replace those of the same networks under the same machine's heading."""
    heading = f"## {machine()}"
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for old in path.read_text("utf-8").splitlines() if path.is_file() else []:
        if old.startswith("## "):
            current = sections.setdefault(old, {})
        elif old.startswith("| ") and not old.startswith(("| ---", f"| {HEADER[0]} ")):
            current[old.split("|")[1].strip()] = old
    for row in rows:
        sections.setdefault(heading, {})[row.model] = line([*row.cells(), clip, about])
    lines = [
        "# Whole-video prediction against the plain sliding window", "",
        "`python -m benchmarks.inference --out benchmarks/results/inference.md`; what the plain way does, and what the",
        "columns mean, is written at the top of `benchmarks/inference.py`. Ratios compare the two ways in one run.", "",
    ]  # fmt: skip
    head = [*HEADER, "clip", "when"]
    for title, found in sections.items():
        lines += [title, "", line(head), line(["---"] * len(head)), *found.values(), ""]
    write_text(path, "\n".join(lines))


def main(argv: list[str] | None = None) -> list[Row]:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", nargs="+", choices=list(RUNS), default=["stavis"])
    parser.add_argument(
        "--clip", type=Path, help="a video of constant frame rate; default: one made on the spot"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip made on the spot")
    parser.add_argument(
        "--frames", type=int, help="maps to make (default: all for STAViS, 20 for the others)"
    )
    parser.add_argument("--encoder", default="s3d", help="motion encoder of MSPI")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    parser.add_argument(
        "--quick", action="store_true", help="small networks, a few maps: shows that it works"
    )
    parser.add_argument("--out", type=Path, help="a Markdown file to put the rows into")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    state = git_state()
    about = f"{date.today()}, {state.commit[:9] if state else 'no commit'}{load}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clip = args.clip or make_clip(Path(folder) / "clip.mp4", 2.0 if args.quick else args.seconds)
        with VideoStream(clip) as stream:
            info = stream.info
        described = f"{info.width}x{info.height} {info.codec} at {info.fps:g}/s, {info.duration or 0:.1f} s"
        print(
            f"{machine()}\n{described}; {about}\n\n{line(HEADER)}\n{line(['---'] * len(HEADER))}", flush=True
        )
        for model in args.model:
            rows.append(measure(model, args.encoder, clip, Path(folder), args.frames, args.quick))
            print(line(rows[-1].cells()), flush=True)
    if args.out:
        write(args.out, rows, about, described)
    return rows


if __name__ == "__main__":
    main()
