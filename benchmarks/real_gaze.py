"""Checkpoints on real gaze: photographs, HEVC-33 and your own folders, beside priors and the observers themselves.

    python -m benchmarks.real_gaze CHECKPOINT… --photos FOLDER --hevc33 FOLDER [--folder FOLDER…] [--out FILE]

A checkpoint is a name of the zoo, a file or a folder, perhaps as LABEL=CHECKPOINT; `{fold}` in it stands for the
fold (1 to --folds) of HEVC-33 that the clip is held out of: a cross-validated row, which also stands for the
checkpoint of the zoo that the label begins with, where that has seen the clips. Maps come from
`avsal.inference.video.predict_video`, so a row is what `avsal predict` gives. Photographs are the "test" pictures of
`photos_splits.json`, with all fixations; densities have a Gaussian of 1/30 of the width. Intervals are percentile
bootstraps over pictures or clips. `--pair FIRST SECOND` adds the difference of two rows over the same clips, of all of
them, of groups of them, and each clip's. `--pictures` draws the worst predictions beside the observers' maps, without
the pictures themselves.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import avsal
from avsal.checkpoints.registry import entries
from avsal.data import FolderDataModule, HEVC33DataModule, PhotosDataModule
from avsal.data.items import Annotation, VideoItem
from avsal.files import write_text
from avsal.inference.video import VideoPrediction, predict_video
from avsal.losses import correlation
from avsal.metrics.saliency import SaliencyMetrics
from avsal.models.base import SaliencyModule
from avsal.models.baselines import BaselineModule
from avsal.report.statistics import Units, interval, paired, resamples
from avsal.types import Batch, ClipSpec

METRICS = ("cc", "nss", "auc_judd", "sauc", "sim")
HEADS = {
    "cc": "CC", "nss": "NSS", "auc_judd": "AUC-Judd", "sauc": "sAUC", "sim": "SIM", "steady": "steadiness",
    "adjacent": "frame to frame",
}  # fmt: skip
#: So many adjacent frames from the middle of a clip give its frame-to-frame steadiness.
BURST = 30
#: The clips of HEVC-33 that show people who talk; the speaker stream's gate is trained on them.
TALKING = (
    "Yan", "Simo", "Male", "Female", "Lee", "Couple", "Johnny", "KristenAndSara", "FourPeople", "Vidyo1", "Vidyo3",
    "Vidyo4",
)  # fmt: skip
SIZE = (72, 96)  #: of the priors' maps
Rows = dict[str, dict[str, dict[str, float]]]  #: system -> picture or clip -> metric -> value
Maps = Iterator[tuple[int, Tensor]]


@dataclass
class Part:
    """One set of real gaze.

    Attributes:
        name: heading of its table.
        items: what is scored, with the fold that holds each out (0 where there are none).
        train: what the fitted prior of a fold sees.
        data: names in the registry that say that a checkpoint has seen the set.
        stride: distance of the scored frames.
        groups: names of items, by a heading, that `--pair` also compares on their own.
    """

    name: str
    items: list[tuple[VideoItem, int]]
    train: Callable[[int], Sequence[VideoItem]]
    data: tuple[str, ...]
    stride: int
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)


def score(item: VideoItem, video_id: int, maps: Callable[[Annotation], Maps]) -> dict[str, float]:
    """Return the mean metrics of one picture or clip; "steady" is the CC of maps one stride apart."""
    assert item.open_annotation is not None
    annotation = item.open_annotation()
    metrics = SaliencyMetrics(METRICS)
    union = torch.from_numpy(annotation.union())
    last, steady = None, []
    for frame, found in maps(annotation):
        density, fixations = annotation.density(frame), annotation.fixations(frame)
        if last is not None:
            steady.append(float(correlation(found, last)))
        last = found
        if density is None or fixations is None:
            continue
        here = torch.from_numpy(fixations[0])
        negatives = union[~(union[:, None] == here[None]).all(-1).any(1)] if len(here) else union
        metrics.update(
            found[None],
            torch.from_numpy(density)[None],
            here[None],
            negatives[None],
            video_id,
            torch.tensor([frame]),
        )
    return {**metrics.compute(), "steady": float(np.mean(steady)) if steady else float("nan")}


def predicted(module: SaliencyModule, item: VideoItem, stride: int) -> Callable[[Annotation], Maps]:
    """Return what gives the network's maps of an item."""

    def maps(_: Annotation) -> Maps:
        for result in predict_video(module, item.files[0], stride=stride):
            yield result.index, result.map

    return maps


