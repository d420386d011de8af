"""What CASP-Net's predictive coding and AVRSP's retention do in small networks, with the right and with another sound.

    python -m benchmarks.mechanisms [--clips 240] [--stride 5] [--out benchmarks/results/mechanisms.md]
                                    [--pictures docs/images]

Both are measured on SynthAV's congruent test clips (of a seed that no network was trained on), each clip once with its
own sound and once with that of another clip of the set:

- AVRSP: the retention map Ret_A of each window, the mean over blocks, heads, moments and places (the paper's Figure 6
  shows it as pictures), its mean size, and its spread over the places of a frame.
- CASP-Net: half the squared prediction error at each iteration, of the visual state, of the middle and of the top
  against the sound, as a share of the first iteration's.

Values are means over clips with the 95 % interval of a bootstrap over clips; differences are of the same clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avsal import from_pretrained
from avsal.data import SynthAVDataModule
from avsal.data.clips import VideoBatches
from avsal.data.module import swapped_sound
from avsal.data.synthetic import FPS
from avsal.models.base import SaliencyModule
from avsal.report.statistics import interval, resamples
from avsal.report.synthav import TEST_SEED
from avsal.types import SaliencyOutput

CASPNET, AVRSP = "caspnet-tiny-synthav", "avrsp-tiny-synthav"
#: What a clip hears, and how tables call it.
SOUNDS = {"own": "right sound", "swapped": "another clip's"}
#: Levels of the predictive coding, from the picture up.
LEVELS = ("visual state", "middle", "top, against the sound")
#: The test clip of the pictures, by its place.
SHOWN = 4


def batches(
    module: SaliencyModule, sound: str, clips: int, stride: int, conditions: Sequence[str]
) -> VideoBatches:
    """Return the test windows, with each clip's own or another clip's sound."""
    data = SynthAVDataModule(clips=clips, synth_seed=TEST_SEED, conditions=conditions)
    data.use_spec(module.spec)
    items = data.split_items("test")
    if sound == "swapped":
        items = swapped_sound(items)
    return VideoBatches(items, module.spec, batch_size=16, stride=stride, native=False, negatives=False)


def per_clip(
    module: SaliencyModule, describe: Callable[[dict[str, Tensor]], Tensor], clips: int, stride: int
) -> dict[str, np.ndarray]:
    """Return (clips, values) of what `describe` says of each window's `aux`, averaged over the windows, per sound."""
    found = {}
    for sound in SOUNDS:
        rows: dict[str, list[np.ndarray]] = {}
        windows = batches(module, sound, clips, stride, ("congruent",))
        for index in range(len(windows)):
            batch: Any = windows[index]
            with torch.inference_mode():
                values = describe(module(batch).aux).double().numpy()
            rows.setdefault(batch["video_name"][0], []).extend(values)
        found[sound] = np.stack([np.mean(rows[name], axis=0) for name in sorted(rows)])
    return found


def retention(aux: dict[str, Tensor]) -> Tensor:
    """Return (B, 3): the mean of Ret_A, its mean size, and the standard deviation over places."""
    maps = aux["Ret_A"]  # (B, blocks, heads, moments, T, h, w)
    places = maps.flatten(-2)
    return torch.stack(
        [maps.flatten(1).mean(1), maps.abs().flatten(1).mean(1), places.std(-1).flatten(1).mean(1)], dim=1
    )


def coding_errors(aux: dict[str, Tensor]) -> Tensor:
    """Return (B, iterations * 3) prediction errors."""
    return aux["cpc_error"].flatten(1)


def cell(values: np.ndarray, digits: int = 3, sign: str = "") -> str:
    """Return a mean over clips with its interval."""
    low, high = interval(resamples(len(values)) @ values / len(values))
    return f"{values.mean():{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def retention_table(found: dict[str, np.ndarray]) -> list[str]:
    """Return the lines of AVRSP's table."""
    names = ("mean of Ret_A", "mean size of Ret_A", "standard deviation over places")
    lines = ["| | right sound | another clip's sound | difference |", "|---|--:|--:|--:|"]
    for column, name in enumerate(names):
        own, other = (found[sound][:, column] for sound in SOUNDS)
        lines.append(f"| {name} | {cell(own)} | {cell(other)} | {cell(own - other, sign='+')} |")
    return lines


def shares(found: dict[str, np.ndarray], sound: str, level: int, iterations: int) -> tuple[float, np.ndarray]:
    """Return a level's mean error at the first iteration, and (clips, iterations) errors as shares of the first."""
    errors = found[sound].reshape(len(found[sound]), iterations, len(LEVELS))[:, :, level]
    return float(errors[:, 0].mean()), errors / errors[:, :1]


def coding_table(found: dict[str, np.ndarray], iterations: int) -> list[str]:
    """Return the lines of CASP-Net's table."""
    lines = ["| level | sound | " + " | ".join(f"iteration {n + 1}" for n in range(iterations)) + " |"]
    lines.append("|---|---|" + "--:|" * iterations)
    for level, name in enumerate(LEVELS):
        for sound, words in SOUNDS.items():
            first, part = shares(found, sound, level, iterations)
            cells = [f"{first:.2g} (100 %)"]
            cells += [cell(100 * part[:, n], 1) + " %" for n in range(1, iterations)]
            lines.append(f"| {name} | {words} | " + " | ".join(cells) + " |")
    return lines


