"""Builds the speaker stream around a visual checkpoint and trains its gate on the talking people of HEVC-33.

    python examples/speaker_gate.py HEVC33 --base mspi-lite-openfix --fold-bases "OPENFIX/fold{fold}/video" \
        --detector rfb320_face.pt --asd light_asd_ava.pt --cache FOLDER --out OUT

The gate is small: six of its numbers are trained, by KL - CC - NSS / 10 on the 12 clips of talking people, every
clip the same weight; HEVC-33 is silent, so the two weights of the sound are not touched (docs/models/speaker.md
says where they are from). First the base network's maps and the faces' scores of every twelfth frame are stored in
the cache: minutes for each clip, and what is there is kept. The training takes a minute. `--fold-bases` names the
networks that were trained without the clips of their fold (examples/mspi_lite_openfix.py makes them): a map of a clip
that its network has learnt makes the gate look useless. Before it trains on all clips the gate is cross-validated by
scene family (leave one of three out; each is in one fold), and the table is printed.

Writes OUT/all, the base with the gate of all clips, and for each fold OUT/fold<k>: its base network with a gate that
was trained without the fold's clips too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import avsal
from avsal.data.sets.video_database import HEVC33DataModule
from avsal.inference.video import VideoPrediction
from avsal.losses import correlation, fixation_map, kl_divergence, scanpath_saliency
from avsal.models.base import SaliencyModule, model_name
from avsal.models.speaker import GATE, SpeakerGate, SpeakerModule
from avsal.report.statistics import interval, resamples

#: The clips of talking people, by scene family: same rooms and people.
FAMILIES = (
    ("Yan", "Simo", "Male", "Female", "Lee", "Couple"),
    ("Johnny", "KristenAndSara", "FourPeople"),
    ("Vidyo1", "Vidyo3", "Vidyo4"),
)
TRAINED = ("strength", "rest", "slope", "down", "width", "height")
FOLDS, STEPS, BATCH = 4, 80, 32
#: Distance of the frames that are used: whole steps of 0.08 s at 25 and 50 frames per second, half ones at 60, so that
#: MSPI's windows share their frames.
STRIDE = 12


def assemble(base: SaliencyModule, detector: str, asd: str) -> SpeakerModule:
    """Return the speaker stream around a module, with the published weights of its parts."""
    module = SpeakerModule(model_name(base), dict(base.hparams))
    module.network.base.load_state_dict(base.network.state_dict())
    module.network.detector.load_published(SaliencyModule.read_weights(detector))
    module.network.asd.load_published(SaliencyModule.read_weights(asd))
    return module.eval()


def collect(args: argparse.Namespace, clips: dict[str, Any], fold: dict[str, int]) -> None:
    """Store every clip's base maps, faces and scores."""
    args.cache.mkdir(parents=True, exist_ok=True)
    for name, item in clips.items():
        path = args.cache / f"{name}.npz"
        if path.exists():
            continue
        source = args.fold_bases.format(fold=fold[name]) if args.fold_bases else args.base
        module = assemble(avsal.from_pretrained(source), args.detector, args.asd)
        frames, base, boxes, scores = [], [], [], []
        for result in VideoPrediction(module, item.files[0], stride=STRIDE, keep_aux=True):
            frames.append(result.index)
            base.append(result.aux["base"][0].half().numpy())
            known = result.aux["tracks"] >= 0
            boxes.append(result.aux["faces"][known].numpy())
            scores.append(result.aux["scores"][known].numpy())
        most = max(len(row) for row in boxes)
        np.savez_compressed(
            path, frames=frames, base=base, boxes=padded(boxes, most), scores=padded(scores, most)
        )
        print(f"{name}: {len(frames)} frames, at most {most} faces", flush=True)


def padded(rows: list[np.ndarray], most: int) -> np.ndarray:
    """Return (frames, most, n) from rows of different lengths; NaN where there is nothing."""
    return np.stack([np.pad(r, ((0, most - len(r)), (0, 0)), constant_values=np.nan) for r in rows])


def load(args: argparse.Namespace, name: str, item: Any) -> dict[str, torch.Tensor]:
    """Return a clip's base maps and truths on one grid: base, density, fixations (F, h, w), boxes and scores."""
    stored = {
        key: torch.from_numpy(value).float() for key, value in np.load(args.cache / f"{name}.npz").items()
    }
    annotation = item.open_annotation()
    frames = stored["frames"].long().tolist()
    size = (round(annotation.size[0] / 4), round(annotation.size[1] / 4))
    density, points, kept = [], [], []
    for row, frame in enumerate(frames):
        where, _ = annotation.fixations(frame)
        if len(where) < 3:
            continue
        kept.append(row)
        density.append(torch.from_numpy(annotation.density_at(frame, size)))
        cells = torch.from_numpy(np.floor((where + 0.5) * np.array(size) / np.array(annotation.size))).long()
        points.append(fixation_map(cells[None], size)[0])
    base = F.interpolate(stored["base"][kept][:, None].exp(), size, mode="bilinear")[:, 0]
    return {
        "base": base / base.sum((1, 2), keepdim=True), "density": torch.stack(density), "points": torch.stack(points),
        "boxes": stored["boxes"][kept], "scores": stored["scores"][kept],
    }  # fmt: skip


