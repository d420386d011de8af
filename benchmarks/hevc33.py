"""HEVC-33, cross-validated by scene: the small visual-only STAViS on real gaze, against its lower and upper bounds.

    python -m benchmarks.hevc33 FOLDER [--folds 4] [--epochs 100] [--start CHECKPOINT] [--out FILE] [--ship FILE]

FOLDER holds `video_database.mat` and the clips. Clips of one scene family stay in one fold. The network
starts from random weights or from the checkpoint `--start`. Its settings were chosen on inner splits (DEVELOPMENT below
names the clips that took part), so the table also has the clips that took none. Every row of the table is scored on the
same frames at the clip's own size with the package's defaults; densities have a Gaussian of 1/30 of the width, which is
about one degree (the set states no viewing distance in its files). Intervals are percentile bootstraps over the clips.
`--ship` trains on all clips with the same recipe and writes the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F

import avsal
from avsal.data.items import VideoItem
from avsal.data.module import SaliencyDataModule, Split
from avsal.data.pack import packed_items
from avsal.data.sets.video_database import HEVC33DataModule
from avsal.files import write_text
from avsal.models.base import SaliencyModule
from avsal.models.baselines import BaselineModule, Prior
from avsal.models.stavis import STAViSModule
from avsal.report.statistics import Units, interval, paired, resamples

METRICS = ("cc", "nss", "auc_judd", "sauc", "sim")
#: Clips that show the same scene: the same recording with text or at two sizes, or the same rooms and people (as their
#: pictures show, not their names).
FAMILIES = (
    r"BasketballDrill", r"RaceHorses", r"Vidyo", r"Yan|Simo|Male|Female|Lee|Couple",
    r"Johnny|KristenAndSara|FourPeople",
)  # fmt: skip
SIZE, PRIOR = (72, 96), (9, 12)
NETWORK: dict[str, Any] = {
    "audiovisual": False, "size": SIZE, "via": None, "width": 16, "blocks": (1, 2, 2), "dsam_maps": 8, "prior": PRIOR,
    "optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01, "loss_weights": (0.001, 2.0, 1.0),
}  # fmt: skip
#: The clips on which the settings above were compared, by networks that had not seen them.
DEVELOPMENT = (
    "BQMall", "BQSquare", "BasketballDrive", "BlowingBubbles", "ChinaSpeed", "Couple", "Female", "Keiba",
    "KristenAndSara", "Lee", "ParkScene", "PartyScene", "Simo", "SlideShow",
)  # fmt: skip
#: What the final convolution is multiplied by after training.
SHRINK = 0.4
RATE = 1e-3


def family(name: str) -> str:
    """Return the scene family of a clip; most clips are alone in theirs."""
    return next((pattern for pattern in FAMILIES if re.match(pattern, name)), name)


def assign(names: Sequence[str], folds: int, seed: int = 0) -> dict[str, int]:
    """Return the fold (from 0) of each clip: families stay together, folds differ by few clips.

    The families are dealt out largest first, in a random order, each to the fold that has the fewest clips.
    """
    members: dict[str, list[str]] = {}
    for name in sorted(names):
        members.setdefault(family(name), []).append(name)
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    order.sort(key=lambda one: -len(members[one]))
    sizes = [0] * folds
    fold: dict[str, int] = {}
    for one in order:
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(members[one])
        fold |= dict.fromkeys(members[one], smallest)
    return fold


class ChosenClips(SaliencyDataModule):
    """Given videos as the training, validation and test splits."""

    def __init__(
        self, videos: Mapping[str, VideoItem], train: Sequence[str], test: Sequence[str], **options: Any
    ) -> None:
        super().__init__(None, num_workers=0, **options)
        self._videos, self._names = videos, {"train": train, "val": test, "test": test}

    def items(self, split: Split) -> list[VideoItem]:
        """Return the videos of a split."""
        return [self._videos[name] for name in self._names[split]]


class Jitter(L.Callback):
    """Change contrast, brightness and colour balance of every training clip at random."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Change `batch["video"]`."""
        video = batch["video"]
        mean = video.new_tensor(pl_module.spec.mean).view(1, 3, 1, 1, 1)
        contrast, brightness = (1 + self.strength * (2 * torch.rand(2, len(video), 1, 1, 1, 1) - 1)).to(video)
        colour = (1 + self.strength * (torch.rand(len(video), 3, 1, 1, 1) - 0.5)).to(video)
        grey = (video + mean).mean((1, 2, 3, 4), keepdim=True)
        batch["video"] = ((video + mean - grey) * contrast + grey) * colour * (0.5 + brightness / 2) - mean


