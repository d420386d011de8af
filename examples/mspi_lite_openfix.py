"""Train and cross-validate mspi-lite-openfix on HEVC-33; its settings are in settings/mspi-lite-openfix.yaml.

    python examples/mspi_lite_openfix.py HEVC33 --photos PHOTOS --isp CHECKPOINT --out OUT [--folds 4]

For each fold by scene, and for all clips together, first the image stream's decoder is tuned on frames (and some
photographs), then the motion stream on clips. The frozen encoder sees every frame once, whatever the number of folds.
Writes OUT/fold<k>/image, /still (its maps averaged over time, without motion) and /video, and the same into OUT/all;
each is a checkpoint. What is there already is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import avsal
from avsal.data import FramePreprocessor, HEVC33DataModule, PhotosDataModule
from avsal.data.frames import resize_frames
from avsal.data.sets.photos import SIGMA, gaussians
from avsal.models.base import SaliencyModule, cosine_schedule
from avsal.models.isp import ISPModule
from avsal.models.mspi import FRAMES, MSPIModule

SETTINGS = Path(__file__).parent / "settings" / "mspi-lite-openfix.yaml"


@dataclass
class Clip:
    """A clip at one frame per step: what the frozen encoder and the motion stream see of it.

    Attributes:
        features: of the encoder's four maps, (n, c, h, w) float16.
        mirrored: the same of some frames mirrored left to right, by frame.
        small: (n, 3, h, w) uint8 frames of the motion stream's size.
        points: of each frame, (N, 2) x and y of the fixations in shares of the picture.
        size: (H, W) of the frames.
    """

    features: tuple[Tensor, ...]
    mirrored: dict[int, tuple[Tensor, ...]]
    small: Tensor
    points: list[Tensor]
    size: tuple[int, int]


def load_isp(source: str, size: Sequence[int]) -> ISPModule:
    """Return an image checkpoint that looks at pictures of the given area."""
    found = avsal.from_pretrained(source)
    isp = ISPModule(**{**found.hparams, "size": tuple(size)})
    isp.load_state_dict(found.state_dict())
    return isp.eval()


def encode(isp: ISPModule, frames: Tensor) -> tuple[Tensor, ...]:
    """Return the encoder's maps of uint8 frames (n, 3, H, W) as float16."""
    parts = []
    preprocess = FramePreprocessor(isp.spec)
    with torch.inference_mode():
        for batch in frames.split(8):
            parts.append(
                [m.half() for m in isp.network.encoder(preprocess.normalised(batch).transpose(0, 1))]
            )
    return tuple(torch.cat(maps).clone() for maps in zip(*parts, strict=True))


