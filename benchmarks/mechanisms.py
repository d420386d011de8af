"""What CASP-Net's predictive coding and AVRSP's retention do in small networks, with the right and with another sound.

    python -m benchmarks.mechanisms [--clips 240] [--stride 5] [--out benchmarks/results/mechanisms.md]
                                    [--pictures docs/images] [--caspnet NAME] [--avrsp NAME]

Both are measured on SynthAV's congruent test clips (of a seed that no network was trained on), each clip once with its
own sound and once with that of another clip of the set:

- CASP-Net: half the squared prediction error at each iteration, of the visual state, of the middle and of the top
  against the sound, as a share of the first iteration's; for the rule that moves each state by its own error, why it
  grows; and the maps' correlation with the gaze where the interaction (AVIM), the coding (CPC) or both hear another
  clip's sound.
- AVRSP: the retention map Ret_A of each window, the mean over blocks, heads, moments and places (the paper's Figure 6
  shows it as pictures), its mean size, its spread over the places of a frame, and how far it lies above that mean where
  people look, in units of that spread; with the frames of the checkpoint and with frames of twice the height and width.

Values are means over clips with the 95 % interval of a bootstrap over clips; differences are of the same clips.
`--caspnet` may be given several times.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avsal import from_pretrained
from avsal.data import SynthAVDataModule
from avsal.data.clips import VideoBatches
from avsal.data.module import swapped_sound
from avsal.data.synthetic import FPS
from avsal.losses import correlation
from avsal.models.base import SaliencyModule
from avsal.models.caspnet import CASPNet
from avsal.nn.cpc import PredictiveCoding
from avsal.nn.s3d import pad_to_stride
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
    module: SaliencyModule,
    describe: Callable[[dict[str, Tensor], Any], Tensor],
    clips: int,
    stride: int,
) -> dict[str, np.ndarray]:
    """Return (clips, values) of what `describe` says of each window's `aux` and batch, averaged, per sound."""
    found = {}
    for sound in SOUNDS:
        rows: dict[str, list[np.ndarray]] = {}
        windows = batches(module, sound, clips, stride, ("congruent",))
        for index in range(len(windows)):
            batch: Any = windows[index]
            with torch.inference_mode():
                values = describe(module(batch).aux, batch).double().numpy()
            rows.setdefault(batch["video_name"][0], []).extend(values)
        found[sound] = means(rows)
    return found


def means(rows: dict[str, list[np.ndarray]]) -> np.ndarray:
    """Return (clips, values): the means over each clip's windows."""
    return np.stack([np.mean(rows[name], axis=0) for name in sorted(rows)])


# -- CASP-Net ------------------------------------------------------------------------------------------------