class Bench:
    """Trains and scores on parts of the packed clips."""

    def __init__(self, folder: Path, cache: Path, epochs: int, stride: int) -> None:
        self.epochs, self.stride = epochs, stride
        spec = STAViSModule(**NETWORK).spec
        if not cache.exists():
            HEVC33DataModule(folder, num_workers=0).pack(cache, spec)
        items = [item for split in ("train", "val", "test") for item in packed_items(cache, split, spec)]
        self.videos = {item.name.partition("/")[2]: item for item in items}

    def data(self, train: Sequence[str], test: Sequence[str]) -> ChosenClips:
        """Return the data: one clip from each video and epoch, so that every video counts the same."""
        return ChosenClips(
            self.videos, train, test, segment=None, eval_batch_size=16, test_stride=self.stride
        )

    def trainer(self, epochs: int, **options: Any) -> L.Trainer:
        """Return a trainer that leaves no files."""
        return L.Trainer(
            max_epochs=epochs, accelerator="auto", logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False, limit_val_batches=0, num_sanity_val_steps=0, **options,
        )  # fmt: skip

    def centre(self, train: Sequence[str]) -> BaselineModule:
        """Return the mean map of the training clips, 20 random frames of each, mirrored or not."""
        module = BaselineModule("fitted_centre", SIZE)
        self.trainer(20).fit(module, self.data(train, train))
        return module

    def prior_alone(self, module: STAViSModule) -> BaselineModule:
        """Return the network's learned prior without the convolutions: what it owes to the centre."""
        assert module.network.prior is not None
        alone = BaselineModule("centre", SIZE)
        enlarged = F.interpolate(module.network.prior.detach(), SIZE, mode="bilinear")[0, 0]
        cast(Prior, alone.network).density.copy_(enlarged.flatten().softmax(0).view(SIZE))
        return alone

    def network(self, train: Sequence[str], start: str | None, centre: BaselineModule) -> STAViSModule:
        """Train a network on the given clips; its prior begins as their mean map, made symmetric."""
        L.seed_everything(0, verbose=False)
        module = STAViSModule(**NETWORK, lr=RATE)
        if start:
            module.initialise_from(start)
        mean = cast(Prior, centre.network).density.detach()
        mean = F.interpolate((mean + mean.flip(-1))[None, None], PRIOR, mode="area").clamp_min(1e-9).log()
        assert module.network.prior is not None
        module.network.prior.data.copy_(mean - mean.max())
        trainer = self.trainer(self.epochs, gradient_clip_val=1.0, callbacks=[Jitter(0.3)])
        trainer.fit(module, self.data(train, train))
        # What was learnt from a few dozen scenes is trusted in part only: it multiplies the prior as a root.
        with torch.no_grad():
            for parameter in module.network.fuse.parameters():
                parameter.mul_(SHRINK)
        return module.eval()

    def score(self, module: SaliencyModule, test: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return each test clip's metrics."""
        self.trainer(1).test(module, self.data(test, test), verbose=False)
        rows = module.metrics("test").per_video(dict(enumerate(test)))
        return {str(name): {metric: row[metric] for metric in METRICS} for name, row in rows.items()}


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], against: str) -> list[str]:
    """Return the rows of a Markdown table: mean [95 % interval], and the paired difference to one row below it."""

    def units(name: str, metric: str) -> Units:
        clips = sorted(rows[name])
        values = np.array([[rows[name][clip][metric]] for clip in clips])
        return Units(tuple(clips), values, np.ones_like(values))

    lines = ["| maps | CC | NSS | AUC-Judd | sAUC | SIM |", "|---|---|---|---|---|---|"]
    for name in rows:
        cells, differences = [], []
        for metric in METRICS:
            one = units(name, metric)
            low, high = interval(one.draws(resamples(len(one.names))))
            cells.append(f"{one.mean():.3f} [{low:.3f}, {high:.3f}]")
            by, low, high = paired(one, units(against, metric))
            differences.append(f"{by:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if name != against:
            lines.append("| _minus fitted centre_ | " + " | ".join(differences) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cross-validation and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hevc33", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument(
        "--only", type=int, help="run only this fold (from 0), for several processes side by side"
    )
    parser.add_argument(
        "--epochs", type=int, default=100, help="one random clip of each training video in each epoch"
    )
    parser.add_argument("--stride", type=int, default=10, help="distance of the scored frames")
    parser.add_argument(
        "--synthav", default="stavis-tiny-visual-synthav", help="the SynthAV checkpoint to compare with"
    )
    parser.add_argument("--start", help="a checkpoint to start from instead of random weights")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "avsal-hevc33")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hevc33.md"))
    parser.add_argument(
        "--ship", type=Path, help="train on all clips and write the checkpoint into this folder"
    )
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="lightning")
    bench = Bench(args.folder, args.work / "hevc33.h5", args.epochs, args.stride)
    names = sorted(bench.videos)
    fold = assign(names, args.folds)
    if args.ship:
        centre = bench.centre(names)
        bench.network(names, args.start, centre).save_pretrained(args.ship, dtype=torch.float16)
        return
    for k in range(args.folds) if args.only is None else [args.only]:
        began = time.perf_counter()
        train, test = [n for n in names if fold[n] != k], [n for n in names if fold[n] == k]
        centre = bench.centre(train)
        network = bench.network(train, args.start, centre)
        systems: dict[str, SaliencyModule] = {
            "uniform": BaselineModule("uniform", SIZE),
            "fixed centre": BaselineModule("centre", SIZE),
            "fitted centre": centre,
            "SynthAV only": avsal.from_pretrained(args.synthav).eval(),
            "network's prior alone": bench.prior_alone(network),
            "network": network,
            "16 observers for 16 others": BaselineModule("observers", SIZE, blur=1 / 30),
        }
        network.save_pretrained(args.work / f"fold{k}")
        rows = {name: bench.score(module, test) for name, module in systems.items()}
        part = args.work / f"fold{k}.json"
        write_text(part, json.dumps(rows))
        print(f"fold {k}, {time.perf_counter() - began:.0f} s: {', '.join(test)}", flush=True)
    parts = [args.work / f"fold{k}.json" for k in range(args.folds)]
    if all(part.exists() for part in parts):
        write(args, [json.loads(part.read_text()) for part in parts])