def measures(
    gate: SpeakerGate | None, clip: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return KL, CC and NSS of each frame."""
    maps = clip["base"]
    if gate is not None:
        maps = maps * gate(clip["scores"], clip["boxes"], (maps.shape[1], maps.shape[2]))
    maps, truth = maps[:, None], clip["density"][:, None]
    return (
        kl_divergence(maps, truth),
        correlation(maps, truth),
        scanpath_saliency(maps, clip["points"][:, None]),
    )


def fit(clips: list[dict[str, torch.Tensor]]) -> SpeakerGate:
    """Return a gate trained on clips, each frame drawn from a random clip."""
    generator = torch.Generator().manual_seed(0)
    gate = SpeakerGate()
    optimizer = torch.optim.Adam(
        [{"params": [getattr(gate, name)], "lr": 0.05 * GATE[name][0]} for name in TRAINED]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        loss = torch.zeros(())
        for clip in clips:
            rows = torch.randint(len(clip["base"]), (max(BATCH // len(clips), 2),), generator=generator)
            kl, cc, nss = measures(gate, {key: value[rows] for key, value in clip.items()})
            loss = loss + (kl - cc - nss / 10).mean() / len(clips)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name in TRAINED:
                getattr(gate, name).copy_(gate.value(name))
    return gate


def main() -> None:
    """Collect, cross-validate, train on all clips, write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of HEVC-33")
    parser.add_argument("--base", required=True, help="the visual checkpoint of the result")
    parser.add_argument("--fold-bases", help="their checkpoints, with {fold} for the number, 1 to 4")
    parser.add_argument("--detector", required=True, help="RFB-320's weights")
    parser.add_argument("--asd", required=True, help="Light-ASD's weights, of AVA-ActiveSpeaker")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    talking = [name for family in FAMILIES for name in family]
    clips: dict[str, Any] = {}
    fold: dict[str, int] = {}
    for number in range(1, FOLDS + 1):
        for item in HEVC33DataModule(args.folder, fold=number, folds=FOLDS, num_workers=0).split_items(
            "test"
        ):
            name = item.name.partition("/")[2]
            if name in talking:
                clips[name], fold[name] = item, number
    collect(args, clips, fold)
    data = {name: load(args, name, item) for name, item in clips.items()}
    rows: dict[str, list[float]] = {}
    for family in FAMILIES:
        gate = fit([data[name] for name in talking if name not in family])
        alike = fit(
            [
                {**data[n], "scores": torch.nan_to_num(data[n]["scores"]) * 0}
                for n in talking
                if n not in family
            ]
        )
        with torch.no_grad():
            for name in family:
                same = {**data[name], "scores": data[name]["scores"] * 0}
                rows[name] = [
                    float(value.mean())
                    for one, clip in ((None, data[name]), (alike, same), (gate, data[name]))
                    for value in measures(one, clip)[1:]
                ]
    print(
        "| clip | base CC | NSS | faces alike CC | NSS | by who speaks CC | NSS |\n|---|---|---|---|---|---|---|"
    )
    for name, values in [*rows.items(), ("mean", np.mean(list(rows.values()), 0).tolist())]:
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    table = np.array(list(rows.values()))
    for title, more, less in (("by who speaks - base", 4, 0), ("by who speaks - faces alike", 4, 2)):
        for metric, column in (("CC", 0), ("NSS", 1)):
            gain = table[:, more + column] - table[:, less + column]
            low, high = interval(resamples(len(gain)) @ gain / len(gain))
            print(f"{title}, {metric}: {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    held: dict[str, set[str]] = {"all": set()}
    if args.fold_bases:
        held |= {f"fold{k}": {name for name in talking if fold[name] == k} for k in range(1, FOLDS + 1)}
    for name, without in held.items():
        gate = fit([clip for other, clip in data.items() if other not in without])
        print(name, {key: round(gate.value(key).item(), 3) for key in GATE})
        source = args.base if name == "all" else args.fold_bases.format(fold=name.removeprefix("fold"))
        module = assemble(avsal.from_pretrained(source), args.detector, args.asd)
        module.network.gate.load_state_dict(gate.state_dict())
        module.save_pretrained(args.out / name, dtype=torch.float16)


if __name__ == "__main__":
    main()