def coded(
    module: SaliencyModule, clips: int, stride: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Run CASP-Net once over the pictures, with every combination of sounds.

    Returns:
        The coding's errors (clips, iterations * 3) per sound; `reasons` (clips, values), of no columns for a rule that
        descends; and (clips, 4) correlations with the gaze, of what `PATHS` names.
    """
    network: Any = module.network
    assert isinstance(network, CASPNet)
    coding = network.cpc
    seen: dict[str, Tensor] = {}
    replaced: list[Tensor] = []

    def listen(_: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        seen["visual"], seen["audio"] = inputs
        return (inputs[0], replaced[0]) if replaced else inputs

    handle = coding.register_forward_pre_hook(listen)
    windows = {sound: batches(module, sound, clips, stride, ("congruent",)) for sound in SOUNDS}
    errors: dict[str, dict[str, list[np.ndarray]]] = {sound: {} for sound in SOUNDS}
    why: dict[str, list[np.ndarray]] = {}
    paths: dict[str, list[np.ndarray]] = {}
    for index in range(len(windows["own"])):
        batch: Any = windows["own"][index]
        other: Any = windows["swapped"][index]
        assert torch.equal(batch["frame"], other["frame"])
        name = batch["video_name"][0]
        with torch.inference_mode():
            maps = network.encoder(pad_to_stride(batch["video"]))
            stages = [aspp(value) for aspp, value in zip(network.aspp, maps, strict=True)]
            size = (batch["video"].shape[-2], batch["video"].shape[-1])
            sounds = {
                sound: network.frontend(*(b.get(key) for key in ("audio", "audio_length", "has_audio")))
                for sound, b in (("own", batch), ("swapped", other))
            }
            scores, heard = {}, {}
            for sound, patches in sounds.items():
                output = network.fuse(list(stages), patches, size)
                heard[sound] = seen["audio"]
                errors[sound].setdefault(name, []).extend(coding_errors(output.aux).double().numpy())
                scores[sound, sound] = correlation(output.saliency(), batch["density"])[:, 0]
            visual = seen["visual"]
            for sound, otherwise in (("own", "swapped"), ("swapped", "own")):
                replaced[:] = [heard[otherwise]]
                output = network.fuse(list(stages), sounds[sound], size)
                replaced.clear()
                scores[sound, otherwise] = correlation(output.saliency(), batch["density"])[:, 0]
        paths.setdefault(name, []).extend(torch.stack([scores[path] for path in PATHS], 1).double().numpy())
        why.setdefault(name, []).extend(
            reasons(coding, visual.clone(), heard["own"].clone(), heard["swapped"].clone()).double().numpy()
        )
    handle.remove()
    return {sound: means(rows) for sound, rows in errors.items()}, means(why), means(paths)


#: The sounds that the interaction and the coding hear, and how the table calls them.
PATHS = {
    ("own", "own"): "right sound",
    ("own", "swapped"): "another clip's in the coding",
    ("swapped", "own"): "another clip's in the interaction",
    ("swapped", "swapped"): "another clip's in both",
}
REASONS = (
    "root mean square of the coded maps",
    "of the sound they are compared with",
    "change of the coded maps by another clip's sound, %",
    "how far the prediction moves along when the state moves by its error (g)",
    "hence growth of the visual error in one iteration, (1 + alpha (g - 1))^2, %",
    "measured, %",
    "with a tenth of the step, %",
    "with maps a thousand times smaller, %",
    "cosine of the state's own error and the gradient of the error",
)


def reasons(coding: PredictiveCoding, visual: Tensor, audio: Tensor, other: Tensor) -> Tensor:
    """Return (B, values) of what `REASONS` names; the first three only for a rule that descends.

    `g` is the share of the error e of the first iteration that J e has along e, where J is the Jacobian of the
    prediction with respect to the visual state, by autograd: moving the state by -alpha e changes its error to
    (1 + alpha (g - 1)) e along e.
    """

    def size(values: Tensor) -> Tensor:
        return values.flatten(1).square().mean(1).sqrt()

    with torch.no_grad():
        heard = coding.audio(audio)
        first, second = (coding(visual, sound)[0] for sound in (audio, other))
        values = [size(visual), size(heard), 100 * size(first - second) / size(first)]
    if coding.gradient == "total":
        return torch.stack(values, 1)
    alpha, top = (float(rate) for rate in coding.rates())

    def predicted(state: Tensor, rate: float = alpha) -> Tensor:
        """The prediction of the visual state after the upward pass and the steps above it, written down anew."""
        middle = F.relu(coding.up[0](state))
        above = F.relu(coding.up[1](middle))
        above = above - top * (above - heard[:, :, None, None, None])
        middle = middle - rate * (middle - coding.down[1](above, output_size=middle.shape[2:]))
        return coding.down[0](middle, output_size=state.shape[2:])

    def growth(state: Tensor, rate: float = alpha) -> Tensor:
        with torch.no_grad():
            error = state - predicted(state, rate)
            state = state - rate * error
            return 100 * (size(state - predicted(state, rate)) / size(error)).square()

    state = visual.clone().requires_grad_()
    error = state - predicted(state)
    (gradient,) = torch.autograd.grad(0.5 * error.square().sum(), state)
    error = error.detach()
    # e - J^T e is the gradient, so e.J e = e.e - e.gradient.
    square = error.square().flatten(1).sum(1)
    ahead = 1 - (error * gradient).flatten(1).sum(1) / square
    values += [
        ahead,
        100 * (1 + alpha * (ahead - 1)).square(),
        growth(visual),
        growth(visual, alpha / 10),
        growth(visual / 1000),
        F.cosine_similarity(error.flatten(1), gradient.flatten(1)),
    ]
    return torch.stack(values, 1)


def retention(aux: dict[str, Tensor], density: Tensor) -> Tensor:
    """Return (B, 4): the mean of Ret_A, its mean size, its standard deviation over places, and its height at the gaze.

    Args:
        aux: with `Ret_A` (B, blocks, heads, moments, T, h, w).
        density: (B, 1, H, W) of the last frame; where people look is its share of each of the h x w cells.
    """
    maps = aux["Ret_A"]
    places = maps.flatten(-2)
    spread = places.std(-1)
    weight = F.adaptive_avg_pool2d(density, maps.shape[-2:]).flatten(1)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    last, deviation = places[..., -1, :], spread[..., -1].clamp_min(1e-12)
    height = ((last * weight[:, None, None, None]).sum(-1) - last.mean(-1)) / deviation
    return torch.stack(
        [part.flatten(1).mean(1) for part in (maps, maps.abs(), spread, height)],
        dim=1,
    )


def enlarged(module: SaliencyModule, times: int) -> SaliencyModule:
    """Return the same network with the same weights for frames of `times` the height and width."""
    height, width = module.spec.size
    larger = type(module)(**{**module.hparams, "size": (times * height, times * width)})
    larger.load_state_dict(module.state_dict())
    return larger.eval()


def coding_errors(aux: dict[str, Tensor]) -> Tensor:
    """Return (B, iterations * 3) prediction errors."""
    return aux["cpc_error"].flatten(1)


def cell(values: np.ndarray, digits: int = 3, sign: str = "") -> str:
    """Return a mean over clips with its interval."""
    low, high = interval(resamples(len(values)) @ values / len(values))
    return f"{values.mean():{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def retention_table(found: dict[str, np.ndarray]) -> list[str]:
    """Return the lines of AVRSP's table."""
    names = ("mean of Ret_A", "mean size of Ret_A", "standard deviation over places", "height at the gaze")
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


def listed(names: Sequence[str], values: np.ndarray, digits: int = 2) -> list[str]:
    """Return the lines of a table of one column: the means over clips with their intervals."""
    return ["| | |", "|---|--:|"] + [
        f"| {name} | {cell(values[:, k], digits)} |" for k, name in enumerate(names)
    ]


def paths_table(found: np.ndarray) -> list[str]:
    """Return the lines of the table of what hears which sound."""
    lines = ["| | CC with the gaze | less than with the right sound |", "|---|--:|--:|"]
    for column, name in enumerate(PATHS.values()):
        difference = cell(found[:, column] - found[:, 0], sign="+") if column else ""
        lines.append(f"| {name} | {cell(found[:, column])} | {difference} |")
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
    parser.add_argument("--caspnet", action="append", help="name, file or NAME=FILE of a CASP-Net checkpoint")
    args = parser.parse_args()
    command = f"python -m benchmarks.mechanisms --clips {args.clips} --stride {args.stride}"
    lines = []
    first: Any = None
    for given in args.caspnet or [CASPNET]:
        name, _, file = given.partition("=")
        casp = from_pretrained(file or name).eval()
        errors, why, paths = coded(casp, args.clips, args.stride)
        iterations = int(casp.hparams["iterations"])
        first = first or (casp, errors, iterations)
        rule = f"cpc_gradient={casp.hparams['cpc_gradient']}"
        lines += [
            f"## CASP-Net: prediction error over the iterations ({name}, {rule})", "",
            *coding_table(errors, iterations), "", *listed(REASONS[: why.shape[1]], why), "", *paths_table(paths), "",
        ]  # fmt: skip
        command += f" --caspnet {name}{'=FILE' if file else ''}" if args.caspnet else ""
    small = from_pretrained(args.avrsp).eval()
    for avrsp in (small, enlarged(small, 2)):
        kept = per_clip(avrsp, lambda aux, batch: retention(aux, batch["density"]), args.clips, args.stride)
        height, width = avrsp.spec.size
        lines += [f"## AVRSP: retention ({args.avrsp}, {height} x {width})", "", *retention_table(kept), ""]
    lines = [
        "# What the mechanisms do", "",
        f"`{command}`: {len(kept['own'])} congruent test clips of SynthAV; means over clips [95 % interval of a "
        "bootstrap over clips]. docs/models/ says what a FILE is and what follows.", "", *lines,
    ]  # fmt: skip
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines), encoding="utf-8")
    if args.pictures is not None:
        maps = {"map": saliency, "Ret_A": lambda output: output.aux["Ret_A"][:, 0].mean((1, 2, 3))}
        title = "AVRSP: retention of the first block, mean of heads and moments"
        picture(small, maps, args.clips, args.pictures / "avrsp-retention.png", title)
        title = "CASP-Net with the right and with another clip's sound"
        casp, errors, iterations = first
        picture(casp, {"map": saliency}, args.clips, args.pictures / "caspnet-sound.png", title)
        curves(errors, iterations, args.pictures / "caspnet-errors.png")


if __name__ == "__main__":
    main()