def write(args: argparse.Namespace, parts: Sequence[Mapping[str, Any]]) -> None:
    """Write the results of all folds."""
    rows = {name: {c: v for part in parts for c, v in part[name].items()} for name in parts[0]}
    clips = sorted(rows["network"], key=lambda c: rows["network"][c]["cc"] - rows["fitted centre"][c]["cc"])
    lines = [
        f"# HEVC-33, {args.folds} folds by scene family", "",
        f"`python -m benchmarks.hevc33 FOLDER --folds {args.folds} --epochs {args.epochs} --stride {args.stride}`, "
        f"{len(clips)} silent clips, 32 observers. Mean over clips [95 % bootstrap over clips].", "",
        *table(rows, "fitted centre"), "",
        "The same over the clips that no setting was chosen on:", "",
        *table({n: {c: v for c, v in r.items() if c not in DEVELOPMENT} for n, r in rows.items()}, "fitted centre"),
        "",
        "| clip | network CC | fitted centre CC | network NSS | fitted centre NSS |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for clip in clips:
        both = [rows[name][clip][metric] for metric in ("cc", "nss") for name in ("network", "fitted centre")]
        lines.append(f"| {clip} | " + " | ".join(f"{value:.3f}" for value in both) + " |")
    write_text(args.out, "\n".join(lines) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