def adjacent(maps: Iterator[Tensor]) -> dict[str, float]:
    """Return "adjacent": the mean CC of each map with the next."""
    found = list(itertools.islice(maps, BURST))
    values = [float(correlation(one, next)) for one, next in itertools.pairwise(found)]
    return {"adjacent": float(np.mean(values)) if values else float("nan")}


def middle(item: VideoItem) -> int:
    """Return the first frame of the burst in the middle of a clip."""
    return max((item.counted().frames or 1) // 2 - BURST // 2, 0)


def scored(module: SaliencyModule, item: VideoItem, video_id: int, stride: int) -> dict[str, float]:
    """Score a network's maps of an item, and of a video also its frame-to-frame steadiness."""
    found = score(item, video_id, predicted(module, item, stride))
    if stride > 1:
        burst = VideoPrediction(module, item.files[0], begin=middle(item))
        found |= adjacent(result.map for result in burst)
        burst.close()
    return found


def constant(module: BaselineModule, item: VideoItem, stride: int) -> Callable[[Annotation], Maps]:
    """Return what gives a prior's map for every frame."""
    prior = module.network.core(torch.zeros(1, 3, 1, *SIZE)).saliency()[0, 0]
    return lambda _: ((frame, prior) for frame in range(0, item.counted().frames or 1, stride))


def observers(item: VideoItem, video_id: int, stride: int) -> dict[str, float]:
    """Score half of the observers by the other half; "steady" is that of all observers' density."""
    assert item.open_annotation is not None
    annotation = item.open_annotation()
    module = BaselineModule("observers", SIZE, blur=1 / 30)
    metrics, last, steady = module.metrics("test"), None, []
    for frame in range(0, item.counted().frames or 1, stride):
        density, fixations = annotation.density(frame), annotation.fixations(frame)
        if density is None or fixations is None:
            continue
        whole = torch.from_numpy(density)
        if last is not None:
            steady.append(float(correlation(whole, last)))
        last = whole
        batch = Batch(
            video=torch.zeros(1, 3, 1, *SIZE), density=whole[None, None],
            fixations=torch.from_numpy(fixations[0])[None, None],
            observer=torch.from_numpy(fixations[1])[None, None], labelled=torch.ones(1, 1, dtype=torch.bool),
            negatives=torch.from_numpy(annotation.union())[None, None], video_id=torch.tensor([video_id]),
            frame=torch.tensor([[frame]]), video_name=[item.name],
        )  # fmt: skip
        module.test_step(batch, 0)
    values = metrics.compute()
    burst = (annotation.density(frame) for frame in range(middle(item), item.counted().frames or 1))
    return {
        **{name: float(values[name]) for name in METRICS},
        "steady": float(np.mean(steady)) if steady else float("nan"),
        **adjacent(torch.from_numpy(one) for one in burst if one is not None),
    }


def fitted(items: Sequence[VideoItem], stride: int) -> BaselineModule:
    """Return the mean density of items, mirrored or not."""
    module = BaselineModule("fitted_centre", SIZE)
    for item in items:
        assert item.open_annotation is not None
        annotation = item.open_annotation()
        draw = getattr(annotation, "density_at", None) or (lambda frame, _: annotation.density(frame))  # noqa: B023
        found = [draw(frame, SIZE) for frame in range(0, item.counted().frames or 1, stride * 3)]
        if maps := [torch.from_numpy(one) for one in found if one is not None]:
            both = torch.stack(maps + [one.flip(-1) for one in maps])[:, None]
            module.training_step(Batch(density=F.interpolate(both, SIZE, mode="area")), 0)
    return module


@cache
def load(source: str) -> SaliencyModule:
    """Return a checkpoint's module, read once."""
    return avsal.from_pretrained(source).eval()


def run(part: Part, checkpoints: Mapping[str, str], cached: Path) -> Rows:
    """Score the priors, the observers and the checkpoints; what `cached` has is not scored again."""
    rows: Rows = json.loads(cached.read_text()) if cached.is_file() else {}
    priors = {"uniform": BaselineModule("uniform", SIZE), "centre prior": BaselineModule("centre", SIZE)}
    fits = cache(lambda fold: fitted(part.train(fold), part.stride))

    def still(item: VideoItem, k: int, prior: BaselineModule) -> dict[str, float]:
        return {**score(item, k, constant(prior, item, part.stride)), "adjacent": 1.0}

    systems: dict[str, Callable[[VideoItem, int, int], dict[str, float]]] = {
        name: lambda item, k, _, m=module: still(item, k, m)  # type: ignore[misc]
        for name, module in priors.items()
    }
    systems["fitted prior"] = lambda item, k, fold: still(item, k, fits(fold))
    for label, source in checkpoints.items():
        if "{fold}" in source and not any(fold for _, fold in part.items):
            continue
        if seen(source, part) and any(other.startswith(label) for other in checkpoints if other != label):
            continue  # its cross-validated recipe stands for it
        systems[label] = lambda item, k, fold, s=source: scored(  # type: ignore[misc]
            load(s.replace("{fold}", str(fold))), item, k, part.stride
        )
    systems["half of the observers"] = lambda item, k, _: observers(item, k, part.stride)
    for name, system in systems.items():
        if name in rows:
            continue
        began = time.perf_counter()
        rows[name] = {item.name: system(item, k, fold) for k, (item, fold) in enumerate(part.items)}
        means = {m: round(float(np.nanmean([v[m] for v in rows[name].values()])), 3) for m in ("cc", "nss")}
        print(f"{part.name}: {name} {means}, {time.perf_counter() - began:.0f} s", flush=True)
        write_text(cached, json.dumps(rows))
    return {name: rows[name] for name in systems}


def table(rows: Rows, against: str, columns: Sequence[str] = METRICS) -> list[str]:
    """Return the lines of a Markdown table: mean [95 % interval], and the paired difference to one row below it."""

    def units(name: str, metric: str) -> Units:
        kept = sorted(c for c in rows[name] if all(np.isfinite(rows[n][c][metric]) for n in (name, against)))
        values = np.array([[rows[name][clip][metric]] for clip in kept])
        return Units(tuple(kept), values, np.ones_like(values))

    lines = ["| maps | " + " | ".join(HEADS[c] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in rows:
        cells, differences = [], []
        for metric in columns:
            one = units(name, metric)
            if not one.names:
                cells.append("-")
                differences.append("-")
                continue
            low, high = interval(one.draws(resamples(len(one.names))))
            cells.append(f"{one.mean():.3f} [{low:.3f}, {high:.3f}]")
            by, low, high = paired(one, units(against, metric))
            differences.append(f"{by:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if name not in (against, "uniform", "centre prior", "fitted prior"):
            lines.append(f"| _minus {against}_ | " + " | ".join(differences) + " |")
    return lines


def pair_tables(rows: Rows, first: str, second: str, part: Part, columns: Sequence[str]) -> list[str]:
    """Return the tables of one row against another, of all items and of each group."""
    lines = []
    names = frozenset(rows[first])
    for heading, kept in {"": names, **part.groups}.items():
        among = {n: {c: v for c, v in rows[n].items() if c in kept} for n in (first, second)}
        where = f", {heading}" if heading else ""
        lines += [f"Against {first}{where}:", "", *table(among, first, columns), ""]
    return lines


def item_table(rows: Rows, labels: Sequence[str]) -> list[str]:
    """Return the lines of a table of each item's CC and NSS, for some rows."""
    heads = [f"{label}: {HEADS[metric]}" for label in labels for metric in ("cc", "nss")]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for item in sorted(rows[labels[0]]):
        cells = [f"{rows[label][item][metric]:.3f}" for label in labels for metric in ("cc", "nss")]
        lines.append(f"| {item.rpartition('/')[2]} | " + " | ".join(cells) + " |")
    return lines


def draw_worst(part: Part, rows: Rows, label: str, source: str, folder: Path, count: int = 3) -> None:
    """Write PNG files: the network's map beside the observers', of the items with the lowest CC."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    items = {item.name: (item, fold) for item, fold in part.items}
    for name in sorted(rows[label], key=lambda n: rows[label][n]["cc"])[:count]:
        item, fold = items[name]
        assert item.open_annotation is not None
        annotation = item.open_annotation()
        module = load(source.replace("{fold}", str(fold)))
        wanted = (item.counted().frames or 1) // 2 // part.stride * part.stride
        found = next(m for k, m in predicted(module, item, part.stride)(annotation) if k >= wanted)
        truth = annotation.density(wanted)
        if truth is None:
            continue
        panels = [
            F.interpolate(m[None, None], (120, 200), mode="bilinear")[0, 0]
            for m in (found, torch.from_numpy(truth))
        ]
        sheet = torch.cat([p / p.max().clamp_min(1e-12) for p in panels], 1)
        pixels = (sheet * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{name.replace('/', '-')}.png", optimize=True)


def _same(items: list[VideoItem], fold: int) -> list[VideoItem]:
    return items


def parts_of(args: argparse.Namespace) -> list[Part]:
    """Return the sets that the arguments name."""
    parts = []
    spec = ClipSpec(frames=1, size=SIZE)
    if args.photos:
        sets = [path.parent.name for path in sorted(Path(args.photos).glob("*/fixations.csv.gz"))]
        photos = PhotosDataModule(args.photos, sets=sets, spec=spec, num_workers=0)
        test = [(item, 0) for item in photos.split_items("test")]
        title = f"Photographs ({len(test)} held out of {', '.join(sets)})"
        parts.append(Part(title, test, lambda _: photos.split_items("train")[::4], (), 1))
    if args.hevc33:
        folds = {
            k: HEVC33DataModule(args.hevc33, fold=k, folds=args.folds, spec=spec, num_workers=0)
            for k in range(1, args.folds + 1)
        }
        clips = [(item, k) for k, data in folds.items() for item in data.split_items("test")]
        names = frozenset(item.name for item, _ in clips)
        talking = frozenset(name for name in names if name.rpartition("/")[2] in TALKING)
        parts.append(
            Part(
                "HEVC-33 (33 silent clips, 32 observers)",
                clips,
                lambda k: [*folds[k].split_items("train"), *folds[k].split_items("val")],
                ("HEVC-33",),
                args.stride,
                {"clips of talking people": talking, "the other clips": names - talking},
            )
        )
    for folder in args.folder:
        mine = FolderDataModule(folder, spec=spec, num_workers=0).split_items("test")
        title = f"{Path(folder).name} ({len(mine)} videos)"
        parts.append(Part(title, [(item, 0) for item in mine], partial(_same, mine), (), args.stride))
    return parts


def seen(source: str, part: Part) -> bool:
    """Say whether a checkpoint of the registry was trained on the set, the scored items included or not."""
    entry = entries().get(source)
    return entry is not None and bool(set(part.data) & set(entry.data))


def main(argv: Sequence[str] | None = None) -> None:
    """Score and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_gaze", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="[LABEL=]name, file or folder")
    parser.add_argument("--photos", help="folder of sets with images and fixations.csv.gz, such as osie")
    parser.add_argument("--hevc33", help="folder of HEVC-33")
    parser.add_argument("--folder", action="append", default=[], help="a folder of your own (docs/data.md)")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"),
        help="labels of two rows: add the difference of the second from the first",
    )  # fmt: skip
    parser.add_argument("--stride", type=int, default=20, help="distance of the scored frames of videos")
    parser.add_argument(
        "--work", type=Path, default=Path("out/real_gaze"), help="scores of each row, for going on"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_gaze.md"))
    parser.add_argument("--notes", type=Path, help="Markdown to put below the tables")
    parser.add_argument(
        "--pictures", type=Path, help="draw the last checkpoint's worst predictions into this folder"
    )
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    checkpoints = dict(one.split("=", 1) if "=" in one else (one, one) for one in args.checkpoints)
    lines = ["# Real gaze", "", __doc__.partition("\n\n")[2].partition("\n\n")[2].strip(), ""]
    for number, part in enumerate(parts_of(args)):
        rows = run(part, checkpoints, args.work / f"part{number}.json")
        marked = {
            (f"{n} (trained on this set)" if seen(checkpoints.get(n, ""), part) else n): r
            for n, r in rows.items()
        }
        columns = (*METRICS, "steady", "adjacent") if part.stride > 1 else METRICS
        lines += [f"## {part.name}", "", *table(marked, "fitted prior", columns), ""]
        if part.stride > 1:
            lines += [
                f"Steadiness: mean CC of maps {part.stride} frames apart; frame to frame: of each map with the next, "
                f"{BURST} adjacent frames from the middle of each clip. The observers' is that of all their density.",
                "",
            ]
        pairs = [pair for pair in args.pair if set(pair) <= set(rows)]
        for first, second in pairs:
            lines += pair_tables(rows, first, second, part, columns)
        if pairs:
            lines += [*item_table(rows, list(dict.fromkeys(itertools.chain(*pairs)))), ""]
        if args.pictures:
            label = next(n for n in reversed(list(rows)) if n in checkpoints)
            draw_worst(part, rows, label, checkpoints[label], args.pictures)
    if args.notes:
        lines += [args.notes.read_text(encoding="utf-8").strip(), ""]
    write_text(args.out, "\n".join(lines))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