def saliency(output: SaliencyOutput) -> Tensor:
    """Return (B, h, w) maps."""
    return output.saliency()[:, 0]


# -- pictures ------------------------------------------------------------------------------------------------


def picture(
    module: SaliencyModule,
    maps: dict[str, Callable[[SaliencyOutput], Tensor]],
    clips: int,
    path: Path,
    title: str,
) -> None:
    """Draw frames of one clip with their gaze, and below them what `maps` (by name) gives for both sounds."""
    import matplotlib.pyplot as plt

    batch: Any = None
    drawn: list[tuple[str, Tensor]] = []
    with torch.inference_mode():
        outputs = {}
        for sound in SOUNDS:  # every fifteenth frame of a clip is one batch
            batch = batches(module, sound, clips, 15, ("congruent",))[SHOWN]
            outputs[sound] = module(batch)
        for name, of in maps.items():
            drawn += [(f"{name}, {words}", of(outputs[sound])) for sound, words in SOUNDS.items()]
    spec, frames = module.spec, batch["frame"].flatten().tolist()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    pixels = (batch["video"][:, :, spec.target_index] * std + mean).clamp(0, 255).permute(0, 2, 3, 1) / 255
    wanted = range(1, len(frames))  # nobody has looked anywhere yet in the first
    rows = 1 + len(drawn)
    figure, axes = plt.subplots(
        rows, len(wanted), figsize=(2.3 * len(wanted), 1.75 * rows), layout="constrained"
    )
    for column, at in enumerate(wanted):
        axes[0, column].imshow(pixels[at])
        axes[0, column].contour(batch["density"][at, 0], levels=[0.3, 0.7], colors="white", linewidths=0.8)
        axes[0, column].set_title(f"{frames[at] / FPS:.1f} s", fontsize=9)
        for row, (_, values) in enumerate(drawn, 1):
            # Both sounds of one map share a scale.
            pair = drawn[(row - 1) // 2 * 2][1], drawn[(row - 1) // 2 * 2 + 1][1]
            low, high = (float(f(torch.stack([p[at] for p in pair]))) for f in (torch.min, torch.max))
            axes[row, column].imshow(values[at], cmap="magma", vmin=low, vmax=high)
    for row, name in enumerate(["frame, gaze", *(name for name, _ in drawn)]):
        axes[row, 0].set_ylabel(name, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def curves(found: dict[str, np.ndarray], iterations: int, path: Path) -> None:
    """Draw CASP-Net's prediction errors over the iterations."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(LEVELS), figsize=(8.4, 2.6), layout="constrained")
    for level, (axis, name) in enumerate(zip(axes, LEVELS, strict=True)):
        for (sound, words), style in zip(SOUNDS.items(), ("o-", "s--"), strict=True):
            _, part = shares(found, sound, level, iterations)
            bounds = np.array([interval(resamples(len(part)) @ values / len(part)) for values in part.T])
            middle = part.mean(0)
            axis.errorbar(
                range(1, iterations + 1), middle, abs(bounds.T - middle), fmt=style, label=words, capsize=3
            )
        axis.set(title=name, xlabel="iteration", xticks=range(1, iterations + 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error, share of the first")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Measure, print, and write the table and the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--stride", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--avrsp", default=AVRSP, help="name or file of the AVRSP checkpoint")
    parser.add_argument("--caspnet", default=CASPNET, help="name or file of the CASP-Net checkpoint")
    args = parser.parse_args()
    casp = from_pretrained(args.caspnet).eval()
    coded = per_clip(casp, coding_errors, args.clips, args.stride)
    iterations = int(casp.hparams["iterations"])
    lines = [
        "# What the mechanisms do", "",
        f"`python -m benchmarks.mechanisms --clips {args.clips} --stride {args.stride}`: {len(coded['own'])} congruent "
        "test clips of SynthAV; means over clips [95 % interval of a bootstrap over clips].", "",
        f"## CASP-Net: prediction error over the iterations ({args.caspnet})", "", *coding_table(coded, iterations), "",
    ]  # fmt: skip
    avrsp = from_pretrained(args.avrsp).eval()
    kept = per_clip(avrsp, retention, args.clips, args.stride)
    lines += [f"## AVRSP: retention ({args.avrsp})", "", *retention_table(kept), ""]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines), encoding="utf-8")
    if args.pictures is not None:
        maps = {"map": saliency, "Ret_A": lambda output: output.aux["Ret_A"][:, 0].mean((1, 2, 3))}
        title = "AVRSP: retention of the first block, mean of heads and moments"
        picture(avrsp, maps, args.clips, args.pictures / "avrsp-retention.png", title)
        title = "CASP-Net with the right and with another clip's sound"
        picture(casp, {"map": saliency}, args.clips, args.pictures / "caspnet-sound.png", title)
        curves(coded, iterations, args.pictures / "caspnet-errors.png")


if __name__ == "__main__":
    main()