def read_clips(folder: Path, isp: ISPModule, settings: dict[str, Any]) -> dict[str, Clip]:
    """Return the clips of HEVC-33 by item name."""
    step, every = settings["model"]["step"], settings["frames"]["every"]
    preprocess = FramePreprocessor(isp.spec)
    clips = {}
    for item in HEVC33DataModule(folder, num_workers=0).all_items():
        opened = item.open(sound=False)
        assert opened.annotation is not None
        times = opened.frames.times[: opened.count]
        wanted = np.arange(0, times[-1] + 1e-6, step)
        chosen = np.unique(np.abs(times[None] - wanted[:, None]).argmin(1)).tolist()
        blocks = [chosen[k : k + 32] for k in range(0, len(chosen), 32)]
        frames = torch.cat([preprocess.resized(opened.frames.read(block)) for block in blocks])
        size = torch.tensor(opened.annotation.size)
        points = []
        for frame in chosen:
            found = opened.annotation.fixations(frame)
            where = torch.zeros(0, 2) if found is None else torch.from_numpy(found[0])
            points.append(((where + 0.5) / size).flip(1).float())
        opened.close()
        some = list(range(every // 2, len(frames), every))
        flipped = encode(isp, frames[some].flip(-1))
        clips[item.name] = Clip(
            encode(isp, frames),
            {frame: tuple(m[k : k + 1] for m in flipped) for k, frame in enumerate(some)},
            resize_frames(frames, tuple(settings["model"]["motion_size"])),
            points,
            (frames.shape[2], frames.shape[3]),
        )
        print(item.name, tuple(frames.shape), flush=True)
    return clips


def truth(points: Sequence[Tensor], size: tuple[int, int], flip: Sequence[bool]) -> dict[str, Tensor]:
    """Return density and fixations of frames on the maps' grid, a quarter of `size`."""
    grid = (size[0] // 4, size[1] // 4)
    maps, where = [], []
    for xy, mirrored in zip(points, flip, strict=True):
        if mirrored:
            xy = torch.stack([1 - xy[:, 0], xy[:, 1]], 1)
        maps.append(gaussians(xy, grid, (SIGMA * max(size) / 4,) * 2))
        where.append((xy.clamp(0, 0.9999) * torch.tensor([grid[1], grid[0]])).floor().long().flip(1))
    padded = torch.nn.utils.rnn.pad_sequence(where, batch_first=True, padding_value=-1)
    return {"density": torch.stack(maps)[:, None], "fixations": padded[:, None]}


def photographs(
    root: Path, isp: ISPModule, count: int
) -> list[tuple[tuple[Tensor, ...], Tensor, tuple[int, int]]]:
    """Return the encoder's maps, the fixations and the size of training photographs."""
    data = PhotosDataModule(root, sets=("osie", "eyecrowd"), spec=isp.spec, num_workers=0)
    photos = data.photos[:: max(1, len(data.photos) // count)][:count]
    preprocess = FramePreprocessor(isp.spec)
    found = []
    for photo in photos:
        picture = preprocess.resized(photo.pixels.permute(1, 2, 0)[None])
        found.append((encode(isp, picture), photo.points, (picture.shape[2], picture.shape[3])))
    return found


def fit(
    module: SaliencyModule, parameters: Sequence[Tensor], batches: list[Any], run: Any, lr: float
) -> None:
    """Train parameters on batches in their order; `run` gives a batch's output and truth. Keeps the weights' mean."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    scheduler = cosine_schedule(optimizer, len(batches))["scheduler"]
    for step, batch in enumerate(batches):
        output, labels = run(batch)
        terms = module.loss_terms(output, labels)
        optimizer.zero_grad()
        terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0 or step == len(batches) - 1:
            print(
                f"  {step}/{len(batches)}",
                {k: round(float(v.detach()), 3) for k, v in terms.items()},
                flush=True,
            )


def shuffled(groups: dict[Any, list[Any]], size: int, random: np.random.Generator) -> Iterator[list[Any]]:
    """Yield batches of members of one group each, in random order."""
    batches = []
    for members in groups.values():
        order = [members[k] for k in random.permutation(len(members))]
        batches += [order[k : k + size] for k in range(0, len(order), size)]
    yield from (batches[k] for k in random.permutation(len(batches)))


def tune_image(isp: ISPModule, clips: list[Clip], photos: list[Any], settings: dict[str, Any]) -> None:
    """Tune the decoder on frames of the clips and on photographs."""
    random = np.random.default_rng(0)
    groups: dict[Any, list[Any]] = {}
    for clip in clips:
        for frame, mirrored in clip.mirrored.items():
            if len(clip.points[frame]) >= 5:
                plain = tuple(m[frame : frame + 1] for m in clip.features)
                groups.setdefault(clip.size, []).append((plain, clip.points[frame], False))
                groups[clip.size].append((mirrored, clip.points[frame], True))
    for maps, points, size in photos:
        groups.setdefault(size, []).append((maps, points, False))
    decoder = isp.network.decoder
    assert decoder is not None
    sizes = {id(m): size for size, members in groups.items() for m in members}
    batches = [b for _ in range(settings["epochs"]) for b in shuffled(groups, settings["batch_size"], random)]

    def run(batch: list[Any]) -> Any:
        maps = [torch.cat(level).float() for level in zip(*(one[0] for one in batch), strict=True)]
        labels = truth([one[1] for one in batch], sizes[id(batch[0])], [one[2] for one in batch])
        return isp.network.output(decoder(*maps)), labels

    decoder.train()
    fit(isp, list(decoder.parameters()), batches, run, settings["lr"])
    isp.eval()


def image_maps(network: Any, clip: Clip) -> Tensor:
    """Return what the image stream says of each frame: log-densities (n, 1, h, w)."""
    decoded = []
    with torch.inference_mode():
        for k in range(0, len(clip.small), 16):
            decoded.append(network.image_decoder(*(m[k : k + 16].float() for m in clip.features)))
    logits = torch.cat(decoded).clone()
    return logits - logits.logsumexp((-2, -1), keepdim=True)


def train_motion(module: MSPIModule, clips: list[Clip], settings: dict[str, Any]) -> None:
    """Train everything but the image stream on one random clip of each video and epoch."""
    random = np.random.default_rng(0)
    network = module.network
    maps = {id(clip): image_maps(network, clip) for clip in clips}
    groups: dict[Any, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.size, []).append(clip)
    batches = [b for _ in range(settings["epochs"]) for b in shuffled(groups, settings["batch_size"], random)]
    preprocess = FramePreprocessor(module.spec)

    def run(batch: list[Clip]) -> Any:
        videos, priors, points, flips = [], [], [], []
        for clip in batch:
            seen = [k for k, p in enumerate(clip.points) if len(p) >= 5]
            target, flip = int(random.choice(seen)), bool(random.random() < 0.5)
            window = np.clip(np.arange(target - FRAMES + 1, target + 1), 0, None)
            video, prior = preprocess.normalised(clip.small[window]), maps[id(clip)][window]
            video = video * (1 + 0.2 * random.uniform(-1, 1)) + 0.2 * random.uniform(-1, 1)
            videos.append(video.flip(-1) if flip else video)
            priors.append(prior.flip(-1) if flip else prior)
            points.append(clip.points[target])
            flips.append(flip)
        output = network.integrate(torch.stack(videos).float(), (torch.stack(priors),), None)
        return output, truth(points, batch[0].size, flips)

    module.train()
    fit(module, [p for p in network.parameters() if p.requires_grad], batches, run, settings["lr"])
    module.eval()


def train(isp_source: str, clips: list[Clip], photos: list[Any], settings: dict[str, Any], out: Path) -> None:
    """Train the image stream, then the video network, and write both."""
    began = time.perf_counter()
    torch.manual_seed(0)
    isp = load_isp(isp_source, settings["model"]["size"])
    tune_image(isp, clips, photos, settings["frames"])
    isp.save_pretrained(out / "image")
    video = MSPIModule(**settings["model"])
    network = video.network
    network.image_encoder.load_state_dict(isp.network.encoder.state_dict())  # type: ignore[union-attr]
    network.image_decoder.load_state_dict(isp.network.decoder.state_dict())  # type: ignore[union-attr]
    train_motion(video, clips, settings["motion"])
    video.save_pretrained(out / "video")
    for parameter in network.readout.map.parameters():
        torch.nn.init.zeros_(parameter)
    video.save_pretrained(out / "still")
    print(
        f"{out}: {time.perf_counter() - began:.0f} s; weights of the past {network.history.softmax(0).tolist()}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train the folds' networks and the one of all clips."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of HEVC-33")
    parser.add_argument("--photos", type=Path, required=True, help="the folder that holds osie and eyecrowd")
    parser.add_argument("--isp", default="isp-lite-openfix", help="the image checkpoint to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=4)
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    isp = load_isp(args.isp, settings["model"]["size"])
    clips = read_clips(args.folder, isp, settings)
    photos = photographs(args.photos, isp, settings["frames"]["photos"])
    held: dict[str, set[str]] = {"all": set()}
    for fold in range(1, args.folds + 1):
        data = HEVC33DataModule(args.folder, fold=fold, folds=args.folds, num_workers=0)
        held[f"fold{fold}"] = {item.name for item in data.split_items("test")}
    for name, test in held.items():
        if not (args.out / name / "video" / "model.safetensors").is_file():
            chosen = [clip for key, clip in clips.items() if key not in test]
            train(args.isp, chosen, photos, settings, args.out / name)


if __name__ == "__main__":
    main()
